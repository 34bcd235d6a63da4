"""Find the phrases of a table in a list of words: the phrase with most words first, stems, interposed adverbs."""

import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

from medunifier.data.reports.rules.sentences import words
from medunifier.data.reports.rules.vocabulary import INTERPOSED

_GROUP = re.compile(r"\{([^}]*)\}")


class Match(NamedTuple):
    """Words ``start`` to ``end`` (exclusive) match ``phrase``; ``actions`` are its (role, detail) pairs."""

    start: int
    end: int
    phrase: str
    actions: tuple[tuple[str, str], ...]


def expand(phrase: str) -> list[str]:
    """Return the alternatives of a phrase: "{a|b|} c" -> "a c", "b c", "c"."""
    parts = _GROUP.split(phrase)
    choices = [part.split("|") if index % 2 else [part] for index, part in enumerate(parts)]
    return [" ".join("".join(chosen).split()).replace(" *", "*") for chosen in product(*choices)]


class PhraseTable:
    """A trie of phrases, one word a level."""

    def __init__(self, entries: Iterable[tuple[str, str, str]]) -> None:
        """Build the table from (phrase, role, detail). A phrase may occur several times ("hydropneumothorax")."""
        self._root: dict[str | None, Any] = {}  # the key None holds the phrase that ends here
        stems: set[str] = set()
        for pattern, role, detail in entries:
            for phrase in expand(pattern):
                node = self._root
                for part in phrase.split():
                    keys = words(part.removesuffix("*"))
                    if part.endswith("*"):
                        keys[-1] += "*"
                        stems.add(keys[-1])
                    for key in keys:
                        node = node.setdefault(key, {})
                _, actions = node.get(None, ("", ()))
                node[None] = (phrase, (*dict.fromkeys((*actions, (role, detail))),))
        self._stems = stems
        self._keys = lru_cache(maxsize=20_000)(self._keys_of)

    def _keys_of(self, word: str) -> tuple[str, ...]:
        """Return the keys that match a word: itself, then its stems, longest first."""
        return (word, *(f"{word[:end]}*" for end in range(len(word), 0, -1) if f"{word[:end]}*" in self._stems))

    def find(self, tokens: list[str]) -> list[Match]:
        """Return the matches from left to right. They do not overlap."""
        found, start = [], 0
        while start < len(tokens):
            end, entry = self._longest(self._root, tokens, start, True)
            if entry is None:
                start += 1
            else:
                found.append(Match(start, end, *entry))
                start = end
        return found

    def _longest(self, node: dict[Any, Any], tokens: list[str], at: int, first: bool) -> tuple[int, Any]:
        best = (at, node.get(None))
        if at == len(tokens):
            return best
        for key in self._keys(tokens[at]):
            if child := node.get(key):
                end, entry = self._longest(child, tokens, at + 1, False)
                if entry is not None and (best[1] is None or end > best[0]):
                    best = (end, entry)
        if not first and tokens[at] in INTERPOSED:
            end, entry = self._longest(node, tokens, at + 1, False)
            if entry is not None and entry != node.get(None) and end > best[0]:
                best = (end, entry)
        return best
