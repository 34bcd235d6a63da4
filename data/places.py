"""Where an archive lies: a folder of this machine, or an fsspec URL (``s3://bucket/mimic-cxr``, ``memory://…``).

A remote place is used as a :class:`pathlib.Path` is, as far as sources need it: names are put together with ``/``,
files are listed, opened and read. Nothing of it is copied to this machine but the bytes that are asked for.
Credentials are the file system's own affair: its environment variables, its files, or fsspec's configuration.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import fsspec
from fsspec.registry import known_implementations

from shared.errors import UserError


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
    except (FileNotFoundError, UserError):
        raise
    except Exception as error:  # every backend has exceptions of its own (botocore, aiohttp, google-auth, …)
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        raise UserError(
            f"{url} cannot be read: {reason}; check the address, the network and the credentials. "
            "The same command continues where it stopped"
        ) from error


class RemotePath(PurePosixPath):
    """A path below an fsspec URL. Its first part is the scheme: ``s3:``, ``bucket``, ``files``, ….

    Everything of a :class:`~pathlib.PurePosixPath`, and those methods of a :class:`~pathlib.Path` that read.
    """

    def __str__(self) -> str:
        scheme, _, rest = super().__str__().partition(":/")
        return f"{scheme}://{rest}"

    def __fspath__(self) -> str:
        raise TypeError(f"{self} is no file of this machine: read it with its own methods")

    def open(self, mode: str = "rb") -> IO[bytes]:
        """The file for reading, fetched piece by piece as it is read."""
        system, path = self._place()
        with network_trouble_named(str(self)):
            return cast(IO[bytes], system.open(path, mode))

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


def open_root(place: str | Path) -> Path:
    """The top folder of an archive, listed afresh. A remote one is a :class:`RemotePath`, which sources use alike.

    Raises:
        UserError: if it is no folder, or its file system cannot be reached.
    """
    root = cast(Path, RemotePath(str(place).rstrip("/"))) if is_url(place) else Path(place)
    _listing.cache_clear()
    if not root.is_dir():
        raise UserError(f"source folder {root} not found")
    return root


def file_size(path: Path) -> int:
    """Bytes of a local or remote file."""
    return path.size() if isinstance(path, RemotePath) else path.stat().st_size
