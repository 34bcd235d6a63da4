"""A left-to-right pass over the words of a sentence: mentions of findings, negation, doubt and their scope.

After NegEx (Chapman et al. 2001), without a parser: the phrase table (`phrases`) finds all known phrases, and each
phrase acts by its role, the method of the same name.
"""

from dataclasses import dataclass
from functools import lru_cache

from medunifier.data.reports.observations import NEGATIVE, POSITIVE, SUPPORT_DEVICES, UNCERTAIN
from medunifier.data.reports.rules import phrases
from medunifier.data.reports.rules.matching import Match, PhraseTable
from medunifier.data.reports.rules.sentences import fold, words
from medunifier.data.reports.rules.vocabulary import INTERPOSED, NEUTRAL

# Mentions that are not observations: disease outside the 14, or a word that may be one; evidence that something is
# normal; a blunted costophrenic angle; heart failure.
OTHER, NORMAL, BLUNTED, FAILURE = "other disease", "normal", "blunted angle", "heart failure"

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
_MAX_EXPLANATION = 5  # words between "density ... is due to" and the artefact
_EXPLANATIONS = frozenset([
    *_VERBS, *_RELATIONS, "be", "likely", "probably", "possibly", "presumably", "reflects", "reflect", "reflecting",
    "corresponds", "correspond", "corresponding", "consistent", "compatible", "felt", "thought", "attributed",
    "secondary",
    "caused", "from", ":", "probable", "possible", "query", "favored", "keeping",
])  # fmt: skip
# Nouns of which "no" denies all or a part: "no part of the lung is clear".
_PARTS = frozenset([
    "lung", "lungs", "part", "portion", "lobe", "zone", "area", "segment", "half", "third", "all", "much", "field",
    "base",
    "apex", "angle", "hemidiaphragm", "rib", "side", "region",
])  # fmt: skip
_HEDGING_VERBS = frozenset({"suggests", "favors", "raises", "may", "might", "could"})
_AFTER = frozenset({"after", "following", "post", "since", "status"})
_EVIDENCE = frozenset({"evidence", "sign", "signs", "indication", "presence", "trace"})
_TABLE = PhraseTable(phrases.entries())
_NEUTRAL = frozenset(folded for word in NEUTRAL | INTERPOSED for folded in fold(word))


@lru_cache(maxsize=50_000)  # sentences recur across reports: "no pneumothorax", "the lungs are clear"
def sentence_mentions(sentence: str) -> tuple[tuple[str, int], ...]:
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
            self._add(OTHER, index, index + 1)

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
            return self.assertion == UNCERTAIN and rest[0] in phrases.CONSEQUENCES
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
        explanation = self.tokens[index] == "," and self.tokens[index + 1] in phrases.EXPLAINING
        return explanation and any(m.start < self.cue.start and m.value == POSITIVE for m in self.found)

    def _add(self, finding: str, start: int, end: int, value: int | None = None) -> None:
        self.found.append(_Mention(finding, self.assertion if value is None else value, start, end))
        self.objects += 1
        self.pending = None

    def _mention(self, match: Match, finding: str) -> None:
        value = None
        if finding == SUPPORT_DEVICES:
            value = NEGATIVE if self.removed else POSITIVE if self._is_context(match) else None
        self._add(finding, match.start, match.end, value)
        if match.phrase in phrases.FAILURE:
            self.found.append(_Mention(FAILURE, self.assertion, match.start, match.end))

    def _is_context(self, match: Match) -> bool:
        """Return whether a device is what a denied event concerns: "no fracture of the pacemaker lead"."""
        if self.assertion != NEGATIVE:
            return False
        between = self.tokens[self.cue.end : match.end]
        if _AFTER & set(between):  # "no pneumothorax after line insertion"
            return True
        article = max((i for i, word in enumerate(between) if word in ("the", "this", "these")), default=0)
        return article >= 2 and between[article - 1] in _PREPOSITIONS and between[article - 2] not in _EVIDENCE

    def _other(self, match: Match, _: str) -> None:
        self._add(OTHER, match.start, match.end)

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
        between = self.tokens[self.cue.end : match.end]
        parts = self.cue.phrase in ("no", "none", "not", "nor", "neither") and _PARTS & set(between[:3])
        if parts and _VERBS & set(between) and not {",", ":"} & set(between):  # "no lung is normal"
            return not any(m.start > self.cue.start and self.tokens[m.start] not in _PARTS for m in self.found)
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
        if not had_organs and not follows and match.phrase != "large":
            self._add(OTHER, match.start, match.end)

    def _grown(self, match: Match, _: str) -> None:
        if self._denies_change(match):
            return
        if self.organs:
            self._describe_organs(self.assertion, match)
        else:
            self._add(OTHER, match.start, match.end)

    def _changed(self, match: Match, _: str) -> None:
        # "Is new" alone states no abnormality: "the line is new".
        if not self._denies_change(match) and not match.phrase.startswith(("is", "are")):
            self._add(OTHER, match.start, match.end)

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
            if mention.start > first and mention.finding != NORMAL:
                mention.value = POSITIVE
        return True

    def _pleural(self, match: Match, _: str) -> None:
        tokens = self.tokens[: match.start]
        pleural = any(word.startswith(("pleura", "costophrenic")) or word == "cp" for word in tokens)
        other = bool(tokens) and tokens[-1] in phrases.NOT_PLEURAL
        self._add("Pleural Other" if pleural and not other else OTHER, match.start, match.end)

    def _blunted(self, match: Match, _: str) -> None:
        if {"costophrenic", "cp", "sulcus", "sulci", "angle", "angles"} & set(self.tokens):
            self._add(BLUNTED, match.start, match.end)
        else:
            self._add(OTHER, match.start, match.end)

    def _normal(self, match: Match, _: str) -> None:
        denied = self._is_denied(match)
        value = POSITIVE if denied else UNCERTAIN if self.assertion == UNCERTAIN else NEGATIVE
        self._describe_organs(value, match)
        self._healthy(match, "")

    def _healthy(self, match: Match, _: str) -> None:
        if match.phrase == "negative" and match.end == len(self.tokens) and self.assertion == POSITIVE:
            self._apply(NEGATIVE, match)  # "nodules: negative"
        denied = self._is_denied(match)
        self.found.append(_Mention(OTHER if denied else NORMAL, POSITIVE, match.start, match.end))

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
            self.found.append(_Mention(NORMAL, POSITIVE, match.start, match.end))
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

    def _confirmed(self, match: Match, _: str) -> None:
        if self.assertion != NEGATIVE:
            self._apply(POSITIVE, match)

    def _weak_doubt_before(self, match: Match, _: str) -> None:
        if self.assertion != NEGATIVE or self._is_verb_after_denial(match):
            self._begin(UNCERTAIN, match)

    def _is_verb_after_denial(self, match: Match) -> bool:
        """Return whether the finding before a denial is the subject: "haze without effusion suggests pneumonia"."""
        verb = self.tokens[match.start]
        if self.assertion != NEGATIVE or not self.objects or verb not in _HEDGING_VERBS:
            return False
        return any(mention.end <= self.cue.start and mention.value == POSITIVE for mention in self.found)

    def _doubt_without_object(self, match: Match) -> None:
        self.found.append(_Mention(OTHER, UNCERTAIN, match.start, match.end))

    def _removal_before(self, match: Match, _: str) -> None:
        if phrases.PLANNED & set(self.tokens):
            return
        follows_device = bool(self.found) and self.found[-1].end == match.start and match.phrase == "removal"
        if (
            follows_device
            or match.phrase == "removed"
            and (self._group(match) or phrases.REMOVABLE & set(self.tokens[: match.start]))
        ):
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
        applied = not denied and self._apply(NEGATIVE, match)
        if applied and self._purpose_follows(match):
            self._begin(NEGATIVE, match)
        if not applied:
            if match.phrase.endswith("expanded"):  # "the lung has re-expanded"
                self._healthy(match, "")
                return
            if not self._object_follows(match):
                self._add(OTHER, match.start, match.end, UNCERTAIN)  # "the left diaphragm is not seen"
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
        listed = following in ("or", "nor") or previous in ("or", "nor", "any", ",")
        if self.objects and not listed and not self._purpose_follows(match):
            self._end_scope()

    def _purpose_follows(self, match: Match) -> bool:
        """Return whether a clause follows that a denial includes: "no opacity is seen [to suggest pneumonia]"."""
        following = self.tokens[match.end : match.end + 3]
        if following[:1] == ["to"]:
            return following[1:] != [] and following[1].startswith(phrases.PURPOSES)
        return following[:1] in (["that"], ["which"]) and bool(phrases.MODALS & set(following))

    def _artefact(self, match: Match, _: str) -> None:
        """Deny or doubt the opacity before an artefact that explains it: "density, probably a nipple shadow"."""
        last = max((mention.start for mention in self.found if mention.finding != NORMAL), default=None)
        explained = [mention for mention in self.found if mention.start == last and mention.value == POSITIVE]
        named = {mention.finding for mention in explained} - {SUPPORT_DEVICES, "Fracture"}
        between = self.tokens[max(explained[0].end, match.start - _MAX_EXPLANATION) : match.start] if named else []
        if self.assertion != NEGATIVE and _EXPLANATIONS & set(between):
            for mention in explained:
                mention.value = UNCERTAIN if self.assertion == UNCERTAIN else NEGATIVE
            self.pending = None
        else:
            self._add(OTHER, match.start, match.end)

    def _possible(self, match: Match, finding: str) -> None:
        self._add(finding, match.start, match.end, NEGATIVE if self.assertion == NEGATIVE else UNCERTAIN)

    def _fluid(self, match: Match, _: str) -> None:
        """Read fluid beside the pleural space as an effusion; in a fissure alone it is a possible one."""
        if phrases.PLEURAL_PLACES & set(self.tokens):
            self._add("Pleural Effusion", match.start, match.end)
        elif phrases.FISSURES & set(self.tokens):
            self._possible(match, "Pleural Effusion")
        else:
            self._add(OTHER, match.start, match.end)

    def _compared(self, match: Match, _: str) -> None:
        """Doubt the second of two explanations: "more in keeping with edema than infection"."""
        if "more" in self.tokens[: match.start] and phrases.COMPARED & set(self.tokens[: match.start]):
            self._begin(UNCERTAIN, match)

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
            if mention.finding == NORMAL:
                continue
            following = group[-1] if group else None
            separator = self.tokens[mention.end : following.start if following else match.start]
            if _CLAUSE_WORDS & set(separator if following else separator[:-1]):  # "considered but [not inserted]"
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
                if separator and not joined and "," not in separator and following.finding != OTHER:
                    break
            group.append(mention)
        return group
