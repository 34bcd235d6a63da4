"""Convert user input to report sections: a text with or without section headers, or a list of findings."""

from collections.abc import Iterable, Mapping

from medunifier.data.reports.plain_sections import split_plain_sections
from medunifier.data.reports.sections import split_sections

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
        name = label.strip().lower()
        denied = name.startswith("no ") and name != "no finding"
        if name:
            form = DENIAL_TEMPLATE if denied else template
            sentences.append(form.format(finding=name.removeprefix("no ") if denied else name))
    return " ".join(sentences)
