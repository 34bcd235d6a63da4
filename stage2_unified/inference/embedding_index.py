"""An index of image embeddings: built once from shards or a folder, asked by a radiograph or a text.

A folder: ``embeddings.safetensors`` (N x E float32, unit norm), ``studies.jsonl`` (a line a row: key, view, and the
report where shards had one), ``index.json`` (the model's fingerprint, counts, what was unreadable). While it is
built, finished parts lie in ``NAME.unfinished``, so that a stopped build continues.
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
from medunifier.shared.progress import Progress
from medunifier.stage2_unified.inference.inputs import Films, codes_of, keys_digest, read_batches

if TYPE_CHECKING:
    from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline

INDEX, EMBEDDINGS, STUDIES = "index.json", "embeddings.safetensors", "studies.jsonl"
PART = 1024
"""Radiographs between two parts: what a stopped build loses at the most."""
_BLOCK = 65_536
"""Rows compared at once: bounds the table of similarities."""

Engine = Literal["exact", "faiss"]


@dataclass(frozen=True)
class StudyIndex:
    """N studies in the model's shared space.

    Attributes:
        embeddings: (N, E) float32, unit norm.
        studies: a dict a row: ``path`` or ``study_id``, ``view``, and ``findings`` and ``impression`` if known.
        about: the content of index.json.
    """

    embeddings: np.ndarray
    studies: list[dict[str, Any]]
    about: dict[str, Any]

    @classmethod
    def load(cls, folder: str | Path, model: str) -> "StudyIndex":
        """Read an index that the model with fingerprint ``model`` built.

        Raises:
            UserError: if the folder is no index, is damaged, or was built by another model.
        """
        folder = Path(folder)
        about = read_json(
            folder / INDEX, "an index (built by `medunifier retrieve --data SHARDS --index DIR`)", any_text=True
        )
        if about.get("format_version") != FORMAT_VERSION:
            raise UserError(
                f"{folder} has format version {about.get('format_version')}, this medunifier reads {FORMAT_VERSION}"
            )
        if about.get("model") != model:
            raise UserError(
                f"{folder} was built by model {str(about.get('model'))[:12]}, given {model[:12]}: their embeddings "
                "cannot be compared; give that model, or build another index"
            )
        try:
            embeddings = load_file(folder / EMBEDDINGS)["embeddings"]
            lines = read_bounded(folder / STUDIES, MAX_JSON_BYTES)
            studies = list(parse_json_lines(lines, folder / STUDIES, "a study", any_text=True))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise UserError(f"{folder} cannot be read as an index: {error}; build it again") from None
        if not len(embeddings) == len(studies) == about.get("studies"):
            raise UserError(f"{folder} is damaged: its files speak of different numbers of studies; build it again")
        return cls(embeddings, studies, about)

    def nearest(self, queries: np.ndarray, top: int, engine: Engine = "exact") -> tuple[np.ndarray, np.ndarray]:
        """The most similar rows of each query, best first; equals are in the order of the index.

        Args:
            queries: (Q, E) unit-norm embeddings of images or texts.
            top: how many, at most N are returned.
            engine: ``exact`` compares with every row, in numpy; ``faiss`` does so with FAISS.

        Returns:
            (Q, top) cosine similarities and (Q, top) row numbers.

        Raises:
            UserError: if FAISS is asked for and not installed.
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
            raise UserError("--engine faiss needs FAISS: pip install faiss-cpu; or take --engine exact") from None
        index = faiss.IndexFlatIP(self.embeddings.shape[1])
        index.add(np.ascontiguousarray(self.embeddings))
        similarity, numbers = index.search(np.ascontiguousarray(queries, dtype=np.float32), top)
        return similarity, numbers


def build_index(pipeline: "MedUnifierPipeline", films: Films, folder: str | Path, view: str, batch_size: int) -> str:
    """Embed all films and write the index; what a stopped build has finished is kept.

    Args:
        pipeline: the model.
        films: what is embedded; unreadable ones are counted and named in index.json.
        folder: the index.
        view: view position where a file does not name it.
        batch_size: films a pass.

    Returns:
        What was done, in a line.

    Raises:
        UserError: if the folder holds something else, or no film is readable.
    """
    folder = Path(folder)
    run = {"model": pipeline.fingerprint, "key": films.key_name, "view": view, "films": len(films.keys)}
    run["keys_sha256"] = keys_digest(films)
    work = folder.with_name(f"{folder.name}.unfinished")
    remove_partial(folder.parent, folder.name)
    if folder.exists():
        about = read_json(folder / INDEX, "an index; give another --index", any_text=True) if folder.is_dir() else {}
        refuse_other_settings(folder, {name: about.get(name) for name in run}, run, "--index")
        shutil.rmtree(work, ignore_errors=True)  # killed between the rename and this removal
        return f"{folder} is done already: {about['studies']} studies"
    remove_partial(work)
    begin_or_continue(work / "run.json", run, option="--index")
    parts = [work / f"part-{begin:08d}.safetensors" for begin in range(0, len(films.keys), PART)]
    kept = sum(min(PART, len(films.keys) - n * PART) for n, part in enumerate(parts) if part.is_file())
    with Progress(len(films.keys), "embedding", "images", done=kept) as progress:
        for number, part in enumerate(parts):
            if not part.is_file():
                _write_part(part, pipeline, films, number * PART, view, batch_size, progress)
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
    films: Films,
    begin: int,
    view: str,
    batch_size: int,
    progress: Progress,
) -> None:
    """Embeddings of up to PART films, with their rows in the file's metadata: one file, complete or absent."""
    rows: list[dict[str, Any]] = []
    embeddings = [np.empty((0, pipeline.model.config.embedding_dim), np.float32)]
    for batch in read_batches(films, begin, batch_size, begin + PART):
        readable = [film for film in batch if not film.error]
        views = [film.view or view for film in readable]
        if readable:
            embeddings.append(pipeline.embed_images(codes_of(pipeline, readable), views))
        for film in batch:
            known = {"error": film.error} if film.error else {"view": film.view or view, **film.report}
            rows.append({films.key_name: film.key} | known)
        progress.advance(len(batch))
    with atomic_file(path) as partial:
        save_file({"embeddings": np.concatenate(embeddings)}, partial, {"rows": json.dumps(rows)})


def _read_parts(parts: Sequence[Path]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    embeddings, rows = [], []
    for part in parts:
        with safe_open(part, "np") as file:
            embeddings.append(file.get_tensor("embeddings"))
            rows += parse_json(file.metadata()["rows"], part, "a part of an index", list, any_text=True)
    return np.concatenate(embeddings), rows
