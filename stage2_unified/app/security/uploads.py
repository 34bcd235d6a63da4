"""The upload store: owner of each file, limits per client and overall, removal of the oldest files."""

import asyncio
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fastapi import HTTPException
from fastapi.responses import PlainTextResponse, Response
from python_multipart.exceptions import FormParserError
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from medunifier.stage2_unified.app.security.clients import address_of, owner_of
from medunifier.stage2_unified.app.security.upload_limit import UPLOAD_MIB

KEPT_SECONDS = 3600
"""How long an upload or a generated image is kept at most while the server runs."""

Owner = tuple[str, str]


@dataclass(frozen=True)
class StoreLimits:
    """Bounds of the store. Beyond those of a client its oldest uploads are removed; beyond the others 507."""

    file_bytes: int = UPLOAD_MIB * 2**20
    """Of one upload request."""
    client_bytes: int = 2**28
    client_files: int = 256
    all_bytes: int = 2**30
    """Of everything in the server's folder, generated images included."""
    all_files: int = 4096
    seconds: float = 300
    """For one request to arrive."""

    @classmethod
    def of_files(cls, file_bytes: int) -> "StoreLimits":
        """Return the bounds for files of at most ``file_bytes``, with room for two from a client and four overall."""
        return cls(file_bytes, max(cls.client_bytes, 2 * file_bytes), all_bytes=max(cls.all_bytes, 4 * file_bytes))


@dataclass(frozen=True)
class _Upload:
    owner: Owner
    address: str
    size: int
    time: float


class Uploads:
    """Store uploads and their owners.

    Each request writes into a separate folder with a random name, so an address cannot be guessed from a file's
    content, and whatever a broken or hostile request leaves behind is removed with the folder.

    Args:
        folder: the server's temporary folder.
        limits: bounds.
    """

    def __init__(self, folder: Path, limits: StoreLimits) -> None:
        self._root, self._folder, self.limits = folder, folder / "uploads", limits
        self._kept: dict[str, _Upload] = {}  # by path, oldest first
        self._arriving: Counter[str] = Counter()  # bytes by address

    def owned(self, path: str, owner: Owner) -> bool:
        """Return whether this client uploaded the file at ``path``."""
        found = self._kept.get(path)
        return found is not None and found.owner == owner

    async def take(self, request: Request, upload_id: str | None = None) -> Response | list[str]:
        """Write the files of a multipart request; Gradio parses it.

        Returns:
            Their paths, or an error response for a request that is no upload.

        Raises:
            HTTPException: 429 or 507 if a bound is reached, 408 if the request takes too long.
        """
        from gradio.routes import file_upload_statuses, upload_fn

        address, owner = address_of(request.scope), owner_of(request.scope)
        length = request.headers.get("content-length", "")
        expected = int(length) if length.isdigit() else self.limits.file_bytes
        self._make_room(address, expected)
        folder = self._folder / secrets.token_urlsafe(16)
        self._arriving[address] += expected
        paths: list[str] = []
        try:
            progress = file_upload_statuses if upload_id else None
            async with asyncio.timeout(self.limits.seconds):
                taken = await upload_fn(request, folder, self.limits.file_bytes, upload_id, True, progress)
            paths = [str(path) for path in taken[0]]
        except MultiPartException as error:
            return PlainTextResponse(error.message, 413 if "maximum allowed size" in error.message else 400)
        except FormParserError:  # the parser cannot be made, for example for a boundary of 300 characters
            return PlainTextResponse("the form is damaged", 400)
        except TypeError:  # Gradio's, for a form field of the files' name that holds a text
            return PlainTextResponse("the form has no file", 400)
        except TimeoutError:
            raise HTTPException(408, "the upload took too long") from None
        finally:
            self._arriving[address] -= expected
            if not self._arriving[address]:
                del self._arriving[address]
            if upload_id and not paths:
                file_upload_statuses.stop_tracking(upload_id)
            _keep_only(folder, paths)
        self._remember(paths, address, owner)
        return paths

    def _make_room(self, address: str, expected: int) -> None:
        oldest = time.time() - KEPT_SECONDS
        self._remove([path for path, upload in self._kept.items() if upload.time < oldest])
        if self._arriving[address] + expected > self.limits.client_bytes:
            raise HTTPException(429, "too many uploads at the same time: try again later")
        self._evict(address, self._arriving[address] + expected)
        stored = bytes_in(self._root) + sum(self._arriving.values()) + expected
        if stored > self.limits.all_bytes or len(self._kept) >= self.limits.all_files:
            raise HTTPException(507, "too many uploads are kept: try again later")

    def _remember(self, paths: Iterable[str], address: str, owner: Owner) -> None:
        for path in paths:
            self._kept[path] = _Upload(owner, address, os.stat(path).st_size, time.time())
        self._evict(address, self._arriving[address])

    def _evict(self, address: str, expected: int) -> None:
        """Remove the oldest uploads of a client until ``expected`` bytes fit."""
        files = [(path, upload.size) for path, upload in self._kept.items() if upload.address == address]
        total, removed = expected + sum(size for _, size in files), 0
        while removed < len(files) and (
            total > self.limits.client_bytes or len(files) - removed > self.limits.client_files
        ):
            total -= files[removed][1]
            removed += 1
        self._remove([path for path, _ in files[:removed]])

    def _remove(self, paths: Iterable[str]) -> None:
        for path in paths:
            del self._kept[path]
            Path(path).unlink(missing_ok=True)


def _keep_only(folder: Path, paths: Iterable[str]) -> None:
    """Delete everything in ``folder`` but ``paths``, and the folder itself if there are none."""
    kept = set(paths)
    if not kept:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            if path not in kept:
                os.unlink(path)


def bytes_in(folder: Path) -> int:
    """Return the bytes of all files in a folder and its subfolders."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except OSError:  # deleted between the two calls
                continue
    return total


def remove_older(folder: Path, seconds: float, spared: Iterable[str] = ()) -> None:
    """Delete files written longer ago than ``seconds``, and empty folders as old; top folders in ``spared`` stay."""
    limit, kept = time.time() - seconds, set(spared)
    for entry in folder.iterdir():
        if entry.name in kept:
            continue
        if entry.is_file():
            _unlink_older(entry, limit)
            continue
        for root, _, names in os.walk(entry, topdown=False):
            for name in names:
                _unlink_older(Path(root, name), limit)
            try:
                if os.stat(root).st_mtime < limit:
                    os.rmdir(root)
            except OSError:  # not empty, or gone
                continue


def _unlink_older(path: Path, limit: float) -> None:
    try:
        if path.lstat().st_mtime < limit:
            path.unlink()
    except FileNotFoundError:  # deleted between the two calls
        pass
