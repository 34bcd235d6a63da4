"""Index of a shard: byte ranges of each sample's members in the tar, validated when read.

``{shard}.index.json`` is stored beside the shard. It is rebuilt from the tar if it is absent, damaged, of another
shard, or has byte ranges outside the shard.
"""

import contextlib
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medunifier.shared.artifacts import FORMAT_VERSION, read_json, write_json
from medunifier.shared.errors import UserError
from medunifier.shared.files.input_files import bare_name

INDEX_SUFFIX = ".index.json"

Members = dict[str, tuple[int, int]]
"""{member's extension: (offset, size) in bytes} of one sample."""


def index_path(shard: Path) -> Path:
    """Return the path of a shard's index."""
    return shard.with_name(shard.name + INDEX_SUFFIX)


def scan_shard(shard: Path) -> list[tuple[str, Members]]:
    """Return (key, members) of each sample, in the shard's order, from the tar's headers.

    Raises:
        UserError: if it is not a tar of samples: a name with a folder, a link or other special entry, members beyond
            the end of the file, a sample without ``json``.
    """
    rows: list[tuple[str, Any]] = []
    try:
        with tarfile.open(shard, "r:") as tar:
            for entry in tar:
                if not entry.isreg() or entry.issparse() or entry.size < 0:
                    raise UserError(f"shard {shard} contains {ascii(entry.name)[:80]}, which is not a regular file")
                key, _, extension = bare_name(entry.name, f"shard {shard}").partition(".")
                if not rows or rows[-1][0] != key:
                    rows.append((key, {}))
                rows[-1][1][extension] = [entry.offset_data, entry.size]
        return _checked_rows(rows, shard)
    except UserError:
        raise
    except Exception as error:  # from a damaged tar: TarError, OSError, ValueError, OverflowError, RecursionError, …
        raise UserError(
            f"shard {shard} cannot be read as a tar: {' '.join(str(error).split())[:200]}; make or download it again"
        ) from error


def read_index(shard: Path, expected_samples: int, sha256: str) -> list[tuple[str, Members]]:
    """Return (key, members) of each sample of a shard whose checksum has been verified.

    Args:
        shard: the tar.
        expected_samples: number of samples in the manifest.
        sha256: checksum of the tar; an index with another checksum is ignored.

    Raises:
        UserError: if the tar is not a shard, or has another number of samples.
    """
    with contextlib.suppress(UserError, KeyError):
        index = read_json(index_path(shard), "a shard's index")
        rows = _checked_rows(index["members"], shard) if index["shard_sha256"] == sha256 else []
        if len(rows) == expected_samples:
            return rows
    rows = scan_shard(shard)
    if len(rows) != expected_samples:
        raise UserError(
            f"shard {shard} holds {len(rows)} samples but its manifest has {expected_samples}: "
            "the manifest was changed; make the shards again"
        )
    with contextlib.suppress(UserError):  # a read-only folder: the index is rebuilt at every start
        write_index(shard, rows, sha256)
    return rows


def write_index(shard: Path, rows: list[tuple[str, Members]], sha256: str) -> None:
    """Write the result of :func:`scan_shard` beside the shard."""
    index = {"format_version": FORMAT_VERSION, "shard_sha256": sha256, "members": rows}
    write_json(index_path(shard), index, indent=None)


def read_samples(shard: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (key, {extension: bytes}) of each sample of a local shard, in order.

    Raises:
        UserError: as :func:`scan_shard`.
    """
    rows = scan_shard(shard)
    with open(shard, "rb") as file:
        for key, members in rows:
            contents = {}
            for extension, (offset, size) in members.items():
                file.seek(offset)
                contents[extension] = file.read(size)
            yield key, contents


def _checked_rows(rows: Any, shard: Path) -> list[tuple[str, Members]]:
    """Validate the entries of an index or a tar, which may be of any type, and return them typed.

    Raises:
        UserError: if they have another structure, or a member's byte range is outside the shard.
    """
    end, checked = shard.stat().st_size, []
    try:
        for key, members in rows:
            for extension, (offset, size) in members.items():
                bare_name(f"{key}.{extension}", f"shard {shard}")
                # Exactly int: True is an int too, and 1e3 compares like one.
                if type(offset) is not int or type(size) is not int or not 0 <= offset <= offset + size <= end:
                    byte_range = f"{ascii(offset)[:40]} + {ascii(size)[:40]} of {end}"
                    raise UserError(
                        f"shard {shard}: member {extension} of sample {key} cannot have the byte range {byte_range}"
                    )
            if not isinstance(key, str) or "json" not in members:
                raise UserError(f"shard {shard}: sample {key} has no json; make the shard again or download it again")
            checked.append((key, {extension: (offset, size) for extension, (offset, size) in members.items()}))
    except (AttributeError, TypeError, ValueError):
        raise UserError(
            f"{index_path(shard)} is not a shard's index: expected [key, {{member: [offset, size]}}]"
        ) from None
    return checked
