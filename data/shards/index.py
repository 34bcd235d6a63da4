"""The index of a shard: where each sample's members lie in the tar, read with every number checked.

``{shard}.index.json`` lies beside the shard. It is rebuilt from the tar where it is absent, damaged, that of another
shard, or names places that the shard does not have.
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
    """Return where a shard's index lies."""
    return shard.with_name(shard.name + INDEX_SUFFIX)


def scan_shard(shard: Path) -> list[tuple[str, Members]]:
    """Return (key, members) of each sample, in the shard's order, by reading the tar's headers.

    Raises:
        UserError: if it is no tar of samples: a name with a folder, a link or another special entry, members beyond
            the end of the file, a sample without ``json``.
    """
    rows: list[tuple[str, Any]] = []
    try:
        with tarfile.open(shard, "r:") as tar:
            for entry in tar:
                if not entry.isreg() or entry.issparse() or entry.size < 0:
                    raise UserError(f"shard {shard} holds {ascii(entry.name)[:80]}, which is no plain file")
                key, _, extension = bare_name(entry.name, f"shard {shard}").partition(".")
                if not rows or rows[-1][0] != key:
                    rows.append((key, {}))
                rows[-1][1][extension] = [entry.offset_data, entry.size]
        return _checked_rows(rows, shard)
    except UserError:
        raise
    except Exception as error:  # of a damaged tar: TarError, OSError, ValueError, OverflowError, RecursionError, …
        raise UserError(
            f"shard {shard} cannot be read as a tar: {' '.join(str(error).split())[:200]}; make it again or fetch it "
            "again"
        ) from error


def read_index(shard: Path, expected_samples: int, sha256: str) -> list[tuple[str, Members]]:
    """Return (key, members) of each sample of a shard whose checksum has been compared.

    Args:
        shard: the tar.
        expected_samples: how many the manifest promises.
        sha256: checksum of the tar; an index of another one is not used.

    Raises:
        UserError: if the tar is no shard, or holds another number of samples.
    """
    with contextlib.suppress(UserError, KeyError):
        index = read_json(index_path(shard), "a shard's index")
        rows = _checked_rows(index["members"], shard) if index["shard_sha256"] == sha256 else []
        if len(rows) == expected_samples:
            return rows
    rows = scan_shard(shard)
    if len(rows) != expected_samples:
        raise UserError(
            f"shard {shard} holds {len(rows)} samples but its manifest says {expected_samples}: "
            "the manifest was changed; make the shards again"
        )
    with contextlib.suppress(UserError):  # a read-only folder: the index is then made at every start
        write_index(shard, rows, sha256)
    return rows


def write_index(shard: Path, rows: list[tuple[str, Members]], sha256: str) -> None:
    """Write what :func:`scan_shard` found beside the shard."""
    index = {"format_version": FORMAT_VERSION, "shard_sha256": sha256, "members": rows}
    write_json(index_path(shard), index, indent=None)


def read_samples(shard: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield key and members' bytes of each sample of a local shard, in its order.

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
    """The rows of an index or a tar, of whatever types they are, as what they should be.

    Raises:
        UserError: if they are something else, or a member does not lie within the shard.
    """
    end, checked = shard.stat().st_size, []
    try:
        for key, members in rows:
            for extension, (offset, size) in members.items():
                bare_name(f"{key}.{extension}", f"shard {shard}")
                # Of these very types: True is an int, and 1e3 compares like one.
                if type(offset) is not int or type(size) is not int or not 0 <= offset <= offset + size <= end:
                    place = f"{ascii(offset)[:40]} + {ascii(size)[:40]} of {end}"
                    raise UserError(f"shard {shard}: member {extension} of sample {key} cannot lie at bytes {place}")
            if not isinstance(key, str) or "json" not in members:
                raise UserError(f"shard {shard}: sample {key} has no json; make the shard again or fetch it again")
            checked.append((key, {extension: (offset, size) for extension, (offset, size) in members.items()}))
    except (AttributeError, TypeError, ValueError):
        raise UserError(
            f"{index_path(shard)} is not a shard's index: expected [key, {{member: [offset, size]}}]"
        ) from None
    return checked
