"""An index of image embeddings: built once from shards or a folder, queried with a radiograph or a text.

The index is a folder: ``embeddings.safetensors`` (N x E float32, unit norm), ``studies.jsonl`` (one line per
embedding: key, view, and the report if the shards had one), ``index.json`` (the model's fingerprint, counts,
unreadable inputs). During the build, finished parts are kept in ``NAME.unfinished``, so an interrupted build resumes.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from medunifier.shared.artifacts import (
    FORMAT_VERSION,
    atomic_file,
    atomic_folder,
    read_json,
    remove_partial,
    write_json,
)
from medunifier.shared.errors import UserError
from medunifier.shared.files.input_files import MAX_JSON_BYTES, parse_json, parse_json_lines, read_bounded
from medunifier.shared.files.settings_record import begin_or_continue, refuse_other_settings
from medunifier.shared.files.weights import check_weight_file
from medunifier.shared.progress import Progress
from medunifier.stage2_unified.inference.inputs import ImageSource, codes_of, keys_digest, read_batches

if TYPE_CHECKING:
    from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline

INDEX, EMBEDDINGS, STUDIES = "index.json", "embeddings.safetensors", "studies.jsonl"
PART = 1024
"""Radiographs per part: the most that an interrupted build has to embed again."""
_BLOCK = 65_536
"""Embeddings compared at once, which bounds the size of the similarity matrix."""

Engine = Literal["exact", "faiss"]


@dataclass(frozen=True)
class StudyIndex:
    """N studies in the shared embedding space of the model.

    Attributes:
        embeddings: (N, E) float32, unit norm.
        studies: one dict per embedding: ``path`` or ``study_id``, ``view``, and the report sections if known.
        about: the content of index.json.
    """

    embeddings: np.ndarray
    studies: list[dict[str, Any]]
    about: dict[str, Any]

    @classmethod
    def load(cls, folder: str | Path, model: str) -> "StudyIndex":
        """Load an index built with the model whose fingerprint is ``model``.

        Raises:
            UserError: if the folder is not an index, is damaged, or was built with another model.
        """
        folder = Path(folder)
        about = read_json(
            folder / INDEX, "an index (built by `medunifier retrieve --data SHARDS --index DIR`)", any_text=True
        )
        if about.get("format_version") != FORMAT_VERSION:
            raise UserError(
                f"{folder} has format version {about.get('format_version')}, but this version of medunifier reads "
                f"{FORMAT_VERSION}"
            )
        if about.get("model") != model:
            raise UserError(
                f"{folder} was built by model {str(about.get('model'))[:12]}, not by {model[:12]}: their embeddings "
                "are not comparable. Pass that model, or build another index"
            )
        check_weight_file(folder / EMBEDDINGS)
        try:
            embeddings = load_file(folder / EMBEDDINGS)["embeddings"]
            lines = read_bounded(folder / STUDIES, MAX_JSON_BYTES)
            studies = list(parse_json_lines(lines, folder / STUDIES, "a study", any_text=True))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise UserError(f"{folder} cannot be read as an index: {error}; build it again") from None
        if not len(embeddings) == len(studies) == about.get("studies"):
            raise UserError(f"{folder} is damaged: its files disagree on the number of studies; build it again")
        return cls(embeddings, studies, about)

    def nearest(self, queries: np.ndarray, top: int, engine: Engine = "exact") -> tuple[np.ndarray, np.ndarray]:
        """Return the most similar studies for each query, best first; ties keep the order of the index.

        Args:
            queries: (Q, E) unit-norm embeddings of images or texts.
            top: number of studies per query; at most N are returned.
            engine: ``exact`` compares with all embeddings in NumPy; ``faiss`` does the same with FAISS.

        Returns:
            (Q, top) cosine similarities and (Q, top) indices into ``studies``.

        Raises:
            UserError: if FAISS is requested but not installed.
        """
        top = min(top, len(self.studies))
        if engine == "faiss":
            return self._nearest_by_faiss(queries, top)
        best = np.empty((len(queries), 0), np.float32)
        rows = np.empty((len(queries), 0), np.int64)
        for begin in range(0, len(self.embeddings), _BLOCK):
            similarity = queries.astype(np.float32) @ self.embeddings[begin : begin + _BLOCK].T
            numbers = np.broadcast_to(np.arange(begin, begin + similarity.shape[1]), similarity.shape)
            best, rows = np.concatenate([best, similarity], axis=1), np.concatenate([rows, numbers], axis=1)
            order = np.argsort(-best, axis=1, kind="stable")[:, :top]
            best, rows = np.take_along_axis(best, order, axis=1), np.take_along_axis(rows, order, axis=1)
        return best, rows

    def _nearest_by_faiss(self, queries: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        try:
            import faiss
        except ImportError:
            raise UserError("--engine faiss needs FAISS: pip install faiss-cpu; or use --engine exact") from None
        index = faiss.IndexFlatIP(self.embeddings.shape[1])
        index.add(np.ascontiguousarray(self.embeddings))
        similarity, numbers = index.search(np.ascontiguousarray(queries, dtype=np.float32), top)
        return similarity, numbers


def build_index(
    pipeline: "MedUnifierPipeline", source: ImageSource, folder: str | Path, view: str, batch_size: int
) -> str:
    """Embed all inputs and write the index. An interrupted build resumes after its last finished part.

    Args:
        pipeline: the model.
        source: the inputs; unreadable ones are listed in index.json.
        folder: where the index is written.
        view: view position for files that do not specify it.
        batch_size: images per forward pass.

    Returns:
        A one-line summary.

    Raises:
        UserError: if the folder contains something else, or no input is readable.
    """
    folder = Path(folder)
    run = {"model": pipeline.fingerprint, "key": source.key_name, "view": view, "images": len(source.keys)}
    run["keys_sha256"] = keys_digest(source)
    work = folder.with_name(f"{folder.name}.unfinished")
    remove_partial(folder.parent, folder.name)
    if folder.exists():
        about = (
            read_json(folder / INDEX, "an index; choose another --index", any_text=True) if folder.is_dir() else {}
        )
        refuse_other_settings(folder, {name: about.get(name) for name in run}, run, "--index")
        shutil.rmtree(work, ignore_errors=True)  # left by a process killed between the rename and this removal
        return f"{folder} is already complete: {about['studies']} studies"
    remove_partial(work)
    begin_or_continue(work / "run.json", run, option="--index")
    parts = [work / f"part-{begin:08d}.safetensors" for begin in range(0, len(source.keys), PART)]
    kept = sum(min(PART, len(source.keys) - n * PART) for n, part in enumerate(parts) if part.is_file())
    with Progress(len(source.keys), "embedding", "images", done=kept) as progress:
        for number, part in enumerate(parts):
            if not part.is_file():
                _write_part(part, pipeline, source, number * PART, view, batch_size, progress)
    embeddings, rows = _read_parts(parts)
    unreadable = [row for row in rows if "error" in row]
    studies = [row for row in rows if "error" not in row]
    if not studies:
        shutil.rmtree(work)
        raise UserError(f"none of {len(rows)} files could be read as a radiograph (first: {unreadable[0]['error']})")
    with atomic_folder(folder) as partial:
        save_file({"embeddings": embeddings}, partial / EMBEDDINGS)
        with open(partial / STUDIES, "wb") as file:
            file.writelines(_json(row) + b"\n" for row in studies)
        write_json(
            partial / INDEX,
            {"format_version": FORMAT_VERSION, **run, "studies": len(studies), "unreadable": unreadable},
        )
    shutil.rmtree(work)
    lost = f", {len(unreadable)} unreadable (see {INDEX})" if unreadable else ""
    return f"{folder}: {len(studies)} studies{lost}"


def _json(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace")


def _write_part(
    path: Path,
    pipeline: "MedUnifierPipeline",
    source: ImageSource,
    begin: int,
    view: str,
    batch_size: int,
    progress: Progress,
) -> None:
    """Write the embeddings of up to PART inputs, with their metadata as JSON in the file's header, atomically."""
    rows: list[dict[str, Any]] = []
    embeddings = [np.empty((0, pipeline.model.config.embedding_dim), np.float32)]
    for batch in read_batches(source, begin, batch_size, begin + PART):
        readable = [image for image in batch if not image.error]
        views = [image.view or view for image in readable]
        if readable:
            embeddings.append(pipeline.embed_images(codes_of(pipeline, readable), views))
        for image in batch:
            known = {"error": image.error} if image.error else {"view": image.view or view, **image.report}
            rows.append({source.key_name: image.key} | known)
        progress.advance(len(batch))
    with atomic_file(path) as partial:
        save_file({"embeddings": np.concatenate(embeddings)}, partial, {"rows": json.dumps(rows)})


def _read_parts(parts: Sequence[Path]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    embeddings, rows = [], []
    for part in parts:
        check_weight_file(part)
        with safe_open(part, "np") as file:
            embeddings.append(file.get_tensor("embeddings"))
            rows += parse_json(file.metadata()["rows"], part, "a part of an index", list, any_text=True)
    return np.concatenate(embeddings), rows
