"""Contents of folders and tables that several tests compare."""

import csv
import gzip
from pathlib import Path

from medunifier.shared.artifacts import sha256_file


def contents(folder: Path) -> dict[str, str]:
    """{path relative to the folder: SHA-256} of every file below it."""
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header, gzipped where its name ends in ``.gz``."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
