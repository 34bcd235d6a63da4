"""The 14 CheXpert observations in CheXbert's order: the label table of this project.

A label is 1 (positive), 0 (negative) or -1 (uncertain); an observation that a report does not mention has
no entry. Order: stanfordmlgroup/CheXbert. MIMIC-CXR's and CheXpert's files use the same names in
other orders, so columns are always looked up by name.
"""

NO_FINDING = "No Finding"
SUPPORT_DEVICES = "Support Devices"

OBSERVATIONS: tuple[str, ...] = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    SUPPORT_DEVICES,
    NO_FINDING,
)

FINDINGS: tuple[str, ...] = tuple(name for name in OBSERVATIONS if name != NO_FINDING)
"""All observations but No Finding, which is about the whole image."""

LEADERBOARD: tuple[str, ...] = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
"""The five observations of CheXpert's leaderboard, over which papers report a second macro and micro average."""

POSITIVE, NEGATIVE, UNCERTAIN = 1, 0, -1


def merge_mentions(values: set[int]) -> int:
    """Merge several mentions of an observation in one report into one label, by the rules of chexpert-labeler.

    Positive takes precedence over uncertain, uncertain over negative.

    Args:
        values: a non-empty set of 1, 0 and -1.
    """
    if POSITIVE in values:
        return POSITIVE
    return UNCERTAIN if UNCERTAIN in values else NEGATIVE


def is_no_finding(labels: dict[str, int]) -> bool:
    """Return whether nothing but support devices is positive or uncertain (chexpert-labeler's No Finding)."""
    exempt = (SUPPORT_DEVICES, NO_FINDING)
    return all(value == NEGATIVE for name, value in labels.items() if name not in exempt)


def in_order(labels: dict[str, int]) -> dict[str, int]:
    """Return the labels with keys in the table's order, so that files written from them are stable."""
    return {name: labels[name] for name in OBSERVATIONS if name in labels}
