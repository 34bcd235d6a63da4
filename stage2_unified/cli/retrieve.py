"""``medunifier retrieve``: the most similar studies of an index, to a radiograph or to a text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medunifier.shared.config import parse_config
from medunifier.shared.errors import UserError
from medunifier.shared.files.row_file import Row, RowFile
from medunifier.stage2_unified.inference.embedding_index import Engine, StudyIndex, build_index
from medunifier.stage2_unified.inference.inputs import codes_of, keys_digest, open_films, read_batches
from medunifier.stage2_unified.inference.report_text import report_of

if TYPE_CHECKING:
    from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline

_COLUMNS = ("query", "rank", "similarity", "study_id", "path", "view", "findings", "impression", "error")


@dataclass(frozen=True)
class RetrieveConfig:
    """Build an index of studies (--data), ask it for the most similar (--image, --text), or both at once."""

    model: str
    """Model folder (run_dir/model)."""
    index: str
    """Folder of the index; it holds the embeddings and, from shards, the reports."""
    data: str = ""
    """Build the index from this folder or URL of shards, or folder of radiographs. A stopped build is continued."""
    split: str = ""
    """Of shards that are built from: which splits, with commas; empty = all."""
    image: str = ""
    """Ask by a radiograph, or by each of a folder."""
    text: str = ""
    """Ask by a report or a sentence, taken as findings unless it has section headers."""
    top: int = 5
    """Studies a question."""
    out: str = ""
    """NAME.csv for a table (a row a study found), another name for JSON lines (one a question); empty = JSON lines
    on standard output."""
    view: str = ""
    """View position (PA, AP, LATERAL) where a file does not name it."""
    engine: Engine = "exact"
    """exact: compare with every study; faiss: the same by FAISS, which is installed apart (pip install faiss-cpu)."""
    batch_size: int = 16
    """Radiographs a pass."""
    device: str | None = None
    """Where the model runs; an accelerator if there is one."""

    def __post_init__(self) -> None:
        if not (self.data or self.image or self.text):
            raise ValueError("give data to build the index, or image or text to ask it")
        if self.image and self.text:
            raise ValueError("give image or text, not both")
        if self.split and not self.data:
            raise ValueError("split goes with data")
        if self.top < 1 or self.batch_size < 1:
            raise ValueError("top and batch_size must be at least 1")


def main(argv: Sequence[str] | None = None) -> None:
    """Build what is to be built, then answer.

    Raises:
        UserError: for no model, an index of another model or of other data, no readable radiograph.
    """
    config = parse_config(RetrieveConfig, argv, prog="medunifier retrieve")
    from medunifier.stage2_unified.inference.pipeline import (
        MedUnifierPipeline,  # here: --help does not wait for torch and transformers
    )

    pipeline = MedUnifierPipeline.from_pretrained(config.model, config.device, config.batch_size)
    if config.data:
        films = open_films(config.data, config.split, pipeline.tokenizer)
        print(build_index(pipeline, films, config.index, config.view, config.batch_size))
    if config.image or config.text:
        _ask(pipeline, StudyIndex.load(config.index, pipeline.fingerprint), config)


def _ask(pipeline: "MedUnifierPipeline", index: StudyIndex, config: RetrieveConfig) -> None:
    run = {"command": "retrieve", "model": pipeline.fingerprint, "top": config.top, "view": config.view}
    run |= {"index": index.about["keys_sha256"], "engine": config.engine, "text": config.text}
    films = open_films(config.image, "", pipeline.tokenizer) if config.image else None
    if films is not None:
        run["keys_sha256"] = keys_digest(films)
    with RowFile(config.out, run, _COLUMNS, _flat) as file:
        if file.done:
            print(f"{config.out} is done already")
            return
        if films is None:
            embedded = pipeline.embed_texts([report_of(config.text)])
            similarity, numbers = index.nearest(embedded, config.top, config.engine)
            file.add([_answer(index, config.text, similarity[0], numbers[0])])
        else:
            for batch in read_batches(films, file.count, config.batch_size):
                readable = [film for film in batch if not film.error]
                rows = {film.key: {"query": film.key, "error": film.error} for film in batch if film.error}
                if readable:
                    views = [film.view or config.view for film in readable]
                    embedded = pipeline.embed_images(codes_of(pipeline, readable), views)
                    nearest = index.nearest(embedded, config.top, config.engine)
                    for film, similarity, numbers in zip(readable, *nearest, strict=True):
                        rows[film.key] = _answer(index, film.key, similarity, numbers)
                file.add([rows[film.key] for film in batch])
            if file.failed == len(films.keys):
                file.discard()
                raise UserError(f"{config.image} cannot be read as a radiograph: {rows[films.keys[-1]]['error']}")
        file.finish()
        if config.out:
            print(f"{config.out}: {file.count} rows")


def _answer(index: StudyIndex, query: str, similarity: np.ndarray, numbers: np.ndarray) -> Row:
    found = [
        {"rank": rank, "similarity": round(float(value), 6), **index.studies[int(number)]}
        for rank, (value, number) in enumerate(zip(similarity, numbers, strict=True), 1)
    ]
    return {"query": query, "studies": found}


def _flat(row: Row) -> list[Row]:
    if "error" in row:
        return [row]
    return [{"query": row["query"], **study} for study in row["studies"]]
