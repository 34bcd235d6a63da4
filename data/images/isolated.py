"""Reading a film in a process of its own: slower, and safe from a codec that crashes or never ends.

Ingest reads in this way only what a worker had begun when it died, so that one file cannot end every start anew.
"""

import pickle
import resource
import signal
import subprocess
import sys
from pathlib import Path

from medunifier.data.images.dicom import Radiograph, Windowing
from medunifier.data.images.pixels import Fit, UnreadableImage
from medunifier.shared.errors import UserError

MAX_SECONDS = 120
"""For one film; the largest that is accepted takes some ten."""

MAX_MEMORY = 2**32
"""Of address space, for the process that reads one film: four times what 67 million pixels take."""

_CHILD = "from medunifier.data.images.isolated import decode_from_stdin; decode_from_stdin()"


def read_isolated(path: Path, size: int, fit: Fit = "pad", window: Windowing = "header") -> Radiograph:
    """As :func:`data.radiograph.read_image`.

    Raises:
        UnreadableImage: also if the process ends by itself without an answer, or takes over 120 seconds.
        UserError: if it was killed from outside, as a system short of memory does, or a remote archive does not
            answer.
    """
    asked = pickle.dumps((path, size, fit, window))
    try:
        child = subprocess.run([sys.executable, "-c", _CHILD], input=asked, capture_output=True, timeout=MAX_SECONDS)  # noqa: S603 - fixed program, arguments as a list
    except subprocess.TimeoutExpired:
        raise UnreadableImage(f"not decoded in {MAX_SECONDS} seconds") from None
    if child.returncode == -signal.SIGKILL:
        raise UserError("a film's reader was killed, probably for want of memory: try fewer --workers")
    if child.returncode:
        raise UnreadableImage("ends the process that decodes it")
    film: Radiograph | UserError = pickle.loads(child.stdout)  # noqa: S301 - between this process and its own child
    if isinstance(film, UserError):
        raise film
    return film


def decode_from_stdin() -> None:
    """The child's part: what was asked, from standard input; the film, or why it is refused, to standard output."""
    from medunifier.data.images.radiograph import read_image

    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    film: Radiograph | UserError
    try:
        film = read_image(*pickle.load(sys.stdin.buffer))  # noqa: S301 - between this process and its own child
    except UserError as error:  # what is wrong with the film, or with the network
        film = error
    sys.stdout.buffer.write(pickle.dumps(film))
