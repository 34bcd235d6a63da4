"""The phrase table of the labeler: every phrase with its role, the method of the scanner that acts on it."""

from collections.abc import Iterator

from medunifier.data.reports.rules import cues, findings


def entries() -> Iterator[tuple[str, str, str]]:
    """Yield (phrase, role, observation) of all tables. Without an observation it is empty."""
    for finding, names in findings.MENTIONS.items():
        for name in names:
            yield name, "mention", finding
    for finding, names in findings.ORGANS.items():
        for name in names:
            yield name, "organ", finding
    for finding, names in findings.POSSIBLE.items():
        for name in names:
            yield name, "possible", finding
    tables = {
        "other": findings.HARMLESS + findings.OTHER_DISEASE, "neutral": findings.NEUTRAL + cues.PERSISTENCE,
        "large": findings.LARGE, "grown": findings.GROWN, "normal": findings.NORMAL, "healthy": findings.HEALTHY,
        "negation_before": cues.NEGATION_BEFORE, "negation_after": cues.NEGATION_AFTER,
        "removal_before": cues.REMOVAL_BEFORE, "removal_after": cues.REMOVAL_AFTER,
        "doubt_before": cues.UNCERTAINTY_BEFORE, "weak_doubt_before": cues.WEAK_UNCERTAINTY_BEFORE,
        "doubt_after": cues.UNCERTAINTY_AFTER, "doubt_both": cues.UNCERTAINTY_BOTH,
        "artefact": findings.ARTEFACTS, "fluid": findings.FLUID, "lesion": findings.LESION,
        "compared": cues.THAN, "confirmed": cues.CONFIRMED,
        "changed": cues.CHANGED, "pleural": findings.PLEURAL, "blunted": findings.BLUNTED,
        "scope_end": cues.SCOPE_ENDS, "predicate": cues.PREDICATES,
    }  # fmt: skip
    for role, names in tables.items():
        for name in names:
            yield name, role, ""
