"""Negation and doubt in a sentence: what begins them, where their scope ends, and the mentions that they apply to."""

from dataclasses import dataclass
from itertools import pairwise

from medunifier.data.reports.observations import NEGATIVE, POSITIVE, SUPPORT_DEVICES, UNCERTAIN
from medunifier.data.reports.rules import cues, findings, phrases
from medunifier.data.reports.rules.matching import Match, PhraseTable
from medunifier.data.reports.rules.sentences import fold
from medunifier.data.reports.rules.vocabulary import INTERPOSED, NEUTRAL

# Mentions that are not observations: disease outside the 14, or a word that may be one; evidence that something is
# normal; a blunted costophrenic angle; heart failure.
OTHER, NORMAL, BLUNTED, FAILURE = "other disease", "normal", "blunted angle", "heart failure"

_LIST_WORDS = frozenset({"and", "or", "nor"})
VERBS = frozenset([
    "is", "are", "was", "were", "has", "have", "appears", "appear", "shows", "show", "demonstrates", "reveals",
    "remains", "remain", "there", "persists", "looks", "look", "seems", "seem",
])  # fmt: skip
_CLAUSE_WORDS = frozenset(["but", "however", "although", "though", "whereas", "while", "except"])
RELATIONS = frozenset(["which", "may", "might", "could", "with", "representing", "represent", "represents", "due"])
_SEEN = frozenset([
    "seen", "identified", "noted", "visualized", "present", "evident", "demonstrated", "detected", "appreciated",
    "found",
])  # fmt: skip
_PREPOSITIONS = frozenset({"of", "in", "from", "with", "to", "along", "around", "near", "after", "following"})
_ENDINGS = frozenset({"resolution", "clearing", "clearance", "disappearance"})
# Nouns of which "no" denies all or a part: "no part of the lung is clear".
_PARTS = frozenset([
    "lung", "lungs", "part", "portion", "lobe", "zone", "area", "segment", "half", "third", "all", "much", "field",
    "base",
    "apex", "angle", "hemidiaphragm", "rib", "side", "region",
])  # fmt: skip
_HEDGING_VERBS = frozenset(
    {"suggests", "favors", "raizes", "may", "might", "could", "which", "that"}
)  # as `fold` spells
_AFTER = frozenset({"after", "following", "post", "since", "status"})
_EVIDENCE = frozenset({"evidence", "sign", "signs", "indication", "presence", "trace"})
_DOUBLE_NEGATIONS = frozenset({
    "without", "absent", "clear of", "free of", "free from", "cleared of", "devoid of", "negative for",
})  # fmt: skip
_TABLE = PhraseTable(phrases.entries())
NEUTRAL_WORDS = frozenset(folded for word in NEUTRAL | INTERPOSED for folded in fold(word))


@dataclass
class Mention:
    finding: str
    value: int
    start: int
    end: int


class Scope:
    """Words and phrases of a sentence, mentions from left to right, and the assertion that applies to the next."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.matches = _TABLE.find(tokens)
        self.found: list[Mention] = []
        self.assertion = POSITIVE
        self.cue = Match(-1, -1, "", ())  # the phrase that set the assertion
        self.objects = 0  # mentions in the scope of the assertion
        self.removed = False
        self.organs: list[tuple[str, int, int]] = []
        self.adjective: tuple[int, int] | None = None  # (value, end)
        self.pending: Match | None = None  # doubt that applies to no finding yet

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
        stated = bool(VERBS & set(segment))
        is_list = comma and any(word in ("or", "nor") for word in rest)
        if rest[0] in cues.QUANTIFIERS:
            return not is_list or (stated and not _SEEN & set(segment))
        if self.tokens[index] == "with":
            return self.assertion == UNCERTAIN and rest[0] in cues.CONSEQUENCES
        if self.cue.phrase == "not" and not is_list:
            return True
        if comma and rest[0] in ("possible", "possibly", "probable", "probably", "likely", "query", "suspected"):
            return not is_list
        if self._explains(index):
            return True
        roles = {role for m in self.matches if index < m.start <= index + len(segment) for role, _ in m.actions}
        if "organ" in roles and roles & {"large", "grown", "normal"}:
            return True
        return stated and not is_list and not _SEEN & set(segment)

    def _explains(self, index: int) -> bool:
        """Return whether a comma begins an explanation of what precedes a denial: "haze, no mass, likely viral"."""
        explanation = self.tokens[index] == "," and self.tokens[index + 1] in cues.EXPLAINING
        return explanation and any(m.start < self.cue.start and m.value == POSITIVE for m in self.found)

    def _add(self, finding: str, start: int, end: int, value: int | None = None) -> None:
        self.found.append(Mention(finding, self.assertion if value is None else value, start, end))
        self.objects += 1
        self.pending = None

    def _is_context(self, match: Match) -> bool:
        """Return whether a device is what a denied event concerns: "no fracture of the pacemaker lead"."""
        if self.assertion != NEGATIVE:
            return False
        between = self.tokens[self.cue.end : match.end]
        if _AFTER & set(between):  # "no pneumothorax after line insertion"
            return True
        article = max((i for i, word in enumerate(between) if word in ("the", "this", "these")), default=0)
        return article >= 2 and between[article - 1] in _PREPOSITIONS and between[article - 2] not in _EVIDENCE

    def _concerns_device(self, match: Match) -> bool:
        """Return whether what is broken is a device: "fracture of the pacing lead", "the screws are fractured"."""
        devices = [m for m in self.matches if m.actions[0][1] == SUPPORT_DEVICES]
        for device in devices:
            between = self.tokens[match.end : device.start] if device.start > match.start else None
            if between and between[0] in ("of", "in", "through") and findings.DEVICE_PARTS.issuperset(between):
                return True
            if device.end <= match.start and findings.DEVICE_PARTS.issuperset(self.tokens[device.end : match.start]):
                return True
        return False

    def _is_outside(self, match: Match) -> bool:
        """Return whether a mass lies outside the chest: "thyroid mass", "lump in the left breast"."""
        clause = max((i + 1 for i in range(match.start) if self.tokens[i] in (",", ":", "and", "with")), default=0)
        before = self.tokens[max(clause, match.start - 3) : match.start]
        after = self.tokens[match.end : match.end + 6]
        near = before + (after if after[:1] and after[0] in ("in", "of", "within", "at") else [])
        return bool(findings.OUTSIDE & set(near)) and not findings.INSIDE & set(near)

    def _doubt_alternatives(self) -> None:
        """Make two explanations of a sign uncertain: "blunt angle: pleural thickening or fluid", "either A or B"."""
        named = [mention for mention in self.found if mention.finding not in (NORMAL, OTHER, SUPPORT_DEVICES)]
        for first, second in pairwise(named):
            before, between = self.tokens[: first.start], self.tokens[first.end : second.start]
            explained = ":" in before and self.found[0].end <= before.index(":")
            if (
                (explained or "either" in before)
                and first.finding != second.finding
                and first.value == second.value == POSITIVE
                and "or" in between
                and not {",", ":", "with", "without", "and", *VERBS} & set(between)
            ):
                first.value = second.value = UNCERTAIN

    def _explain_blunting(self) -> None:
        """Replace the possible effusion by what explains the blunted angle: "blunted due to pleural thickening"."""
        for blunted in [mention for mention in self.found if mention.finding == BLUNTED]:
            rest = self.tokens[blunted.end :]
            if blunted.value != POSITIVE or not findings.BLUNTED_BY & set(rest) or "not" in rest:
                continue
            relation = next(i for i in range(blunted.end, len(self.tokens)) if self.tokens[i] in findings.BLUNTED_BY)
            causes = [m for m in self.found if m.start > relation]
            cause = next((m for m in causes if m.finding != OTHER or self.tokens[m.start].startswith("scar")), None)
            if cause and cause.finding == OTHER:
                cause.finding = "Pleural Other"
            if cause and cause.finding == "Pleural Other" and cause.value == POSITIVE:
                blunted.finding = OTHER

    def _explains_sign(self, match: Match) -> bool:
        """Return whether a doubt concerns the explanation of a stated sign: "the opacity is likely atelectasis"."""
        doubt = match.phrase.split()
        if doubt[0] not in VERBS or doubt[-1] not in ("likely", "probable") or {"less", "more"} & set(doubt):
            return False
        named = [mention for mention in self.found if mention.finding != NORMAL]
        if not named or named[-1].finding not in findings.SIGNS or self.assertion != POSITIVE:
            return False
        following = self.tokens[match.end : match.end + 1]
        return following != [] and following[0] not in cues.NOT_EXPLAINED and self._object_follows(match)

    def _contrasts_side(self, match: Match) -> bool:
        """Return whether "not" excepts a side from what was said of the other: "left lung clear, right not"."""
        stop = next((i for i in range(match.end, len(self.tokens)) if self.tokens[i] in (",", ":")), len(self.tokens))
        rest = self.tokens[match.end : stop]
        sides = {"left", "right", "other", "one", "base", "apex"}
        near = set(rest or self.tokens[max(0, match.start - 4) : match.start])
        normal = any(mention.finding == NORMAL for mention in self.found)
        elsewhere = not rest and cues.SIDES.issuperset(set(self.tokens[: match.start]) - VERBS)  # "the left is not"
        return (normal or elsewhere) and bool(sides & near) and cues.SIDES.issuperset(rest)

    def _is_denied(self, match: Match) -> bool:
        """Return whether the phrase is denied: "not clear", "no longer clear", "neither lung is clear"."""
        if self.assertion != NEGATIVE:
            return False
        if self.cue.phrase in ("neither", "nor"):
            return not self.objects and self.tokens[match.start - 1] in VERBS
        between = self.tokens[self.cue.end : match.end]
        parts = self.cue.phrase in ("no", "none", "not", "nor", "neither") and _PARTS & set(between[:3])
        if parts and VERBS & set(between) and not {",", ":"} & set(between):  # "no lung is normal"
            return not any(m.start > self.cue.start and self.tokens[m.start] not in _PARTS for m in self.found)
        return self.cue.phrase in ("not", "no", "no longer", "never") and match.start - self.cue.end <= 1

    def _denies_change(self, match: Match) -> bool:
        """Make the findings positive whose change is denied: "neither the nodule nor the effusion has changed"."""
        if not (self.objects and self.assertion == NEGATIVE):
            return False
        if (
            match.phrase in ("awaited", "anticipated") or " be " in match.phrase
        ):  # "resolution of the effusion is awaited"
            return bool(_ENDINGS & set(self.cue.phrase.split())) and self._apply(POSITIVE, match)
        if self.cue.phrase not in ("no", "neither", "nor", "none"):
            return False
        before = {"has", "have", "had"} if match.actions[0][0] != "changed" else {*VERBS, "had", "demonstrate"}
        if not before & set(self.tokens[max(0, match.start - 2) : match.end]):
            return False
        first = max(
            i for i, word in enumerate(self.tokens[: self.cue.end]) if word in ("no", "neither", "none", "nor")
        )
        if self.cue.phrase == "nor" and "neither" in self.tokens[:first]:
            first = self.tokens.index("neither")
        for mention in self.found:
            if mention.start > first and mention.finding != NORMAL:
                mention.value = POSITIVE
        return True

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
        return any(i not in covered and tokens[i] not in NEUTRAL_WORDS for i in range(match.end, stop))

    def _is_adjective(self, match: Match) -> bool:
        """Return whether "suspicious" describes an opacity or lesion that is seen: "a suspicious nodule"."""
        following = next((m for m in self.matches if m.start >= match.end), None)
        between = self.tokens[match.end : following.start] if following else []
        if (
            self.tokens[match.start] != "suspicious"
            or not following
            or len(between) > 1
            or between in (["for"], ["of"])
        ):
            return False
        return ("mention", "Lung Lesion") in following.actions or ("mention", "Lung Opacity") in following.actions

    def _is_verb_after_denial(self, match: Match) -> bool:
        """Return whether the finding before a denial is the subject: "haze without effusion suggests pneumonia"."""
        verb = self.tokens[match.start]
        if self.assertion != NEGATIVE or not self.objects or verb not in _HEDGING_VERBS:
            return False
        return any(mention.end <= self.cue.start and mention.value == POSITIVE for mention in self.found)

    def _purpose_follows(self, match: Match) -> bool:
        """Return whether a clause follows that a denial includes: "no opacity is seen [to suggest pneumonia]"."""
        following = self.tokens[match.end : match.end + 3]
        if following[:1] == ["to"]:
            return following[1:] != [] and following[1].startswith(cues.PURPOSES)
        return following[:1] in (["that"], ["which"]) and bool(cues.MODALS & set(following))

    def _apply(self, value: int, match: Match, *, named: bool = False, exempt: str = "") -> bool:
        """Apply a phrase after its findings to them. Return whether there are any."""
        group = self._group(match, named=named)
        for mention in group:
            if mention.finding != exempt:
                mention.value = value
        return bool(group)

    def _group(self, match: Match, *, named: bool = False) -> list[Mention]:
        """Return the findings that the phrase after them refers to: the last one and those listed with it.

        "Atelectasis or pneumonia cannot be excluded" concerns both, "left opacity, pneumonia cannot be excluded" one.
        With ``named``, all findings before a colon or a comma are a list.
        """
        group: list[Mention] = []
        listed = named
        for mention in reversed(self.found):
            if mention.finding == NORMAL:
                continue
            following = group[-1] if group else None
            separator = self.tokens[mention.end : following.start if following else match.start]
            if _CLAUSE_WORDS & set(separator if following else separator[:-1]):  # "considered but [not inserted]"
                break
            if following is not None:
                if ":" in separator or (VERBS | RELATIONS) & set(separator):
                    break
                joined = bool(_LIST_WORDS & set(separator))
                if joined and not {"or", "nor"} & set(separator) and VERBS & set(self.tokens[: mention.start]):
                    break  # "there is an effusion and a pneumothorax is not seen"
                listed = listed or joined
                if "," in separator and not listed:
                    break
                if separator and not joined and "," not in separator and following.finding != OTHER:
                    break
            group.append(mention)
        return group

    def _negation_before(self, match: Match, _: str) -> None:
        if match.phrase in _DOUBLE_NEGATIONS and self._is_denied(match):  # "not clear of consolidation", "not absent"
            self._end_scope()
            return
        # "Might be a skin fold rather than pneumothorax" remains doubtful.
        if self.assertion == UNCERTAIN and match.phrase.startswith(("rather", "mimic", "simulat")):
            return
        after = self.tokens[match.end :]
        acute = bool(cues.ACUTE & set(after))  # "nil acute"; "no acute" alone is a sentence that was cut off
        cut = match.phrase == "no" and set(after) <= cues.ACUTE | {"no"}
        if acute and not cut and match.phrase in ("no", "nil", "nothing") and not self._object_follows(match):
            self.found.append(Mention(NORMAL, POSITIVE, match.start, match.end))
        if match.phrase == "not" and self._contrasts_side(match):
            self._add(OTHER, match.start, match.end, POSITIVE)
            return
        value = match.start > 0 and self.tokens[match.start - 1] == ":"  # "Pneumothorax: none"
        last = match.end == len(self.tokens) and match.phrase in ("none", "nil", "absent", "no")
        if (value or last) and not self._object_follows(match):
            self._apply(NEGATIVE, match, named=value)
            return
        self._begin(NEGATIVE, match)

    def _doubt_before(self, match: Match, _: str) -> None:
        if self._is_verb_after_denial(match):
            self._begin(UNCERTAIN, match)
            return
        # "No opacity to suggest pneumonia" and "no suspicious opacity" are negative, not uncertain.
        if self.assertion == NEGATIVE and not any(word in match.phrase for word in ("exclude", "rule out")):
            return
        if self._is_adjective(match):
            return
        before = self.tokens[match.start - 1] if match.start else ""
        value = before == ":" or match.end == len(self.tokens)
        if value and not self._object_follows(match) and self._apply(UNCERTAIN, match, named=before == ":"):
            return
        self._begin(UNCERTAIN, match)
        self.pending = match
