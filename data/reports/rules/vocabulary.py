"""Spelling variants, abbreviations, and the words that state no abnormality.

`label_report` gives No Finding only if it knows every word of a report: a word that is in no phrase, not denied and
not in `NEUTRAL` may name a disease. A word is therefore added here only if no abnormality can be stated with it and
other neutral words ("raised", "shift", "low" and "changes" are missing on purpose).
"""


def word_set(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


# Frequent misspellings and variants -> the word of the tables.
VARIANTS: dict[str, str] = {
    "atelectesis": "atelectasis", "atelactasis": "atelectasis", "atelectases": "atelectasis",
    "cardiomegally": "cardiomegaly", "cardiomagaly": "cardiomegaly", "cardiomegalia": "cardiomegaly",
    "effussion": "effusion", "effussions": "effusions", "efusion": "effusion", "infilterate": "infiltrate",
    "infilterates": "infiltrates", "pnemothorax": "pneumothorax", "pneumothroax": "pneumothorax",
    "pneumothorax's": "pneumothorax", "pnuemothorax": "pneumothorax", "pneumotorax": "pneumothorax",
    "consolidaton": "consolidation", "consoldation": "consolidation", "pnemonia": "pneumonia",
    "pnuemonia": "pneumonia",
    "ptx": "pneumothorax", "pneumothoraxes": "pneumothoraces", "neumonia": "pneumonia", "mediastinium": "mediastinum",
    "opacites": "opacities", "visualisation": "visualization", "fractue": "fracture",
    # Short forms of notes.
    "consol": "consolidation", "eff": "effusion", "effs": "effusions", "pl": "pleural", "pna": "pneumonia",
    "atel": "atelectasis", "fx": "fracture", "fxs": "fractures", "infil": "infiltrate", "opac": "opacity",
    "atx": "atelectasis", "hart": "heart", "plural": "pleural", "artefact": "artifact", "artefacts": "artifacts",
    "cardiomeg": "cardiomegaly", "pulm": "pulmonary", "mediast": "mediastinum", "pt": "patient", "hx": "history",
    "nl": "normal", "neg": "negative", "poss": "possible", "prob": "probable", "susp": "suspected",
    "cor": "heart", "hrt": "heart", "sm": "small", "lge": "large", "odema": "edema",
    "edma": "edema", "oedma": "edema", "oedemia": "edema",
}  # fmt: skip

# Terms whose misspellings by one letter are corrected, and words that look like one but are none.
OFTEN_MISSPELT: frozenset[str] = word_set("""
    pneumothorax pneumothoraces effusion effusions consolidation atelectasis cardiomegaly pneumonia opacity opacities
    infiltrate infiltrates fracture fractures mediastinum mediastinal cardiomediastinal pleural pulmonary costophrenic
    silhouette unremarkable emphysema interstitial hemidiaphragm diaphragm thickening abnormality evidence enlarged
    congestion

    pleurae pneumonic evidenced interstitium opacify infiltrated fractured
""")

ABBREVIATIONS: dict[str, str] = {
    "w/o": "without", "w/": "with ", "r/o": "rule out", "c/w": "consistent with", "s/p": "status post",
    "h/o": "history of", "e/o": "evidence of", "b/l": "bilateral", "s/o": "suggestive of", "f/s/o": "suggestive of",
    "a/w": "associated with", "d/t": "due to", "vs.": "vs", "v/s": "vs", "approx.": "approximately",
    "dr.": "dr", "rt.": "right", "lt.": "left", "bilat.": "bilateral", "i.e.": "that is", "e.g.": "for example",
    "cf.": "compare", "+/-": "possible", "+ve": "positive", "-ve": "negative", "d/d": "differential",
    "f/u": "follow up", "ie": "that is", "eg": "for example", "o/w": "otherwise",
    "ddx": "differential", "and/or": "or", "&": "and", "n.a.d.": "nad", "n.a.d": "nad", "i/v/o": "in view of",
    "min.": "minimal", "mod.": "moderate", "fig.": "figure", "can not": "cannot", "a.p.": "ap", "p.a.": "pa",
}  # fmt: skip

# Adverbs and adjectives that may stand within a phrase: "not [clearly] seen", "no [significant interval] change".
INTERPOSED: frozenset[str] = word_set("""
    clearly definitely definitively definite entirely completely confidently totally fully absolutely reliably
    significantly significant interval appreciable appreciably substantial substantially relevant obvious obviously
    currently now yet also really readily well convincing convincingly distinctly further great greatly much marked
    markedly material gross grossly either still been any radiographic radiographically radiological radiologically
    demonstrable discernible visible overt
""")  # fmt: skip

NEUTRAL: frozenset[str] = word_set("""
    a an the this that these those there here it its their his her he she they we i you which who what as such so
    and or nor if then than also both either each all any every some other others another same own only just even
    is are was were be been being am has have had having do does did done can will would should must shall
    of in on at to for from by with within into onto over under above below between through across against along
    about around near behind beneath during since after before until while when where whether because due per via up
    down out off again further now currently today yet still already very too well rather quite fairly mostly
    otherwise however although though but except respectively overall generally essentially predominantly slightly
    mildly moderately minimally relatively approximately grossly largely particularly specifically especially
    definitely clearly bilaterally unilaterally medially laterally inferiorly superiorly anteriorly posteriorly
    centrally previously recently

    left right bilateral unilateral upper lower middle mid inner outer lateral medial anterior posterior superior
    inferior central centrally peripheral proximal distal frontal apical basal basilar bibasilar bibasal perihilar
    hilar midline side sided hemithorax hemithoraces level levels zone zones region field portion part
    aspect base bases apex apices quadrant position positioned location located midclavicular perihilum

    lung pulmonary lobe lobar lingula lingular parenchyma parenchymal airspace air airspaces airway bronchus bronchi
    bronchial bronchovascular trachea tracheal carina main mainstem stem hilum hila hilus pleura pleural space spaces
    fissure fissures surface surfaces costophrenic costo phrenic cardiophrenic cp angle sulcus sulci recess
    diaphragm diaphragmatic
    hemidiaphragm hemi dome domes leaf leaves heart cardiac cardio cardiovascular cardiopulmonary cardiothoracic
    mediastinum mediastinal cardiomediastinum cardiomediastinal pericardial cardiopericardial paramediastinal aorta
    aortic arch knob knuckle root vessel vessels vascular vascularity vasculature vein venous artery arterial arteries
    atrium atrial ventricle ventricular svc superior vena cava azygos jugular subclavian brachiocephalic innominate
    ij chest thorax thoracic intrathoracic wall cage rib bone bony osseous osseus skeletal skeleton musculoskeletal
    spine spinal vertebra vertebrae vertebral body bodies sternum sternal clavicle clavicular scapula scapular
    scapulae shoulder shoulders humerus humeral soft tissue tissues breast breasts neck abdomen abdominal
    subdiaphragmatic infradiaphragmatic stomach gastric bowel gas bubble esophagus esophageal esophagogastric ge
    gastroesophageal junction duodenum pylorus liver spleen thymus thymic structure structures organ outline outlines
    contour contours border borders margin margins shadow shadows silhouette silhouettes configuration marking
    markings pattern interstitium interstitial alveolar trabecular cortical joint joints disc skin visceral nipple
    caliber transverse diameter ratio ctr size sizes sized shape volume volumes td cardiothoracic

    normal clear unremarkable intact preserved maintained patent expanded aerated inflated symmetric symmetrical
    symmetrically sharp smooth free satisfactory adequate good optimal appropriate appropriately acceptable expected
    typical physiological physiologic natural usual regular uniform equal translucent undisplaced
    nad wnl limits limit normally clearly ventilated aeration expansion ventilation inflation translucency
    given allowing motion biopsy thoracentesis thoracocentesis bronchoscopy procedure child infant neonate boy girl
    descending ascending considered colon flexure splenic
    equally evenly height heights placed situated radiopaque imp
    patency alignment aligned centrally centered central healthy

    stable unchanged similar constant same change appearance appearances appear appears appearing appeared remain
    remains remained continue continues continued seen noted identified visualized visible visualised evident
    demonstrated demonstrate demonstrates shown show shows showing reveal reveals revealed present detected observed
    found apparent appreciated imaged included obtained acquired performed taken made compared comparison compare
    reviewed review reported report reports described discussed documented assessed evaluated evaluation assessment
    finding findings impression conclusion opinion comment interpretation result results summary

    study studies examination exam exams image images imaging imaged film films radiograph radiographs radiographic
    radiographically radiography radiological radiologically xray x ray rays cxr ct scan computed tomography mri view
    views projection projections pa ap portable supine erect upright semi semierect sitting mobile bedside technique
    technical quality exposure penetration penetrated inspiration inspiratory expiration expiratory effort degree
    rotation rotated positioning patient patients age sex male female man woman year old years month months day days
    date time prior previous earlier last current new recent baseline interval history clinical clinically
    information correlation correlate correlated recommend recommended advised suggested follow followup further
    repeat symptom symptoms afebrile asymptomatic felt thought believed deemed persist persists needed required
    indicated warranted available reference none purposes
    january february march april june july august september october november december monday tuesday wednesday
    thursday friday saturday sunday
    please thank thanks refer dr limited limitation limits suboptimal habitus overlying one two three four five six
    seven eight nine ten first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth
    single multiple few several cm mm ml xxxx hours hour am pm

    acute active focal discrete gross significant large small mild moderate tiny minor major minimal trace obvious
    definite overt subtle specific particular suspicious convincing visible radiopaque radiographic frank confluent
    intraperitoneal subdiaphragm sensitive detecting specifically projecting project projects projected superimposed
    overlies within contained grossly configured bilaterally intrathoracic extrathoracic extra

    represent represents representing reflect reflects reflecting consistent compatible keeping related due secondary
    suggest suggests favored difference differences technical factors factor

    tip tips terminates terminating terminate ends end ending course courses coursing placed place placement situ
    inserted insertion approach access dual single chamber lumen lead leads wire wires device devices line lines
    distally proximally junction cavoatrial pre post status postoperative unit generator hub port ports
    support supporting life monitoring ecg electrodes external internal implanted

    cabg median op preop preoperative operative surgery anesthesia anesthetic fit fitness standpoint viewpoint
    perspective employment visa medical screening routine check checkup annual immigration
""")  # fmt: skip
