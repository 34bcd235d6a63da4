"""Phrases that deny, doubt or remove a finding, leave it in place, or end the scope of such a phrase."""

from medunifier.data.reports.rules.vocabulary import word_set

# How a finding is seen; and the study on which it was not, so that it is new.
SEEN = (
    "{seen|present|identified|visualized|noted|evident|there|visible|apparent|demonstrated|appreciated|shown"
    "|detected|recognized|mentioned}"
)
EARLIER = (
    "{prior|previous|earlier|last|older|old|initial|baseline|comparison|admission|preoperative|original|yesterday}"
)

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
    "unlikely", "{has|have} disappeared",
    "{has|have} been {drained|evacuated}", "disappeared", "{completely|now|since} cleared", "not a feature",
    "not {reproduced|reproducible|substantiated|borne out}",
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

# Words after "to", and after "that would", that name a purpose.
PURPOSES: tuple[str, ...] = (
    "suggest", "indicat", "explain", "account", "support", "represent", "confirm", "imply", "justif", "warrant",
    "reflect", "correlate", "correspond",
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

# After "is likely" no explanation begins with one of these: "consolidation is likely in the left base".
NOT_EXPLAINED: frozenset[str] = word_set(", : ( ) in on at with given but and or if when although though because")

# Words after "not" that name a side: "the right lung is clear but not the left".
SIDES: frozenset[str] = word_set("the on in of at left right other one lung lungs side base apex")

# What follows from a doubtful finding and is itself certain: "suspicious for tumor with distal collapse".
CONSEQUENCES: frozenset[str] = word_set("distal consequent secondary")

# Removal concerns devices only: "removal of the chest tube with a pneumothorax remaining".
REMOVAL_BEFORE: tuple[str, ...] = ("removal of", "interval removal", "extubation", "extubated", "removal", "removed")

REMOVAL_AFTER: tuple[str, ...] = (
    "{has been|have been|was|were|been|is|are} {removed|withdrawn completely|taken out|explanted|pulled"
    "|discontinued}",
    "been removed", "{pulled|discontinued|explanted}", "no longer in situ", "no longer in place",
)  # fmt: skip

# With one of these in the sentence (in the spelling of `sentences.fold`) a removal has not happened yet.
PLANNED: frozenset[str] = word_set("""
    recommend recommended advise advized suggest suggested consider considered planned should must needs need needed
    required requires may can could await awaiting awaited pending before for ready due
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
    "{that|which} {would|could|might|may} {suggest|indicate|represent|account for|explain|reflect|support|imply}",
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
    "{is|are|can be|may be} {often|frequently|commonly|usually|sometimes} {occult|missed|invisible|overlooked}",
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
    "{to|for|until} {complete|full|} {resolution|clearing} {of|}",
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
    f"not {SEEN} {{on|in|at|from|}} {{the|any|}} {EARLIER}*", f"absent {{on|in|at|from}} {{the|any|}} {EARLIER}*",
    f"not {SEEN} {{on|in|at}} {{the|}} {{ct|film|study|radiograph|report|time}} {{of|from}} {{the|}} {EARLIER}*",
    f"not {{well|}} {SEEN} {{on|in}} {{the|}} {{lateral|frontal|pa|ap|oblique|other}}"
    " {view|projection|film|image|radiograph|}",
    "{previously|formerly} {normal|clear|absent|unaffected}", "excluding {the|this|these|known}",
    f"not {SEEN} {{previously|before|then|at that|on that}}", f"not {{previously|hitherto|formerly}} {SEEN}",
    "{partial|incomplete|some|further} {re expansion|reexpansion|re aeration|reaeration} of",
    "{re expansion|reexpansion|re aeration|reaeration} of {the|a|} {previously|} {collapsed|atelectatic}",
)  # fmt: skip

# What makes a doubtful finding certain: "the suspected fracture is confirmed".
CONFIRMED: tuple[str, ...] = ("{is|are|was|were|now|been} {confirmed|proven|proved|verified}",)

# What happened to a finding: "neither nodule has grown" denies the change, not the nodules. Otherwise other disease.
CHANGED: tuple[str, ...] = (
    "changed", "altered", "grown", "progressed", "regressed", "worsened", "improved", "decreased", "moved", "larger",
    "smaller", "bigger", "different", "awaited", "anticipated",
    "{should|must|to} be {documented|confirmed|ensured|demonstrated|verified}",
    "{is|are} {new|acute|recent|clearing|resolving|improving|shrinking}",
    "{shows|show|demonstrates|demonstrate} {change|growth|progression|improvement}",
)  # fmt: skip

# Words after "nil" or "no" without an object: "nil acute", "no acute findings".
ACUTE: frozenset[str] = word_set("acute active significant focal specific abnormal suspicious")

# Ends of the scope of a negation or doubt.
SCOPE_ENDS: tuple[str, ...] = (
    "but", "however", "although", "though", "except", "aside from", "apart from", "other than", "which", "whereas",
    "there {is|are|has|have}", "and there", "and the", "otherwise", "in addition", "additionally", "also", "while",
    "{placement|insertion|introduction} of", "{replacement|replaced} {by|with}", "exchange* for",
    "with the exception", "again", "yet", "instead", "because of", "owing to", "on account of", "in the presence of",
    "besides", "beyond", "save for",
    "superimposed {on|upon}", "{on|against} {a|the|} background of", "on top of",
    "overlying {chronic|underlying|known}",
    "on {chronic|underlying|known|preexisting|pre existing}",
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
    now unilateral loculated linear early ongoing known healed healing several multiple
""")
