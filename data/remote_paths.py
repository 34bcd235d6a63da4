"""Where an archive lies: a folder of this machine, or an fsspec URL (``s3://bucket/mimic-cxr``, ``memory://…``).

A remote place is used as a :class:`pathlib.Path` is, as far as sources need it: names are put together with ``/``,
files are listed, opened and read. Nothing of it is copied to this machine but the bytes that are asked for.
Credentials are the file system's own affair: its environment variables, its files, or fsspec's configuration.

Not universal-pathlib's UPath: of a dead server it says that the file is absent, so an image would be rejected for the
network's fault, and it asks the server for every file where one listing answers for a folder.
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

_PIECE = 2**16
"""Bytes that are fetched at once where a file is read in pieces."""


def is_url(place: str | Path) -> bool:
    """Whether fsspec is to be asked: ``scheme://…``."""
    return "://" in str(place)


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Raises:
        UserError: if there is none for the scheme, or its package is not installed: it is named.
    """
    scheme = url.partition("://")[0]
    try:
        return cast(tuple[Any, str], fsspec.core.url_to_fs(url))
    except ImportError as error:
        package = known_implementations.get(scheme, {}).get("class", "").partition(".")[0]
        what = f"pip install {package}" if package not in ("", "fsspec") else " ".join(str(error).split())
        raise UserError(f"{url}: reading {scheme}:// needs a package that is not installed: {what}") from None
    except ValueError as error:
        raise UserError(f"{url}: no file system for {scheme}:// ({error})") from None


@contextmanager
def network_trouble_named(url: str) -> Iterator[None]:
    """Turn whatever a remote file system raises into one line; an absent file stays ``FileNotFoundError``.

    Raises:
        UserError: for refused credentials, a connection that breaks, a bucket that is not there.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # every backend has exceptions of its own (botocore, aiohttp, google-auth, …)
        cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
        if cause is None or not _is_trouble(cause):
            raise
        reason = f"{type(cause).__name__}: {' '.join(str(cause).split())}"[:200]
        raise UserError(
            f"{url} cannot be read: {reason}; check the address, the network and the credentials. "
            "The same command continues where it stopped"
        ) from error


def _is_trouble(error: BaseException) -> bool:
    """Whether it is more than an absent file. fsspec's web file system says "not found" of a dead server too."""
    if isinstance(error, FileNotFoundError | LookupError):  # a look-up: fsspec's own memory and archives
        return False
    if hasattr(error, "status"):  # of a web server's answer
        return error.status not in (404, 410)
    return "NoSuch" not in str(error) and "404" not in str(error)  # botocore's words for an absent key


class _RemoteFile(io.RawIOBase):
    """An open remote file that names its trouble: a parser would take it for damage of the file."""

    def __init__(self, file: IO[bytes], url: str) -> None:
        self._file, self._url = file, url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with network_trouble_named(self._url):
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def close(self) -> None:
        self._file.close()
        super().close()


class RemotePath(PurePosixPath):
    """A path below an fsspec URL. Its first part is the scheme: ``s3:``, ``bucket``, ``files``, ….

    Everything of a :class:`~pathlib.PurePosixPath`, and those methods of a :class:`~pathlib.Path` that read.
    Made by :func:`as_path`.
    """

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    def __fspath__(self) -> str:
        raise TypeError(f"{self} is no file of this machine: read it with its own methods")

    def relative_to(self, *other: Any) -> PurePosixPath:  # type: ignore[override]
        """The rest below a folder, which is no URL any more."""
        return PurePosixPath(*super().relative_to(*other).parts)

    def open(self, mode: Literal["rb"] = "rb") -> io.BufferedReader:
        """The file for reading, fetched piece by piece as it is read: its header, say."""
        system, path = self._place()
        with network_trouble_named(str(self)):
            return io.BufferedReader(_RemoteFile(system.open(path, mode, block_size=_PIECE), str(self)), _PIECE)

    def read_bytes(self) -> bytes:
        """The whole file, in one request where the file system can."""
        system, path = self._place()
        with network_trouble_named(str(self)):
            return bytes(system.cat_file(path))

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The whole file as text."""
        return self.read_bytes().decode(encoding, errors)

    def size(self) -> int:
        """Bytes of the file, as its file system says."""
        system, path = self._place()
        with network_trouble_named(str(self)):
            return int(system.size(path) or 0)

    def exists(self) -> bool:
        """Whether a file or a folder of that name is there."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether a file is there; one listing answers for a whole folder."""
        return _listing(str(self.parent)).get(self.name) == "file"

    def is_dir(self) -> bool:
        """Whether a folder is there."""
        if _listing(str(self.parent)).get(self.name) == "directory":
            return True
        system, path = self._place()  # a bucket has no folder above it that could be listed
        with network_trouble_named(str(self)):
            return bool(system.isdir(path))

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """Files and folders that match, as :meth:`pathlib.Path.glob`."""
        system, path = self._place()
        with network_trouble_named(str(self)):
            found = system.glob(f"{path.rstrip('/')}/{pattern}")
        return (RemotePath(system.unstrip_protocol(name)) for name in found)

    def rglob(self, pattern: str) -> Iterator["RemotePath"]:
        """Files at any depth whose name matches."""
        system, path = self._place()
        with network_trouble_named(str(self)):
            found = system.find(path)
        return (
            RemotePath(system.unstrip_protocol(name))
            for name in found
            if fnmatchcase(name.rstrip("/").rpartition("/")[2], pattern)
        )

    def _place(self) -> tuple[Any, str]:
        return filesystem(str(self))


@lru_cache(maxsize=4096)
def _listing(folder: str) -> dict[str, str]:
    """Names in a folder -> "file" or "directory"; empty if there is no such folder."""
    system, path = filesystem(folder)
    try:
        with network_trouble_named(folder):
            entries = system.ls(path, detail=True)
    except FileNotFoundError:
        return {}
    return {entry["name"].rstrip("/").rpartition("/")[2]: entry["type"] for entry in entries}


def as_path(place: str | Path) -> Path:
    """A path of this machine, or a :class:`RemotePath`, which is used alike. ``file://`` is of this machine.

    Raises:
        UserError: for a chain of URLs (``zip://…::s3://…``), or one without a host or bucket.
    """
    if not is_url(place) or isinstance(place, RemotePath):
        return cast(Path, place) if isinstance(place, RemotePath) else Path(place)
    scheme, _, rest = str(place).partition("://")
    if scheme in ("file", "local"):
        return Path(rest)
    if "::" in rest or "://" in rest:
        raise UserError(f"{place}: chained URLs are not read; unpack the archive, and give the folder")
    if scheme != "memory" and rest.startswith("/"):
        raise UserError(f"{place} names no host or bucket: {scheme}://HOST/FOLDER")
    return cast(Path, RemotePath(f"{scheme}:/{rest}"))


def open_root(place: str | Path) -> Path:
    """The top folder of an archive, listed afresh.

    Raises:
        UserError: if it is no folder, or its file system cannot be reached.
    """
    root = as_path(place)
    _listing.cache_clear()
    _real_folder.cache_clear()
    if not root.is_dir():
        raise UserError(f"source folder {root} not found")
    return root


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
    """The path from an archive's top folder on, which does not change when the archive moves."""
    if isinstance(path, RemotePath):
        return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    return os.path.relpath(path, root)
