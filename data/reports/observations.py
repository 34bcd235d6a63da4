"""The 14 observations of CheXpert, in CheXbert's order: the one table of labels of this project.

A label is 1 (stated), 0 (denied) or -1 (uncertain); an observation that a report does not mention has
no entry at all. Order: stanfordmlgroup/CheXbert. MIMIC-CXR's and CheXpert's files use the same names in
other orders, so columns are always found by name.
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

LEADERBOARD: tuple[str, ...] = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
"""The five of CheXpert's leaderboard, over which papers report their second macro and micro mean."""

POSITIVE, NEGATIVE, UNCERTAIN = 1, 0, -1


def merge_mentions(values: set[int]) -> int:
    """One label for several mentions of an observation in one report, by the rules of chexpert-labeler.

    A statement outweighs everything; doubt outweighs denial.

    Args:
        values: a non-empty set of 1, 0 and -1.
    """
    if POSITIVE in values:
        return POSITIVE
    return UNCERTAIN if UNCERTAIN in values else NEGATIVE


def is_no_finding(labels: dict[str, int]) -> bool:
    """Whether nothing but support devices is stated or suspected (chexpert-labeler's No Finding)."""
    exempt = (SUPPORT_DEVICES, NO_FINDING)
    return all(value == NEGATIVE for name, value in labels.items() if name not in exempt)


def in_order(labels: dict[str, int]) -> dict[str, int]:
    """The same labels with keys in the table's order, so that files written from them are stable."""
    return {name: labels[name] for name in OBSERVATIONS if name in labels}
