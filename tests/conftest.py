"""What tests share."""

from collections.abc import Callable
from pathlib import Path

import pytest

_SHARED_DATA = Path(__file__).resolve().parents[1] / "../shared/data"


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """`shared_data("dicom")`: real files that lie beside the repository; skips where they do not."""

    def find(name: str) -> Path:
        path = _SHARED_DATA / name
        if not path.exists():
            pytest.skip(f"real data not at hand: {path} is absent")
        return path

    return find
