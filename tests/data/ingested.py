"""Ingest a small tree of the csv source."""

from pathlib import Path
from typing import Any

from medunifier.data.ingest.command import IngestConfig, ingest
from medunifier.data.shards.dataset import ShardDataset


def ingest_csv(tree: Path, out: Path, size: int = 32, **options: Any) -> tuple[dict[str, Any], ShardDataset]:
    """The manifest, and all studies, which are in train."""
    config = IngestConfig(
        source="csv",
        root=str(tree),
        out=str(out),
        size=size,
        workers=1,
        validate_fraction=0.0,
        test_fraction=0.0,
        **options,
    )
    return ingest(config), ShardDataset(out, "train")
