"""Atomic files and folders, and fingerprints of artifacts.

Everything that a later step reads is written under a hidden name beside its final path and renamed once it is
complete, so a full disk or a kill leaves nothing half-written.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medunifier.shared.errors import UserError
from medunifier.shared.files.input_files import MAX_JSON_BYTES, parse_json, read_bounded
from medunifier.shared.files.os_services import lock, try_lock

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_VERSION = 1
PARTIAL_PREFIX = ".partial-"
_OLD = "-old"

# Message of torch.save if fewer bytes than it wrote have arrived (caffe2/serialize/inline_container.cc).
_TORCH_WRITER = ("unexpected pos", "PytorchStreamWriter failed")
_NEARLY_FULL = 2**20  # bytes: a file system may keep some blocks that no file of this size gets


@contextmanager
def _removed_on_failure(partial: Path, final: Path) -> Iterator[None]:
    """Remove ``partial`` on any error; report a full or read-only disk as a UserError."""
    try:
        yield
    except BaseException as error:
        reason = unwritable(error, final.parent)
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
        if reason:
            raise UserError(
                f"cannot write {final}: {reason}; free some space or choose another path. "
                "Nothing half-written is left; the same command continues"
            ) from error
        raise


def unwritable(error: BaseException, folder: Path) -> str | None:
    """Return why ``folder`` cannot be written, if ``error`` or what caused it is about that, else None.

    Call it before anything is removed: PyTorch's writer does not name the cause, which the space left then shows.
    """
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES):
        return os.strerror(error.errno)
    cause: BaseException | None = error
    while cause is not None:
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            # safetensors raises its own error type; only the message contains the system's error.
            if (isinstance(cause, OSError) and cause.errno == number) or os.strerror(number) in str(cause):
                return os.strerror(number)
        if any(sign in str(cause) for sign in _TORCH_WRITER):
            free = shutil.disk_usage(folder).free
            if free < _NEARLY_FULL:
                return os.strerror(errno.ENOSPC)
            return (
                f"the system refused to write more (a quota or a file size limit?) with {free / 2**30:.1f} GiB free"
            )
        cause = cause.__cause__ or cause.__context__
    return None


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the folder {path.parent}: {error.strerror}") from error


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success flush it to disk and rename it to ``path``.

    Raises:
        UserError: if the disk is full or the path cannot be written; nothing is left.
    """
    path = Path(path)
    _make_parent(path)
    partial = path.with_name(f"{PARTIAL_PREFIX}{secrets.token_hex(4)}-{path.name}")

    def create() -> Path:
        partial.touch()
        return partial

    with _removed_on_failure(partial, path), _locked(create, os.O_RDWR):
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on success it replaces ``path``.

    An existing folder stays until the new one is complete. Remnants of killed attempts at ``path`` are removed
    first. Who may read the folder and its weights is decided by the umask.
    """
    path = Path(path)
    _make_parent(path)
    remove_partial(path.parent, path.name)

    def create() -> Path:
        folder = path.with_name(f"{PARTIAL_PREFIX}{secrets.token_hex(4)}-{path.name}")
        folder.mkdir()
        return folder

    with _locked(create, os.O_RDONLY) as partial, _removed_on_failure(partial, path):
        yield partial
        for weights in partial.rglob("*.safetensors"):  # which safetensors creates for the owner alone
            weights.chmod(partial.stat().st_mode & 0o666)
        if path.exists():
            old = partial.with_name(f"{partial.name}{_OLD}")
            os.rename(path, old)
            os.rename(partial, path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(partial, path)


@contextmanager
def _locked(create: Callable[[], Path], flags: int) -> Iterator[Path]:
    """Create a partial file or folder and lock it; the lock ends with the process."""
    while True:
        partial = create()
        try:
            descriptor = os.open(partial, flags)
        except FileNotFoundError:
            continue  # removed as a remnant before it was locked
        lock(descriptor)
        if partial.exists():
            break
        os.close(descriptor)
    try:
        yield partial
    finally:
        os.close(descriptor)


def remove_partial(folder: str | Path, *names: str) -> None:
    """Remove partial files and folders of killed processes from ``folder``; those of live processes stay.

    Args:
        folder: may be absent.
        names: only remnants of these final names, for a folder that commands share; none = all.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        if entry.name.startswith(PARTIAL_PREFIX) and (not names or _final_name(entry.name) in names):
            _remove_unlocked(entry)


def _final_name(partial: str) -> str:
    """``.partial-TOKEN-NAME`` and ``.partial-TOKEN-NAME-old`` -> NAME."""
    return partial.removeprefix(PARTIAL_PREFIX).partition("-")[2].removesuffix(_OLD)


def _remove_unlocked(entry: Path) -> None:
    try:
        descriptor = os.open(entry, (os.O_RDONLY if entry.is_dir() else os.O_RDWR) | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return  # removed meanwhile, or not a file of ours
    try:
        # Without locks a live process may be writing it.
        if try_lock(descriptor, without_locks=False):
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)
    except OSError:
        pass  # removed meanwhile
    finally:
        os.close(descriptor)


def key64(text: str) -> int:
    """Return a signed 64-bit hash of a text, for comparisons on tensors."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


def sha256_file(path: str | Path) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return the canonical JSON that hashes are computed over: sorted keys, no white space, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def fingerprint(config: Mapping[str, Any], tensors: "Mapping[str, Tensor]") -> str:
    """Return the SHA-256 over a configuration and weights: names, dtypes, shapes and bytes, sorted by name.

    Artifacts with equal fingerprints compute the same function; file layout and metadata do not enter.
    """
    import torch  # lazy: commands without weights start faster

    digest = hashlib.sha256(canonical_json(config))
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        digest.update(canonical_json([name, str(tensor.dtype), list(tensor.shape)]))
        digest.update(tensor.flatten().view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


def write_json(path: str | Path, value: Any, indent: int | None = 2) -> None:
    """Write JSON atomically. NaN is refused, since standard JSON parsers refuse it."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(value, indent=indent, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: str | Path, what: str, expected: type | tuple[type, ...] = dict, any_text: bool = False) -> Any:
    """Read a JSON file that a user named or another step wrote.

    Args:
        path: the file.
        what: what it should have been, for the error.
        expected, any_text: as in :func:`medunifier.shared.files.input_files.parse_json`.

    Raises:
        UserError: if it is absent, no regular file, larger than 512 MiB, or not such JSON.
    """
    path = Path(path)
    try:
        content = read_bounded(path, MAX_JSON_BYTES)
    except FileNotFoundError:
        raise UserError(f"{path} not found: {path.parent} is not {what}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read as {what}: {error.strerror}") from None
    return parse_json(content, path, what, expected, any_text)
