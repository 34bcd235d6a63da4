"""A remote archive is checked and ingested directly; its shards equal those of a local copy."""

import pytest

from medunifier.data.images.radiograph import read_radiograph
from medunifier.data.ingest import command
from medunifier.data.ingest.command import IngestConfig, ingest, main
from medunifier.data.phantom.command import PhantomConfig, write_archive
from medunifier.shared.errors import UsageError, UserError
from tests.files import contents


@pytest.fixture
def archive(tmp_path):
    write_archive(PhantomConfig(out=tmp_path / "server" / "tree", studies=6, seed=3, size=48))
    return tmp_path / "server" / "tree"


def test_remote_and_local_archives_give_the_same_shards(archive, served, tmp_path, capsys):
    url, end = served(archive.parent)
    options = {"source": "phantom", "size": 48, "workers": 2, "shard_studies": 2}
    ingest(IngestConfig(**options, root=str(archive), out=str(tmp_path / "local")))
    ingest(IngestConfig(**options, root=f"{url}/tree", out=str(tmp_path / "remote")))
    assert contents(tmp_path / "remote") == contents(tmp_path / "local")
    path = next(archive.rglob("*.dcm"))
    assert (read_radiograph(f"{url}/tree/{path.relative_to(archive)}") == read_radiograph(path)).all()

    path.unlink()
    capsys.readouterr()
    main(["--source", "phantom", "--root", f"{url}/tree", "--check", "--check_names", "true", "--workers", "1"])
    printed = capsys.readouterr().out
    assert f"missing: {url}/tree/{path.relative_to(archive)}" in printed

    end()
    with pytest.raises(UserError, match=r"127\.0\.0\.1"):
        ingest(IngestConfig(**options, root=f"{url}/tree", out=str(tmp_path / "gone")))
    assert not (tmp_path / "gone").exists()


def test_a_lost_connection_rejects_no_image(archive, served, tmp_path, monkeypatch):
    url, end = served(archive.parent)
    config = IngestConfig(source="phantom", root=f"{url}/tree", out=str(tmp_path / "out"), size=48, workers=1)
    plan = command._plan

    def plan_then_end(*arguments):
        jobs = plan(*arguments)
        end()
        return jobs

    with monkeypatch.context() as patch:
        patch.setattr("medunifier.data.ingest.command._plan", plan_then_end)
        with pytest.raises(UserError, match="same command"):
            ingest(config)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_remote_output_folders_are_refused():
    with pytest.raises(UsageError, match="out.*s3://b/y|out must"):
        main(["--source", "phantom", "--root", "s3://b/x", "--out", "s3://b/y"])
    with pytest.raises(UserError, match="pip install s3fs"):
        main(["--source", "phantom", "--root", "s3://b/x", "--check"])
