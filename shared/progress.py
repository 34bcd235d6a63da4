"""Progress of long work: a live bar with ETA on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.progress import BarColumn, ProgressColumn, Task
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

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
        self._start = self._advanced = time.monotonic()
        self._last_line = -PLAIN_LINE_EVERY_S  # the first unit prints a line: something moves, and how fast
        self._figures = ""
        self._printed = -1
        if self._live:
            # The status keeps its width; on a narrow terminal bar and figures, which may wrap, are shortened.
            self._bar = RichProgress(
                _Live(self._status, Column(no_wrap=True)),
                BarColumn(bar_width=10),
                _Live(lambda: self._figures, Column()),
            )
            self._task = self._bar.add_task(what, total=total, completed=done)

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
        self._advanced = time.monotonic()
        if figures:
            self._figures = "  ".join(f"{name} {_short(value)}" for name, value in figures.items())
        if self._live:
            self._bar.update(self._task, completed=self.count)
        elif not self._quiet and time.monotonic() - self._last_line >= PLAIN_LINE_EVERY_S:
            self._print_line()

    @contextmanager
    def aside(self, what: str) -> Iterator[None]:
        """Show ``what`` as the current work, which is no unit: its time does not count for rate and ETA."""
        before, begun = self.what, time.monotonic()
        self.what = what
        if not self._live and not self._quiet and begun - self._last_line >= PLAIN_LINE_EVERY_S:
            self._print_line()
        try:
            yield
        finally:
            if self.what == what:  # not replaced meanwhile, as by an announced stop
                self.what = before
            passed = time.monotonic() - begun
            self._start, self._advanced = self._start + passed, self._advanced + passed

    def _status(self) -> str:
        """Return units, rate and ETA; the elapsed time before the first unit and after the last."""
        done, left = self.count - self._begun_at, self.total - self.count
        status = f"{self.what}: {self.count}/{self.total} {self.unit}"
        seconds = max(self._advanced - self._start, 1e-9)
        if done > 0:
            status += f"  {done / seconds:.3g} {self.unit}/s"
            if left > 0:
                return f"{status}  ETA {_clock(seconds / done * left)}"
        return f"{status}  elapsed {_clock(time.monotonic() - self._start)}"

    def _print_line(self) -> None:
        self._last_line, self._printed = time.monotonic(), self.count
        print(f"{self._status()}  {self._figures}".rstrip(), file=sys.stderr, flush=True)


def _short(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


class _Live(ProgressColumn):
    """A column of one line of text, computed at each refresh and cut to the width that the terminal leaves."""

    def __init__(self, text: Callable[[], str], column: Column) -> None:
        super().__init__(column)
        self._text = text

    def render(self, task: Task) -> Text:
        return Text(self._text(), no_wrap=True, overflow="ellipsis")
