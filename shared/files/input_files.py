"""Read files that others wrote: regular files only, bounded in bytes, and JSON bounded in depth.

Manifests, indices, tables and model folders come from anywhere. Their names become paths on this machine and their
numbers become offsets and allocations, so both are checked once, where they are read.
"""

import errno
import io
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medunifier.shared.errors import UserError

MAX_JSON_BYTES = 2**29
"""Of one JSON file. R2Gen's annotation of MIMIC-CXR, the largest in use, has about 200 MB."""
MAX_CONFIG_BYTES = 2**20
"""Of a YAML configuration."""
MAX_JSON_DEPTH = 64
"""Of lists and objects in each other. Ours have six; Python's own limit depends on who calls."""
_CHUNK = 2**20
_BARE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a regular file of this machine for reading.

    Opening a FIFO would block until a process writes to it, and a device may have no end.

    Raises:
        OSError: if it is absent, may not be read, or is no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except ValueError:  # a NUL, or a surrogate that stands for no byte
        raise OSError(errno.EINVAL, "not a possible file name") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return open(descriptor, "rb")


def read_bounded(path: str | Path, max_bytes: int) -> bytes:
    """Return the bytes of a regular file, if they are at most ``max_bytes``.

    The size that the file system states is not trusted: it is 0 in ``/proc``, and a file may grow.

    Raises:
        OSError: as :func:`open_regular`, and with ``EFBIG`` if there are more bytes.
    """
    with open_regular(path) as file:
        stated = os.fstat(file.fileno()).st_size
        parts, left = [], 0 if stated > max_bytes else max_bytes + 1
        while left and (part := file.read(min(left, max(stated + 1, _CHUNK)))):
            parts.append(part)
            left -= len(part)
    if not left:
        raise too_large(max_bytes)
    return b"".join(parts)


def too_large(max_bytes: int) -> OSError:
    """The error of a file with more bytes than its reader accepts."""
    return OSError(errno.EFBIG, f"file too large, more than {max_bytes:,} bytes")


def bare_name(name: object, where: str) -> str:
    """Check a name that a foreign file gives to a file: no folder, not hidden, plain ASCII.

    Args:
        name: the value as read, of any type.
        where: the file that holds it, for the error.

    Raises:
        UserError: if it is anything else than a bare name.
    """
    if isinstance(name, str) and _BARE_NAME.fullmatch(name):
        return name
    raise UserError(
        f"{where} names a file {ascii(name)[:80]}: expected a bare name of letters, digits, '.', '_' and '-', and no "
        "folder. It is damaged or was tampered with; get it again"
    )


def decode_json(
    content: str | bytes | memoryview, expected: type | tuple[type, ...] = dict, any_text: bool = False
) -> Any:
    """Decode one JSON document that others wrote; :func:`parse_json` names the file in its error.

    Args:
        content: UTF-8 bytes, or text.
        expected: type of the document, a dict by default.
        any_text: accept NULs and lone surrogates in strings: Python spells file names that are not UTF-8 with them.

    Raises:
        ValueError: if it is not UTF-8 or not JSON, is nested deeper than 64 levels, is of another type, or holds
            a NUL or a lone surrogate.
    """
    text = content if isinstance(content, str) else str(content, "utf-8")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    # JSON has no other spelling for either character, and no depth without an opening bracket.
    if "\\u" in text or text.count("[") + text.count("{") > MAX_JSON_DEPTH:
        _check_nested(value, any_text)
    if not isinstance(value, expected):
        raise ValueError(f"found {type(value).__name__} at its top")
    return value


def parse_json(
    content: str | bytes | memoryview,
    where: str | Path,
    what: str,
    expected: type | tuple[type, ...] = dict,
    any_text: bool = False,
) -> Any:
    """Decode one JSON document of a file that others wrote.

    Args:
        content, expected, any_text: as in :func:`decode_json`.
        where: the file, and the line if there is one, for the error.
        what: what it should have been, for the error.

    Raises:
        UserError: where :func:`decode_json` raises ``ValueError``.
    """
    try:
        return decode_json(content, expected, any_text)
    except ValueError as error:
        raise UserError(f"{where} cannot be read as {what}: {error}") from None


def _check_nested(value: Any, any_text: bool) -> None:
    """Look for excessive depth, NULs and lone surrogates without recursion."""
    pending = [(value, 1)]
    while pending:
        value, depth = pending.pop()
        if isinstance(value, str):
            if not any_text and _NO_TEXT.search(value):
                raise ValueError("it holds a NUL or a lone surrogate, which are no text")
        elif isinstance(value, dict | list):
            if depth > MAX_JSON_DEPTH:
                raise ValueError(f"nested deeper than {MAX_JSON_DEPTH} levels")
            inner = [*value, *value.values()] if isinstance(value, dict) else value
            pending += [(item, depth + 1) for item in inner if isinstance(item, str | dict | list)]


def parse_json_lines(
    content: bytes, where: str | Path, what: str, expected: type | tuple[type, ...] = dict, any_text: bool = False
) -> Iterator[Any]:
    """Parse JSON lines, each as :func:`parse_json` does; blank lines are passed over.

    Raises:
        UserError: naming the line.
    """
    for number, line in enumerate(content.split(b"\n"), start=1):  # not splitlines: U+2028 is no end of a line here
        if line.strip():
            yield parse_json(line, f"{where}, line {number},", what, expected, any_text)
