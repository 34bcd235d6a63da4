import numpy as np
import pytest
from PIL import Image

from medunifier.data.ingest.check import check_source, reason_lines
from medunifier.data.ingest.command import main
from medunifier.data.ingest.splits import assign_splits
from medunifier.data.sources import SourceOptions, read_source
from medunifier.shared.command import run_command
from medunifier.shared.errors import UsageError, UserError


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "tree"
    root.mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
    (root / "4.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (root / "5.png").unlink()
    views = ("PA", "PA", "AP", "LATERAL", "", "")
    lines = [f"{n}.png,p{n // 2},s{n},{view},{'Clear.' if n < 4 else 'nan'},{'train' if n < 4 else ''}" for n, view in
             enumerate(views)]  # fmt: skip
    (root / "manifest.csv").write_text(
        "\n".join(["image,patient_id,study_id,view,findings,split", *lines, ",p9,,,,"])
    )
    return root


def check(root, images=0):
    return check_source(read_source("csv", root, SourceOptions()), "csv", str(root), images, workers=1, cluster="")


def test_check_counts_present_missing_and_unreadable_files(root):
    report = check(root)
    assert report.counts == {
        "patients": 3, "studies": 6, "images": 6, "studies with a report": 4, "studies with labels": 4,
        "reports without section headers": 0, "reports without findings and impression": 0,
    }  # fmt: skip
    assert report.splits == {"train": 4, "assigned at ingest": 2}
    assert report.views == {"PA": 2, "AP": 1, "LATERAL": 1, "not stated": 2}
    assert report.missing == [root / "5.png"] and report.decoded == 5
    assert [path.name for path, _ in report.unreadable] == ["4.png"]
    assert report.problems == {"row without image": 1}


def test_decoded_images_are_evenly_spaced(root):
    assert check(root, images=2).decoded == 2
    assert check(root, images=2).unreadable == []  # the first and the middle one
    assert check(root, images=99).decoded == 5


def test_the_command_prints_a_table_and_writes_nothing(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    main(["--source", "csv", "--root", str(root), "--check", "--check_images", "0", "--workers", "1"])
    output = capsys.readouterr().out
    rows = {" ".join(line.split()[:-1]): line.split()[-1] for line in output.splitlines() if line.strip()}
    assert rows["patients"] == "3" and rows["split train"] == "4" and rows["files unreadable"] == "1"
    assert rows["problem: row without image"] == "1"
    assert sorted(tmp_path.rglob("*")) == before  # no shard, no key


def test_file_names_are_printed_only_with_check_names(root, tmp_path, capsys):
    command = ["--source", "csv", "--root", str(root), "--check", "--check_images", "0", "--workers", "1"]
    main(command)
    output = capsys.readouterr().out
    assert ".png" not in output and "manifest.csv" not in output and "unreadable: not readable" in output
    main([*command, "--check_names", "true"])
    output = capsys.readouterr().out
    assert f"missing: {root / '5.png'}" in output and f"unreadable: {root / '4.png'}: not readable" in output


def test_an_unknown_view_position_is_counted_as_other_and_not_printed(root, capsys):
    (root / "manifest.csv").write_text("image,view\n0.png,Miller\n1.png,PA\n2.png,\n")
    assert check(root).views == {"other": 1, "PA": 1, "not stated": 1}
    assert "Miller" not in capsys.readouterr().out


def test_check_fails_if_no_image_can_be_read(root):
    for number in range(4):
        (root / f"{number}.png").unlink()
    with pytest.raises(UserError, match="no image.*PNG"):
        check(root)
    (root / "4.png").unlink()
    with pytest.raises(UserError, match="no image.*6"):
        check(root)


def test_check_fails_if_official_splits_leak_and_new_splits_do_not(root):
    (root / "manifest.csv").write_text("image,patient_id,split\n0.png,p,train\n1.png,p,test\n2.png,q,test\n")
    with pytest.raises(UserError, match="official_splits false"):
        check(root)
    records = read_source("csv", root, SourceOptions(official_splits=False)).records
    split = {record.study_id: record.split for record in assign_splits(records, bytes(32), 0.1, 0.1)}
    assert split["p/0.png"] == split["p/1.png"]


def test_neither_out_nor_check_is_a_usage_error(root):
    with pytest.raises(UsageError, match="give --out DIR"):
        main(["--source", "csv", "--root", str(root)])


def test_the_exit_code_is_0_only_if_ingest_could_succeed(root, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    command = ["--source", "csv", "--root", str(root), "--check", "--workers", "1"]
    assert run_command(main, command) == 0  # missing and broken files will be left out
    capsys.readouterr()
    for content, message in (
        ("file,patient_id\n0.png,p\n", "patient_id"),
        ("image,split\n0.png,dev\n", "dev"),
        ("image\nabsent.png\n", "missing"),
        ("image\n", "no radiograph found"),
    ):
        (root / "manifest.csv").write_text(content)
        assert run_command(main, command) == 1
        error = capsys.readouterr().err.splitlines()
        assert message in error[-1] and "Traceback" not in "".join(error)
    assert not (tmp_path / "home").exists()


def test_reasons_that_are_not_shown_are_counted():
    reasons = [f"reason {number}" for number in range(8) for _ in range(10 - number)]
    lines = reason_lines(reasons, 5)
    assert len(lines) == 6 and lines[0] == "reason 0 (10)" and "12" in lines[-1] and "3" in lines[-1]
    assert len(reason_lines(reasons, 8)) == 8


def test_missing_images_are_found_as_left_out(root, capsys):
    main(["--source", "csv", "--root", str(root), "--find", "left_out"])
    assert sum(str(root / "5.png") in line for line in capsys.readouterr().out.splitlines()) == 1
