"""Build an HTML page block by block: sections, tables, figures, report comparisons, curves.

The templates in ``templates/`` hold the markup and escape every text; this file prepares their content. The page is
one file: images are embedded and nothing is fetched. Each page carries the research-only notice.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from medunifier.shared.artifacts import atomic_file
from medunifier.shared.files.grey_levels import to_uint8
from medunifier.shared.report_page.notice import research_notice

NOTICE = research_notice("Nothing on this page may guide the care of a patient.")
PHANTOM = (
    "Phantom data: every radiograph and report was computed and shows no patient. The metrics hold for phantoms only."
)
SYNTHETIC = "Images labelled generated or reconstruction are synthetic."

Points = Sequence[tuple[float, float]]
Curves = Mapping[str, Mapping[str, Points]]


class Bar(NamedTuple):
    """A table cell that shows ``value`` in [0, 1] as a bar, with a tick at ``baseline``; empty outside [0, 1]."""

    value: float
    baseline: float | None = None


Cell = str | int | float | bool | Bar | None


@dataclass(frozen=True)
class Figure:
    """Images side by side above one caption.

    ``images`` are (label, (H, W) floats in [0, 1] or uint8); the label stands below its image.
    """

    images: Sequence[tuple[str, np.ndarray]]
    caption: str = ""


class Page:
    """Collect the blocks of a page in order; :meth:`save` writes the file.

    Args:
        title: heading of the page.
        summary: a sentence or two below the title.
        source: data source as recorded in a manifest. If it names a phantom, the page states that.
    """

    def __init__(self, title: str, summary: str = "", source: str = "") -> None:
        self.title, self._summary, self._source = title, summary, source
        self._blocks: list[tuple[str, dict[str, Any]]] = []  # (macro of blocks.html.j2, its argument)
        self._sections: list[str] = []

    def _add(self, macro: str, **content: Any) -> None:
        self._blocks.append((macro, content))

    def section(self, title: str, text: str = "") -> None:
        """Begin a section; it is listed in the navigation at the top."""
        self._sections.append(title)
        self._add("section", number=len(self._sections), title=title)
        if text:
            self.paragraph(text)

    def heading(self, title: str) -> None:
        """Add a sub-heading inside a section."""
        self._add("heading", title=title)

    def paragraph(self, text: str) -> None:
        """Add a paragraph of plain text."""
        self._add("paragraph", text=text)

    def definitions(self, terms: Mapping[str, str]) -> None:
        """Add a collapsible list of terms and their definitions; nothing if ``terms`` is empty."""
        if terms:
            self._add("definitions", terms=terms)

    def table(self, header: Sequence[str], rows: Iterable[Sequence[Cell]], caption: str = "") -> None:
        """Add a table. Numbers are right-aligned with three decimals; booleans read yes or no, None a dash."""
        body = list(rows)
        kinds = [_kind(column) for column in zip(*body, strict=True)] or [""] * len(header)
        self._add("table", header=list(zip(header, kinds, strict=True)), rows=body, kinds=kinds, caption=caption)

    def metrics(
        self,
        metrics: Mapping[str, float],
        thresholds: Mapping[str, float] | None = None,
        *,
        intervals: Mapping[str, Sequence[float] | None] | None = None,
        caption: str = "",
    ) -> None:
        """Add a table of metrics with value, baseline and a bar for values in [0, 1], and optional columns.

        Args:
            metrics: flat names; ``NAME.baseline`` is shown in the row of ``NAME``.
            thresholds: minimum values by name; adds the columns "threshold" and "reached".
            intervals: (low, high) by name; adds the column "95 % interval".
            caption: shown above the table.
        """
        header = ["metric", "value", "baseline", "value and baseline"]
        header += ["95 % interval"] * bool(intervals) + ["threshold", "reached"] * bool(thresholds)
        rows: list[list[Cell]] = []
        for name, value in metrics.items():
            if name.endswith(".baseline"):
                continue
            baseline = metrics.get(f"{name}.baseline")
            row: list[Cell] = [name, value, baseline, Bar(value, baseline)]
            if intervals:
                bounds = intervals.get(name)
                row.append(None if bounds is None else f"{number(bounds[0])} to {number(bounds[1])}")
            if thresholds:
                least = thresholds.get(name)
                row += [least, None if least is None else bool(value >= least)]
            rows.append(row)
        self.table(header, rows, caption)

    def figures(self, figures: Iterable[Figure], tile: str = "16rem") -> None:
        """Add a grid of figures; ``tile`` is the minimum width of one, in CSS units."""
        self._add("figures", figures=list(figures), tile=tile)

    def report_comparison(
        self,
        generated: str,
        reference: str,
        *,
        title: str = "",
        image: np.ndarray | None = None,
        generated_findings: Iterable[str] = (),
        reference_findings: Iterable[str] = (),
    ) -> None:
        """Add a generated report beside its reference, with differing words and findings marked.

        Args:
            generated, reference: the two texts.
            title: identifies the study.
            image: (H, W) radiograph shown with them.
            generated_findings, reference_findings: findings that each text states as present.
        """
        predicted, true = list(generated_findings), list(reference_findings)
        findings = [(name, "found" if name in predicted else "missed") for name in true]
        findings += [(name, "false positive") for name in predicted if name not in true]
        sides = zip(("reference", "generated"), mark_differences(reference, generated), strict=True)
        figure = None if image is None else Figure([("", image)])
        self._add("report_comparison", title=title, figure=figure, sides=list(sides), findings=findings)

    def curves(self, panels: Curves, x: str = "step", y: str = "") -> None:
        """Add a grid of line plots with legends.

        Args:
            panels: ``{panel: {"training" | "validation" | "model" | "chance": [(x, y)]}}``; points
                that are not finite are left out.
            x, y: names of the axes; default of y: the panel's name.
        """
        plots = [plot for name, curves in sorted(panels.items()) if (plot := _plot(name, curves, x, y))]
        self._add("curves", plots=plots)

    def html(self) -> str:
        """Render the whole page."""
        notices = [NOTICE] + ([PHANTOM] if "phantom" in self._source.lower() else []) + [SYNTHETIC]
        return _TEMPLATES.get_template("page.html.j2").render(
            title=self.title, summary=self._summary, notices=notices, sections=self._sections, blocks=self._blocks
        )

    def save(self, path: str | Path) -> None:
        """Write the page by rename."""
        with atomic_file(path) as partial:
            partial.write_text(self.html(), encoding="utf-8")


def png_data_uri(image: np.ndarray) -> str:
    """Encode an (H, W) image, floats in [0, 1] or uint8, as the data URI of a PNG."""
    pixels = image if image.dtype == np.uint8 else to_uint8(image)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


Segments = list[tuple[str, str]]


def mark_differences(reference: str, generated: str) -> tuple[Segments, Segments]:
    """Split two texts into (kind, words): "del" for words only in the reference, "ins" only in the generated text.

    Case and punctuation are ignored in the comparison.
    """
    a, b = reference.split(), generated.split()
    bare = [[word.strip(".,:;()").lower() for word in words] for words in (a, b)]
    left: Segments = []
    right: Segments = []
    for operation, a0, a1, b0, b1 in SequenceMatcher(a=bare[0], b=bare[1], autojunk=False).get_opcodes():
        for side, words, kind in ((left, a[a0:a1], "del"), (right, b[b0:b1], "ins")):
            if words:
                side.append(("" if operation == "equal" else kind, " ".join(words)))
    return left, right


def number(value: float) -> str:
    """Format with three decimals, or with four significant digits from 100 on."""
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def _kind(column: Sequence[Cell]) -> str:
    """Return the CSS class of a column: "number", "bars", or empty for text and mixed cells."""
    if any(isinstance(value, Bar) for value in column):
        return "bars"
    numeric = all(
        value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in column
    )
    return "number" if numeric else ""


def _text_cell(value: Cell) -> tuple[str, str]:
    """Return text and CSS class of a cell that is not a bar."""
    if value is None:
        return "–", ""
    if isinstance(value, bool):
        return ("yes", "pass") if value else ("no", "fail")
    return (number(value), "") if isinstance(value, float) else (str(value), "")


def _in_unit_range(bar: Bar) -> bool:
    return all(value is None or 0 <= value <= 1 for value in bar)


WIDTH, HEIGHT, MARGIN = 280, 130, 4  # of a plot, in SVG units


def _plot(name: str, curves: Mapping[str, Points], x: str, y: str) -> dict[str, Any] | None:
    """Return the coordinates of one plot, whose axes span the finite points; None if there are none."""
    points = [point for curve in curves.values() for point in curve if np.isfinite(point).all()]
    if not points:
        return None
    low, high = np.min(points, axis=0), np.max(points, axis=0)
    span = np.maximum(high - low, 1e-12)

    def coordinates(point: tuple[float, float]) -> str:
        right, up = (np.asarray(point) - low) / span
        return f"{MARGIN + right * (WIDTH - 2 * MARGIN):.1f},{HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN):.1f}"

    lines = {
        kind: " ".join(coordinates(point) for point in curve if np.isfinite(point).all())
        for kind, curve in sorted(curves.items())
    }
    return {
        "name": name, "lines": lines, "x": x, "y": y or name, "width": WIDTH, "height": HEIGHT,
        "ends": [f"{value:.4g}" for value in (low[0], high[0], low[1], high[1])],
    }  # fmt: skip


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters.update(data_uri=png_data_uri, number=number, text_cell=_text_cell)
_TEMPLATES.tests.update(bar=lambda value: isinstance(value, Bar), in_unit_range=_in_unit_range)
