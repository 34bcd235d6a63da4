"""From what people give to the report that the model reads: a text with or without headers, or a list of findings."""

from collections.abc import Iterable, Mapping

from medunifier.data.reports.sections import split_sections

LABEL_TEMPLATE = "There is {finding}."
DENIAL_TEMPLATE = "There is no {finding}."


def report_of(text: str) -> dict[str, str]:
    """A text with section headers -> its findings and impression; any other text is taken as findings."""
    sections = split_sections(text)
    if sections.keys() & {"findings", "impression"}:
        return {name: sections.get(name, "") for name in ("findings", "impression")}
    return {"findings": text.strip(), "impression": ""}


def text_of_labels(labels: Iterable[str] | Mapping[str, int], template: str = LABEL_TEMPLATE) -> str:
    """Findings by name -> sentences, in the order given: "There is edema. There is no pneumothorax."

    Args:
        labels: names, "no NAME" for a denial; or ``{name: 1 | 0}``, where 0 denies and other values say nothing.
        template: sentence of a stated finding, with ``{finding}`` for its name in small letters.
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
