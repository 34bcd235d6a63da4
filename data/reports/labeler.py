"""`label_report`: rule-based extraction of the 14 observations: mentions, negation, uncertainty and their scope.

After CheXpert's labeler (Irvin et al. 2019) and NegEx (Chapman et al. 2001), without a parser: a phrase table finds
all known phrases of a sentence, and a single left-to-right pass assigns the labels. The phrases are in
`data.reports.phrases`, the words without a finding in `data.reports.vocabulary`. Runs offline.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from medunifier.data.reports import phrases
from medunifier.data.reports.matching import Match, PhraseTable
from medunifier.data.reports.observations import (
    NEGATIVE,
    NO_FINDING,
    POSITIVE,
    SUPPORT_DEVICES,
    UNCERTAIN,
    in_order,
    is_no_finding,
    merge_mentions,
)
from medunifier.data.reports.sections import split_sections
from medunifier.data.reports.sentences import fold, split_sentences, words
from medunifier.data.reports.vocabulary import INTERPOSED, NEUTRAL

NoFindingRule = Literal["known", "chexpert"]

# Disease outside the 14 observations, or a word that may be one; and evidence that something is normal.
_OTHER, _NORMAL = "other disease", "normal"
# A blunted costophrenic angle: an uncertain effusion, unless the report states or denies one.
_BLUNTED = "blunted angle"

# Maximum number of words from an adjective to the organ that it describes: "enlarged cardiac silhouette".
_MAX_ADJECTIVE_DISTANCE = 4

_LIST_WORDS = frozenset({"and", "or", "nor"})
_VERBS = frozenset([
    "is", "are", "was", "were", "has", "have", "appears", "appear", "shows", "show", "demonstrates", "reveals",
    "remains", "remain", "there", "persists",
])  # fmt: skip
_CLAUSE_WORDS = frozenset(["but", "however", "although", "though", "whereas", "while", "except"])
_RELATIONS = frozenset(["which", "may", "might", "could", "with", "representing", "represent", "represents", "due"])
_SEEN = frozenset([
    "seen", "identified", "noted", "visualized", "present", "evident", "demonstrated", "detected", "appreciated",
    "found",
])  # fmt: skip
_PREPOSITIONS = frozenset({"of", "in", "from", "with", "to", "along", "around", "near", "after", "following"})
_ENDINGS = frozenset({"resolution", "clearing", "clearance", "disappearance"})
_DOUBLE_NEGATIONS = frozenset({
    "without", "absent", "clear of", "free of", "free from", "cleared of", "devoid of", "negative for",
})  # fmt: skip
_EVIDENCE = frozenset({"evidence", "sign", "signs", "indication", "presence", "trace"})
_DAMAGE = ("\0", "\ufffd")  # of text read with the wrong encoding


_TABLE = PhraseTable(phrases.entries())
_NEUTRAL = frozenset(folded for word in NEUTRAL | INTERPOSED for folded in fold(word))
_HINTS = phrases.HINTS


def label_report(text: str, no_finding: NoFindingRule = "known") -> dict[str, int]:
    """Return the observations that a report mentions: positive (1), negative (0) or uncertain (-1), in table order.

    Args:
        text: a report's findings and impression, or a whole report in MIMIC-CXR's format, of which only
            findings and impression are used (an indication "rule out pneumonia" is not a finding).
        no_finding: when `No Finding` is 1; it is absent otherwise. "known": every sentence is recognised as normal,
            a denial, a device or neutral, so that an unknown word excludes it. "chexpert": none of the other
            observations but support devices is positive or uncertain, as in chexpert-labeler, whose labels of
            MIMIC-CXR and CheXpert published figures use.

    Returns:
        {observation: 1 | 0 | -1}; observations that are not mentioned are absent. Empty for an empty text.
    """
    sections = split_sections(text)
    chosen = [sections[name] for name in ("findings", "impression") if name in sections]
    sentences = split_sentences("\n\n".join(chosen) if chosen else text)
    if not sentences:
        return {}
    mentions: dict[str, set[int]] = {}
    for sentence in sentences:
        for finding, value in _sentence_mentions(sentence):
            mentions.setdefault(finding, set()).add(value)
    normal = bool(mentions.pop(_NORMAL, None))
    other = mentions.pop(_OTHER, set())
    if blunted := mentions.pop(_BLUNTED, set()):
        mentions.setdefault("Pleural Effusion", {min(value, -value) for value in blunted})
        other |= blunted
    labels = {finding: merge_mentions(values) for finding, values in mentions.items()}
    known = other <= {NEGATIVE} and not any(mark in text for mark in _DAMAGE)
    normal = normal or NEGATIVE in (*labels.values(), *other) or SUPPORT_DEVICES in labels
    if is_no_finding(labels) and (no_finding == "chexpert" or (known and normal)):
        labels[NO_FINDING] = POSITIVE
    return in_order(labels)


@lru_cache(maxsize=50_000)  # sentences recur across reports: "no pneumothorax", "the lungs are clear"
def _sentence_mentions(sentence: str) -> tuple[tuple[str, int], ...]:
    return tuple((mention.finding, mention.value) for mention in _Scanner(words(sentence)).scan())


@dataclass
class _Mention:
    finding: str
    value: int
    start: int
    end: int


class _Scanner:
    """Left-to-right pass over the words of a sentence: active negation or doubt, and organs mentioned."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.matches = _TABLE.find(tokens)
        self.found: list[_Mention] = []
        self.assertion = POSITIVE
        self.cue = Match(-1, -1, "", ())  # the phrase that set the assertion
        self.objects = 0  # mentions in the scope of the assertion
        self.removed = False
        self.organs: list[tuple[str, int, int]] = []
        self.adjective: tuple[int, int] | None = None  # (value, end)
        self.pending: Match | None = None  # doubt that applies to no finding yet

    def scan(self) -> list[_Mention]:
        at = 0
        for match in [*self.matches, Match(len(self.tokens), len(self.tokens), "", ())]:
            for index in range(at, match.start):
                self._word(index)
            for role, detail in match.actions:
                getattr(self, f"_{role}")(match, detail)
            at = match.end
        if self.pending is not None:
            self._doubt_without_object(self.pending)
        return self.found

    def _word(self, index: int) -> None:
        word = self.tokens[index]
        if word in (",", "and", "with", "plus"):
            if self.assertion != POSITIVE and self.objects and self._starts_statement(index):
                self._end_scope()
            if word == ",":
                self.adjective = None
        elif word == ":":
            self._end_scope()
        elif not (
            word[0].isdigit() or word in "()" or {word, word.removesuffix("s"), word.removesuffix("es")} & _NEUTRAL
        ):
            self._add(_OTHER, index, index + 1)

    def _end_scope(self) -> None:
        self.assertion, self.removed, self.adjective = POSITIVE, False, None

    def _starts_statement(self, index: int) -> bool:
        """Return whether a new statement, outside negation and doubt, follows the connecting word at ``index``."""
        rest = self.tokens[index + 1 :]
        comma = self.tokens[index] == ","
        if not rest or (comma and rest[0] in (*_LIST_WORDS, "no", "not", "without")):
            return False
        ends = [i for i, word in enumerate(rest) if word in (",", ":", "and", "or", "nor", "but", "with", "without")]
        segment = rest[: ends[0]] if ends else rest
        stated = bool(_VERBS & set(segment))
        is_list = comma and any(word in ("or", "nor") for word in rest)
        if rest[0] in phrases.QUANTIFIERS:
            return not is_list or (stated and not _SEEN & set(segment))
        if self.tokens[index] == "with":
            return False
        if self.cue.phrase == "not" and not is_list:
            return True
        if comma and rest[0] in ("possible", "possibly", "probable", "probably", "likely", "query", "suspected"):
            return not is_list
        roles = {role for m in self.matches if index < m.start <= index + len(segment) for role, _ in m.actions}
        if "organ" in roles and roles & {"large", "grown", "normal"}:
            return True
        return stated and not is_list and not _SEEN & set(segment)

    def _add(self, finding: str, start: int, end: int, value: int | None = None) -> None:
        self.found.append(_Mention(finding, self.assertion if value is None else value, start, end))
        self.objects += 1
        self.pending = None

    def _mention(self, match: Match, finding: str) -> None:
        value = None
        if finding == SUPPORT_DEVICES:
            value = NEGATIVE if self.removed else POSITIVE if self._is_context(match) else None
        self._add(finding, match.start, match.end, value)
        if match.phrase in _HINTS and self.assertion != NEGATIVE:
            self._add(phrases.HINT, match.start, match.end, UNCERTAIN)

    def _is_context(self, match: Match) -> bool:
        """Return whether a device is what a denied event concerns: "no fracture of the pacemaker lead"."""
        if self.assertion != NEGATIVE:
            return False
        between = self.tokens[self.cue.end : match.end]
        article = max((i for i, word in enumerate(between) if word in ("the", "this", "these")), default=0)
        return article >= 2 and between[article - 1] in _PREPOSITIONS and between[article - 2] not in _EVIDENCE

    def _other(self, match: Match, _: str) -> None:
        self._add(_OTHER, match.start, match.end)

    def _neutral(self, match: Match, _: str) -> None:
        pass

    def _organ(self, match: Match, finding: str) -> None:
        if self.adjective and match.start - self.adjective[1] <= _MAX_ADJECTIVE_DISTANCE and not self.organs:
            self._add(finding, match.start, match.end, self.adjective[0])
        else:
            self.organs.append((finding, match.start, match.end))

    def _describe_organs(self, value: int, match: Match) -> None:
        for finding, start, end in self.organs:
            self._add(finding, start, end, value)
        self.adjective = None if self.organs else (value, match.end)
        self.organs = []

    def _is_denied(self, match: Match) -> bool:
        """Return whether the phrase is denied: "not clear", "no longer clear", "neither lung is clear"."""
        if self.assertion != NEGATIVE:
            return False
        if self.cue.phrase in ("neither", "nor"):
            return not self.objects and self.tokens[match.start - 1] in _VERBS
        return self.cue.phrase in ("not", "no", "no longer", "never") and match.start - self.cue.end <= 1

    def _large(self, match: Match, _: str) -> None:
        if self._denies_change(match):
            return
        had_organs = bool(self.organs)
        follows = any(
            match.end <= m.start <= match.end + _MAX_ADJECTIVE_DISTANCE and m.actions[0][0] == "organ"
            for m in self.matches
        )
        self._describe_organs(self.assertion, match)
        if not had_organs and not follows and self.assertion != NEGATIVE and match.phrase != "large":
            self._add(_OTHER, match.start, match.end)

    def _grown(self, match: Match, _: str) -> None:
        if self._denies_change(match):
            return
        if self.organs:
            self._describe_organs(self.assertion, match)
        else:
            self._add(_OTHER, match.start, match.end)

    def _changed(self, match: Match, _: str) -> None:
        # "Is new" alone states no abnormality: "the line is new".
        if not self._denies_change(match) and not match.phrase.startswith(("is", "are")):
            self._add(_OTHER, match.start, match.end)

    def _denies_change(self, match: Match) -> bool:
        """Make the findings positive whose change is denied: "neither the nodule nor the effusion has changed"."""
        if not (self.objects and self.assertion == NEGATIVE):
            return False
        if match.phrase in ("awaited", "anticipated"):  # "resolution of the effusion is awaited"
            return bool(_ENDINGS & set(self.cue.phrase.split())) and self._apply(POSITIVE, match)
        if self.cue.phrase not in ("no", "neither", "nor", "none"):
            return False
        before = {"has", "have", "had"} if match.actions[0][0] != "changed" else {*_VERBS, "had", "demonstrate"}
        if not before & set(self.tokens[max(0, match.start - 2) : match.end]):
            return False
        first = max(
            i for i, word in enumerate(self.tokens[: self.cue.end]) if word in ("no", "neither", "none", "nor")
        )
        if self.cue.phrase == "nor" and "neither" in self.tokens[:first]:
            first = self.tokens.index("neither")
        for mention in self.found:
            if mention.start > first and mention.finding != _NORMAL:
                mention.value = POSITIVE
        return True

    def _pleural(self, match: Match, _: str) -> None:
        tokens = self.tokens[: match.start]
        pleural = any(word.startswith(("pleura", "costophrenic")) or word == "cp" for word in tokens)
        other = bool(tokens) and tokens[-1] in phrases.NOT_PLEURAL
        self._add("Pleural Other" if pleural and not other else _OTHER, match.start, match.end)

    def _blunted(self, match: Match, _: str) -> None:
        if {"costophrenic", "cp", "sulcus", "sulci", "angle", "angles"} & set(self.tokens):
            self._add(_BLUNTED, match.start, match.end)
        else:
            self._add(_OTHER, match.start, match.end)

    def _normal(self, match: Match, _: str) -> None:
        denied = self._is_denied(match)
        value = POSITIVE if denied else UNCERTAIN if self.assertion == UNCERTAIN else NEGATIVE
        self._describe_organs(value, match)
        self._healthy(match, "")

    def _healthy(self, match: Match, _: str) -> None:
        denied = self._is_denied(match)
        self.found.append(_Mention(_OTHER if denied else _NORMAL, POSITIVE, match.start, match.end))

    def _begin(self, value: int, match: Match) -> None:
        self.assertion, self.cue, self.objects = value, match, 0

    def _object_follows(self, match: Match) -> bool:
        """Return whether a finding or an unknown word stands between the phrase and the end of its clause."""
        tokens = self.tokens
        stop = next((i for i in range(match.end, len(tokens)) if tokens[i] in (",", ":")), len(tokens))
        if any(
            match.end <= m.start < stop and m.actions[0][0] in ("mention", "organ", "other", "healthy", "normal")
            for m in self.matches
        ):
            return True
        covered = {i for m in self.matches for i in range(m.start, m.end)}
        return any(i not in covered and tokens[i] not in _NEUTRAL for i in range(match.end, stop))

    def _negation_before(self, match: Match, _: str) -> None:
        if match.phrase in _DOUBLE_NEGATIONS and self._is_denied(match):  # "not clear of consolidation", "not absent"
            self._end_scope()
            return
        # "Might be a skin fold rather than pneumothorax" remains doubtful.
        if self.assertion == UNCERTAIN and match.phrase.startswith(("rather", "mimic", "simulat")):
            return
        acute = bool(phrases.ACUTE & set(self.tokens[match.end :]))  # "nil acute"
        if acute and match.phrase in ("no", "nil", "nothing") and not self._object_follows(match):
            self.found.append(_Mention(_NORMAL, POSITIVE, match.start, match.end))
        value = match.start > 0 and self.tokens[match.start - 1] == ":"  # "Pneumothorax: none"
        last = match.end == len(self.tokens) and match.phrase in ("none", "nil", "absent", "no")
        if (value or last) and not self._object_follows(match):
            self._apply(NEGATIVE, match, named=value)
            return
        self._begin(NEGATIVE, match)

    def _doubt_before(self, match: Match, _: str) -> None:
        # "No opacity to suggest pneumonia" and "no suspicious opacity" are negative, not uncertain.
        if self.assertion == NEGATIVE and not any(word in match.phrase for word in ("exclude", "rule out")):
            return
        before = self.tokens[match.start - 1] if match.start else ""
        value = before == ":" or match.end == len(self.tokens)
        if value and not self._object_follows(match) and self._apply(UNCERTAIN, match, named=before == ":"):
            return
        self._begin(UNCERTAIN, match)
        self.pending = match

    def _weak_doubt_before(self, match: Match, _: str) -> None:
        if self.assertion != NEGATIVE:
            self._begin(UNCERTAIN, match)

    def _doubt_without_object(self, match: Match) -> None:
        self.found.append(_Mention(_OTHER, UNCERTAIN, match.start, match.end))

    def _removal_before(self, match: Match, _: str) -> None:
        if match.phrase == "removed" and (self._group(match) or phrases.REMOVABLE & set(self.tokens[: match.start])):
            self._removal_after(match, "")
            return
        self.removed = True
        if match.phrase.startswith("extubat"):
            self._add(SUPPORT_DEVICES, match.start, match.end, NEGATIVE)

    def _removal_after(self, match: Match, _: str) -> None:
        devices = [mention for mention in self._group(match) if mention.finding == SUPPORT_DEVICES]
        for mention in devices:
            mention.value = NEGATIVE
        if not devices and phrases.REMOVABLE & set(self.tokens[: match.start]):
            self._add(SUPPORT_DEVICES, match.start, match.end, NEGATIVE)

    def _negation_after(self, match: Match, _: str) -> None:
        if match.phrase.split()[-1] in ("resolved", "cleared", "disappeared", "gone") and self._denies_change(match):
            return
        if self.assertion == UNCERTAIN and self.cue.phrase.endswith(("if", "whether")):
            return  # "unclear whether the effusion has gone"
        denied = match.phrase.endswith("expanded") and self._is_denied(match)  # "the lobe has not re-expanded"
        if denied or not self._apply(NEGATIVE, match):
            if match.phrase.endswith("expanded"):  # "the lung has re-expanded"
                self._healthy(match, "")
                return
            if not self._object_follows(match):
                self._add(_OTHER, match.start, match.end, UNCERTAIN)  # "the left diaphragm is not seen"
            self._begin(NEGATIVE, match)

    def _doubt_after(self, match: Match, _: str) -> None:
        # A device that is incompletely assessed is present.
        exempt = SUPPORT_DEVICES if match.phrase.endswith(("assessed", "evaluated")) else ""
        if not self._apply(UNCERTAIN, match, exempt=exempt):
            self._begin(UNCERTAIN, match)
            self.pending = match

    def _doubt_both(self, match: Match, _: str) -> None:
        applied = self._apply(UNCERTAIN, match, named=match.phrase.startswith("if"))
        if not applied or not match.phrase.startswith("if"):
            self._begin(UNCERTAIN, match)

    def _scope_end(self, match: Match, _: str) -> None:
        self._end_scope()

    def _predicate(self, match: Match, _: str) -> None:
        following = self.tokens[match.end] if match.end < len(self.tokens) else ""
        previous = self.tokens[match.start - 1] if match.start else ""
        # "No effusion or identified mass" is one list.
        if self.objects and following not in ("or", "nor") and previous not in ("or", "nor", "any", ","):
            self._end_scope()

    def _apply(self, value: int, match: Match, *, named: bool = False, exempt: str = "") -> bool:
        """Apply a phrase after its findings to them. Return whether there are any."""
        group = self._group(match, named=named)
        for mention in group:
            if mention.finding != exempt:
                mention.value = value
        return bool(group)

    def _group(self, match: Match, *, named: bool = False) -> list[_Mention]:
        """Return the findings that the phrase after them refers to: the last one and those listed with it.

        "Atelectasis or pneumonia cannot be excluded" concerns both, "left opacity, pneumonia cannot be excluded" one.
        With ``named``, all findings before a colon or a comma are a list.
        """
        group: list[_Mention] = []
        listed = named
        for mention in reversed(self.found):
            if mention.finding == _NORMAL:
                continue
            following = group[-1] if group else None
            separator = self.tokens[mention.end : following.start if following else match.start]
            if _CLAUSE_WORDS & set(separator):
                break
            if following is not None:
                if ":" in separator or (_VERBS | _RELATIONS) & set(separator):
                    break
                joined = bool(_LIST_WORDS & set(separator))
                if joined and not {"or", "nor"} & set(separator) and _VERBS & set(self.tokens[: mention.start]):
                    break  # "there is an effusion and a pneumothorax is not seen"
                listed = listed or joined
                if "," in separator and not listed:
                    break
                if separator and not joined and "," not in separator and following.finding != _OTHER:
                    break
            group.append(mention)
        return group
