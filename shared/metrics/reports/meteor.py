"""METEOR by nltk; left out where WordNet's files are not installed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medunifier.shared.errors import UserError
from medunifier.shared.metrics.reports.report_text import clean


def load_wordnet(folder: str) -> Any:
    """WordNet as nltk reads it.

    Args:
        folder: an ``nltk_data`` folder (with ``corpora/wordnet`` or ``corpora/wordnet.zip``), or the folder
            ``wordnet`` itself.

    Raises:
        UserError: if it holds no WordNet.
    """
    from nltk.corpus.reader.wordnet import WordNetCorpusReader
    from nltk.data import ZipFilePathPointer

    root = Path(folder)
    zipped = root / "corpora" / "wordnet.zip"
    try:
        for place in (root, root / "wordnet", root / "corpora" / "wordnet"):
            if (place / "index.noun").is_file():
                return WordNetCorpusReader(str(place.resolve()), None)
        if zipped.is_file():
            return WordNetCorpusReader(ZipFilePathPointer(str(zipped), "wordnet/"), None)
    except (OSError, ValueError) as error:
        raise UserError(f"WordNet in {folder} cannot be read: {' '.join(str(error).split())[:160]}") from None
    raise UserError(
        f"no WordNet in {folder}: METEOR needs nltk's corpora/wordnet.zip (nltk_data, package wordnet) there; "
        "nothing is downloaded"
    )


def meteor_each(written: Sequence[str], references: Sequence[str], wordnet: Any) -> np.ndarray:
    """(N,) METEOR of each report by nltk: exact words, stems, then synonyms; α 0.9, β 3, γ 0.5.

    nltk looks synonyms up by stem, so that those of "density" are not found under "densiti". The parameters
    are Lavie and Agarwal's first. Papers of the field use METEOR 1.5 (Java, through
    pycocoevalcap), with other parameters and paraphrase tables: the two are not comparable.

    Args:
        written, references: N texts each, in the same order; cleaned here. An empty text scores 0.
        wordnet: of :func:`load_wordnet`, or anything with its ``synsets(word)``.

    Raises:
        ValueError: if the two differ in length, or are empty.
    """
    from nltk.translate.meteor_score import single_meteor_score

    if len(written) != len(references) or not references:
        raise ValueError(f"{len(written)} texts for {len(references)} references; at least one pair is needed")
    pairs = [
        (clean(reference).split(), clean(text).split()) for text, reference in zip(written, references, strict=True)
    ]
    return np.array([single_meteor_score(*pair, wordnet=wordnet) if all(pair) else 0.0 for pair in pairs])
