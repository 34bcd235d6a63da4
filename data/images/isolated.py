"""Isolated decoding: read an image in a subprocess, slower but safe from codecs that crash or hang.

Ingest uses it only for shards that a worker had begun when it died, so that one file cannot make every run fail.
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
"""Time limit for one image; the largest accepted size takes about ten."""

MAX_MEMORY = 2**32
"""Address space of the decoding process, in bytes: four times what 67 million pixels need."""

_CHILD = "from medunifier.data.images.isolated import decode_from_stdin; decode_from_stdin()"


def read_isolated(path: Path, size: int, fit: Fit = "pad", window: Windowing = "header") -> Radiograph:
    """Read an image as :func:`medunifier.data.images.radiograph.read_image` does, in a subprocess.

    Raises:
        UnreadableImage: also if the subprocess crashes, or takes over 120 seconds.
        UserError: if it was killed from outside, for example by the out-of-memory killer, or a remote archive does
            not answer.
    """
    request = pickle.dumps((path, size, fit, window))
    try:
        child = subprocess.run(  # noqa: S603 - fixed program, arguments as a list
            [sys.executable, "-c", _CHILD], input=request, capture_output=True, timeout=MAX_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise UnreadableImage(f"not decoded in {MAX_SECONDS} seconds") from None
    if child.returncode == -signal.SIGKILL:
        raise UserError("a decoding process was killed, probably out of memory: try fewer --workers")
    if child.returncode:
        raise UnreadableImage("crashes the process that decodes it")
    result: Radiograph | UserError = pickle.loads(child.stdout)  # noqa: S301 - between this process and its own child
    if isinstance(result, UserError):
        raise result
    return result


def decode_from_stdin() -> None:
    """Run in the child: read the request from standard input, write the image or the error to standard output."""
    from medunifier.data.images.radiograph import read_image

    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    result: Radiograph | UserError
    try:
        result = read_image(*pickle.load(sys.stdin.buffer))  # noqa: S301 - between this process and its own child
    except UserError as error:  # of the image, or of the network
        result = error
    sys.stdout.buffer.write(pickle.dumps(result))
