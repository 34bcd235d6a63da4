"""Return the local file of a shard, downloading remote shards to a cache; the checksum is verified first.

A cached copy is named by its checksum, so it cannot become stale, and shards with the same content in several folders
are downloaded once. ``MEDUNIFIER_CACHE`` sets the cache folder, which may be deleted at any time.
"""

import os
from pathlib import Path

from medunifier.data.remote_paths import filesystem, is_url, remote_errors_as_user_errors
from medunifier.shared.artifacts import atomic_file, remove_partial, sha256_file
from medunifier.shared.errors import UserError
from medunifier.shared.files.os_services import home_folder, lock


def cache_folder() -> Path:
    """Return the folder for copies of remote shards."""
    return Path(os.environ.get("MEDUNIFIER_CACHE") or home_folder() / ".cache" / "medunifier")


def checked_shard(root: str, name: str, sha256: str) -> Path:
    """Return a local file with the shard's bytes, verified against the manifest's checksum.

    Computing the checksum of a shard of 10 MB takes 7 ms (1.5 GB/s), once per process; its pages are then in the page
    cache for the samples that are read next.

    Raises:
        UserError: if the shard is absent, truncated or changed.
    """
    if is_url(root):
        return _cached_copy(f"{root}/{name}", sha256)
    path = Path(root) / name
    if not path.is_file():
        raise UserError(f"shard {path} is in the manifest but not on disk; copy it here or make the shards again")
    _check(path, sha256, path, "Copy it again from its origin, or remove the folder and make the shards again")
    return path


def _check(file: Path, sha256: str, location: Path | str, remedy: str) -> None:
    if (found := sha256_file(file)) != sha256:
        raise UserError(
            f"shard {location} is damaged: its checksum is {found[:12]}…, the manifest has {sha256[:12]}…. {remedy}"
        )


def _cached_copy(url: str, sha256: str) -> Path:
    copy = cache_folder() / "shards" / f"{sha256}.tar"
    if copy.is_file() and sha256_file(copy) == sha256:
        return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    # Workers start with the same shards: one downloads, the others wait for it.
    with open(copy.with_suffix(".lock"), "w") as file:
        lock(file)
        if not (copy.is_file() and sha256_file(copy) == sha256):
            _download(url, sha256, copy)
    return copy


def _download(url: str, sha256: str, copy: Path) -> None:
    system, path = filesystem(url)
    remove_partial(copy.parent)
    with atomic_file(copy) as partial:
        try:
            with remote_errors_as_user_errors(url):
                system.get_file(path, str(partial))
        except FileNotFoundError:
            raise UserError(f"shard {url} is in the manifest but absent; upload it again") from None
        _check(partial, sha256, url, "If it happens again, upload the shard again")
