"""The file of a shard on this machine: where it lies, or its copy in the cache; its checksum is looked at first.

A copy of a remote shard bears the checksum as its name, so it cannot go stale, and shards of several folders with
one content are fetched once. ``MEDUNIFIER_CACHE`` names the cache; it may be deleted at any time.
"""

import fcntl
import os
from pathlib import Path

from medunifier.data.remote_paths import filesystem, is_url, remote_errors_as_user_errors
from medunifier.shared.artifacts import atomic_file, remove_partial, sha256_file
from medunifier.shared.errors import UserError


def cache_folder() -> Path:
    """Where copies of remote shards are kept."""
    return Path(os.environ.get("MEDUNIFIER_CACHE") or Path.home() / ".cache" / "medunifier")


def checked_shard(root: str, name: str, sha256: str) -> Path:
    """A file of this machine with the shard's bytes, as its manifest promises them.

    Reading a shard of 10 MB for its checksum takes 7 ms (1.5 GB/s), once a process; its pages are then in memory
    for the samples that are read next.

    Raises:
        UserError: if the shard is absent, cut short or changed.
    """
    if is_url(root):
        return _fetched(f"{root}/{name}", sha256)
    path = Path(root) / name
    if not path.is_file():
        raise UserError(f"shard {path} is in the manifest but not on disk; copy it here or make the shards again")
    _check(path, sha256, path, "Copy it again from where it came, or remove the folder and make the shards again")
    return path


def _check(file: Path, sha256: str, place: Path | str, remedy: str) -> None:
    if (found := sha256_file(file)) != sha256:
        raise UserError(
            f"shard {place} is damaged: its checksum is {found[:12]}…, the manifest says {sha256[:12]}…. {remedy}"
        )


def _fetched(url: str, sha256: str) -> Path:
    copy = cache_folder() / "shards" / f"{sha256}.tar"
    if copy.is_file() and sha256_file(copy) == sha256:
        return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    # Workers begin at the same shards: one fetches, the others wait for it.
    with open(copy.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (copy.is_file() and sha256_file(copy) == sha256):
            _fetch(url, sha256, copy)
    return copy


def _fetch(url: str, sha256: str, copy: Path) -> None:
    system, path = filesystem(url)
    remove_partial(copy.parent)
    with atomic_file(copy) as partial:
        try:
            with remote_errors_as_user_errors(url):
                system.get_file(path, str(partial))
        except FileNotFoundError:
            raise UserError(f"shard {url} is in the manifest but not there; copy it there again") from None
        _check(partial, sha256, url, "If it happens again, copy the shard there again")
