"""Convert user input to report sections: a text with or without section headers, or a list of findings."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from medunifier.data.reports.labeler import label_report
from medunifier.data.reports.observations import NO_FINDING, OBSERVATIONS
from medunifier.data.reports.plain_sections import split_plain_sections
from medunifier.data.reports.sections import split_sections
from medunifier.shared.errors import UserError, nearest

LABEL_TEMPLATE = "There is {finding}."
DENIAL_TEMPLATE = "There is no {finding}."


def report_of(text: str) -> dict[str, str]:
    """Return findings and impression of a text; a text without section headers is taken as findings.

    Headers are those of MIMIC-CXR or, if there are none, of :mod:`data.reports.plain_sections`.
    """
    sections = split_sections(text)
    if not sections.keys() & {"findings", "impression"}:
        sections = split_plain_sections(text, strict=False)
    if sections.keys() & {"findings", "impression"}:
        return {name: sections.get(name, "") for name in ("findings", "impression")}
    return {"findings": text.strip(), "impression": ""}


def text_of_labels(labels: Iterable[str] | Mapping[str, int], template: str = LABEL_TEMPLATE) -> str:
    """Return sentences for findings by name, in order: "There is edema. There is no pneumothorax."

    Args:
        labels: names, with "no NAME" for a denial; or ``{name: 1 | 0}``, where 0 denies and other values are ignored.
        template: sentence for a stated finding, with ``{finding}`` for its lower-case name.
    """
    if isinstance(labels, Mapping):
        stated = {name: value for name, value in labels.items() if value in (0, 1)}
        labels = [name if value else f"no {name}" for name, value in stated.items()]
    sentences = []
    for label in labels:
        name, denied = split_denial(label)
        if name:
            sentences.append((DENIAL_TEMPLATE if denied else template).format(finding=name))
    return " ".join(sentences)


def split_denial(label: str) -> tuple[str, bool]:
    """Return the lower-case name of a label, and whether the label denies it ("no edema")."""
    name = label.strip().lower()
    denied = name.startswith("no ") and name != NO_FINDING.lower()
    return name.removeprefix("no ") if denied else name, denied


def observations_of(name: str) -> tuple[str, ...]:
    """Return the observations that a name of a finding means: ("Support Devices",) of "cardiac pacemaker"."""
    by_name = {observation.lower(): observation for observation in OBSERVATIONS}
    if name.strip().lower() in by_name:
        return (by_name[name.strip().lower()],)
    return tuple(found for found in label_report(LABEL_TEMPLATE.format(finding=name.strip())) if found != NO_FINDING)


def check_labels(names: Iterable[str], sets: Iterable[str] = (), advice: str = "") -> None:
    """Refuse names that no report's labels can mean, and names with a misspelt word ("pleurel effusion").

    Args:
        names: names of findings, without denials.
        sets: names of label sets, which are also suggested.
        advice: how to state another finding, for the message.

    Raises:
        UserError: for the first such name, with the most similar known one.
    """
    singular = {word for observation in OBSERVATIONS for word in observation.lower().split()}
    endings = (("", "s"), ("s", ""), ("y", "ies"), ("is", "es"))
    words = singular | {w.removesuffix(end) + plural for w in singular for end, plural in endings if w.endswith(end)}
    known = [name.lower() for name in (*OBSERVATIONS, *sets)]
    for name in names:
        # The labeler itself reads over some errors, which a text tokenizer does not.
        unknown = [word for word in name.lower().split() if word not in words]
        misspelt = any(get_close_matches(word, words, n=1, cutoff=0.85) for word in unknown)
        if not observations_of(name) or misspelt:
            close = nearest(name, known) or f"; known: {', '.join(OBSERVATIONS)}."
            raise UserError(f"unknown finding {name!r}{close} {advice}".rstrip())
