"""Open-I, Indiana University (NLMCXR): one XML file per study, and PNG files.

Layout: ``NLMCXR_reports.tgz`` -> ``ecgen-radiology/{1..3999}.xml`` and ``NLMCXR_png.tgz`` -> ``*.png``, anywhere
under the root. In the XML: ``uId@id`` (CXR1), four ``AbstractText@Label`` (COMPARISON, INDICATION, FINDINGS,
IMPRESSION, each may be empty), ``MeSH/major``, ``parentImage@id`` (the PNG's name without its suffix). The view
is not included. Each report is treated as a patient, since nothing links the reports.
"""

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from medunifier.data.records import Problem, StudyRecord, View
from medunifier.data.remote_paths import read_at_most
from medunifier.data.reports.label_names import observation, positive_labels
from medunifier.data.sources import SourceOptions
from medunifier.data.sources.tables import files_by_stem, files_named
from medunifier.shared.errors import UserError

_MAX_BYTES = 2**20
_NOT_INDEXED = "no indexing"


def records(root: Path, options: SourceOptions, problems: list[Problem]) -> Iterator[StudyRecord]:
    """Yield the studies in numerical order, with MeSH headings as positive labels; the label list is open.

    Raises:
        UserError: if there is no folder ``ecgen-radiology`` with reports.
    """
    reports = sorted(
        (path for path in files_named(".xml", root, options, problems) if path.parent.name == "ecgen-radiology"),
        key=lambda path: (len(path.name), path.name),
    )
    if not reports:
        raise UserError(f"{root} has no ecgen-radiology/*.xml: unpack NLMCXR_reports.tgz there")
    pictures = files_by_stem(".png", root, options, problems)
    for path in reports:
        try:
            study = ElementTree.fromstring(read_at_most(path, _MAX_BYTES))  # noqa: S314 - expat loads no external entities and bounds expansion
        except (ElementTree.ParseError, OSError, ValueError, LookupError):  # the last two: of an encoding it names
            problems.append(Problem("report is not readable as XML", str(path)))
            continue
        names = [image.get("id") or "" for image in study.iter("parentImage")]
        if not names:
            problems.append(Problem("report without an image", str(path)))
            continue
        identifier = study.find("uId")
        name = (identifier.get("id") if identifier is not None else None) or path.stem
        sections = {part.get("Label"): (part.text or "").strip() for part in study.iter("AbstractText")}
        headings = _headings(study)
        yield StudyRecord(
            study_id=name,
            patient_id=name,
            views=tuple(View(pictures.get(image, root / f"{image}.png")) for image in names),
            findings=sections.get("FINDINGS", ""),
            impression=sections.get("IMPRESSION", ""),
            labels=None if headings is None else positive_labels(headings),
            label_names=tuple(headings or ()),
        )


def _headings(study: ElementTree.Element) -> list[str] | None:
    """Return MeSH headings "Heading/qualifier/…" by the part that names a finding; None without an index.

    Some are a finding only with a qualifier (Cardiac Shadow/enlarged).
    """
    headings = [(heading.text or "").strip() for heading in study.iter("major")]
    if not headings or headings[0].lower() == _NOT_INDEXED:
        return None
    pairs = ["/".join(heading.split("/")[:2]) for heading in headings]
    return [pair if observation(pair) else pair.split("/")[0] for pair in pairs]
