"""Phrases for findings, organs and normal appearances.

A phrase is one or more words; hyphens and spaces are the same. A trailing star marks a stem ("opaci*" matches
opacity, opacities, opacification), and "{a|b|}" stands for each of its alternatives. The phrase with most words
wins, so a longer harmless phrase overrides a shorter one ("pericardial effusion" is not a pleural effusion). Classes
and design follow CheXpert (Irvin et al. 2019); the lists were written for this project. They differ from CheXpert's
where Open-I's MeSH headings do: vascular congestion is not edema, and a nodular opacity is an opacity, and only
possibly a lesion.
"""

from medunifier.data.reports.rules.vocabulary import word_set

MENTIONS: dict[str, tuple[str, ...]] = {
    "Cardiomegaly": (
        "cardiomegal*", "cardio megal*",
        "{ventricle|ventricles|atrium|atria|chambers} {is|are|appears|appear} {enlarged|dilated|prominent}",
        "{cardiac|heart|ventricular|biventricular|biatrial|atrial} enlarge*",
        "{increased|raised|elevated|increase in} {the|} {cardiothoracic|cardio thoracic|ct|heart|cardiac}"
        " {ratio|size}",
        "{increased|raised|elevated} ctr", "cardiac silhouette enlarge*",
        "enlarge* {heart|cardiac}", "enlarge* {of|in|} {the|} {heart|cardiac}*",
    ),
    "Enlarged Cardiomediastinum": (
        "{cardiomediastinal|mediastinal} {enlarge*|widen*|prominence|mass effect}",
        "widen* {superior|upper|} mediastin*",
        "wide {superior|upper|} mediastin*", "widen* of {the|} {superior|upper|} mediastin*",
        "enlarge* {mediastin*|cardiomediastin*}", "enlarge* of {the|} {mediastin*|cardiomediastin*}",
        "broad* {of the|} {mediastin*|cardiomediastin*}",
        "abnormal {superior|upper|} {mediastin*|cardiomediastin*}",
        "paratracheal {stripe|line} {is|} {thickened|widened|thickening|widening}",
        "{thickened|widened|thickening of|widening of} {the|} {right|left|} paratracheal {stripe|line}",
        "{mediastinum|mediastinal contour*|mediastinal outline*} {is|are|appears|appear} {abnormal|distorted}",
        "loss of {the|} aortic {knuckle|knob|arch|contour}*",
    ),
    "Lung Opacity": (
        "opaci*", "nodular {opaci*|density|densities|shadow|shadows|shadowing}",
        "{airspace|air space} {disease|process|change|shadowing|opaci*}*", "infiltrate*", "infiltration*",
        "infiltrative", "interstitial lung disease*", 
        "interstitial {marking|pattern|thickening|disease|shadowing|change|coarsening|abnormality}*",
        "reticular*", "reticulat*", "density", "densities", "peribronchial {thickening|cuffing}", "ground glass*",
        "groundglass*", "shadowing*", "shadow", "shadows", "haze", "haziness", "hazy", "whiteout", "white out",
        "{increased|reduced|decreased|loss of} {translucency|radiolucency|transradiancy}",
    ),
    "Lung Lesion": (
        "nodule*", "mass", "masses", "sol", "sols", "spn",
        "masslike*", "mass like", "tumor*", "neoplas*", "malignan*", "carcinoma*",
        "cancer*",
        "metasta*", "mets",
        "{lung|pulmonary|parenchymal|intrapulmonary|focal|focal lung|focal pulmonary|focal parenchymal|coin"
        "|space occupying|cavitary|cavitating|cavity} lesion*", "cavitary*",
        "cavitation*", "cavitating*", "lump", "lumps", "carcinomatosis", "lymphangitis", "adenocarcinoma*",
    ),
    "Edema": (
        "edema*", "{heart|cardiac|ventricular} failure*", "chf", "ccf", "lvf", "cardiac decompensat*",
        "{volume|fluid|circulatory|} overload*", "failure", "decompensation", "kerley*", "bat wing*", "batwing*",
    ),
    "Consolidation": ("consolidat*",),
    "Pneumonia": (
        "pneumonia*", "pneumonitis*", "infection*", "infectious*", "infective*", "bronchopneumon*", "pneumonic",
        "lrti",
        "pneumonias", "pjp", "pneumocystis*",
    ),
    "Atelectasis": ("atelecta*", "subatelecta*", "collapse*", "collapsing"),
    "Pneumothorax": ("pneumothora*", "pneumo thora*", "{new more|new mo|numo} thorax", "hydropneumothora*",
    "hemopneumothora*", "pyopneumothora*", "{pleural|intrapleural} {air|gas}",
        "{air|gas} {in|within} {the|} {left|right|} pleural*", "visceral pleural {line|edge|margin}*"),
    "Pleural Effusion": (
        "effusion*", "pleural {fluid|collection}*", "hydrothora*", "hydropneumothora*", "hemothora*",
        "hemopneumothora*", "pyopneumothora*", "fluid in {the|} {left|right|} pleural*",
        "{loculated|layering|encysted|subpulmonic|fissural|interlobar|intrafissural} {fluid|collection}*",
    ),
    "Pleural Other": (
        "pleural {thickening|scar*|plaque*|calcif*|fibrosis|based|plaquing|reaction}", "apical thickening*",
        "thickening of {the|} {left|right|both|} {lateral|apical|basal|costal|visceral|parietal|} pleura*",
        "{pleura is|pleurae are} thickened", "thickened {left|right|apical|visceral|parietal} pleura*",
        "thickened pleura*", "calcif* {of the|} {left|right|} pleura*",
        "pleural parenchymal scar*", "pleuroparenchymal {scar*|thickening}", "fibrothora*", "biapical thickening",
        "pleural thickened", "{apical|pleural|biapical} {pleural|} {cap|caps|capping}",
    ),
    "Fracture": ("fracture*", "{wedge|vertebral|vertebral body|osteoporotic} compression*",
        "{compression|compressive} deformit*",
        "compression of {a|the|} {mid|lower|upper|} {thoracic|lumbar|dorsal|} vertebra*",
        "{bony|bone|osseous|skeletal|rib} injur*"),
    "Support Devices": (
        "pacemaker*", "pacer", "pacing", "ppm", "defibrillator*", "icd", "aicd", "crt d", "catheter*", "picc*", "cvc",
        "cvp line", "vascath*", "permacath*", "permcath*", "hickman*", "broviac*", "portacath*", "port a cath*",
        "mediport*", "infusaport*", "chemoport*", "chemo port*",
        "{central|venous|dialysis|jugular|subclavian|ij|arterial|picc|femoral|infusion} {venous|} line*",
        "line tip*", "line {insertion|placement}", "{tip of|} the line*",
        "{lines and|lines or} {tube*|drain*|device*}",
        "{line|lines|wires} {is|are|remain|remains|} in {a|an|} {good|satisfactory|appropriate|unchanged|stable"
        "|adequate|acceptable|expected|standard|correct|suitable|similar} {position*|location*|placement*}",
        "{line|lines|wires} {is|are|remain|remains|} {unchanged|stable|satisfactory|appropriate|acceptable}"
        " in position",
        "{line|lines|wires} {is|are|remain|remains|} {well|satisfactorily|appropriately|correctly|suitably}"
        " {positioned|placed|sited|situated}",
        "{line|lines} in {situ|place}", "line positions", "position* of {the|all|} lines", "{ra|rv|lv} {lead|leads}",
        "central venous*",
        "endotracheal*", "ett", "ngt", "ogt", "{et|ng|og} tube*", "nasogastric*", "orogastric*", "dobhoff*",
        "dobbhoff*", "{enteric|feeding|chest} tube*", "tube", "tubes", "sheath", "sheaths", "tubing*", "cannula*",
        "drain", "drains", "pigtail*",
        "icc", "stent*", "sternotomy {wire|suture}*", "sternal wire*", "prosthe*", "valve replacement*",
        "{mechanical|metallic|artificial|bioprosthetic|prosthetic} valve*", "balloon pump*", "iabp", "ecmo*", "lvad",
        "impella", "swan ganz*", "tracheostom*", "surgical {clip|staple}*", "hardware*", "orthopedic*",
        "arthroplast*", "{pacing|pacemaker|icd|ecg|monitoring|cardiac} {lead|wire|electrode}*", "electrode*",
        "vp shunt*",
        "loop recorder*", "device*", "nerve stimulator*", "ivc filter*", "support device*", "monitoring device*",
        "intubated", "uvc", "uac", "umbilical {venous|arterial|} {line|catheter}*", "cvl", "cvad", "trach", "tavr",
        "tavi",
        "{right|left|chest|chest wall|subclavian|jugular|vascular|access|infusion} port {a cath|catheter|}",
        "port {catheter|reservoir|tip}*",
        "gastrostom*",
        "{atrial|ventricular|epicardial|pacer} {lead|wire|electrode}*", "lead tip*", "leads",
        "{embolization|vascular} coils",
        "intubation", "screws", "rods", "{spinal|harrington|fusion|fixation|metallic|growing} rod*",
        "{plate|plates|internal|surgical|screw} fixation", "fixation {plate|device|material}*", "plating",
        "{clavicular|clavicle|rib|sternal|metal|metallic|titanium} {plate|plates}", "{intramedullary|humeral} nail*",
        "{hip|shoulder|joint} replacement*", "{spinal|metallic|metal} {instrumentation|implant|implants}",
        "amplatzer*",
        "{metallic|metal} {clip|clips}", "mediastinal {surgical|} {drain|drains|tube|tubes|clip|clips}",
        "annuloplast*", "watchman*", "mitraclip*",
    ),
}  # fmt: skip

# Phrases of edema that chexpert-labeler also takes for an uncertain cardiomegaly.
FAILURE: frozenset[str] = frozenset({"heart failure*", "cardiac failure*", "chf", "ccf"})

# A nodular opacity is an opacity, and possibly a lesion.
POSSIBLE: dict[str, tuple[str, ...]] = {
    "Lung Lesion": ("nodular {opaci*|density|densities|shadow|shadows|shadowing}",),
}

# A disease that was treated is history.
PAST_TREATMENT = (
    "{lobectomy|bilobectomy|pneumonectomy|segmentectomy|resection|mastectomy|thoracotomy|surgery|operation|operated|radiotherapy"
    "|irradiation|radiation|chemotherapy|treated|esophagectomy|thyroidectomy|nephrectomy|colectomy}"
)
CANCER_KIND = "{known|previous|lung|bronchogenic|pulmonary|breast|renal|esophageal|primary|squamous cell|small cell|}"
PAST_DISEASE = "{carcinoma|cancer|tumor|malignancy|neoplasm|metastas|nodule|mass|pneumothorax|empyema}"

# Parts of devices and implants that break.
METAL = (
    "{lead|leads|wire|wires|screw|screws|rod|rods|catheter|catheters|stent|stents|strut|struts|plate|plates|hardware}"
)

# Longer phrases that contain one of the above but do not mention the finding. They may be abnormal all the same.
HARMLESS: tuple[str, ...] = (
    "{pericardial|joint} {effusion|fluid}*", "massive*", "mass effect*", "cardiac mass*",
    "nodular calcif*", "metallic {density|densities}", "{bone|bony|osseous|soft tissue} {density|densities}",
    "cardiac apex", "apex of {the|} heart", "bone mineral density", "breast {density|densities|shadow|shadows}",
    "{density|densities} of {the|} {bone|breast}*",
    "collapse of vertebr*", "{vertebral|vertebral body|compression} collapse*", "collapsed vertebr*",
    "mastectomy*",
    "history of {lung|breast|} {fracture|pneumonia|cancer|carcinoma|malignan|heart failure|chf|infection"
    "|pneumothorax|effusion}*", "infection control*", "granulomatous infection*",
    "fungal infection*", "{prior|previous|old|remote} infection*", "soft tissue edema*", "previous fracture deform*",
    "draining*", "drainage*", "fracture of {the|} {catheter|wire}*", "fractured {sternal|wire}*",
    "fracture fixation*",
    "pneumonectomy*", "reticulonodular*", "pleural tube*", "contrast density*", "wire fracture*",
    "{septal|fissure|fissural|pleural} line*",
    "perihilar haze", "{renal|kidney|respiratory|ventilatory|liver|hepatic|organ|treatment} failure*",
    "failure {of|to}",
    "no lung marking*", "double {atrial|cardiac|heart|} {shadow|density|contour|border|outline}",
    f"fracture* {METAL}", f"{METAL} {{is|are|has|have|}} fracture*",
    f"{PAST_TREATMENT} for {{a|the|}} {CANCER_KIND} {PAST_DISEASE}*",
    f"{{resected|treated|excised}} {CANCER_KIND} {PAST_DISEASE}*",
    f"{{resection|removal|excision}} of {{a|the|his|her|}} {CANCER_KIND} {PAST_DISEASE}*",
    "nodules of bone", "contrast opaci*", "acute on chronic",
)  # fmt: skip

# Shadows of normal anatomy, and other phrases without meaning for the labels.
NEUTRAL: tuple[str, ...] = (
    "{hilar|mediastinal|thymic|aortic|diaphragm|diaphragmatic|vascular|bony|soft tissue} {shadow|shadows}",
    "in density", "{size|shape|position|outline|contour} {and|,} density", "normal density",
    ", density and {position|shape|size|outline}",
    "retrocardiac {area|region|space}", "retrosternal {area|region|space}", "bowel gas", "in contrast {to|with}",
    "in the interval", "as well as", "{cm|mm} wide",
    "{air|gas} bubble",
    # Chambers of the heart; "RA" alone may be a disease.
    "{in|into|to|at|over|within} {the|} {ra|rv|la|lv} {apex|septum|appendage|}", "{ra|rv|la|lv} {apex|septum}",
    "{in|into|to|at|over|within} {the|} {ra|rv|la|lv} {and|,} {the|} {ra|rv|la|lv} {apex|septum|}",
    "{can|may} {now|} be used {safely|} {for feeding|}", "feeding {can|may} {now|} {commence|start|begin|resume}",
    "for feeding", "{post pyloric|postpyloric}", "lies {at|below} {the|} {level|diaphragm|hemidiaphragm}",
    "lies {in|over|within} {the|} {stomach|svc|ivc|gastric|left upper quadrant|right atrium|ra|rv}",
    "lies {just|well|} above the carina", "coronary sinus",
    "no {comparison|prior|previous|old} {study|studies|exam*|film*|image*|radiograph*|}",
)  # fmt: skip

# Phrases of neutral words that name a disease all the same.
OTHER_DISEASE: tuple[str, ...] = (
    "emphysem*", "scoliosis*", "kyphosis*", "hernia*", "bronchiecta*", "pulmonary fibrosis*", "sarcoid*",
    "tuberculosis*", "pneumomediastin*", "pneumoperiton*", "lymphadenopathy*", "adenopathy*", "dissection*",
    "aneurysm*", "free {intraperitoneal|subdiaphragmatic|} {air|gas|fluid}",
    "{subdiaphragmatic|infradiaphragmatic|intraperitoneal|mediastinal|pericardial|soft tissue} {free"
    "|} {air|gas}",
    "{air|gas} {under|below|beneath|within|along|around}", "air fluid level*", "air trapping", "air level*",
    "right {sided|} {aortic arch|arch}", "{right|left} sided aorta",
    "{air|gas} in {the|} {soft|subcutaneous|mediastin|pericard|periton|chest wall|neck|heart|liver|biliary|portal}*",
    "small {lungs|lung volume|lung volumes}", "absent {left|right|} {breast|nipple|rib|clavicle}*",
    "{small|moderate|large|mild|minimal|tiny|trace|slight} {on|at} {the|} {left|right|other|opposite}",
    "ventricular configuration", "changes", "not {be|} {feed|fed|use|used}",
    "only {the|} {one|left|right} {lung|side|hemithorax}", "{one|left|right} {lung|side|hemithorax} only",
    "on the {left|right} only", "cervical rib*", "azygos lobe", "azygos fissure",
)  # fmt: skip

# Organs whose size is described by a word of the next tables.
ORGANS: dict[str, tuple[str, ...]] = {
    "Cardiomegaly": (
        "heart {size|shadow|silhouette|contour|border|}*", "{ct|c t} ratio",
        "cardiothymic {silhouette|contour|shadow|}*",
        "cardiac {silhouette|size|shadow|contour|outline|diameter|}*",
        "{cardiopericardial|cardio pericardial} {silhouette|}*", "size of {the|} {heart|cardiac}*", "ctr",
        "{cardiothoracic|cardio thoracic} ratio",
    ),
    "Enlarged Cardiomediastinum": (
        "mediastin*", "cardiomediastin*", "cardio mediastin*", "{superior|upper} mediastin*",
    ),
}  # fmt: skip

# Descriptions of organ size. GROWN applies only after an organ: "the heart has increased in size".
LARGE: tuple[str, ...] = (
    "enlarge*", "increased in size", "widened*", "widening*", "prominen*", "large", "big", "borderline", "bulky",
    "broad", "broadened", "dilated", "wide",
)  # fmt: skip

GROWN: tuple[str, ...] = ("increased", "increase", "elevated", "raised", "exceeds", "greater than")

NORMAL: tuple[str, ...] = (
    "normal", "unremarkable", "within normal", "upper normal", "top normal", "upper {limit|limits} of normal",
    "not {enlarged|widened|dilated|prominent|increased}", "intact", "nonenlarged", "non enlarged", "nondilated",
    "within {the|} {normal|} {limits|range}", "unenlarged", "normal in size", "nad", "wnl", "no abnormality detected",
)  # fmt: skip

# Other words that state a normal appearance; "not" before them states the opposite.
HEALTHY: tuple[str, ...] = (
    "clear", "negative", "patent", "preserved", "symmetric*", "satisfactory", "expanded", "aerated", "inflated",
    "midline",
    "central", "centrally", "healthy", "adequate", "sharp", "free", "maintained", "well defined", "ventilated",
    "aligned", "normally {placed|positioned|situated|located}",
    "acceptable", "good", "smooth",
    "mid line", "{safe|ok|okay|fine|fit|suitable|satisfactory|adequate|appropriate|acceptable|ready} {to|for}"
    " {feed|feeding|feeds|use|be used|commence feeding|start feeding|nasogastric feeding|enteral feeding}",
)  # fmt: skip

# What is said to explain an opacity that is none. Between the two stands a verb, a doubt or "due to".
ARTEFACTS: tuple[str, ...] = (
    "nipple {shadow|shadows|}", "nipples", "skin {fold|folds|crease|creases|lesion}", "{artefact|artifact}*",
    "{summation|composite|superimposed|superimposition|overlapping|overlying|confluence of} {of|} {normal|}"
    " {bony|vascular|soft tissue|costal|chest wall|osseous|rib|ribs|} {shadow|shadows|structures|structure|vessels"
    "|vessel|tissue|tissues|effect|cartilage|clothing|electrode|electrodes|lead|leads}",
    "summation", "superimposition", "{costal|costochondral} {cartilage|cartilages|calcification|junction}",
    "{vessel|vessels} {seen|} {end on|on end}", "end on {vessel|vessels}", "{hair|clothing} {braid|button|}",
    "{monitoring|ecg} {dot|sticker}", "projectional", "spurious", "factitious", "positional", "rotational",
)  # fmt: skip

# These explain an organ's size, not an opacity: atelectasis may be positional.
POSITIONAL: frozenset[str] = frozenset({"positional", "rotational"})

# Words between a fracture and the device that it concerns: "fracture of the right ventricular lead".
DEVICE_PARTS: frozenset[str] = word_set("""
    of in through the a one two both several left right upper lower median proximal distal atrial ventricular tip end
    is are has have been appears
""")

# Masses and nodules there are no lesions of the lung: "thyroid mass", "lump in the left breast".
LUMPS: frozenset[str] = frozenset({"nodule*", "mass", "masses", "lump", "lumps", "tumor*"})
OUTSIDE: frozenset[str] = word_set("""
    supraclavicular axilla axillary axillae neck breast breasts thyroid abdomen abdominal liver hepatic adrenal renal
    kidney pancreatic subcutaneous wall humerus humeral
""")
INSIDE: frozenset[str] = word_set(
    "lung lungs lobe zone pulmonary hilar hilum perihilar apex base pleural mediastinal"
)

# A lesion is one of the lung if a place of the lung, and none of these words, is named near it.
LESION: tuple[str, ...] = ("lesion*",)

NOT_OF_LUNG: frozenset[str] = word_set("""
    bone bones bony osseous lytic sclerotic blastic skeletal rib ribs vertebral skin destructive clavicle pleural
    mediastinal cystic bullous lucent
""")

# Fluid is pleural if the sentence names a place of the pleural space.
FLUID: tuple[str, ...] = ("fluid",)

PLEURAL_PLACES: frozenset[str] = word_set("""
    pleural base bases costophrenic cp hemithorax hemithoraces subpulmonic layering
""")

FISSURES: frozenset[str] = word_set("fissure fissures")

# "Thickening" after the pleura or a costophrenic angle, without one of these directly before it, is pleural.
PLEURAL: tuple[str, ...] = ("thickening*", "plaque*")

NOT_PLEURAL: frozenset[str] = word_set("""
    wall bronchial septal interlobular interstitial fissural fissure cortical skin paratracheal stripe fold mucosal
    vessel aortic
""")

# With a costophrenic angle: an uncertain effusion, unless the report states or denies one, or a scar explains it.
BLUNTED: tuple[str, ...] = ("blunt*",)

# Words from the blunted angle to what explains it.
BLUNTED_BY: frozenset[str] = word_set(
    "due from secondary because caused owing attributed related reflecting reflects representing represents"
)

# Signs that stay stated where their explanation is doubtful: "the opacity is likely atelectasis".
SIGNS: frozenset[str] = frozenset({"Lung Opacity", "Lung Lesion", "Consolidation"})
