"""A page for people: one HTML file that can be mailed, with pictures inside and nothing to fetch.

Every text is escaped. Each page says that this is research software, and where the data is phantom, so.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from shared.artifacts import atomic_file
from shared.page_style import STYLE
from shared.pixels import to_uint8

RESEARCH_ONLY = "Research software, not a medical device: nothing here may guide the care of a patient."
PHANTOM = (
    "Phantom data: every radiograph and report was computed, no patient is shown; figures hold for phantoms only."
)
SYNTHETIC = "Pictures named generated or reconstructed are synthetic."

Cell = str | int | float | bool | None
Curves = Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]


@dataclass(frozen=True)
class Figure:
    """Pictures that belong together, side by side over one caption.

    ``images`` are (label, (H, W) floats in [0, 1] or uint8); the label stands under its picture.
    """

    images: Sequence[tuple[str, np.ndarray]]
    caption: str = ""


class Page:
    """Collects sections in order; :meth:`save` writes the file.

    Args:
        title: of the page.
        summary: a sentence or two under the title.
        source: where the data came from, as a manifest records it; "phantom" is announced to the reader.
    """

    def __init__(self, title: str, summary: str = "", source: str = "") -> None:
        self.title, self._summary, self._source = title, summary, source
        self._parts: list[str] = []
        self._sections: list[str] = []

    def section(self, title: str, text: str = "") -> None:
        """Begin a section; it appears in the list at the page's head."""
        self._sections.append(title)
        self._parts.append(f'<h2 id="s{len(self._sections)}">{escape(title)}</h2>')
        if text:
            self.paragraph(text)

    def heading(self, title: str) -> None:
        """A smaller heading inside a section."""
        self._parts.append(f"<h3>{escape(title)}</h3>")

    def paragraph(self, text: str) -> None:
        """A paragraph of plain text."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def table(self, header: Sequence[str], rows: Iterable[Sequence[Cell]], caption: str = "") -> None:
        """A table. Numbers are aligned and shortened; True and False read as a verdict; None is a dash."""
        body = list(rows)
        numeric = [_is_numeric(column) for column in zip(*body, strict=True)] or [False] * len(header)
        self._table(
            header, numeric, [[_cell(*pair) for pair in zip(row, numeric, strict=True)] for row in body], caption
        )

    def metrics(
        self, metrics: Mapping[str, float], thresholds: Mapping[str, float] | None = None, caption: str = ""
    ) -> None:
        """Figures with their baselines, a bar for those in [0, 1], and the verdict where a threshold is set.

        Args:
            metrics: flat names; ``NAME.baseline`` stands beside ``NAME``.
            thresholds: least values by name; given, the table has columns for them.
            caption: above the table.
        """
        header = ["figure", "value", "baseline", ""] + (["threshold", "reached"] if thresholds else [])
        rows = []
        for name, value in metrics.items():
            if name.endswith(".baseline"):
                continue
            baseline = metrics.get(f"{name}.baseline")
            cells = [_cell(name, False), _cell(value, True), _cell(baseline, True)]
            cells.append(f"<td>{_bar(value, baseline)}</td>")
            if thresholds:
                least = thresholds.get(name)
                cells += [_cell(least, True), _cell(None if least is None else bool(value >= least), False)]
            rows.append(cells)
        self._table(header, [False, True, True, False, True, False][: len(header)], rows, caption)

    def _table(
        self, header: Sequence[str], numeric: Sequence[bool], rows: Sequence[Sequence[str]], caption: str
    ) -> None:
        kinds = [' class="number"' if number else "" for number in numeric]
        head = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(header, kinds, strict=True))
        body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
        title = f"<caption>{escape(caption)}</caption>" if caption else ""
        self._parts.append(
            f'<div class="wide"><table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def figures(self, figures: Iterable[Figure], tile: str = "16rem") -> None:
        """A grid of figures; ``tile`` is the least width of one, in CSS units."""
        self._parts.append(f'<div class="grid" style="--tile: {escape(tile)}">')
        self._parts += [_figure(figure) for figure in figures]
        self._parts.append("</div>")

    def report_beside_truth(
        self,
        written: str,
        truth: str,
        *,
        title: str = "",
        image: np.ndarray | None = None,
        said: Iterable[str] = (),
        true: Iterable[str] = (),
    ) -> None:
        """A written report beside the true one: lacking and added words marked, findings hit and missed.

        Args:
            written, truth: the two texts.
            title: what study this is.
            image: (H, W) the radiograph, if it is to stand beside them.
            said, true: findings that each states.
        """
        marked_truth, marked_written = mark_differences(truth, written)
        said, true = list(said), list(true)
        chips = [(name, "hit" if name in said else "missed") for name in true]
        chips += [(name, "invented") for name in said if name not in true]
        picture = _figure(Figure([("", image)])) if image is not None else ""
        row = "".join(f'<span class="chip {kind}">{kind}: {escape(name)}</span>' for name, kind in chips)
        self._parts.append(
            f'<div class="card">{f"<h3>{escape(title)}</h3>" if title else ""}'
            f'<div class="sides{" pictured" if picture else ""}">{picture}'
            f"<div><h4>truth</h4>{marked_truth}</div><div><h4>written</h4>{marked_written}</div></div>"
            f"{f'<div class=chips>{row}</div>' if row else ''}</div>"
        )

    def curves(self, panels: Curves) -> None:
        """Small drawings: ``{panel: {"training" | "validation" | "curve" | "chance": [(x, y)]}}``."""
        self._parts.append('<div class="grid" style="--tile: 17rem">')
        self._parts += [_curve_panel(name, curves) for name, curves in sorted(panels.items())]
        self._parts.append("</div>")

    def html(self) -> str:
        """The whole page."""
        notices = [RESEARCH_ONLY] + ([PHANTOM] if "phantom" in self._source.lower() else []) + [SYNTHETIC]
        links = "".join(
            f'<a href="#s{number}">{escape(name)}</a>' for number, name in enumerate(self._sections, start=1)
        )
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{STYLE}</style></head><body>\n"
            f'<header><h1>{escape(self.title)}</h1><p class="soft">{escape(self._summary)}</p>'
            f'<div class="notice" role="note">{"".join(f"<p>{escape(text)}</p>" for text in notices)}</div>'
            f"<nav>{links}</nav></header>\n<main>\n" + "\n".join(self._parts) + "\n</main>\n"
            f'<footer class="soft">medunifier · {escape(RESEARCH_ONLY)}</footer></body></html>\n'
        )

    def save(self, path: str | Path) -> None:
        """Write the page by rename."""
        with atomic_file(path) as partial:
            partial.write_text(self.html(), encoding="utf-8")


def png_data_uri(image: np.ndarray) -> str:
    """(H, W) floats in [0, 1] or uint8 -> a picture inside the page."""
    pixels = image if image.dtype == np.uint8 else to_uint8(image)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def mark_differences(truth: str, written: str) -> tuple[str, str]:
    """Escaped HTML of both texts: words that the written one lacks in <del>, words that it adds in <ins>.

    Words are compared without case and punctuation, since "Heart." for "heart" is no difference.
    """
    a, b = truth.split(), written.split()
    bare = [[word.strip(".,:;()").lower() for word in words] for words in (a, b)]
    left: list[str] = []
    right: list[str] = []
    for kind, a0, a1, b0, b1 in SequenceMatcher(a=bare[0], b=bare[1], autojunk=False).get_opcodes():
        for side, words, tag in ((left, a[a0:a1], "del"), (right, b[b0:b1], "ins")):
            if words:
                text = escape(" ".join(words))
                side.append(text if kind == "equal" else f"<{tag}>{text}</{tag}>")
    return " ".join(left), " ".join(right)


def _is_numeric(column: Sequence[Cell]) -> bool:
    return all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in column)


def _cell(value: Cell, number: bool) -> str:
    if value is None:
        text, kind = "–", "number" if number else ""
    elif isinstance(value, bool):
        text, kind = ("yes", "pass") if value else ("no", "fail")
    elif isinstance(value, float):
        text, kind = f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}", "number" if number else ""
    else:
        text, kind = escape(str(value)), "number" if number else ""
    return f'<td class="{kind}">{text}</td>' if kind else f"<td>{text}</td>"


def _bar(value: float, baseline: float | None) -> str:
    if not 0 <= value <= 1 or (baseline is not None and not 0 <= baseline <= 1):
        return ""
    tick = "" if baseline is None else f'<b style="left:{100 * baseline:.1f}%" title="baseline {baseline:.3f}"></b>'
    return f'<div class="bar"><i style="width:{100 * value:.1f}%"></i>{tick}</div>'


def _figure(figure: Figure) -> str:
    tiles = "".join(
        f'<div><img src="{png_data_uri(image)}" alt="{escape(label or figure.caption or "radiograph")}">'
        f"{f'<figcaption>{escape(label)}</figcaption>' if label else ''}</div>"
        for label, image in figure.images
    )
    caption = f"<figcaption>{escape(figure.caption)}</figcaption>" if figure.caption else ""
    return f'<figure><div class="set">{tiles}</div>{caption}</figure>'


WIDTH, HEIGHT, MARGIN = 280, 130, 4


def _curve_panel(name: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """One drawing; the vertical axis spans what is finite, its ends are written at the edges."""
    points = [p for curve in curves.values() for p in curve if np.isfinite(p).all()]
    if not points:
        return ""
    (x0, y0), (x1, y1) = np.min(points, axis=0), np.max(points, axis=0)
    spans = max(x1 - x0, 1e-12), max(y1 - y0, 1e-12)

    def place(x: float, y: float) -> str:
        right, up = (x - x0) / spans[0], (y - y0) / spans[1]
        return f"{MARGIN + right * (WIDTH - 2 * MARGIN):.1f},{HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN):.1f}"

    lines = "".join(
        f'<polyline class="{escape(kind)}" points="{" ".join(place(*p) for p in curve if np.isfinite(p).all())}"/>'
        for kind, curve in sorted(curves.items())
    )
    legend = ", ".join(sorted(curves))
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT + 14}" role="img" aria-label="{escape(name)}">'
        f'<rect class="frame" width="{WIDTH}" height="{HEIGHT}"/>{lines}'
        f'<text x="6" y="12">{y1:.4g}</text><text x="6" y="{HEIGHT - 6}">{y0:.4g}</text>'
        f'<text x="2" y="{HEIGHT + 11}">{x0:.0f}</text>'
        f'<text x="{WIDTH - 2}" y="{HEIGHT + 11}" text-anchor="end">{x1:.0f}</text></svg>'
        f"<figcaption>{escape(name)} <span>({escape(legend)})</span></figcaption></figure>"
    )
