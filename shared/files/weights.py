"""Weight files as they arrive: a Git LFS pointer in place of the file, or a file that was cut while it was copied."""

import json
from pathlib import Path

from medunifier.shared.errors import UserError
from medunifier.shared.files.input_files import open_regular

_LFS = b"version https://git-lfs.github.com/spec/"
_MAX_HEADER = 2**27


def check_weight_file(path: str | Path) -> None:
    """Check that a file holds what its name promises, as far as its size and first bytes show.

    The loaders' own errors ("header too large", "invalid load key, 'v'") name neither the file nor the cause.

    Raises:
        UserError: if it cannot be opened, is empty or a Git LFS pointer, or is a ``.safetensors`` file with fewer
            bytes than its header states.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with open_regular(path) as file:
            start = file.read(64)
            header = b""
            if path.suffix == ".safetensors" and not start.startswith(_LFS):
                length = int.from_bytes(start[:8], "little")
                file.seek(8)
                header = file.read(min(length, size, _MAX_HEADER))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if not size:
        raise UserError(f"{path} is empty: copy or download it again")
    if start.startswith(_LFS):
        raise UserError(
            f"{path} is a Git LFS pointer of {size} bytes, not the file itself: run `git lfs pull` in its "
            "repository, or download the file"
        )
    if path.suffix == ".safetensors" and size < (expected := _stated_size(header, length)):
        raise UserError(
            f"{path} is cut off: it has {size:,} bytes, but its header states {expected:,}; copy or download it again"
        )


def _stated_size(header: bytes, length: int) -> int:
    """Return the size of the whole file by its header; 0 if the header is not one, which the loader reports."""
    if length > _MAX_HEADER:
        return 0
    if len(header) < length:
        return 8 + length
    try:
        tensors = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
        return 8 + length + max((int(entry["data_offsets"][1]) for entry in tensors), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return 0
