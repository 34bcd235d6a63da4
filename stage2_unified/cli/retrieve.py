"""``medunifier retrieve``: find the studies of an index that are most similar to a radiograph or a text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medunifier.shared.config import parse_config
from medunifier.shared.errors import UserError
from medunifier.shared.files.row_file import Row, RowFile
from medunifier.stage2_unified.cli.report import print_rows
from medunifier.stage2_unified.inference.embedding_index import Engine, StudyIndex, build_index
from medunifier.stage2_unified.inference.inputs import codes_of, keys_digest, open_inputs, read_batches
from medunifier.stage2_unified.inference.report_text import report_of

if TYPE_CHECKING:
    from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline

_COLUMNS = ("query", "rank", "similarity", "study_id", "path", "view", "findings", "impression", "error")


@dataclass(frozen=True)
class RetrieveConfig:
    """Build an index of studies (--data), query it (--image or --text), or both."""

    model: str
    """Model folder (run_dir/model)."""
    index: str
    """Folder of the index. It contains the embeddings and, if built from shards, the reports."""
    data: str = ""
    """Folder or URL of shards, or folder of radiographs, to build the index from. An interrupted build resumes."""
    split: str = ""
    """For shards in --data: comma-separated splits; empty = all."""
    image: str = ""
    """Query with a radiograph, or with each radiograph of a folder."""
    text: str = ""
    """Query with a report or a sentence, taken as findings unless it has section headers."""
    top: int = 5
    """Studies per query."""
    out: str = ""
    """NAME.csv for a table (one row per study found), any other name for JSON lines (one per query); empty = JSON
    lines on standard output."""
    outside_root: bool = False
    """For a folder of radiographs: follow links that leave it."""
    view: str = ""
    """View position (PA, AP, LATERAL) for files that do not specify it."""
    engine: Engine = "exact"
    """exact: compare with every study; faiss: the same with FAISS, installed separately (pip install faiss-cpu)."""
    batch_size: int | None = None
    """Radiographs per forward pass; default: as many as the free memory of a GPU allows, 32 on a CPU."""
    device: str | None = None
    """Device of the model; default: CUDA if available, else the CPU."""

    def __post_init__(self) -> None:
        if not (self.data or self.image or self.text):
            raise ValueError("pass data to build the index, or image or text to query it")
        if self.image and self.text:
            raise ValueError("pass image or text, not both")
        if self.split and not self.data:
            raise ValueError("split applies only to data")
        if self.top < 1 or (self.batch_size is not None and self.batch_size < 1):
            raise ValueError("top and batch_size must be at least 1")


def main(argv: Sequence[str] | None = None) -> None:
    """Build the index if requested, then run the queries.

    Raises:
        UserError: if there is no model or no readable radiograph, or the index is of another model or other data.
    """
    config = parse_config(RetrieveConfig, argv, prog="medunifier retrieve")
    # Imported here so that --help does not wait for torch and transformers.
    from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline

    pipeline = MedUnifierPipeline.from_pretrained(config.model, config.device, config.batch_size)
    if config.data:
        source = open_inputs(config.data, config.split, pipeline.tokenizer, outside_root=config.outside_root)
        print(build_index(pipeline, source, config.index, config.view, pipeline.batch_size))
    if config.image or config.text:
        _query(pipeline, StudyIndex.load(config.index, pipeline.fingerprint), config)


def _query(pipeline: "MedUnifierPipeline", index: StudyIndex, config: RetrieveConfig) -> None:
    run = {"command": "retrieve", "model": pipeline.fingerprint, "top": config.top, "view": config.view}
    run |= {"index": index.about["keys_sha256"], "engine": config.engine, "text": config.text}
    source = None
    if config.image:
        source = open_inputs(config.image, "", pipeline.tokenizer, outside_root=config.outside_root)
    if source is not None:
        run["keys_sha256"] = keys_digest(source)
    with RowFile(config.out, run, _COLUMNS, _flat) as file:
        if file.done:
            print(f"{config.out} is already complete")
            return
        if source is None:
            embedded = pipeline.embed_texts([report_of(config.text)])
            similarity, numbers = index.nearest(embedded, config.top, config.engine)
            file.add([_result(index, config.text, similarity[0], numbers[0])])
        else:
            for batch in read_batches(source, file.count, pipeline.batch_size):
                readable = [image for image in batch if not image.error]
                rows = {image.key: {"query": image.key, "error": image.error} for image in batch if image.error}
                if readable:
                    views = [image.view or config.view for image in readable]
                    embedded = pipeline.embed_images(codes_of(pipeline, readable), views)
                    nearest = index.nearest(embedded, config.top, config.engine)
                    for image, similarity, numbers in zip(readable, *nearest, strict=True):
                        rows[image.key] = _result(index, image.key, similarity, numbers)
                file.add([rows[image.key] for image in batch])
            if file.failed == len(source.keys):
                file.discard()
                raise UserError(f"{config.image} cannot be read as a radiograph: {rows[source.keys[-1]]['error']}")
        file.finish()
        print_rows(config.out, file)


def _result(index: StudyIndex, query: str, similarity: np.ndarray, numbers: np.ndarray) -> Row:
    found = [
        {"rank": rank, "similarity": round(float(value), 6), **index.studies[int(number)]}
        for rank, (value, number) in enumerate(zip(similarity, numbers, strict=True), 1)
    ]
    return {"query": query, "studies": found}


def _flat(row: Row) -> list[Row]:
    if "error" in row:
        return [row]
    return [{"query": row["query"], **study} for study in row["studies"]]
