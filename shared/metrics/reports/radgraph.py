"""RadGraph F1: whether two reports name the same entities, with the same relations between them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medunifier.shared.errors import UserError

Annotation = Mapping[str, Any]
Level = Literal["simple", "partial", "complete"]
LEVELS: tuple[Level, ...] = ("simple", "partial", "complete")


def radgraph_f1(written: Annotation, reference: Annotation, level: Level) -> float:
    """F1 between the entities of two annotated reports, each counted once.

    Args:
        written, reference: ``{"entities": {number: {"tokens", "label", "relations": [[kind, number], …]}}}``, as
            the radgraph package annotates a report.
        level: ``simple``: tokens and label. ``partial``: and whether it has a relation, which is what most
            papers report. ``complete``: and its relations, with tokens and label of their other end.

    Returns:
        In [0, 1]; 0 if either names nothing, as in the package.
    """
    predicted, wanted = _facts(written, level), _facts(reference, level)
    return 2 * len(predicted & wanted) / (len(predicted) + len(wanted)) if predicted and wanted else 0.0


def _facts(annotation: Annotation, level: Level) -> set[tuple[Any, ...]]:
    entities = annotation["entities"]
    facts: set[tuple[Any, ...]] = set()
    for entity in entities.values():
        own = (entity["tokens"].lower(), entity["label"])
        relations = entity["relations"]
        if level == "simple":
            facts.add(own)
        elif level == "partial":
            facts.add((*own, bool(relations)))
        else:
            if not relations:
                facts.add(own)
            for kind, number in relations:
                other = entities[str(number)]
                facts.add((*own, kind, other["tokens"].lower(), other["label"]))
    return facts


class RadGraph:
    """Annotates reports with the radgraph package, whose model lies in a folder of the user's.

    Args:
        folder: the package's ``model_cache_dir``, with ``radgraph.tar.gz`` or what it was unpacked to, and
            the tokenizer's files.

    Raises:
        UserError: if package or folder are missing.
    """

    def __init__(self, folder: str) -> None:
        try:
            from radgraph import RadGraph as Annotator
        except ImportError:
            raise UserError(
                "RadGraph F1 needs the package radgraph, which is not installed: pip install radgraph"
            ) from None
        if not Path(folder).is_dir() or not any(Path(folder).iterdir()):
            raise UserError(
                f"no RadGraph model in {folder}: put radgraph.tar.gz (StanfordAIMI/RRG_scorers) and the tokenizer "
                "there; nothing is downloaded"
            )
        self._annotate = Annotator(model_type="radgraph", model_cache_dir=folder, tokenizer_cache_dir=folder)

    def __call__(self, written: Sequence[str], references: Sequence[str]) -> dict[Level, np.ndarray]:
        """(N,) F1 of each report by level; 0 where a text is empty, which the package cannot annotate."""
        scores = {level: np.zeros(len(written)) for level in LEVELS}
        full = [
            i for i, pair in enumerate(zip(written, references, strict=True)) if all(text.strip() for text in pair)
        ]
        if full:
            found = self._annotate([written[i] for i in full] + [references[i] for i in full])
            for place, i in enumerate(full):
                for level in LEVELS:
                    pair = found[str(place)], found[str(place + len(full))]
                    scores[level][i] = radgraph_f1(*pair, level)
        return scores
