"""Phrase tables of the labeler, one per role.

A phrase is one or more whole words; a trailing star marks a stem ("opaci*" matches opacity, opacities,
opacification). The longest match wins, so a longer harmless phrase overrides a shorter one ("pericardial effusion"
is not a pleural effusion). Classes and design follow CheXpert (Irvin et al. 2019); the lists were written for this
project. They differ from CheXpert's where Open-I's MeSH headings do: vascular congestion is not edema, and a nodular
opacity is an opacity, not a lesion.
"""

MENTIONS: dict[str, tuple[str, ...]] = {
    "Cardiomegaly": (
        "cardiomegaly*", "cardiac enlargement*", "cardiac silhouette enlargement*", "heart enlargement*",
        "enlarged heart*", "enlarged cardiac*", "enlargement of the heart*", "enlargement of the cardiac*",
        "enlargement of cardiac*", "ventricular enlargement*",
    ),
    "Enlarged Cardiomediastinum": (
        "cardiomediastinal enlargement*", "mediastinal widening*", "widened mediastin*",
        "widening of the mediastin*", "wide mediastin*", "mediastinal enlargement*", "enlarged mediastin*",
        "enlarged cardiomediastin*", "mediastinal prominence*", "enlargement of the cardiomediastin*",
        "enlargement of the mediastin*",
    ),
    "Lung Opacity": (
        "opaci*", "airspace disease*", "air space disease*", "air-space disease*", "airspace process*",
        "infiltrate*", "infiltration*", "interstitial marking*", "interstitial prominence*",
        "interstitial pattern*", "interstitial thickening*", "interstitial disease*", "reticular*",
        "reticulation*", "density", "densities", "peribronchial thickening*", "peribronchial cuffing*",
        "ground glass*", "ground-glass*",
    ),
    "Lung Lesion": (
        "nodule*", "mass", "masses", "masslike*", "tumor*", "neoplas*", "malignan*", "carcinoma*", "cancer*",
        "metasta*", "lung lesion*", "pulmonary lesion*", "cavitary*", "cavitation*", "cavitating*",
    ),
    "Edema": (
        "edema*", "heart failure*", "chf", "cardiac decompensation*", "volume overload*", "fluid overload*",
    ),
    "Consolidation": ("consolidat*",),
    "Pneumonia": ("pneumonia*", "pneumonitis*", "infection*", "infectious*", "bronchopneumonia*"),
    "Atelectasis": ("atelecta*", "subatelecta*", "collapse*", "lobar collapse*"),
    "Pneumothorax": ("pneumothora*", "pneumo thora*", "hydropneumothora*", "hemopneumothora*"),
    "Pleural Effusion": (
        "effusion*", "pleural effusion*", "pleural fluid*", "hydrothorax*", "hydropneumothora*",
        "hemothorax*",
    ),
    "Pleural Other": (
        "pleural thickening*", "pleural scar*", "pleural-parenchymal scar*", "pleuroparenchymal scar*",
        "fibrothorax*", "pleural plaque*", "pleural calcif*", "apical thickening*", "pleural fibrosis*",
        "pleural based*",
    ),
    "Fracture": ("fracture*",),
    "Support Devices": (
        "pacemaker*", "pacer", "pacing", "defibrillator*", "icd", "aicd", "catheter*", "picc*",
        "central line*", "venous line*", "central venous*", "endotracheal*", "et tube*", "ett",
        "nasogastric*", "ng tube*", "orogastric*", "enteric tube*", "feeding tube*", "dobbhoff*", "tube*",
        "tubing*", "chest tube*", "port-a-cath*", "portacath*", "mediport*", "infusaport*", "cannula*",
        "drain", "stent*", "sternotomy wire*", "sternal wire*", "prosthe*", "valve replacement*",
        "balloon pump*", "ecmo*", "swan-ganz*", "swan ganz*", "tracheostomy*", "surgical clip*", "hardware*",
        "orthopedic*", "arthroplast*",
    ),
}  # fmt: skip

# chexpert-labeler treats heart failure as uncertain cardiomegaly.
HINTS: dict[str, str] = {"heart failure": "Cardiomegaly", "chf": "Cardiomegaly"}

# Longer phrases that contain one of the above but do not mention the finding.
HARMLESS: tuple[str, ...] = (
    "pericardial effusion*", "joint effusion*", "massive*", "mass effect*", "cardiac mass*",
    "calcified nodule*", "calcified pulmonary nodule*", "calcified lung nodule*", "calcified mass*",
    "nodular calcif*", "calcified density*", "calcified densities*", "calcific densit*", "metallic densit*",
    "bone density*", "bony densit*", "osseous densit*", "soft tissue density*", "bone mineral density*",
    "breast densit*", "densities of bone*", "collapse of vertebr*", "vertebral collapse*",
    "vertebral body collapse*", "compression collapse*", "nipple*", "mastectomy*", "history of pneumonia*",
    "infection control*", "granulomatous infection*", "fungal infection*", "prior infection*",
    "previous infection*", "old infection*", "remote infection*", "soft tissue edema*",
    "history of fracture*", "previous fracture deform*", "draining*", "drainage*",
    "fracture of the catheter*", "fractured wire*", "fracture fixation*", "fractured sternal*",
    "pneumonectomy*", "reticulonodular*", "pleural tube*", "contrast density*", "wire fracture*",
)  # fmt: skip

# Disease outside the 14 observations that excludes "No Finding".
OTHER_DISEASE: tuple[str, ...] = (
    "emphysem*", "scoliosis*", "kyphosis*", "hernia*", "bronchiecta*", "pulmonary fibrosis*", "sarcoid*",
    "tuberculosis*", "pneumomediastin*", "pneumoperiton*", "lymphadenopathy*", "adenopathy*", "dissection*",
    "aneurysm*",
)  # fmt: skip

# Organs whose size is described by an adjective from the next two tables.
ORGANS: dict[str, str] = {
    **dict.fromkeys(
        (
            "heart", "heart size", "heart shadow", "cardiac silhouette", "cardiac size", "cardiac shadow",
            "cardiac contour", "cardiac and mediastinal", "cardiac", "cardiopericardial silhouette",
            "cardio pericardial silhouette", "size of the heart", "size of heart",
        ),
        "Cardiomegaly",
    ),
    **dict.fromkeys(
        (
            "mediastin*", "cardiomediastin*", "cardio mediastin*", "cardio-mediastin*", "mediastinal contour",
            "mediastinal silhouette", "superior mediastin*",
        ),
        "Enlarged Cardiomediastinum",
    ),
}  # fmt: skip

# Descriptions of organ size.
LARGE: tuple[str, ...] = (
    "enlarge*", "enlarging*", "increased in size", "widened*", "widening*", "prominen*", "large", "big",
    "borderline",
)  # fmt: skip
NORMAL: tuple[str, ...] = (
    "normal", "unremarkable", "within normal", "upper normal", "top normal", "top-normal",
    "upper limits of normal", "upper limit of normal", "not enlarged", "not widened", "intact", "nonenlarged",
    "non-enlarged",
)  # fmt: skip

# Negation before the finding.
NEGATION_BEFORE: tuple[str, ...] = (
    "no", "not", "without", "negative for", "free of", "clear of", "is clear of", "are clear of",
    "absence of", "absent", "resolution of", "nor", "neither", "none", "rather than", "lack of", "lacks",
    "exclude*", "rules out", "removal of", "devoid of", "denies", "cleared of", "non", "interval removal",
    "resolution", "more sensitive",
)  # fmt: skip

# Negation after the finding.
NEGATION_AFTER: tuple[str, ...] = (
    "not seen", "not identified", "not visualized", "not appreciated", "not evident", "not present",
    "not demonstrated", "not apparent", "not visible", "not detected", "not noted", "not definitely seen",
    "no longer", "has resolved", "have resolved", "resolved", "has cleared", "have cleared", "is absent",
    "are absent", "ruled out", "has been excluded", "are excluded", "is excluded", "unlikely", "been removed",
    "was removed", "not clearly seen", "is clear", "are clear", "not clearly identified", "not well seen",
    "not well-seen", "not well visualized", "not well-visualized",
)  # fmt: skip

# Uncertainty before the finding.
UNCERTAINTY_BEFORE: tuple[str, ...] = (
    "may", "might", "could", "can be seen", "possible", "possibly", "possibility", "probable", "probably",
    "likely", "most likely", "suggest*", "suspicio*", "suspect*", "suspected", "concerning", "concern for",
    "questionable", "question of", "question*", "worrisome", "potential", "presumed", "presumably",
    "differential", "equivocal", "cannot exclude", "can not exclude", "cannot rule out",
    "difficult to exclude", "not exclude", "not entirely exclude", "correlate for*", "evaluate for",
    "raises the", "favor*", "appears to represent", "perhaps", "less likely", "correlate clinically for",
    "maybe", "evaluation for", "evaluation of", "assessment for", "risk of", "factors for",
)  # fmt: skip

# Uncertainty after the finding; "versus" (UNCERTAINTY_BOTH) applies in both directions.
UNCERTAINTY_AFTER: tuple[str, ...] = (
    "cannot be excluded", "can not be excluded", "not excluded", "cannot be ruled out", "not be excluded",
    "not ruled out", "not entirely excluded", "not completely excluded", "is possible", "are possible",
    "is suspected", "is questioned", "be considered", "in the differential", "difficult to exclude",
    "difficult to entirely exclude", "cannot entirely be excluded", "not be entirely excluded", "is likely",
    "are likely", "not be ruled out",
    *(
        f"{cannot} be {how} {done}"
        for cannot in ("cannot", "can not", "not")
        for how in ("completely", "entirely", "definitively", "definitely", "confidently", "totally", "fully")
        for done in ("excluded", "ruled out")
    ),
)  # fmt: skip
UNCERTAINTY_BOTH: tuple[str, ...] = ("versus", "vs")

# Phrases with a negation that does not negate a finding.
PSEUDO_NEGATION: tuple[str, ...] = (
    "no change*", "no significant change*", "no interval change*", "no significant interval change*",
    "not changed*", "not significantly changed*", "without change*", "without significant change*",
    "no definite change*", "no increase*", "no appreciable change*", "no substantial change*",
    "no relevant change*", "no other*", "not only*", "without interval change*",
    "without significant interval change*", "no longer seen as*", "no comparison*", "no prior*",
    # A finding "not seen on the prior" is new.
    *(
        f"not {found} on {the}{before}*"
        for found in ("seen", "present", "identified", "visualized", "noted")
        for the in ("", "the ")
        for before in ("prior", "previous")
    ),
)  # fmt: skip

# Ends of the scope of a negation or uncertainty.
SCOPE_ENDS: tuple[str, ...] = (
    "but", "however", "although", "though", "except", "aside from", "apart from", "other than", "which",
    "whereas", "there is", "there are", "there has", "there have", "and there", "and the", "otherwise",
    "in addition", "additionally", "also", "while", "with the exception", "seen", "is noted", "are noted",
    "noted", "again", "and stable", "and unchanged", "and mild", "and small", "and moderate", "and left",
    "and right", "with associated",
)  # fmt: skip

# A comma ends the scope only before a word that begins a statement.
STATEMENT_OPENERS: tuple[str, ...] = (
    "stable", "unchanged", "mild", "small", "moderate", "the", "there", "with", "persistent", "status",
    "heart", "lungs", "left", "right", "bilateral", "minimal", "increased", "new", "old",
)  # fmt: skip
