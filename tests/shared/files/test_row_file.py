"""Rows survive a kill, a finished file is complete, and foreign files are not overwritten."""

import csv
import json

import pytest

from medunifier.shared.errors import UserError
from medunifier.shared.files.row_file import RowFile

RUN = {"model": "a", "beams": 1}


def open_rows(out, run=RUN):
    return RowFile(str(out), run, ["key", "x"], lambda row: [row | {"x": x} for x in row.get("xs", [])])


def test_a_stopped_run_continues_behind_its_last_whole_row(tmp_path):
    out = tmp_path / "deep" / "rows.jsonl"
    with open_rows(out) as rows:
        rows.add([{"key": "a"}, {"key": "b", "error": "no"}])
    journal = out.with_name("rows.jsonl.unfinished")
    with open(journal, "ab") as file:
        file.write(b'{"key": "c')  # what a kill leaves
    assert not out.exists()
    with open_rows(out) as rows:
        assert (rows.count, rows.failed, rows.done) == (2, 1, False)
        rows.add([{"key": "c\udcff"}])  # of a file name that is no UTF-8
        rows.finish()
    assert [json.loads(line)["key"] for line in out.read_text().splitlines()] == ["a", "b", "c\udcff"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["rows.jsonl", "rows.jsonl.run.json"]
    assert open_rows(out).done


def test_remnants_of_a_kill_at_the_end_are_removed_on_the_next_start(tmp_path):
    out = tmp_path / "rows.jsonl"
    with open_rows(out) as rows:
        rows.add([{"key": "a"}])
        journal = out.with_name("rows.jsonl.unfinished").read_bytes()
    partials = [tmp_path / f".partial-1-{name}" for name in ("rows.jsonl", "rows.jsonl.run.json", "others.jsonl")]
    for path in partials:
        path.write_text("half")  # killed as it wrote the final file
    with open_rows(out) as rows:
        assert rows.count == 1 and [path for path in partials if path.exists()] == partials[2:]
        rows.finish()
    out.with_name("rows.jsonl.unfinished").write_bytes(journal)  # killed behind the rename
    partials[0].write_text("half")
    assert open_rows(out).done
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".partial-1-others.jsonl", "rows.jsonl", "rows.jsonl.run.json",
    ]  # fmt: skip


def test_csv_has_the_rows_of_each_row(tmp_path):
    with open_rows(tmp_path / "rows.csv") as rows:
        rows.add([{"key": "a,b", "xs": [1, 2]}, {"key": "c"}, {"key": "d", "xs": [3], "other": 0}])
        rows.finish()
    with open(tmp_path / "rows.csv", newline="") as file:
        assert list(csv.reader(file)) == [["key", "x"], ["a,b", "1"], ["a,b", "2"], ["d", "3"]]


def test_another_runs_file_is_refused_begun_or_finished(tmp_path):
    out = tmp_path / "rows.jsonl"
    with open_rows(out) as rows:
        rows.add([{"key": "a"}])
        with pytest.raises(UserError, match="another process"):
            open_rows(out)
    with pytest.raises(UserError, match="unfinished .*model, beams"):
        open_rows(out, {"model": "b"})
    with open_rows(out) as rows:
        rows.finish()
    with pytest.raises(UserError, match="model, beams"):
        open_rows(out, {"model": "b"})
    out.with_name("rows.jsonl.run.json").unlink()
    with pytest.raises(UserError, match="exists"):
        open_rows(out)


def test_what_is_discarded_leaves_nothing(tmp_path):
    with open_rows(tmp_path / "rows.jsonl") as rows:
        rows.add([{"key": "a", "error": "no"}])
        rows.discard()
    assert not list(tmp_path.iterdir())


def test_standard_output_has_json_lines(capsys):
    with RowFile("", RUN, [], lambda row: [row]) as rows:
        rows.add([{"key": "é"}])
        rows.finish()
    assert capsys.readouterr().out == '{"key": "é"}\n'


def test_a_damaged_journal_is_one_error(tmp_path):
    out = tmp_path / "rows.jsonl"
    for line in (b"[" * 200_000, b"3", b"\xff", b'{"a": '):
        for lines in (line + b"\n", json.dumps(RUN).encode() + b"\n" + line + b"\n"):
            (tmp_path / "rows.jsonl.unfinished").write_bytes(lines)
            with pytest.raises(UserError, match="unfinished, line"):
                open_rows(out)
