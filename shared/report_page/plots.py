"""Plots as PNG: labelled grids of radiographs, and training curves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from medunifier.shared.artifacts import atomic_file
from medunifier.shared.files.grey_levels import to_uint8
from medunifier.shared.training.run_folder import read_metrics


def labelled_rows(rows: Sequence[tuple[str, np.ndarray]], scale: int = 1, gap: int = 2) -> np.ndarray:
    """Return an image of rows of radiographs, such as originals and reconstructions, each row with its name above.

    Args:
        rows: (name, (N, H, W) floats in [0, 1]).
        scale: integer magnification.
        gap: pixels between images.

    Returns:
        (H', W') uint8.
    """
    bands = []
    for name, images in rows:
        tiles = to_uint8(np.asarray(images))
        tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
        tiles = np.pad(tiles, ((0, 0), (gap, gap), (gap, gap)), constant_values=255)
        bands += [_caption(name, tiles.shape[0] * tiles.shape[2]), np.concatenate(list(tiles), axis=1)]
    width = max(band.shape[1] for band in bands)
    return np.concatenate([np.pad(b, ((0, 0), (0, width - b.shape[1])), constant_values=255) for b in bands])


def _caption(text: str, width: int) -> np.ndarray:
    picture = Image.new("L", (max(width, 8 * len(text)), 14), 255)
    ImageDraw.Draw(picture).text((2, 1), text, fill=0)
    return np.asarray(picture)


def curve_panels(run: str | Path) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Return the logged metrics of a run by panel: ``{panel: {curve: [(step, value), …]}}``.

    ``validation/psnr`` is plotted in the panel ``psnr`` with the training metric of that name; ``report.chance`` is a
    reference line in the panel ``report``.
    """
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for line in read_metrics(run):
        for name, value in line.items():
            if name == "step" or not isinstance(value, int | float):
                continue
            panel = name.removeprefix("validation/").removesuffix(".chance")
            curve = "validation" if name.startswith("validation/") else "training"
            if name.endswith(".chance"):
                curve = "chance"
            panels.setdefault(panel, {}).setdefault(curve, []).append((line["step"], value))
    return panels


def save_curves(run: str | Path) -> Path:
    """Plot every metric of ``metrics.jsonl`` over the steps to ``curves.png``; return its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow import, needed here only
    from matplotlib.figure import Figure

    panels = curve_panels(run)
    columns = 4
    rows = max(1, -(-len(panels) // columns))
    width, height = 3.6 * columns, 2.3 * rows
    figure = Figure(figsize=(width, height), dpi=90)
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    # Margins in inches for the font sizes below; a tight layout would render every label twice.
    figure.subplots_adjust(
        left=0.55 / width, right=1 - 0.1 / width, bottom=0.25 / height, top=1 - 0.25 / height, wspace=0.2, hspace=0.3
    )
    styles = {"training": {"color": "tab:blue"}, "validation": {"color": "tab:orange", "marker": "."}}
    for axis, (panel, curves) in zip(axes.flat, sorted(panels.items()), strict=False):
        for name, points in sorted(curves.items()):
            steps, values = zip(*points, strict=True)
            style = styles.get(name, {"color": "tab:gray", "linestyle": "--"})
            axis.plot(steps, values, label=name, linewidth=1, **style)
        axis.set_title(panel, fontsize=8, y=1)  # without y, its place follows from the size of every label
        axis.tick_params(labelsize=6)
        axis.locator_params(nbins=5)  # ticks and their labels take most of the time
        if len(curves) > 1:
            axis.legend(fontsize=6)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    canvas.draw()
    path = Path(run) / "curves.png"
    with atomic_file(path) as partial:  # savefig would render everything twice
        Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(partial, format="PNG")
    return path
