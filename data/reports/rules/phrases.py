"""Phrase tables of the labeler, one per role.

A phrase is one or more words; hyphens and spaces are the same. A trailing star marks a stem ("opaci*" matches
opacity, opacities, opacification), and "{a|b|}" stands for each of its alternatives. The phrase with most words
wins, so a longer harmless phrase overrides a shorter one ("pericardial effusion" is not a pleural effusion). Classes
and design follow CheXpert (Irvin et al. 2019); the lists were written for this project. They differ from CheXpert's
where Open-I's MeSH headings do: vascular congestion is not edema, and a nodular opacity is an opacity, not a lesion.
"""

from collections.abc import Iterator

from medunifier.data.reports.rules.vocabulary import word_set

MENTIONS: dict[str, tuple[str, ...]] = {
    "Cardiomegaly": (
        "cardiomegal*", "cardio megal*",
        "{ventricle|ventricles|atrium|atria|chambers} {is|are|appears|appear} {enlarged|dilated|prominent}",
        "{cardiac|heart|ventricular|biventricular|biatrial|atrial} enlarge*",
        "cardiac silhouette enlarge*", "enlarge* {heart|cardiac}", "enlarge* {of|in|} {the|} {heart|cardiac}*",
    ),
    "Enlarged Cardiomediastinum": (
        "{cardiomediastinal|mediastinal} {enlarge*|widen*|prominence|mass effect}",
        "widen* {superior|upper|} mediastin*",
        "wide {superior|upper|} mediastin*", "widen* of {the|} {superior|upper|} mediastin*",
        "enlarge* {mediastin*|cardiomediastin*}", "enlarge* of {the|} {mediastin*|cardiomediastin*}",
        "broad* {of the|} {mediastin*|cardiomediastin*}",
        "abnormal {superior|upper|} {mediastin*|cardiomediastin*}",
        "{mediastinum|mediastinal contour*|mediastinal outline*} {is|are|appears|appear} {abnormal|distorted}",
        "loss of {the|} aortic {knuckle|knob|arch|contour}*",
    ),
    "Lung Opacity": (
        "opaci*", "{nodular|rounded} {opaci*|density|densities|shadow|shadows|shadowing}",
        "{airspace|air space} {disease|process|change|shadowing|opaci*}*", "infiltrate*", "infiltration*",
        "infiltrative", "interstitial lung disease*", "interstitial {marking|pattern|thickening|disease|shadowing}*",
        "reticular*", "reticulat*", "density", "densities", "peribronchial {thickening|cuffing}", "ground glass*",
        "groundglass*", "shadowing*", "shadow", "shadows", "haze", "haziness", "hazy", "whiteout", "white out",
        "{increased|reduced|decreased|loss of} {translucency|radiolucency|transradiancy}",
    ),
    "Lung Lesion": (
        "nodule*", "mass", "masses", "masslike*", "mass like", "tumor*", "neoplas*", "malignan*", "carcinoma*",
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
        "pneumonias",
    ),
    "Atelectasis": ("atelecta*", "subatelecta*", "collapse*", "collapsing"),
    "Pneumothorax": ("pneumothora*", "pneumo thora*", "{new more|new mo|numo} thorax", "hydropneumothora*",
    "hemopneumothora*", "pyopneumothora*"),
    "Pleural Effusion": (
        "effusion*", "pleural {fluid|collection}*", "hydrothora*", "hydropneumothora*", "hemothora*",
        "hemopneumothora*", "pyopneumothora*", "fluid in {the|} {left|right|} pleural*",
        "{loculated|layering|encysted|subpulmonic|fissural|interlobar|intrafissural} {fluid|collection}*",
    ),
    "Pleural Other": (
        "pleural {thickening|scar*|plaque*|calcif*|fibrosis|based|plaquing|reaction}", "apical thickening*",
        "thickening of {the|} {left|right|both|} {lateral|apical|basal|costal|visceral|parietal|} pleura*",
        "{pleura is|pleurae are} thickened", "thickened {left|right|apical|visceral|parietal} pleura*",
        "thickened pleura*",
        "pleural parenchymal scar*", "pleuroparenchymal {scar*|thickening}", "fibrothora*", "biapical thickening",
        "pleural thickened", "apical pleural cap*",
    ),
    "Fracture": ("fracture*", "{bony|bone|osseous|skeletal|rib} injur*"),
    "Support Devices": (
        "pacemaker*", "pacer", "pacing", "ppm", "defibrillator*", "icd", "aicd", "crt d", "catheter*", "picc*", "cvc",
        "cvp line", "vascath*", "permacath*", "permcath*", "hickman*", "broviac*", "portacath*", "port a cath*",
        "mediport*", "infusaport*", "chemoport*", "chemo port*",
        "{central|venous|dialysis|jugular|subclavian|ij|arterial|picc|femoral|infusion} {venous|} line*",
        "line tip*", "{tip of|} the line*", "{lines and|lines or} {tube*|drain*|device*}", "central venous*",
        "endotracheal*", "ett", "ngt", "ogt", "{et|ng|og} tube*", "nasogastric*", "orogastric*", "dobhoff*",
        "dobbhoff*", "{enteric|feeding|chest} tube*", "tube*", "tubing*", "cannula*", "drain", "drains", "pigtail*",
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
        "intubation", "screws", "fixation plate*", "spinal rod*",
    ),
}  # fmt: skip

# Phrases of edema that chexpert-labeler also takes for an uncertain cardiomegaly.
FAILURE: frozenset[str] = frozenset({"heart failure*", "cardiac failure*", "chf", "ccf"})

# A nodular opacity is an opacity, and possibly a lesion.
POSSIBLE: dict[str, tuple[str, ...]] = {
    "Lung Lesion": ("{nodular|rounded} {opaci*|density|densities|shadow|shadows|shadowing}",),
}

# Longer phrases that contain one of the above but do not mention the finding. They may be abnormal all the same.
HARMLESS: tuple[str, ...] = (
    "{pericardial|joint} {effusion|fluid}*", "massive*", "mass effect*", "cardiac mass*",
    "nodular calcif*", "metallic {density|densities}", "{bone|bony|osseous|soft tissue} {density|densities}",
    "cardiac apex", "apex of {the|} heart", "bone mineral density", "breast {density|densities|shadow|shadows}",
    "{density|densities} of bone*",
    "collapse of vertebr*", "{vertebral|vertebral body|compression} collapse*", "collapsed vertebr*",
    "mastectomy*",
    "history of {lung|breast|} {fracture|pneumonia|cancer|carcinoma|malignan|heart failure|chf|infection"
    "|pneumothorax|effusion}*", "infection control*", "granulomatous infection*",
    "fungal infection*", "{prior|previous|old|remote} infection*", "soft tissue edema*", "previous fracture deform*",
    "draining*", "drainage*", "fracture of {the|} {catheter|wire}*", "fractured {sternal|wire}*",
    "fracture fixation*",
    "pneumonectomy*", "reticulonodular*", "pleural tube*", "contrast density*", "wire fracture*",
    "{septal|fissure|fissural|pleural} line*",
    "{renal|kidney|respiratory|ventilatory|liver|hepatic|organ|treatment} failure*", "failure {of|to}",
    "no lung marking*",
    "nodules of bone", "contrast opaci*",
)  # fmt: skip

# Shadows of normal anatomy, and other phrases without meaning for the labels.
NEUTRAL: tuple[str, ...] = (
    "{hilar|mediastinal|thymic|aortic|diaphragm|diaphragmatic|vascular|bony|soft tissue} {shadow|shadows}",
    "in density", "{size|shape|position|outline|contour} {and|,} density", "normal density",
    ", density and {position|shape|size|outline}",
    "retrocardiac {area|region|space}", "retrosternal {area|region|space}", "bowel gas", "in contrast {to|with}",
    "in the interval", "as well as",
    "{air|gas} bubble", "no {comparison|prior|previous|old} {study|studies|exam*|film*|image*|radiograph*|}",
)  # fmt: skip

# Phrases of neutral words that name a disease all the same.
OTHER_DISEASE: tuple[str, ...] = (
    "emphysem*", "scoliosis*", "kyphosis*", "hernia*", "bronchiecta*", "pulmonary fibrosis*", "sarcoid*",
    "tuberculosis*", "pneumomediastin*", "pneumoperiton*", "lymphadenopathy*", "adenopathy*", "dissection*",
    "aneurysm*", "free {intraperitoneal|subdiaphragmatic|} {air|gas|fluid}",
    "{subdiaphragmatic|infradiaphragmatic|intraperitoneal|mediastinal|pericardial|pleural|soft tissue} {free"
    "|} {air|gas}",
    "{air|gas} {under|below|beneath|within|along|around}", "air fluid level*", "air trapping", "air level*",
    "right {sided|} {aortic arch|arch}", "{right|left} sided aorta",
    "cervical rib*", "azygos lobe", "azygos fissure",
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
    "broad",
    "broadened", "dilated",
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
)  # fmt: skip

# Negation before the finding.
NEGATION_BEFORE: tuple[str, ...] = (
    "no", "not", "nil", "none", "without", "negative for", "free of", "free from", "clear of", "absence of", "absent",
    "resolution of", "nor", "neither", "rather than", "lack of", "lacks", "excludes", "excluding", "rules out",
    "devoid of", "denies", "cleared of", "resolution", "more sensitive", "never", "nothing", "unlikely to",
    "no longer", "not {typical|characteristic|suggestive} of",
    "disappearance of", "non visualization of", "{interval|complete|} {clearing|clearance} of",
    "had there been", "were there", "would have {required|needed|necessitated|prompted|warranted}",
    "would {require|need|necessitate|warrant}",
    "mimic*", "simulates", "simulating", "simulate", "mistaken for", "confused with",
)  # fmt: skip

# Negation after the finding.
NEGATION_AFTER: tuple[str, ...] = (
    *(
        f"not {word}"
        for word in ("seen", "identified", "visualized", "appreciated", "evident", "present", "demonstrated",
        "apparent",
                     "visible", "detected", "noted", "found", "shown", "suspected", "suggested", "recognized",
                     "there")
    ),
    "no longer {seen|identified|visualized|appreciated|evident|present|demonstrated|apparent|visible|detected"
    "|noted|there}",
    "{has|have|had|since|now|is|are|completely|fully|} resolved", "{has|have|had} cleared", "cleared completely",
    "cleared up", "{is|are} absent", "ruled out", "{has been|have been|is|are|was|were|been} excluded", "excluded",
    "unlikely", "{has|have} disappeared", "disappeared", "{completely|now|since} cleared", "not a feature",
    "{is|are} negative", "not {inserted|placed|sited|required|needed}",
    "not {a|} {concern|consideration}", "{is|are} none", "{is|are|has|have|had|now|} gone", "vanished", "dissipated",
    "{does|do|did} not persist",
    "would {have been|be} {expected|visible|seen|visualized|apparent|evident|detected|sited|placed|inserted|needed"
    "|required|necessary|indicated}",
    "{has|have|had|is|are|} {re expanded|reexpanded}",
    "{has|have|had|did|does|do} not {recurred|recur|returned|return|reaccumulated|reaccumulate|re accumulated"
    "|reappeared|developed|develop|occurred}",
    "{felt|thought|believed|considered|deemed} {to be|to have been|} {excluded|unlikely|absent|resolved|ruled out}",
)  # fmt: skip

# What is said to explain an opacity that is none. Between the two stands a verb, a doubt or "due to".
ARTEFACTS: tuple[str, ...] = (
    "nipple {shadow|shadows|}", "nipples", "skin {fold|folds|crease|creases|lesion}", "{artefact|artifact}*",
    "{summation|composite|superimposed|superimposition|overlapping|overlying|confluence of} {of|} {normal|}"
    " {bony|vascular|soft tissue|costal|chest wall|osseous|rib|ribs|} {shadow|shadows|structures|structure|vessels"
    "|vessel|tissue|tissues|effect|cartilage|clothing|electrode|electrodes|lead|leads}",
    "summation", "superimposition", "{costal|costochondral} {cartilage|cartilages|calcification|junction}",
    "{vessel|vessels} {seen|} {end on|on end}", "end on {vessel|vessels}", "{hair|clothing} {braid|button|}",
    "{monitoring|ecg} {dot|sticker}",
)  # fmt: skip

# Fluid is pleural if the sentence names a place of the pleural space.
FLUID: tuple[str, ...] = ("fluid",)
PLEURAL_PLACES: frozenset[str] = word_set("""
    pleural base bases costophrenic cp hemithorax hemithoraces subpulmonic layering
""")
FISSURES: frozenset[str] = word_set("fissure fissures")

# Words after "to", and after "that would", that name a purpose.
PURPOSES: tuple[str, ...] = (
    "suggest", "indicat", "explain", "account", "support", "represent", "confirm", "imply", "justif", "warrant",
    "reflect",
    "correlate", "correspond", "raise",
)  # fmt: skip
MODALS: frozenset[str] = word_set("would could might may")
# "More [likely] ... than"; and the word between the two explanations.
COMPARED: frozenset[str] = word_set(
    "likely keeping consistent compatible suggestive typical suspicious favors indicative"
)
THAN: tuple[str, ...] = ("than {with|of|for|}",)

# After a comma, an explanation of the finding before a denial.
EXPLAINING: frozenset[str] = word_set(
    "consistent compatible suggesting suggestive representing in likely most favored"
)
# What follows from a doubtful finding and is itself certain: "suspicious for tumor with distal collapse".
CONSEQUENCES: frozenset[str] = word_set("distal consequent secondary")

# Removal concerns devices only: "removal of the chest tube with a pneumothorax remaining".
REMOVAL_BEFORE: tuple[str, ...] = ("removal of", "interval removal", "extubation", "extubated", "removal", "removed")
REMOVAL_AFTER: tuple[str, ...] = (
    "{has been|have been|was|were|been|is|are} {removed|withdrawn completely|taken out|explanted|pulled"
    "|discontinued}",
    "been removed", "{pulled|discontinued|explanted}", "no longer in situ", "no longer in place",
)  # fmt: skip
# With one of these in the sentence a removal has not happened yet.
PLANNED: frozenset[str] = word_set("""
    recommend recommended advise advised suggest suggested consider considered planned should must needs need needed
    required requires may can could await awaiting awaited pending before prior for ready due
""")
# Words for devices, too ambiguous for `MENTIONS`, that a removal makes devices.
REMOVABLE: frozenset[str] = word_set("line lines lead leads wire wires port ports")

# Uncertainty before the finding.
UNCERTAINTY_BEFORE: tuple[str, ...] = (
    "possible", "possibly", "possibility {of|}", "probable", "probably", "likely", "most likely", "suspicio*",
    "suspect*",
    "suspected", "concerning {for|}", "concern {for|of|}", "questionable", "question of", "question*",
    "worrisome {for|}",
    "presumed", "presumably", "presumptive", "differential {diagnosis|} {includes|of|}", "equivocal",
    "can not {exclude|rule out}", "difficult to {exclude|rule out}", "not {exclude|rule out}", "exclude", "rule out",
    "ruling out", "query", "raises {the|} {possibility|question|concern|suspicion} {of|}", "raises the", "favor*",
    "perhaps", "less likely", "maybe", "risk of", "factors for", "doubtful", "indeterminate for",
    "in view of {query|}",
    "{no|nothing|insufficient|not enough|lack of} {evidence|sign|signs|} {against|to refute|to exclude|to rule out"
    "|to dispute|to contradict}", "{insufficient|inconclusive|not enough} evidence {for|of|}",
    "{inconclusive|not conclusive} {for|of|}",
    "doubt", "look for", "looking for", "unable to exclude", "unable to rule out", "impossible to exclude",
    "not excluding",
    "consider", "potential", "potentially", "whether", "{insensitive|not sensitive} {for|to|in|}",
    "{low|limited|poor|reduced} sensitivity {for|to|}",
    "{uncertain|unclear|unsure|not clear|not certain|not sure|not known|unknown} {if|whether}"
    " {there is|there are|}",
)  # fmt: skip
# The same, but without meaning after a denial or where no finding follows: "CT may help", "correlation is suggested".
WEAK_UNCERTAINTY_BEFORE: tuple[str, ...] = (
    "may", "might", "could", "can be seen", "suggest*", "appears to represent", "appear to represent",
    "{correlate|correlation} {clinically|} for",
    "{evaluate|evaluation|evaluating|assess|assessment|assessing} {for|of}",
    "further {evaluate|evaluation|assess|assessment} of", "can represent", "in the differential of",
)  # fmt: skip

# Uncertainty after the finding; that of UNCERTAINTY_BOTH applies in both directions.
UNCERTAINTY_AFTER: tuple[str, ...] = (
    *(
        f"{denied} {done}"
        for denied in ("can not be", "not", "not be", "could not be", "hard to", "difficult to", "impossible to")
        for done in ("excluded", "ruled out", "excluded on this", "entirely exclude")
    ),
    "difficult to {exclude|rule out}",
    "{is|are|remains|remain|also|would be} {possible|possibilities|questionable|equivocal}",
    "{is|are|was|were} {queried|suspected|questioned|likely|probable|doubtful|uncertain|indeterminate}", "queried",
    "{should|must|needs to|need to|would|could|may|might|to} be {considered|excluded|ruled out|suspected}",
    "be {considered|suspected|questioned}", "in the differential {diagnosis|}",
    "{is|are|remains|remain} {a|} possibilit*",
    "{is|remains|as} {a|} {consideration|concern|question}",
    "{is|are|seems|seem|thought|felt|be} {less|more|most|very|quite|equally} {likely|probable}", "{is|are} favored",
    "not {likely|probable}",
    "{difficult|hard|impossible} to {assess|evaluate|judge|determine|confirm}",
    "{poorly|incompletely|inadequately|suboptimally|not well|not fully|not adequately} {assessed|evaluated}",
    "can not be {confirmed|assessed|evaluated}",
    "not {be|} confirmed", "may be present", "might be present", "could be present", "may be {seen|there}",
    "{may|might|could} not be {visible|seen|apparent|evident|detected|detectable|visualized}",
    "{may|might|could|can} be {missed|overlooked|occult|obscured}",
    "{may|might|could} be {required|needed|necessary|indicated|inserted|placed}",
    "not {assessable|assessed|evaluable|evaluated|interpretable}", "needs exclusion", "need exclusion",
    "to rule out", "can be considered",
)  # fmt: skip
UNCERTAINTY_BOTH: tuple[str, ...] = (
    "versus", "vs", "{is|are|seems|} {less|more|as|equally} {likely|probable} {than|as}", "{is|are|} favored over",
    "if any", "if present", "if at all",
)  # fmt: skip

# A finding persists: words of negation that do not negate it.
PERSISTENCE: tuple[str, ...] = (
    "no {other|additional}*", "not only", "no longer seen as",
    "{no|not|without|nil|minimal|little|absence of|lack of} {chang*|increase*|decrease*|improv*|worsen*|progress*"
    "|regress*|interval|reduction*"
    "|alteration*|difference*|clearance*|clearing|deterioration*|enlargement of|growth*|new change*|response"
    "|shift in}",
    "{not|never|nearly|almost|partially|partly|incompletely|mostly|largely|substantially|near completely|not yet}"
    " {resolved|cleared|resolve|clear up|disappeared|gone|vanished|dissipated}",
    "{no|lack of|absence of|without|not|without complete|without full|no complete|no full|partial|incomplete"
    "|continued|continuing|further|some|near complete|nearly complete|almost complete|delayed|slow|ongoing|gradual}"
    " {interval|} {resolution|clearing|disappearance} {of|}",
    "{has|have|is|are} all but {resolved|cleared|gone|disappeared}",
    "{has|have|is|are|was|were|had} not {resolved|cleared|improved|changed|disappeared|resolving}",
    "{has|have} {nearly|almost|partially|partly|mostly|largely|incompletely} {completely|} {resolved|cleared"
    "|disappeared}",
    "{has|have|did|does|do} not {resolved|resolve|clear|improve|change|changed}", "yet to {resolve|clear}",
    "fail* to {resolve|clear|improve}", "failure to {resolve|clear|improve}", "failure of {resolution|clearing}",
    "{is|are|was} not resolved", "not as {well|} {seen|large|prominent|dense|extensive|marked}", "non resolving",
    "{has been|have been|was|were|been|} pulled back", "were it not for {the|}", "{if|} it were not for {the|}",
    "would be expected to {resolve|clear|improve|persist}",
    "{must|should|may|can|could|might|to|will|shall} be {removed|withdrawn|pulled|taken out|explanted|discontinued}",
    "{has|have} not been {removed|withdrawn}", "not been removed", "not removed", "nonresolving",
    "{ensure|confirm|document|demonstrate|verify|establish|until|await|awaiting} {complete|full|}"
    " {resolution|clearing|clearance|disappearance|regression} {of|}",
    "no {evidence|sign|signs|suggestion|indication} of {change*|increas*|decreas*|progress*|growth|worsening"
    "|reduction|resolution|resolving|improvement|improving|clearing|regression}",
    "non {displaced|specific|obstructing}*",
    "nondisplaced", "undisplaced", "not {displaced|significantly displaced}", "without displacement",
    "no displacement",
    "{no|not|without} {appreciably|significantly|} {bigger|smaller|larger|greater}",
    "{no|no longer|not|without|beyond|beyond a|little|never|not in|never in} {reasonable|}"
    " doubt {about|regarding|as to|}", "undoubted*", "unmistakabl*", "undeniabl*", "without question",
    "not in question", "not negligible", "beyond {question|dispute|doubt}", "no {question|mistaking|denying}",
    "{no one|nobody} {would|could|can} {dispute|doubt|deny|question}",
    "can not be {denied|disputed|doubted|ignored|mistaken|missed}", "unequivocal*",
    "not {insignificant|inconsiderable|uncommon}", "no less", "can not be overlooked", "no resolution",
    "not {well|} {defined|marginated|loculated|tension|calcified}", "without {tension|mediastinal shift}",
    "no tension",
    # A finding "not seen on the prior" is new.
    "not {seen|present|identified|visualized|noted|evident|there} {on|in|at} {the|} {prior|previous|earlier|last}*",
)  # fmt: skip

# What makes a doubtful finding certain: "the suspected fracture is confirmed".
CONFIRMED: tuple[str, ...] = ("{is|are|was|were|now|been} {confirmed|proven|proved|verified}",)

# What happened to a finding: "neither nodule has grown" denies the change, not the nodules. Otherwise other disease.
CHANGED: tuple[str, ...] = (
    "changed", "altered", "grown", "progressed", "regressed", "worsened", "improved", "decreased", "moved", "larger",
    "smaller", "bigger", "different", "awaited", "anticipated", "{is|are} {new|acute|recent}",
    "{shows|show|demonstrates|demonstrate} {change|growth|progression|improvement}",
)  # fmt: skip

# "Thickening" after the pleura or a costophrenic angle, without one of these directly before it, is pleural.
PLEURAL: tuple[str, ...] = ("thickening*", "plaque*")
NOT_PLEURAL: frozenset[str] = word_set("""
    wall bronchial septal interlobular interstitial fissural fissure cortical skin paratracheal stripe fold mucosal
    vessel aortic
""")

# With a costophrenic angle: an uncertain effusion, unless the report states or denies one.
BLUNTED: tuple[str, ...] = ("blunt*",)

# Words after "nil" or "no" without an object: "nil acute", "no acute findings".
ACUTE: frozenset[str] = word_set("acute active significant focal specific abnormal suspicious")

# Ends of the scope of a negation or doubt.
SCOPE_ENDS: tuple[str, ...] = (
    "but", "however", "although", "though", "except", "aside from", "apart from", "other than", "which", "whereas",
    "there {is|are|has|have}", "and there", "and the", "otherwise", "in addition", "additionally", "also", "while",
    "with the exception", "again", "yet", "instead", "because of",
)  # fmt: skip
# The same, unless "or" follows: "no mass is seen or suspected".
PREDICATES: tuple[str, ...] = (
    "seen", "noted", "identified", "this {is|represents|appears}", "it is", "these {are|represent}",
    "{is|are} {present|evident|visualized|detected|demonstrated|found|observed}",
)  # fmt: skip

# First words of a new noun phrase, which ends the scope after "and", "with" or a comma: "no pneumothorax and a small
# effusion".
QUANTIFIERS: frozenset[str] = word_set("""
    a an the small mild moderate minimal tiny trace slight large severe extensive subtle stable unchanged persistent
    persisting residual left right bilateral bibasal bibasilar basal increased increasing new old chronic worsening
    improving interval status heart lungs there associated adjacent underlying resultant accompanying some patchy
    unilateral loculated linear early ongoing known healed healing several multiple
""")


def entries() -> Iterator[tuple[str, str, str]]:
    """Yield (phrase, role, observation) of all tables; the observation is empty outside `MENTIONS` and `ORGANS`."""
    for finding, names in MENTIONS.items():
        for name in names:
            yield name, "mention", finding
    for finding, names in ORGANS.items():
        for name in names:
            yield name, "organ", finding
    for finding, names in POSSIBLE.items():
        for name in names:
            yield name, "possible", finding
    tables = {
        "other": HARMLESS + OTHER_DISEASE, "neutral": NEUTRAL + PERSISTENCE,
        "large": LARGE, "grown": GROWN, "normal": NORMAL, "healthy": HEALTHY,
        "negation_before": NEGATION_BEFORE, "negation_after": NEGATION_AFTER,
        "removal_before": REMOVAL_BEFORE, "removal_after": REMOVAL_AFTER,
        "doubt_before": UNCERTAINTY_BEFORE, "weak_doubt_before": WEAK_UNCERTAINTY_BEFORE,
        "doubt_after": UNCERTAINTY_AFTER, "doubt_both": UNCERTAINTY_BOTH,
        "artefact": ARTEFACTS, "fluid": FLUID, "compared": THAN, "confirmed": CONFIRMED, "changed": CHANGED,
        "pleural": PLEURAL, "blunted": BLUNTED,
        "scope_end": SCOPE_ENDS, "predicate": PREDICATES,
    }  # fmt: skip
    for role, names in tables.items():
        for name in names:
            yield name, role, ""
