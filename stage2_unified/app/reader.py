"""Decode images in a persistent child process, so a codec that crashes or hangs does not affect the server."""

import os
import pickle
import resource
import subprocess
import sys
import threading
from pathlib import Path

from medunifier.data.images.dicom import Radiograph
from medunifier.data.images.isolated import MAX_MEMORY
from medunifier.data.images.pixels import UnreadableImage
from medunifier.data.images.radiograph import read_image
from medunifier.shared.errors import UserError

MAX_SECONDS = 30
"""Time limit per image; other requests wait for it."""

_CHILD = "from medunifier.stage2_unified.app.reader import serve_requests; serve_requests()"


class RadiographReader:
    """Isolated decoding in one child process, started on first use and restarted when it ended.

    Args:
        seconds: time limit per image.
    """

    def __init__(self, seconds: float = MAX_SECONDS) -> None:
        self._seconds, self._lock = seconds, threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def read(self, path: Path, size: int) -> Radiograph:
        """Read a file as :func:`medunifier.data.images.radiograph.read_image` does.

        Raises:
            UnreadableImage: also if the child process crashes or exceeds the time limit.
        """
        with self._lock:
            if self._child is None or self._child.poll() is not None:
                self._child = subprocess.Popen(  # noqa: S603 - fixed program, arguments as a list
                    [sys.executable, "-c", _CHILD],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                )  # fmt: skip
            child = self._child
            assert child.stdin is not None and child.stdout is not None  # noqa: S101 - narrows a type
            killer = threading.Timer(self._seconds, child.kill)
            killer.start()
            try:
                child.stdin.write(pickle.dumps((path, size)))
                child.stdin.flush()
                result: Radiograph | UserError = pickle.load(child.stdout)  # noqa: S301 - between this process and its own child
            except (EOFError, OSError, pickle.UnpicklingError):
                late = not killer.is_alive()
                child.kill()
                child.wait()
                self._child = None
                raise UnreadableImage(
                    f"not decoded within {self._seconds:g} seconds" if late else "crashed the decoding process"
                ) from None
            finally:
                killer.cancel()
        if isinstance(result, UserError):
            raise result
        return result


def serve_requests() -> None:
    """Run the child process: read paths and sizes from standard input, write images or errors to standard output."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # keep output of codecs out of the pipe
    while True:
        try:
            path, size = pickle.load(sys.stdin.buffer)  # noqa: S301 - between this process and its own child
        except EOFError:  # the server exited
            return
        result: Radiograph | UserError
        try:
            result = read_image(path, size)
        except UserError as error:
            result = error
        output.write(pickle.dumps(result))
        output.flush()
