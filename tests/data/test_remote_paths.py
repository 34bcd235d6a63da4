"""Remote archives behave like local ones, and unreachable ones raise a one-line error."""

import os
import pickle
from pathlib import Path

import fsspec
import pytest

from medunifier.data.remote_paths import RemotePath, as_path, open_root, read_at_most
from medunifier.shared.errors import UserError

FILES = ("t.csv", "files/p10/s1.txt", "files/p10/s1/a.dcm", "files/p11/s2/b.dcm", "files/p11/s2/c.png")


@pytest.fixture
def both(tmp_path):
    """Return the roots of one tree on the local disk and in fsspec's memory file system."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
        memory.pipe_file(f"/bucket/{name}", f"text of {name}".encode())
    yield open_root(tmp_path), open_root("memory://bucket/")
    memory.store.clear()


def _read_or_refused(path, most):
    try:
        return read_at_most(path, most)
    except OSError as error:
        return error.errno


@pytest.mark.parametrize(
    "query",
    [
        lambda root: [(root / name).is_file() for name in (*FILES, "files", "absent", "absent/a")],
        lambda root: [(root / name).is_dir() for name in (*FILES, "files", "files/p10", "absent", "")],
        lambda root: [(root / name).exists() for name in (*FILES, "files", "absent")],
        lambda root: [str(path.relative_to(root)) for path in sorted(root.glob("*.csv"))],
        lambda root: [str(path.relative_to(root)) for path in sorted(root.glob("**/s2/*.png"))],
        lambda root: [str(path.relative_to(root)) for path in sorted(root.glob("**/p10/*.txt"))],
        lambda root: [str(path.relative_to(root)) for path in sorted(root.rglob("*.dcm"))],
        lambda root: (root / "files/p10/s1/a.dcm").parent.with_suffix(".txt").read_text(encoding="utf-8"),
        lambda root: (root / "files" / "t.csv").with_name("p10").name,
        lambda root: (root / Path("files", "p10") / "s1.txt").read_bytes(),
        lambda root: [_read_or_refused(root / "t.csv", most) for most in (13, 12)],
        lambda root: (lambda file: (file.seek(5), file.read(2), file.seek(0), file.read()))(open_binary(root)),
    ],
)
def test_a_remote_folder_behaves_like_a_local_one(both, query):
    local, remote = both
    assert query(remote) == query(local)


def open_binary(root):
    return (root / "t.csv").open("rb")


def test_a_remote_path_is_a_url_can_be_pickled_and_is_not_a_local_path(both):
    path = both[1] / "files" / "p10"
    assert str(path) == "memory://bucket/files/p10" and pickle.loads(pickle.dumps(path)) == path
    assert hash(as_path(str(path))) == hash(path) and sorted([path / "b", path / "a"])[0] == path / "a"
    with pytest.raises(TypeError, match="not a local file"):
        os.fspath(path)
    with pytest.raises(FileNotFoundError):
        (path / "absent").read_bytes()


def test_remote_listings_are_not_cached_between_commands(both):
    root = both[1]
    assert not (root / "new.csv").exists()
    fsspec.filesystem("memory").pipe_file("/bucket/new.csv", b"")
    assert (open_root("memory://bucket") / "new.csv").exists()


def test_file_urls_are_local_paths(tmp_path):
    assert as_path(tmp_path.as_uri()) == tmp_path and not isinstance(as_path("a/b"), RemotePath)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://absent", "memory://absent"),
        ("s3://bucket/mimic", "pip install s3fs"),
        ("nowhere://bucket", "nowhere://"),
        ("s3:///mimic", "s3:///mimic"),
        ("zip://a::s3://bucket/b.zip", "zip://"),
    ],
)
def test_errors_of_invalid_urls_name_the_url_or_package(url, message):
    with pytest.raises(UserError, match=message):
        open_root(url)


def test_network_errors_are_user_errors(both, monkeypatch):
    """An image must not be rejected because of a network error."""

    class Broken(Exception):
        pass

    def fail(*_, **__):
        raise Broken("connection\nreset")

    path = both[1] / "t.csv"
    file = path.open()
    for name in ("cat_file", "size", "ls"):
        monkeypatch.setattr(type(fsspec.filesystem("memory")), name, fail)
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFile.read", fail)
    for read in (path.read_bytes, lambda: read_at_most(path, 9), (both[1] / "files" / "x").is_file, file.read):
        with pytest.raises(UserError, match="memory://bucket.*Broken.*connection reset"):
            read()


def test_a_missing_file_is_distinguished_from_an_unreachable_server(tmp_path, served):
    (tmp_path / "a.txt").write_text("a")
    url, stop = served(tmp_path)
    root = open_root(url)
    assert (root / "a.txt").read_text() == "a" and not (root / "b.txt").is_file()
    for path in (root / "b.txt", root / "c" / "b.txt"):
        with pytest.raises(FileNotFoundError):
            read_at_most(path, 9)
    stop()
    with pytest.raises(UserError, match="cannot be read"):
        read_at_most(root / "a.txt", 9)
