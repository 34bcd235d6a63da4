"""Report text as it is scored: the cleaning of R2Gen, by which most papers of the field compare words."""

import re

# What de-identification and lists leave behind: runs of "___" and "..", and "2. " before a sentence.
_RUNS = re.compile(r"_+|\.(?:\s*\.)+")
_LIST_NUMBER = re.compile(r"(?:^|\s)\d\.\s")
_SENTENCE_END = re.compile(r"\.\s+|\.$")
# Upstream's class holds ":-[" unescaped, a range: hyphens stay, and "<=>@" go too.
_REMOVED = re.compile(r"[.,?;*!%^&_+():<=>@\[\]{}\"'/\\]")
_SPACES = re.compile(r"\s+")


def clean(text: str) -> str:
    """Return lower-case text without punctuation, sentences joined by " . ": R2Gen's form for MIMIC-CXR.

    R2Gen also replaces rare words of the *reference*, which its vocabulary lacks. This function does not, so
    figures may be slightly lower than R2Gen's.

    Returns:
        Words and full stops separated by single spaces, "" for a text without words.
    """
    text = _RUNS.sub(lambda run: "." if "." in run[0] else " ", text.lower())
    text = _LIST_NUMBER.sub(". ", _SPACES.sub(" ", text).strip())
    sentences = (_SPACES.sub(" ", _REMOVED.sub("", part)).strip() for part in _SENTENCE_END.split(text))
    kept = [sentence for sentence in sentences if sentence]
    return " . ".join(kept) + " ." if kept else ""
