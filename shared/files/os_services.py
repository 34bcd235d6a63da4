"""Operating-system services that some platforms, containers or file systems lack, each with its fallback.

Linux has all of them. macOS has no `os.sched_getaffinity` and refuses `RLIMIT_AS`; Windows has neither `fcntl` nor
`resource`.
"""

import os
import sys
from pathlib import Path
from typing import IO

from medunifier.shared.errors import UserError

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]
try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]


def usable_cores() -> int:
    """Return the number of cores that this process may use, or of the machine where that is unknown."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def lock(file: int | IO[bytes] | IO[str]) -> None:
    """Wait for the exclusive lock of an open file, which ends with the process. Without locks, return at once."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            return  # a file system without locks


def try_lock(file: int | IO[bytes] | IO[str], without_locks: bool) -> bool:
    """Take the exclusive lock of an open file if no other process holds it.

    Args:
        file: descriptor or file object.
        without_locks: the answer on a platform without locks.

    Returns:
        Whether the lock was taken.
    """
    if fcntl is None:
        return without_locks
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def limit_memory(size: int) -> None:
    """Limit the address space of this process to ``size`` bytes, where the platform can."""
    if resource is None:
        return
    try:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = size if hard == resource.RLIM_INFINITY else min(size, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    except (OSError, ValueError):
        return  # macOS refuses it


def peak_memory() -> int:
    """Return the peak resident memory of this process in bytes, 0 where it is unknown."""
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024  # macOS counts bytes, Linux KiB


def max_open_files() -> int | None:
    """Return how many files and connections this process may have open; None without a known limit."""
    if resource is None:
        return None
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else int(soft)


def home_folder() -> Path:
    """Return the user's home folder.

    Raises:
        UserError: if there is none, as in a container whose user has no entry in /etc/passwd.
    """
    try:
        return Path.home()
    except RuntimeError:
        raise UserError("this user has no home folder: set HOME to a folder that can be written") from None


def expand_home(path: str | Path) -> Path:
    """Return the path with a leading ``~`` replaced by the home folder.

    Raises:
        UserError: if there is no such folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"cannot expand ~ in {path}: write the whole path, or set HOME") from None


def free_shared_memory() -> int | None:
    """Return the free bytes of /dev/shm, through which loader processes pass batches; None where there is none."""
    try:
        status = os.statvfs("/dev/shm")  # noqa: S108 - measured, not written
    except (AttributeError, OSError):
        return None
    return status.f_bavail * status.f_frsize
