"""A left-to-right pass over the words of a sentence: mentions of findings, each stated, denied or doubted.

After NegEx (Chapman et al. 2001), without a parser: the phrase table (`phrases`) finds all known phrases, and each
phrase acts by its role, the method of the same name.
"""

from functools import lru_cache
from itertools import pairwise

from medunifier.data.reports.observations import NEGATIVE, POSITIVE, SUPPORT_DEVICES, UNCERTAIN
from medunifier.data.reports.rules import cues, findings
from medunifier.data.reports.rules.matching import Match
from medunifier.data.reports.rules.negation import (
    BLUNTED,
    FAILURE,
    NEUTRAL_WORDS,
    NORMAL,
    OTHER,
    RELATIONS,
    VERBS,
    Mention,
    Scope,
)
from medunifier.data.reports.rules.sentences import words

# Maximum number of words from an adjective to the organ that it describes: "enlarged cardiac silhouette".
_MAX_ADJECTIVE_DISTANCE = 4
_MAX_EXPLANATION = 5  # words between "density ... is due to" and the artefact
_EXPLANATIONS = frozenset([
    *VERBS, *RELATIONS, "be", "likely", "probably", "possibly", "presumably", "reflects", "reflect", "reflecting",
    "corresponds", "correspond", "corresponding", "consistent", "compatible", "felt", "thought", "attributed",
    "secondary",
    "caused", "from", ":", "probable", "possible", "query", "favored", "keeping",
])  # fmt: skip


@lru_cache(maxsize=50_000)  # sentences recur across reports: "no pneumothorax", "the lungs are clear"
def sentence_mentions(sentence: str) -> tuple[tuple[str, int], ...]:
    """Return the (finding, value) pairs of a lower-case sentence, in text order, with those of `negation`."""
    return tuple((mention.finding, mention.value) for mention in _Scanner(words(sentence)).scan())


class _Scanner(Scope):
    """The pass itself: one method for each role of `phrases.entries`."""

    def scan(self) -> list[Mention]:
        at = 0
        for match in [*self.matches, Match(len(self.tokens), len(self.tokens), "", ())]:
            for index in range(at, match.start):
                self._word(index)
            for role, detail in match.actions:
                getattr(self, f"_{role}")(match, detail)
            at = match.end
        if self.pending is not None:
            self._doubt_without_object(self.pending)
        self._doubt_alternatives()
        self._explain_blunting()
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
            word[0].isdigit()
            or word in "()"
            or (word in "tdlc" and self.tokens[index + 1 : index + 2] and self.tokens[index + 1][0].isdigit())  # T8
            or {word, word.removesuffix("s"), word.removesuffix("es")} & NEUTRAL_WORDS
        ):
            self._add(OTHER, index, index + 1)

    def _mention(self, match: Match, finding: str) -> None:
        value = None
        if (finding == "Fracture" and self._concerns_device(match)) or (
            match.phrase in findings.LUMPS and self._is_outside(match)
        ):
            finding = OTHER
        if finding == SUPPORT_DEVICES:
            value = NEGATIVE if self.removed else POSITIVE if self._is_context(match) else None
        self._add(finding, match.start, match.end, value)
        if match.phrase in findings.FAILURE:
            self.found.append(Mention(FAILURE, self.assertion, match.start, match.end))

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
            if self.organs and match.phrase in ("larger", "bigger"):  # "the heart is larger than before"
                self._describe_organs(self.assertion, match)
            else:
                self._add(OTHER, match.start, match.end)

    def _pleural(self, match: Match, _: str) -> None:
        tokens = self.tokens[: match.start]
        pleural = any(word.startswith(("pleura", "costophrenic")) or word == "cp" for word in tokens)
        other = bool(tokens) and tokens[-1] in findings.NOT_PLEURAL
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
        self.found.append(Mention(OTHER if denied else NORMAL, POSITIVE, match.start, match.end))

    def _confirmed(self, match: Match, _: str) -> None:
        if self.assertion != NEGATIVE:
            self._apply(POSITIVE, match)

    def _weak_doubt_before(self, match: Match, _: str) -> None:
        if self.assertion != NEGATIVE or self._is_verb_after_denial(match):
            self._begin(UNCERTAIN, match)

    def _doubt_without_object(self, match: Match) -> None:
        self.found.append(Mention(OTHER, UNCERTAIN, match.start, match.end))

    def _removal_before(self, match: Match, _: str) -> None:
        if cues.PLANNED & set(self.tokens) or ("prior", "to") in pairwise(self.tokens):
            return
        follows_device = bool(self.found) and self.found[-1].end == match.start and match.phrase == "removal"
        if (
            follows_device
            or match.phrase == "removed"
            and (self._group(match) or cues.REMOVABLE & set(self.tokens[: match.start]))
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
        if not devices and cues.REMOVABLE & set(self.tokens[: match.start]):
            self._add(SUPPORT_DEVICES, match.start, match.end, NEGATIVE)

    def _negation_after(self, match: Match, _: str) -> None:
        if match.phrase.split()[-1] in ("resolved", "cleared", "disappeared", "gone") and self._denies_change(match):
            return
        if self.assertion == UNCERTAIN and self.cue.phrase.endswith(("if", "whether")):
            return  # "unclear whether the effusion has gone"
        denied = match.phrase.endswith("expanded") and self._is_denied(match)  # "the lobe has not re-expanded"
        # A drained abscess, or a word that is not known, remains abnormal.
        exempt = OTHER if match.phrase.endswith(("drained", "evacuated")) else ""
        applied = not denied and self._apply(NEGATIVE, match, exempt=exempt)
        if applied and self._purpose_follows(match):
            self._begin(NEGATIVE, match)
        if not applied:
            if match.phrase.endswith("expanded"):  # "the lung has re-expanded"
                self._healthy(match, "")
                return
            if self._gives_reason(match):
                return
            if not self._object_follows(match):
                self._add(OTHER, match.start, match.end, UNCERTAIN)  # "the left diaphragm is not seen"
            self._begin(NEGATIVE, match)

    def _doubt_after(self, match: Match, _: str) -> None:
        if self._explains_sign(match):
            self._begin(UNCERTAIN, match)
            self.pending = match
            return
        # A device that is incompletely assessed is present.
        exempt = SUPPORT_DEVICES if match.phrase.endswith(("assessed", "evaluated")) else ""
        if not self._apply(UNCERTAIN, match, exempt=exempt) and not self._gives_reason(match):
            self._begin(UNCERTAIN, match)
            self.pending = match

    def _gives_reason(self, match: Match) -> bool:
        """End the doubt before the finding that is its reason: "heart size cannot be assessed due to an effusion"."""
        if self.tokens[match.end : match.end + 1] not in (
            ["due"],
            ["secondary"],
            ["because"],
            ["given"],
            ["owing"],
            ["by"],
        ):
            return False
        self._end_scope()
        self._add(OTHER, match.start, match.end, UNCERTAIN)
        return True

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

    def _artefact(self, match: Match, _: str) -> None:
        """Deny or doubt the opacity before an artefact that explains it: "density, probably a nipple shadow"."""
        last = max((mention.start for mention in self.found if mention.finding != NORMAL), default=None)
        explained = [mention for mention in self.found if mention.start == last and mention.value == POSITIVE]
        named = {mention.finding for mention in explained} - {SUPPORT_DEVICES, "Fracture"}
        between = self.tokens[max(explained[0].end, match.start - _MAX_EXPLANATION) : match.start] if named else []
        if match.phrase in findings.POSITIONAL and named - findings.ORGANS.keys():
            return
        alternative = self.tokens[match.end : match.end + 1] == ["or"]  # "could be projectional or a mass"
        if self.assertion != NEGATIVE and not alternative and _EXPLANATIONS & set(between):
            for mention in explained:
                mention.value = UNCERTAIN if self.assertion == UNCERTAIN else NEGATIVE
            self.pending = None
        else:
            self._add(OTHER, match.start, match.end)

    def _possible(self, match: Match, finding: str) -> None:
        self._add(finding, match.start, match.end, NEGATIVE if self.assertion == NEGATIVE else UNCERTAIN)

    def _fluid(self, match: Match, _: str) -> None:
        """Read fluid beside the pleural space as an effusion; in a fissure alone it is a possible one."""
        if findings.PLEURAL_PLACES & set(self.tokens):
            self._add("Pleural Effusion", match.start, match.end)
        elif findings.FISSURES & set(self.tokens):
            self._possible(match, "Pleural Effusion")
        else:
            self._add(OTHER, match.start, match.end)

    def _lesion(self, match: Match, _: str) -> None:
        near = set(self.tokens[max(0, match.start - 4) : match.end + 6])
        of_lung = findings.INSIDE & near and not (findings.NOT_OF_LUNG | findings.OUTSIDE) & near
        self._add("Lung Lesion" if of_lung else OTHER, match.start, match.end)

    def _compared(self, match: Match, _: str) -> None:
        """Doubt the second of two explanations: "more in keeping with edema than infection"."""
        if "more" in self.tokens[: match.start] and cues.COMPARED & set(self.tokens[: match.start]):
            self._begin(UNCERTAIN, match)
