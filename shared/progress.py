"""Progress of long work: a live bar with ETA on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

PLAIN_LINE_EVERY_S = 10.0


class Progress:
    """Show completed units, rate, ETA and current figures.

    Args:
        total: number of units.
        what: label of the work, in one or two words.
        unit: name of a unit.
        done: units that an earlier run finished.
        quiet: show nothing (ranks other than the first).
    """

    def __init__(self, total: int, what: str, unit: str = "it", done: int = 0, quiet: bool = False) -> None:
        self.total, self.what, self.unit = total, what, unit
        self.count = self._begun_at = done
        self._live = sys.stderr.isatty() and not quiet
        self._quiet = quiet
        self._start = time.monotonic()
        self._last_line = -PLAIN_LINE_EVERY_S  # the first unit prints a line: something moves, and how fast
        self._figures = ""
        self._printed = -1
        if self._live:
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
            )
            self._task = self._bar.add_task(what, total=total, completed=done, rate="", figures="")

    def __enter__(self) -> "Progress":
        if self._live:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if not self._live and not self._quiet and kind is None and self._printed != self.count:
            self._print_line()

    def stop(self) -> None:
        """Leave the bar as it is and give the cursor back."""
        if self._live:
            self._bar.stop()

    def advance(self, units: int = 1, **figures: float | int | str) -> None:
        """Add ``units`` to the count and show ``figures`` next to it."""
        self.count += units
        if figures:
            self._figures = "  ".join(f"{name} {_short(value)}" for name, value in figures.items())
        if self._live:
            self._bar.update(self._task, completed=self.count, rate=self._rate(), figures=self._figures)
        elif not self._quiet and time.monotonic() - self._last_line >= PLAIN_LINE_EVERY_S:
            self._print_line()

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        return f"{(self.count - self._begun_at) / seconds:.3g} {self.unit}/s"

    def _eta(self) -> str:
        done, left = self.count - self._begun_at, self.total - self.count
        if done <= 0 or left <= 0:
            return ""
        seconds = round((time.monotonic() - self._start) / done * left)
        return f"  ETA {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"

    def _print_line(self) -> None:
        self._last_line, self._printed = time.monotonic(), self.count
        line = f"{self.what}: {self.count}/{self.total} {self.unit}  {self._rate()}{self._eta()}  {self._figures}"
        print(line.rstrip(), file=sys.stderr, flush=True)


def _short(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
