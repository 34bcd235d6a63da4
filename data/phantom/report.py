"""Generate the report of a phantom study in MIMIC-CXR's format, with the labels that it states.

Each sentence is defined together with its labels, so the labels describe the report and not the image: a finding
that the report omits has no label.
"""

from dataclasses import dataclass
from textwrap import wrap

from numpy.random import Generator

from medunifier.data.phantom.change import Change, changes
from medunifier.data.phantom.comparison import add_comparison, describe_resolved
from medunifier.data.phantom.state import Lesion, State, has_tortuous_aorta
from medunifier.data.reports.observations import (
    NEGATIVE,
    NO_FINDING,
    UNCERTAIN,
    in_order,
    is_no_finding,
    merge_mentions,
)

_WIDTH = 79


@dataclass(frozen=True)
class Report:
    """Report text in MIMIC-CXR's format, and the labels {finding: 1 | 0 | -1} that it states."""

    text: str
    labels: dict[str, int]


@dataclass(frozen=True)
class _Statement:
    """Wording of an observation (or of several negated together) in FINDINGS and IMPRESSION, with its labels."""

    finding: str
    impression: str
    labels: tuple[tuple[str, int], ...]


def write_report(
    state: State, rng: Generator, *, prior: State | None = None, history: bool = False, lateral: bool = False
) -> Report:
    """Write the report of a state.

    Args:
        state: ground truth of the study.
        rng: samples wordings and optional negative statements.
        prior: the patient's state in the prior study; the report then describes the changes.
        history: COMPARISON mentions a prior study if and only if there is one; otherwise it is sampled.
        lateral: whether the study has a lateral view besides the PA view.
    """
    courses = changes(prior, state) if prior else None
    positive = _positive(state, courses, rng)
    resolved = _resolved(courses, rng) if courses else []
    findings = _findings(state, positive, resolved, rng)
    impression = _impression(positive, resolved, rng, compares=courses is not None)
    mentions: dict[str, set[int]] = {}
    for statement in (*findings, impression):
        for name, value in statement.labels:
            mentions.setdefault(name, set()).add(value)
    labels = {name: merge_mentions(values) for name, values in mentions.items()}
    if is_no_finding(labels):
        labels[NO_FINDING] = 1
    page = _layout(
        "CHEST (PA AND LAT)" if lateral else _EXAMINATIONS[state.position],
        _COMPARISONS[prior is not None] if history else None,
        [statement.finding for statement in findings],
        impression.impression,
        rng,
    )
    return Report(page, in_order(labels))


def _pick(rng: Generator, *choices: str) -> str:
    return choices[int(rng.integers(len(choices)))]


def _location(lesion: Lesion, rng: Generator) -> str:
    zone = {"upper": "upper", "mid": "mid", "lower": "lower"}[lesion.zone or "mid"]
    return _pick(rng, f"{lesion.side} {zone} lung", f"{lesion.side} {zone} zone")


def _positive(state: State, courses: dict[str, Change] | None, rng: Generator) -> list[_Statement]:
    """Return the positive statements in reporting order: heart, fluid, air, lungs, bones."""
    writers = {  # by field of `State`
        "heart": _heart, "edema": _edema, "effusions": _effusion, "pneumothorax": _pneumothorax,
        "consolidation": _consolidation, "opacity": _opacity, "nodule": _nodule, "atelectasis": _atelectasis,
        "fracture": _fracture,
    }  # fmt: skip
    statements = []
    for kind, write in writers.items():
        for statement in write(state, rng):
            if courses is not None:
                statement = _with_course(statement, courses[kind], _is_small(state, kind), rng)
            statements.append(statement)
    return statements


def _with_course(statement: _Statement, change: Change, small: bool, rng: Generator) -> _Statement:
    finding, impression, uncertain = add_comparison(statement.finding, statement.impression, change, small, rng)
    labels = tuple((name, UNCERTAIN) for name, _ in statement.labels) if uncertain else statement.labels
    return _Statement(finding, impression, labels)


def _is_small(state: State, kind: str) -> bool:
    lesion = state.effusions[0] if kind == "effusions" and state.effusions else getattr(state, kind)
    return isinstance(lesion, Lesion) and lesion.size == 0


def _resolved(courses: dict[str, Change], rng: Generator) -> list[_Statement]:
    """Return the statements on findings that have resolved since the prior study."""
    return [
        _Statement(finding, impression, ((name, NEGATIVE),))
        for kind, change in courses.items()
        if change.resolved_at
        for name, finding, impression in describe_resolved(kind, change, rng)
    ]


def _heart(state: State, rng: Generator) -> list[_Statement]:
    if not state.heart:
        return []
    grade, adverb = (("mild", "mildly"), ("moderate", "moderately"), ("severe", "severely"))[state.heart - 1]
    finding = _pick(
        rng,
        f"The heart is {adverb} enlarged.",
        f"The cardiac silhouette is {adverb} enlarged.",
        f"There is {grade} cardiomegaly.",
    )
    return [_Statement(finding, f"{grade} cardiomegaly", (("Cardiomegaly", 1),))]


def _edema(state: State, rng: Generator) -> list[_Statement]:
    if state.edema == 1:  # early edema is faint in the image, so it is reported as uncertain
        finding = _pick(
            rng,
            "Mild perihilar haze may represent early edema.",
            "Mild perihilar haze, possibly early edema.",
        )
        return [_Statement(finding, "possible early edema", (("Edema", -1),))]
    if state.edema == 2:
        finding = _pick(rng, "There is pulmonary edema.", "Dense perihilar haze is consistent with pulmonary edema.")
        return [_Statement(finding, "pulmonary edema", (("Edema", 1),))]
    return []


_SIZES = ("small", "moderate", "large")


def _effusion(state: State, rng: Generator) -> list[_Statement]:
    if not state.effusions:
        return []
    size = _SIZES[state.effusions[0].size]
    where = "bilateral" if len(state.effusions) == 2 else state.effusions[0].side
    noun = "pleural effusions" if len(state.effusions) == 2 else "pleural effusion"
    if where == "bilateral":
        finding = _pick(rng, f"There are {size} bilateral {noun}.", f"{size} bilateral {noun} are seen.")
    else:
        finding = _pick(rng, f"There is a {size} {where} {noun}.", f"A {size} {where} {noun} is seen.")
    return [_Statement(finding, f"{size} {where} {noun}", (("Pleural Effusion", 1),))]


def _pneumothorax(state: State, rng: Generator) -> list[_Statement]:
    lesion = state.pneumothorax
    if lesion is None:
        return []
    size = _SIZES[lesion.size]
    finding = _pick(
        rng, f"There is a {size} {lesion.side} pneumothorax.", f"A {size} {lesion.side} pneumothorax is seen."
    )
    return [_Statement(finding, f"{size} {lesion.side} pneumothorax", (("Pneumothorax", 1),))]


def _consolidation(state: State, rng: Generator) -> list[_Statement]:
    lesion = state.consolidation
    if lesion is None:
        return []
    size, where = _SIZES[lesion.size], _location(lesion, rng)
    finding = _pick(
        rng, f"There is a {size} consolidation in the {where}.", f"{size} {where} consolidation is present."
    )
    if lesion.size < 2:
        return [_Statement(finding, f"{lesion.side} {lesion.zone} consolidation", (("Consolidation", 1),))]
    doubt = _pick(rng, "concerning for pneumonia", "which may represent pneumonia")
    labels = (("Consolidation", 1), ("Pneumonia", -1))
    return [_Statement(finding, f"{lesion.side} {lesion.zone} consolidation {doubt}", labels)]


def _opacity(state: State, rng: Generator) -> list[_Statement]:
    lesion = state.opacity
    if lesion is None:
        return []
    extent, where = ("small", "moderate", "extensive")[lesion.size], _location(lesion, rng)
    finding = _pick(
        rng,
        f"There are {extent} patchy opacities in the {where}.",
        f"{extent} patchy opacities are seen in the {where}.",
    )
    return [_Statement(finding, f"patchy {lesion.side} {lesion.zone} opacities", (("Lung Opacity", 1),))]


def _nodule(state: State, rng: Generator) -> list[_Statement]:
    lesion = state.nodule
    if lesion is None:
        return []
    noun, where = ("small nodule", "nodule", "large mass")[lesion.size], _location(lesion, rng)
    finding = _pick(rng, f"There is a {noun} in the {where}.", f"A {noun} projects over the {where}.")
    return [_Statement(finding, f"{lesion.side} {lesion.zone} {noun}", (("Lung Lesion", 1),))]


def _atelectasis(state: State, rng: Generator) -> list[_Statement]:
    if not state.atelectasis:
        return []
    where = "bibasilar" if len(state.atelectasis) == 2 else f"{state.atelectasis[0]} basilar"
    finding = _pick(rng, f"There is linear {where} atelectasis.", f"Linear {where} atelectasis is seen.")
    return [_Statement(finding, f"{where} atelectasis", (("Atelectasis", 1),))]


def _fracture(state: State, rng: Generator) -> list[_Statement]:
    if state.fracture is None:
        return []
    side = state.fracture
    finding = _pick(
        rng, f"There is a displaced {side} clavicle fracture.", f"A displaced {side} clavicle fracture is seen."
    )
    return [_Statement(finding, f"{side} clavicle fracture", (("Fracture", 1),))]


_DEVICE_SENTENCES = {
    "central line": ("A right central venous catheter ends in the SVC.", "Right central line in the SVC."),
    "endotracheal tube": ("An endotracheal tube ends above the carina.", "Endotracheal tube in good position."),
    "pacemaker": ("A left pacemaker is in place.", "Left chest wall pacemaker is seen."),
}


def _findings(
    state: State, positive: list[_Statement], resolved: list[_Statement], rng: Generator
) -> list[_Statement]:
    """Return the statements of FINDINGS: devices, normal variants, positive, resolved and negated findings."""
    stated = {name for statement in (*positive, *resolved) for name, value in statement.labels}
    statements = [
        _Statement(_pick(rng, *_DEVICE_SENTENCES[device]), "", (("Support Devices", 1),)) for device in state.devices
    ]
    statements += [_Statement(sentence, "", ()) for sentence in _variants(state, rng)]
    if "Cardiomegaly" not in stated:
        words = ("Heart size is normal.", "The heart is normal in size.", "The heart is not enlarged.")
        statements.append(_Statement(_pick(rng, *words), "", (("Cardiomegaly", 0),)))
    statements += positive + resolved
    if not stated & _LUNG_LABELS:
        statements.append(_lungs_clear(rng))
    absent = [name for name in ("Pleural Effusion", "Pneumothorax") if name not in stated]
    if absent:
        statements.append(_negation(absent, rng))
    return statements


def _variants(state: State, rng: Generator) -> list[str]:
    """Return sentences on features without a label: low volumes, an elevated hemidiaphragm, a tortuous aorta."""
    sentences = []
    if state.low_volume:
        sentences.append(_pick(rng, "Lung volumes are low.", "Low lung volumes."))
    if state.anatomy.raised:
        sentences.append(f"The {state.anatomy.raised} hemidiaphragm is elevated.")
    if has_tortuous_aorta(state.anatomy):
        sentences.append(_pick(rng, "The aorta is tortuous.", "Tortuous aorta."))
    return sentences


_LUNG_LABELS = {"Edema", "Consolidation", "Lung Opacity", "Lung Lesion", "Atelectasis"}


def _lungs_clear(rng: Generator) -> _Statement:
    if rng.random() < 0.6:
        return _Statement(_pick(rng, "The lungs are clear.", "Lungs are clear."), "", ())
    return _Statement(
        _pick(rng, "No focal consolidation.", "There is no consolidation."), "", (("Consolidation", 0),)
    )


def _negation(absent: list[str], rng: Generator) -> _Statement:
    names = [name.lower() for name in absent]
    if len(names) == 2 and rng.random() < 0.5:
        names.reverse()
    words = _pick(rng, "No {}.", "There is no {}.", "No evidence of {}.")
    return _Statement(words.format(" or ".join(names)), "", tuple((name, 0) for name in absent))


def _impression(
    positive: list[_Statement], resolved: list[_Statement], rng: Generator, *, compares: bool
) -> _Statement:
    """Return the impression: a summary of the findings, or that there are none."""
    if not positive:
        words = (
            "No acute cardiopulmonary process.",
            "No acute cardiopulmonary abnormality.",
            "No acute intrathoracic process.",
        )
        brief = [_pick(rng, *words)] + [_capital(statement.impression) + "." for statement in resolved]
        if compares and not resolved and rng.random() < 0.5:
            brief.append("No significant interval change.")
        return _Statement("", " ".join(brief), tuple(label for statement in resolved for label in statement.labels))
    statements = positive + resolved
    labels = tuple(label for statement in statements for label in statement.labels)
    brief = [_capital(statement.impression) + "." for statement in statements]
    if len(brief) > 1 and rng.random() < 0.5:
        brief = [f"{number}. {sentence}" for number, sentence in enumerate(brief, start=1)]
    return _Statement("", " ".join(brief), labels)


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


_INDICATIONS = ("cough and fever", "shortness of breath", "chest pain", "preoperative evaluation", "dyspnea")


_EXAMINATIONS = {"PA": "CHEST (PA)", "AP": "CHEST (PORTABLE AP)"}
_COMPARISONS = ("None.", "Chest radiograph ___.")


def _layout(exam: str, comparison: str | None, findings: list[str], impression: str, rng: Generator) -> str:
    """Format as in MIMIC-CXR: a centered title, one leading space, a space on blank lines, at most 79 columns."""
    indication = f"___ year old {_pick(rng, 'man', 'woman')} with {_pick(rng, *_INDICATIONS)}."
    if comparison is None:
        comparison = _pick(rng, *_COMPARISONS)
    body = " ".join(_capital(sentence) for sentence in findings)
    sections = (
        ("EXAMINATION", exam),
        ("INDICATION", indication),
        ("COMPARISON", comparison),
        ("FINDINGS", body),
        ("IMPRESSION", impression),
    )
    lines = ["FINAL REPORT".rjust(45)]
    for header, text in sections:
        whole = f"{header}:  {text}"
        lines += [" " + line for line in wrap(whole, _WIDTH - 1, break_on_hyphens=False, fix_sentence_endings=False)]
        lines.append(" ")
    return "\n".join(lines[:-1]) + "\n"
