"""Isolated decoding: read images in a child process, safe from codecs that crash, hang or allocate without bound.

The page reads every upload so. Ingest does for shards that a worker had begun when it died, so that one file cannot
make every run fail.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType

from medunifier.data.images.dicom import Radiograph, Windowing
from medunifier.data.images.pixels import UnreadableImage
from medunifier.data.images.resize import Fit
from medunifier.shared.errors import UserError
from medunifier.shared.files.os_services import limit_memory

MAX_SECONDS = 120
"""Time limit for one image; the largest accepted size takes about ten."""

MAX_MEMORY = 2**32
"""Address space of the child process, in bytes: four times what 67 million pixels need."""

_CHILD = "from medunifier.data.images.isolated import serve_requests; serve_requests()"


class IsolatedReader:
    """Reads images in one child process, which is started on first use and replaced after it ended.

    The child ends when the reader is closed or its process exits. One image is read at a time; `read` may be called
    from several threads.

    Args:
        seconds: time limit per image.
    """

    def __init__(self, seconds: float = MAX_SECONDS) -> None:
        self._seconds, self._lock = seconds, threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def read(self, path: Path, size: int, fit: Fit = "pad", window: Windowing = "header") -> Radiograph:
        """Read a file as :func:`medunifier.data.images.radiograph.read_image` does.

        Raises:
            UnreadableImage: also if the child process crashes or exceeds the time limit.
            UserError: if it was killed from outside, for example by the out-of-memory killer, or a remote archive
                does not answer.
        """
        with self._lock:
            child = self._running_child()
            assert child.stdin is not None and child.stdout is not None  # noqa: S101 - narrows a type
            timed_out = threading.Event()

            def expire() -> None:
                timed_out.set()
                child.kill()

            timer = threading.Timer(self._seconds, expire)
            timer.start()
            try:
                child.stdin.write(pickle.dumps((path, size, fit, window)))
                child.stdin.flush()
                result: Radiograph | UserError = pickle.load(child.stdout)  # noqa: S301 - written by our own child
            except (EOFError, OSError, pickle.UnpicklingError):
                raise self._failure(child, timed_out.is_set()) from None
            finally:
                timer.cancel()
        if isinstance(result, UserError):
            raise result
        return result

    def close(self) -> None:
        """End the child process; a later `read` starts a new one."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()  # closes the pipes and collects the exit status
            self._child = None

    def __enter__(self) -> "IsolatedReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _running_child(self) -> "subprocess.Popen[bytes]":
        if self._child is not None and self._child.poll() is not None:
            self.close()
        if self._child is None:
            self._child = subprocess.Popen(  # noqa: S603 - fixed program, arguments as a list
                [sys.executable, "-c", _CHILD],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        return self._child

    def _failure(self, child: "subprocess.Popen[bytes]", timed_out: bool) -> UserError:
        """Return the error for a child that gave no result, and end the child."""
        try:
            status = child.wait(1)  # its pipe is closed just before it exits
        except subprocess.TimeoutExpired:
            status = 0
        self.close()
        if timed_out:
            return UnreadableImage(f"not decoded within {self._seconds:g} seconds")
        if status == -signal.SIGKILL:
            return UserError("a decoding process was killed, probably out of memory: try fewer --workers")
        return UnreadableImage("crashes the process that decodes it")


def serve_requests() -> None:
    """Run in the child: read requests from standard input, write images or errors to standard output."""
    from medunifier.data.images.radiograph import read_image

    limit_memory(MAX_MEMORY)
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # keep output of codecs out of the pipe
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)  # noqa: S301 - written by our own parent
        except EOFError:  # the parent closed the reader or exited
            return
        result: Radiograph | UserError
        try:
            result = read_image(*request)
        except UserError as error:  # of the image, or of the network
            result = error
        output.write(pickle.dumps(result))
        output.flush()
