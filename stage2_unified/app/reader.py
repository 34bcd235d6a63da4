"""Films are read in a child process that lives on: a codec that crashes or never ends takes only that with it."""

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
"""For one film, since others wait behind it."""

_CHILD = "from medunifier.stage2_unified.app.reader import answer_all; answer_all()"


class FilmReader:
    """One child, started when it is first needed and after each death.

    Args:
        seconds: that a film may take.
    """

    def __init__(self, seconds: float = MAX_SECONDS) -> None:
        self._seconds, self._lock = seconds, threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def read(self, path: Path, size: int) -> Radiograph:
        """As :func:`data.radiograph.read_image`.

        Raises:
            UnreadableImage: also if the child dies over it or takes too long.
        """
        with self._lock:
            if self._child is None or self._child.poll() is not None:
                self._child = subprocess.Popen(
                    [sys.executable, "-c", _CHILD],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                )  # fmt: skip
            child = self._child
            assert child.stdin is not None and child.stdout is not None
            killer = threading.Timer(self._seconds, child.kill)
            killer.start()
            try:
                child.stdin.write(pickle.dumps((path, size)))
                child.stdin.flush()
                film: Radiograph | UserError = pickle.load(child.stdout)  # of our own child
            except (EOFError, OSError, pickle.UnpicklingError):
                late = not killer.is_alive()
                child.kill()
                child.wait()
                self._child = None
                raise UnreadableImage(
                    f"not decoded in {self._seconds:g} seconds" if late else "ends the process that decodes it"
                ) from None
            finally:
                killer.cancel()
        if isinstance(film, UserError):
            raise film
        return film


def answer_all() -> None:
    """The child's part: paths and sizes come by standard input, films or refusals go by standard output."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a codec prints is no answer
    while True:
        try:
            path, size = pickle.load(sys.stdin.buffer)
        except EOFError:  # the server has ended
            return
        film: Radiograph | UserError
        try:
            film = read_image(path, size)
        except UserError as error:
            film = error
        answers.write(pickle.dumps(film))
        answers.flush()
