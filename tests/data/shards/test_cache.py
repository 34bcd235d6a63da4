"""Remote shards are read through a cache of copies named by their checksums."""

import fsspec
import pytest

from medunifier.data.shards.dataset import ShardDataset
from medunifier.shared.errors import UserError
from tests.data.shards.test_dataset import write_folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("MEDUNIFIER_CACHE", str(folder))
    return folder


@pytest.fixture
def remote(tmp_path):
    """Yield the URL of a shard folder in fsspec's memory file system."""
    local = tmp_path / "local"
    local.mkdir()
    write_folder(local)
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for path in local.iterdir():
        memory.pipe_file(f"/bucket/shards/{path.name}", path.read_bytes())
    yield "memory://bucket/shards"
    memory.store.clear()


def test_remote_and_local_samples_are_equal(remote, tmp_path):
    local, remote_dataset = ShardDataset(tmp_path / "local", "train"), ShardDataset(remote + "/", "train")
    assert len(remote_dataset) == len(local) == 8
    for number in (7, 0, 4):
        assert remote_dataset[number].info == local[number].info
        assert (remote_dataset[number].codes == local[number].codes).all()


def test_each_shard_is_downloaded_once(remote, cache):
    assert ShardDataset(remote, "train")[7].info["n"] == 7
    assert len(list(cache.rglob("*.tar"))) == 1  # only the requested shard
    fsspec.filesystem("memory").rm("/bucket/shards/train-000001.tar")
    assert ShardDataset(remote, "train")[6].info["n"] == 6
    with pytest.raises(UserError, match=r"memory://bucket/shards/train-000000\.tar"):
        fsspec.filesystem("memory").rm("/bucket/shards/train-000000.tar")
        _ = ShardDataset(remote, "train")[0]


def test_partial_downloads_of_a_killed_process_are_removed(remote, cache):
    (cache / "shards").mkdir(parents=True)
    (cache / "shards" / ".partial-1-abc.tar").write_text("half")
    _ = ShardDataset(remote, "train")[0]
    assert not list(cache.rglob(".partial-*")) and len(list(cache.rglob("*.tar"))) == 1


def test_a_damaged_copy_is_downloaded_again(remote, cache):
    expected = ShardDataset(remote, "train")[0].codes
    (copy,) = cache.rglob("*.tar")
    copy.write_bytes(copy.read_bytes()[:-600])
    assert (ShardDataset(remote, "train")[0].codes == expected).all()


def test_a_damaged_remote_shard_is_reported_and_not_cached(remote, cache):
    memory = fsspec.filesystem("memory")
    content = memory.cat_file("/bucket/shards/train-000001.tar")
    memory.pipe_file("/bucket/shards/train-000001.tar", content[:600] + b"?" + content[601:])
    with pytest.raises(UserError, match=r"memory://bucket/shards/train-000001\.tar.*damaged"):
        _ = ShardDataset(remote, "train")[7]
    assert not list(cache.rglob("*.tar"))
    memory.pipe_file("/bucket/shards/train-000001.tar", content)
    assert ShardDataset(remote, "train")[7].info["n"] == 7


def test_shards_are_read_from_a_web_server(tmp_path, served):
    local = tmp_path / "local"
    local.mkdir()
    write_folder(local)
    url, end = served(tmp_path)
    assert ShardDataset(f"{url}/local", "train")[3].info["n"] == 3
    with pytest.raises(UserError, match="absent"):
        ShardDataset(f"{url}/absent", "train")
    end()
    with pytest.raises(UserError, match=r"127\.0\.0\.1"):
        ShardDataset(f"{url}/local", "train")


def test_a_missing_file_system_package_is_reported():
    with pytest.raises(UserError, match="pip install s3fs"):
        ShardDataset("s3://bucket/shards", "train")
    with pytest.raises(UserError, match="nowhere://"):
        ShardDataset("nowhere://bucket/shards", "train")
