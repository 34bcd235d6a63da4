"""Files that others wrote: what is not regular, too large, too deep, of another type or no text is one error."""

import json
import os
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest

from medunifier.shared.artifacts import read_json
from medunifier.shared.errors import UserError
from medunifier.shared.files.input_files import bare_name, open_regular, parse_json, parse_json_lines, read_bounded


@contextmanager
def within_seconds(seconds=5):
    """End a reader that hangs."""

    def give_up(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "regular").write_bytes(b"abc")
    (tmp_path / "to_regular").symlink_to(tmp_path / "regular")
    with within_seconds():
        for path in (tmp_path / "fifo", tmp_path / "link", tmp_path, "/dev/null", "a\0b", "a\ud800b"):
            with pytest.raises(OSError):
                open_regular(path)
    assert read_bounded(tmp_path / "to_regular", 3) == b"abc"


def test_the_bound_holds_whatever_size_is_stated(tmp_path):
    content = os.urandom(3_000_000)  # several chunks where the stated size is 0
    (tmp_path / "file").write_bytes(content)
    assert read_bounded(tmp_path / "file", len(content)) == content
    with pytest.raises(OSError, match="too large"):
        read_bounded(tmp_path / "file", len(content) - 1)
    maps = Path("/proc/self/maps")
    assert maps.stat().st_size == 0 and len(read_bounded(maps, 2**24)) > 100
    with pytest.raises(OSError, match="too large"):
        read_bounded(maps, 100)
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(2**40)
    with within_seconds(), pytest.raises(OSError, match="too large"):
        read_bounded(tmp_path / "sparse", 2**30)


def test_a_bare_name_has_no_folder():
    for name in ("train-000003.tar", "a", "4f23c0de.0.mask.pneumothorax.png", "x" * 200):
        assert bare_name(name, "here") == name
    for name in ("../a.tar", "/etc/passwd", "a/b", "..", ".", "", ".hidden", "a\\b", "a\0", "a\n", "é", "\ud800",
                 "x" * 201, "-rf", "a b", None, 3, ["a"]):  # fmt: skip
        with pytest.raises(UserError, match="here"):
            bare_name(name, "here")


def test_damaged_json_is_one_error_that_names_the_file():
    deep = [b"[" * 200_000, b'{"a":' * 200_000 + b"1" + b"}" * 200_000, b'{"a":' + b"[" * 80 + b"]" * 80 + b"}"]
    no_text = [
        b'{"a": "\\u0000"}',
        b'{"\\ud800": 1}',
        b'{"a": ["x\\udfff"]}',
        b'{"a": "\xed\xa0\x80"}',
        b"\xff\xfe{}",
    ]
    others = [b"", b"{", b"[1]", b"3", b'{"a": ' + b"9" * 5000 + b"}"]
    for content in deep + no_text + others:
        with pytest.raises(UserError, match=r"^here cannot be read as a thing: [^\n]*$"):
            parse_json(content, "here", "a thing")


def test_sound_json_is_read_as_python_does():
    content = json.dumps({"é": ["\U0001f600", {"b": [1, 2.5, None]}], "n": "[" * 100})
    for spelling in (
        content,
        content.encode(),
        memoryview(json.dumps(json.loads(content), ensure_ascii=False).encode()),
    ):
        assert parse_json(spelling, "here", "a thing") == json.loads(content)
    assert parse_json("[1]", "here", "a list", list) == [1]
    assert parse_json(r'{"a": "\udcff\u0000"}', "here", "a row", any_text=True) == {"a": "\udcff\0"}


def test_json_lines_end_at_the_line_feed_alone():
    content = '{"a": "x\u2028y"}\r\n\n{"a": 2}\n'.encode()
    assert list(parse_json_lines(content, "here", "a row")) == [{"a": "x\u2028y"}, {"a": 2}]
    with pytest.raises(UserError, match="line 3"):
        list(parse_json_lines(b'{"a": 1}\n\n[]\n', "here", "a row"))


def test_a_json_file_must_be_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "fifo.json")
    with within_seconds(), pytest.raises(UserError, match=r"fifo\.json"):
        read_json(tmp_path / "fifo.json", "a thing")
