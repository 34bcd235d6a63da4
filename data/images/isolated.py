"""Isolated decoding in a subprocess: slower, and safe from a codec that crashes or hangs.

Ingest uses it only for files that a worker was decoding when it died, so that one file cannot end every restart.
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
"""Time limit per image; the largest accepted image takes about ten seconds."""

MAX_MEMORY = 2**32
"""Address space of the decoding process: four times the need of 67 million pixels."""

_CHILD = "from medunifier.data.images.isolated import decode_from_stdin; decode_from_stdin()"


def read_isolated(path: Path, size: int, fit: Fit = "pad", window: Windowing = "header") -> Radiograph:
    """Read an image as :func:`medunifier.data.images.radiograph.read_image` does, in a subprocess.

    Raises:
        UnreadableImage: also if the subprocess crashes or takes over 120 seconds.
        UserError: if it was killed from outside, as when memory runs out, or a remote archive is unreachable.
    """
    asked = pickle.dumps((path, size, fit, window))
    try:
        child = subprocess.run([sys.executable, "-c", _CHILD], input=asked, capture_output=True, timeout=MAX_SECONDS)  # noqa: S603 - fixed program, arguments as a list
    except subprocess.TimeoutExpired:
        raise UnreadableImage(f"not decoded in {MAX_SECONDS} seconds") from None
    if child.returncode == -signal.SIGKILL:
        raise UserError("a decoding process was killed, probably out of memory: try fewer --workers")
    if child.returncode:
        raise UnreadableImage("ends the process that decodes it")
    result: Radiograph | UserError = pickle.loads(child.stdout)  # noqa: S301 - between this process and its own child
    if isinstance(result, UserError):
        raise result
    return result


def decode_from_stdin() -> None:
    """In the subprocess: read the request from standard input, write the image or the error to standard output."""
    from medunifier.data.images.radiograph import read_image

    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    result: Radiograph | UserError
    try:
        result = read_image(*pickle.load(sys.stdin.buffer))  # noqa: S301 - between this process and its own child
    except UserError as error:  # an unreadable image, or a network error
        result = error
    sys.stdout.buffer.write(pickle.dumps(result))
