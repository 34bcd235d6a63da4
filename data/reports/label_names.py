"""Map the label names of other data sets to the 14 observations."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from medunifier.data.reports.observations import (
    NEGATIVE,
    NO_FINDING,
    OBSERVATIONS,
    POSITIVE,
    SUPPORT_DEVICES,
    in_order,
)

# Names in NIH ChestX-ray14, VinDr-CXR, PadChest, COVIDx, and Open-I's MeSH headings. Names outside the 14
# observations (hernia, fibrosis, emphysema, tuberculosis) are omitted instead of mapped to a similar one.
_SPELLINGS: dict[str, tuple[str, ...]] = {
    "Enlarged Cardiomediastinum": (
        "mediastinal enlargement", "superior mediastinal enlargement", "mediastinum/enlarged",
        "mediastinum/prominent",
    ),
    "Cardiomegaly": ("cardiac shadow/enlarged",),
    "Lung Opacity": (
        "opacity", "airspace opacity", "airspace disease", "density", "increased density", "infiltration",
        "infiltrate", "infiltrates", "alveolar pattern", "interstitial pattern", "reticular interstitial pattern",
        "reticulonodular interstitial pattern", "ground glass pattern",
    ),
    "Lung Lesion": (
        "mass", "pulmonary mass", "nodule", "multiple nodules", "nodule/mass", "lung tumor",
    ),
    "Edema": ("pulmonary edema",),
    "Pneumonia": ("atypical pneumonia",),
    "Atelectasis": (
        "pulmonary atelectasis", "laminar atelectasis", "lobar atelectasis", "segmental atelectasis",
        "total atelectasis", "round atelectasis", "atelectasis basal",
    ),
    "Pleural Effusion": ("effusion", "loculated pleural effusion", "loculated fissural effusion"),
    "Pleural Other": (
        "pleural thickening", "apical pleural thickening", "calcified pleural thickening", "pleural plaques",
        "calcified pleural plaques", "thickening/pleura",
    ),
    "Fracture": (
        "fractures, bone", "rib fracture", "clavicle fracture", "humeral fracture", "vertebral fracture",
        "callus rib fracture",
    ),
    SUPPORT_DEVICES: (
        "devices", "medical device", "implanted medical device", "catheters, indwelling", "tube, inserted",
        "pacemaker", "dual chamber device", "single chamber device", "nsg tube", "endotracheal tube",
        "tracheostomy tube", "chest drain tube", "catheter", "central venous catheter",
        "central venous catheter via jugular vein", "central venous catheter via subclavian vein",
        "reservoir central venous catheter", "artificial heart valve", "artificial aortic heart valve",
        "artificial mitral heart valve",
    ),
    NO_FINDING: ("normal",),
}  # fmt: skip
_NAMES = {name.lower(): name for name in OBSERVATIONS} | {
    spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings
}

MAX_NAMES, _MAX_NAME = 500, 64
OTHER_NAMES = "(other names)"

# CheXpert's hierarchy (Irvin et al. 2019, figure 1): each of these is an opacity of the lung.
_OPACITIES = {"Lung Lesion", "Edema", "Consolidation", "Pneumonia", "Atelectasis"}


def observation(name: str) -> str | None:
    """Return the observation that ``name`` denotes, or None."""
    return _NAMES.get(name.strip().lower().replace("_", " "))


def label_counts(studies: Iterable[Iterable[str]]) -> dict[str, dict[str, Any]]:
    """Return what became of each label name: {name: {"observation": observation or None, "studies": count}}.

    Args:
        studies: label names of each study, in the spelling of the data set; a repeated name counts once.

    Returns:
        The most frequent name first. At most :data:`MAX_NAMES` names of at most 64 characters; other names are
        counted together as :data:`OTHER_NAMES`, since a column of free text may be mistaken for labels.
    """
    counts: Counter[str] = Counter()
    spelling: dict[str, str] = {}
    for names in studies:
        cleaned = (" ".join(name.split()) for name in names)
        counts.update({spelling.setdefault(name.casefold(), name) for name in cleaned if name})
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    named = [(name, count) for name, count in ordered if len(name) <= _MAX_NAME][:MAX_NAMES]
    table = {name: {"observation": observation(name), "studies": count} for name, count in named}
    if len(named) < len(ordered):
        rest = sum(counts.values()) - sum(count for _, count in named)
        table[OTHER_NAMES] = {"observation": None, "studies": rest}
    return table


def label_lines(table: dict[str, dict[str, Any]], most: int) -> list[str]:
    """Return a line for each label name, "Effusion -> Pleural Effusion (31)", dropped ones first.

    Args:
        table: result of :func:`label_counts`.
        most: number of lines after which the others are only counted.
    """
    ordered = sorted(table.items(), key=lambda item: item[1]["observation"] is not None)
    lines = [f"{name} -> {row['observation'] or 'dropped'} ({row['studies']:,})" for name, row in ordered]
    return lines[:most] + ([f"… and {len(lines) - most} more names"] if len(lines) > most else [])


def positive_labels(names: Iterable[str]) -> dict[str, int]:
    """Return label 1 for every observation among ``names``; others are not mentioned. For open label lists."""
    return in_order({found: POSITIVE for name in names if (found := observation(name)) is not None})


def closed_labels(positive: Iterable[str], listed: Iterable[str]) -> dict[str, int]:
    """Return labels for a data set whose readers checked every name of a closed list for each image.

    Args:
        positive: names marked positive.
        listed: all names in the list.

    Returns:
        1 for positive names, 0 for the others in the list. Lung Opacity alone has no label instead of 0 if one of
        its subtypes is positive: in such a list it means "other opacity", and 0 would be a contradiction.
    """
    present = positive_labels(positive)
    labels = {name: NEGATIVE for name in positive_labels(listed)} | present
    if labels.get("Lung Opacity") == NEGATIVE and _OPACITIES & present.keys():
        del labels["Lung Opacity"]
    return in_order(labels)
