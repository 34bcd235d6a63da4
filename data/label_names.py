"""What other data sets call the fourteen observations."""

from data.observations import OBSERVATIONS

# NIH ChestX-ray14 and CheXpert spellings. A name that is none of the fourteen (hernia, fibrosis, emphysema)
# is left out, not forced into a neighbour.
_SYNONYMS = {
    "effusion": "Pleural Effusion",
    "infiltration": "Lung Opacity",
    "infiltrate": "Lung Opacity",
    "opacity": "Lung Opacity",
    "airspace opacity": "Lung Opacity",
    "mass": "Lung Lesion",
    "nodule": "Lung Lesion",
    "nodule/mass": "Lung Lesion",
    "pleural thickening": "Pleural Other",
    "normal": "No Finding",
    "devices": "Support Devices",
}
_NAMES = {name.lower(): name for name in OBSERVATIONS} | _SYNONYMS


def observation(name: str) -> str | None:
    """The observation that ``name`` stands for, or None."""
    return _NAMES.get(name.strip().lower().replace("_", " "))
