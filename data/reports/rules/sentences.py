"""Split report text into sentences, and sentences into words with one spelling.

Before matching, Unicode variants, abbreviations and signs (`normalize`), British spellings and list marks are
replaced, so that the phrase tables need one form of each phrase. `fold` is also applied to the tables.
"""

import re
import unicodedata
from functools import lru_cache

from medunifier.data.reports.rules.normalize import rewritten, undotted
from medunifier.data.reports.rules.vocabulary import OFTEN_MISSPELT, VARIANTS

_PUNCTUATION = str.maketrans({
    **dict.fromkeys("‘’ʼ`´", "'"), **dict.fromkeys("–—−‐‑‒―", "-"), **dict.fromkeys("•▪●◦‣·∙■□➢➤✓", "\n"),
    "\t": " ", "\r": "\n", "\v": "\n", "\f": "\n", "\x85": "\n", "\u2028": "\n", "\u2029": "\n", "|": "\n",
    "æ": "ae", "œ": "oe", "Æ": "Ae", "Œ": "Oe", "\ufeff": " ", "\u200b": " ",
})  # fmt: skip

# A dash, star, number or letter at the start of a line, and "2)" or "* " within it.
_BULLET = re.compile(r"\s*(?:[-*+>]+\s*(?!\d)|\(?(?:\d{1,2}|[a-zA-Z]|[ivxIVX]{1,4})[.)](?=\s|[A-Za-z]{2})\s*)")
_INNER_BULLET = re.compile(r"\s(?:[*](?=\s)|\(?(?:\d{1,2}|[a-h])\)(?=\s))")

# A report wrapped at fixed columns has lines of at least this length, and breaks where the next word does not fit.
_MIN_WRAP_WIDTH = 50
_CONTINUED = re.compile(
    r"(?:(?<![:=-]\s)(?<![:=])\b(?:no|not|nil|without|or|and|of|the|an|with|in|for|to|is|are|at|by|from|than)|\sa|,)$",
    re.I,
)
_CONTINUES = re.compile(r"(?:or|and|of|with|in|at|is|are|for|to|nor|which|than|by)\b", re.I)

_SENTENCE_END = re.compile(r"[.!]+(?=[\s)]|$|[a-z])|[;\n]")
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?|\d[\d.,/]*|[,:()]|[\x00\ufffd]")

_FOLDS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[ao]e(?!r)", "e"),  # oedema, haemothorax, paediatric; not aerated
        (r"is(?=e[ds]?$|ing$|ation)", "iz"),
        (r"our(?=$|s$|ed$|ing$|able$)", "or"),
        (r"(?<=[bt])re$", "er"),
        (r"ll(?=ed$|ing$)", "l"),
        (r"^grey", "gray"),
        (r"^sulph", "sulf"),
    )
)


# Words shorter than this are not corrected: too many are one letter from another word.
_MIN_CORRECTED = 6


def split_sentences(text: str) -> list[str]:
    """Split a text into lower-case sentences that contain a letter.

    Sentences end at full stops, semicolons, list marks, blank lines, and line breaks other than those of a text
    wrapped at fixed columns.
    """
    if not text.isascii():
        # Accents are removed; letters of other scripts remain and are unknown words.
        text = unicodedata.normalize("NFKD", text.translate(_PUNCTUATION))
        text = "".join(letter for letter in text if not unicodedata.combining(letter))
    else:
        text = text.translate(_PUNCTUATION)
    text = rewritten(_INNER_BULLET.sub("\n", _unwrap(undotted(text))).lower())
    sentences = (" ".join(sentence.split()) for sentence in _SENTENCE_END.split(text))
    return [sentence for sentence in sentences if any(letter.isalpha() for letter in sentence)]


def words(sentence: str) -> list[str]:
    """Return the folded words, numbers and punctuation marks of a lower-case sentence. Hyphens separate words."""
    return [folded for word in _WORD.findall(sentence) for folded in fold(word)]


@lru_cache(maxsize=20_000)
def fold(word: str) -> tuple[str, ...]:
    """Return a word in the one spelling that the tables use: "tumour" -> "tumor", "isn't" -> "is", "not"."""
    if word == "cannot":
        return ("can", "not")
    word, apostrophe, end = word.partition("'")
    if end == "t" and word.endswith("n"):
        return ("can", "not") if word == "can" else (word[:-1], "not")
    word = VARIANTS.get(word, word)
    for pattern, replacement in _FOLDS:
        word = pattern.sub(replacement, word)
    return (_corrected(word),)


def _corrected(word: str) -> str:
    """Return the frequent term that a word misspells by one letter, or the word itself."""
    if len(word) < _MIN_CORRECTED or word in OFTEN_MISSPELT:
        return word
    for deleted in (word, *_deletions(word)):
        term = _MISSPELT.get(deleted)
        if term and term[0] == word[0] and not term.startswith(word) and not word.startswith(term):
            return term
    return word


def _deletions(word: str) -> list[str]:
    return [word[:at] + word[at + 1 :] for at in range(1, len(word))]


def _unwrap(text: str) -> str:
    """Join the lines of wrapped paragraphs, and remove list marks. The remaining line breaks end sentences."""
    if "\n" not in text:
        return text[match.end() :] if (match := _BULLET.match(text)) else text
    lines = [line.strip() for line in text.split("\n")]
    width = max(map(len, lines))
    joined: list[str] = []
    previous = ""
    for line in lines:
        bullet = _BULLET.match(line)
        if previous and line and not bullet and _is_wrapped(joined[-1], previous, line, width):
            joined[-1] += " " + line
        else:
            joined.append(line[bullet.end() :] if bullet else line)
        previous = line
    return "\n".join(joined)


def _is_wrapped(paragraph: str, line: str, following: str, width: int) -> bool:
    """Return whether the sentence of a line, the last one of a paragraph, goes on in the following line."""
    if _CONTINUED.search(line) or _CONTINUES.match(following):
        return True
    if width >= _MIN_WRAP_WIDTH and len(line) + 1 + len(following.split(maxsplit=1)[0]) > width:
        return True
    # In a text with capitals a small letter continues the sentence.
    return following[0].islower() and any(letter.isupper() for letter in paragraph)


# What remains of a term without one of its letters -> the term. Two words that share it differ by one edit.
_MISSPELT = {deleted: term for term in sorted(OFTEN_MISSPELT) for deleted in (term, *_deletions(term))}
