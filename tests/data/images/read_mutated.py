"""Read damaged files by index in a separate process that may crash, hang or exhaust memory; one line per file.

Run as ``python -m tests.data.images.read_mutated BEGIN END FOLDER``.
"""

import faulthandler
import resource
import sys
from pathlib import Path

import numpy as np

from medunifier.data.images.pixels import UnreadableImage
from medunifier.data.images.radiograph import read_image
from tests.data.dicom_samples import SAMPLES, mutated_file, sample

MAX_SECONDS = 20
MAX_EXTRA_MEMORY = 2**30
"""Additional address space, in bytes, beyond that used after reading the undamaged samples."""


def main(begin: int, end: int, folder: Path) -> None:
    path = folder / f"{begin}.dcm"
    for name in SAMPLES:
        path.write_bytes(sample(name))
        read_image(path)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MAX_EXTRA_MEMORY, used + MAX_EXTRA_MEMORY))
    for number in range(begin, end):
        path.write_bytes(mutated_file(number)[1])
        print(number, flush=True, end=" ")
        faulthandler.dump_traceback_later(MAX_SECONDS, exit=True)
        print(_outcome(path), flush=True)
        faulthandler.cancel_dump_traceback_later()


def _outcome(path: Path) -> str:
    try:
        pixels = read_image(path).pixels
    except UnreadableImage as error:
        return f"refused {error.reason}"
    except BaseException as error:
        return f"raised {error!r}"
    valid = pixels.dtype == np.float32 and pixels.ndim == 2 and 0 <= pixels.min() < pixels.max() <= 1
    return "decoded" if valid else "invalid image"


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
