"""Local and remote archive paths: a local folder, or an fsspec URL (``s3://bucket/mimic-cxr``, ``memory://…``).

A remote path supports the part of :class:`pathlib.Path` that sources need: joining with ``/``, listing, opening and
reading. Only the bytes that are read are transferred. Credentials are configured in the file system itself:
environment variables, its own files, or fsspec's configuration.

Not universal-pathlib's UPath: of a dead server it says that the file is absent, so an image would be rejected for a
network fault, and it asks the server for every file where one listing answers for a folder.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, cast

import fsspec
from fsspec.registry import known_implementations

from medunifier.shared.errors import UserError
from medunifier.shared.files.input_files import open_regular, read_bounded, too_large

_BLOCK_SIZE = 2**16
"""Bytes fetched per request when a file is read in blocks."""


def is_url(location: str | Path) -> bool:
    """Return whether a location is a URL (``scheme://…``), to be opened with fsspec."""
    return "://" in str(location)


def filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path in it.

    Raises:
        UserError: if there is none for the scheme, or its package is not installed. The message names the package.
    """
    scheme = url.partition("://")[0]
    try:
        return cast(tuple[Any, str], fsspec.core.url_to_fs(url))
    except ImportError as error:
        package = known_implementations.get(scheme, {}).get("class", "").partition(".")[0]
        remedy = f"pip install {package}" if package not in ("", "fsspec") else " ".join(str(error).split())
        raise UserError(f"{url}: reading {scheme}:// needs a package that is not installed: {remedy}") from None
    except ValueError as error:
        raise UserError(f"{url}: no file system for {scheme}:// ({error})") from None


@contextmanager
def remote_errors_as_user_errors(url: str) -> Iterator[None]:
    """Convert exceptions of a remote file system to one-line errors; a missing file stays ``FileNotFoundError``.

    Raises:
        UserError: for rejected credentials, a broken connection, a missing bucket.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # every backend raises different types (botocore, aiohttp, google-auth, …)
        cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
        if cause is None or not _is_remote_failure(cause):
            raise
        reason = f"{type(cause).__name__}: {' '.join(str(cause).split())}"[:200]
        raise UserError(
            f"{url} cannot be read: {reason}; check the address, the network and the credentials. "
            "Run the same command again to continue where it stopped"
        ) from error


def _is_remote_failure(error: BaseException) -> bool:
    """Return whether an error is more than a missing file.

    fsspec's HTTP file system raises FileNotFoundError for an unreachable server, too.
    """
    if isinstance(error, FileNotFoundError | LookupError):  # LookupError: fsspec's memory and archive file systems
        return False
    if hasattr(error, "status"):  # HTTP status
        return error.status not in (404, 410)
    return "NoSuch" not in str(error) and "404" not in str(error)  # botocore's messages for a missing key


class _RemoteFile(io.RawIOBase):
    """An open remote file that raises network errors as UserError; a parser would report a damaged file instead."""

    def __init__(self, file: IO[bytes], url: str) -> None:
        self._file, self._url = file, url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with remote_errors_as_user_errors(self._url):
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def close(self) -> None:
        self._file.close()
        super().close()


class RemotePath(PurePosixPath):
    """A path below an fsspec URL. Its parts begin with the scheme: ``s3:``, ``bucket``, ``files``, ….

    A :class:`~pathlib.PurePosixPath` with the reading methods of :class:`~pathlib.Path`. Create it with
    :func:`as_path`.
    """

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    def __fspath__(self) -> str:
        raise TypeError(f"{self} is not a local file: read it with the methods of the path")

    def relative_to(self, *other: Any) -> PurePosixPath:  # type: ignore[override]
        """Return the path relative to a folder, as a plain path instead of a URL."""
        return PurePosixPath(*super().relative_to(*other).parts)

    def open(self, mode: Literal["rb"] = "rb") -> io.BufferedReader:
        """Open the file for reading; blocks are fetched as they are read, so a header needs only a few."""
        system, path = self._resolve()
        with remote_errors_as_user_errors(str(self)):
            return io.BufferedReader(
                _RemoteFile(system.open(path, mode, block_size=_BLOCK_SIZE), str(self)), _BLOCK_SIZE
            )

    def read_bytes(self) -> bytes:
        """Read the whole file, in one request if the file system supports it."""
        system, path = self._resolve()
        with remote_errors_as_user_errors(str(self)):
            return bytes(system.cat_file(path))

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Read the whole file as text."""
        return self.read_bytes().decode(encoding, errors)

    def size(self) -> int:
        """Return the size in bytes reported by the file system."""
        system, path = self._resolve()
        with remote_errors_as_user_errors(str(self)):
            return int(system.size(path) or 0)

    def exists(self) -> bool:
        """Return whether a file or folder exists at the path."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Return whether the path is a file; a folder is listed once for all its files."""
        return _listing(str(self.parent)).get(self.name) == "file"

    def is_dir(self) -> bool:
        """Return whether the path is a folder."""
        if _listing(str(self.parent)).get(self.name) == "directory":
            return True
        system, path = self._resolve()  # a bucket has no parent folder to list
        with remote_errors_as_user_errors(str(self)):
            return bool(system.isdir(path))

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """Return the matching files and folders, like :meth:`pathlib.Path.glob`."""
        system, path = self._resolve()
        with remote_errors_as_user_errors(str(self)):
            found = system.glob(f"{path.rstrip('/')}/{pattern}")
        return (RemotePath(system.unstrip_protocol(name)) for name in found)

    def rglob(self, pattern: str) -> Iterator["RemotePath"]:
        """Return the files at any depth whose name matches."""
        system, path = self._resolve()
        with remote_errors_as_user_errors(str(self)):
            found = system.find(path)
        return (
            RemotePath(system.unstrip_protocol(name))
            for name in found
            if fnmatchcase(name.rstrip("/").rpartition("/")[2], pattern)
        )

    def _resolve(self) -> tuple[Any, str]:
        return filesystem(str(self))


@lru_cache(maxsize=4096)
def _listing(folder: str) -> dict[str, str]:
    """Return {name: "file" or "directory"} of a folder; empty if it does not exist."""
    system, path = filesystem(folder)
    try:
        with remote_errors_as_user_errors(folder):
            entries = system.ls(path, detail=True)
    except FileNotFoundError:
        return {}
    return {entry["name"].rstrip("/").rpartition("/")[2]: entry["type"] for entry in entries}


def as_path(location: str | Path) -> Path:
    """Return a local path, or a :class:`RemotePath` with the same reading methods. ``file://`` URLs are local.

    Raises:
        UserError: for a chained URL (``zip://…::s3://…``), or one without a host or bucket.
    """
    if not is_url(location) or isinstance(location, RemotePath):
        return cast(Path, location) if isinstance(location, RemotePath) else Path(location)
    scheme, _, rest = str(location).partition("://")
    if scheme in ("file", "local"):
        return Path(rest)
    if "::" in rest or "://" in rest:
        raise UserError(f"{location}: chained URLs are not supported; unpack the archive and pass the folder")
    if scheme != "memory" and rest.startswith("/"):
        raise UserError(f"{location} has no host or bucket; expected {scheme}://HOST/FOLDER")
    return cast(Path, RemotePath(f"{scheme}:/{rest}"))


def open_root(location: str | Path) -> Path:
    """Return the top folder of an archive, and discard cached listings.

    Raises:
        UserError: if it is not a folder, or its file system cannot be reached.
    """
    root = as_path(location)
    _listing.cache_clear()
    _real_folder.cache_clear()
    if not root.is_dir():
        raise UserError(f"source folder {root} not found")
    return root


def is_file(path: Path) -> bool:
    """Return whether a path that a table names is a file.

    :meth:`pathlib.Path.is_file` raises for a name longer than the file system allows, or in a folder that may not be
    searched.
    """
    try:
        return path.is_file()
    except OSError:
        return False


def open_file(path: Path) -> io.BufferedReader:
    """A file for reading piece by piece, local or remote.

    Raises:
        OSError: if it is absent or, on this machine, no regular file.
    """
    return path.open() if isinstance(path, RemotePath) else open_regular(path)


def read_at_most(path: Path, most: int) -> bytes:
    """A file's bytes, local or remote, if they are no more than ``most``. No stated size is trusted.

    Raises:
        OSError: if the file is absent, has more bytes (``EFBIG``) or, on this machine, is no regular file.
        UserError: for trouble with a remote file system, which says nothing of the file.
    """
    if not isinstance(path, RemotePath):
        return read_bounded(path, most)
    size = path.size()
    if size > most:
        raise too_large(most)
    if size:
        content = path.read_bytes()  # in one request
    else:  # empty, or of a server that does not state it
        with path.open() as file:
            content = file.read(most + 1)
    if len(content) > most:
        raise too_large(most)
    return content


def lies_under(path: Path, root: Path) -> bool:
    """Whether a path that a table names lies in an archive's top folder, with links followed on this machine."""
    if isinstance(root, RemotePath):
        return isinstance(path, RemotePath) and path.is_relative_to(root) and ".." not in path.parts
    try:
        if ".." in path.parts or path.is_symlink():
            real = os.path.realpath(path)
        else:
            real = os.path.join(_real_folder(str(path.parent)), path.name)
    except (OSError, ValueError):  # ValueError: a NUL, or a surrogate that stands for no byte
        return False
    return Path(real).is_relative_to(_real_folder(str(root)))


@lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    """Without links. Images of a folder come together, and a look at each of its parents costs 10 calls."""
    return os.path.realpath(folder)


def below(path: Path, root: Path) -> str:
    """Return the path relative to an archive's top folder, which stays the same when the archive is moved."""
    if isinstance(path, RemotePath):
        return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    return os.path.relpath(path, root)
