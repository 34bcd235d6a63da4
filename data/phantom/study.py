"""`Phantom`: any number of studies whose truth is known, each a pure function of (size, seed, index)."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from medunifier.data.phantom.rendering.frontal import draw, places
from medunifier.data.phantom.rendering.lateral import render_lateral
from medunifier.data.phantom.report import write_report
from medunifier.data.phantom.state import FINDINGS, State, slot, study_state

_KEY_REPORT, _KEY_PICTURE, _KEY_NUMBERS, _KEY_VIEWS = 10, 11, 12, 13

# MIMIC-CXR's numbers have eight digits, patients from 1, studies from 5. Multiplication by a number
# prime to ten million shuffles them without a collision.
_NUMBERS = 10_000_000
_SHUFFLE = 6_180_339

MOST_STUDIES = _NUMBERS
SMALLEST_SIZE = 32


@dataclass(frozen=True)
class PhantomStudy:
    """A study as an archive would hold it, and the truth behind it."""

    images: list[ndarray]
    """(size, size) float32 in [0, 1], one per view."""
    views: list[str]
    """"PA" or "AP" first, then perhaps "LATERAL"; one per image."""
    report: str
    """The whole report in MIMIC-CXR's form."""
    labels: dict[str, int]
    """{finding: 1 | 0 | -1} as the report states them; what is absent is not mentioned."""
    patient_id: str
    """Eight digits, the first a 1."""
    study_id: str
    """Eight digits, the first a 5."""
    dicom_ids: list[str]
    """Five groups of eight hexadecimal digits, one per image."""
    split: str
    """train, validate or test; all studies of a patient have the same."""
    state: State
    """The findings with side, size and place."""
    prior: State | None = None
    """With `history`: the patient's state at the visit before, None at the first."""


class Phantom:
    """An endless archive of chest radiographs with reports.

    `study(i)` does not depend on which studies were asked for before, and only the pixels depend on
    `size`. Of every twenty studies in order sixteen are for training, two for validation, two for test.
    """

    def __init__(
        self,
        size: int = 256,
        seed: int = 0,
        findings: tuple[str, ...] = FINDINGS,
        *,
        lateral_fraction: float = 0.0,
        history: bool = False,
    ) -> None:
        """
        Args:
            size: height and width of the images in pixels, at least 32.
            seed: not negative; another seed is another archive.
            findings: those that may occur, all unless told.
            lateral_fraction: share of the studies with a PA film that have a lateral view too.
            history: reports of later visits tell what is new, unchanged, increased, decreased or resolved
                since the visit before. The pictures are the same with and without.

        Raises:
            ValueError: if a number is out of range, or a finding is none of FINDINGS.
        """
        if size < SMALLEST_SIZE:
            raise ValueError(f"size must be at least {SMALLEST_SIZE} pixels for the findings to be seen, got {size}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        if unknown := sorted(set(findings) - set(FINDINGS)):
            raise ValueError(f"unknown findings {', '.join(unknown)}; there are {', '.join(FINDINGS)}")
        if not set(findings) - {"devices"}:
            raise ValueError("findings must name at least one beside devices")
        if not 0 <= lateral_fraction <= 1:
            raise ValueError(f"lateral_fraction must lie in 0 ... 1, got {lateral_fraction}")
        self.size, self.seed, self.findings = size, seed, findings
        self.lateral_fraction, self.history = lateral_fraction, history

    def study(self, index: int) -> PhantomStudy:
        """The study at a position of the archive.

        Raises:
            IndexError: if the index is negative or beyond ten million.
        """
        if not 0 <= index < MOST_STUDIES:
            raise IndexError(f"a phantom archive has studies 0 to {MOST_STUDIES - 1}, got {index}")
        where = slot(self.seed, index)
        state = study_state(self.seed, where.patient, where.visit, self.findings)
        prior = None
        if self.history and where.visit:
            prior = study_state(self.seed, where.patient, where.visit - 1, self.findings)
        lateral = self._has_lateral(index, state)
        report = write_report(
            state,
            np.random.default_rng((self.seed, _KEY_REPORT, index)),
            prior=prior,
            history=self.history,
            lateral=lateral,
        )
        images = [draw(state, self.size, np.random.default_rng((self.seed, _KEY_PICTURE, index)))]
        if lateral:
            images.append(
                render_lateral(state, self.size, np.random.default_rng((self.seed, _KEY_PICTURE, index, 1)))
            )
        shift = int(np.random.default_rng((self.seed, _KEY_NUMBERS)).integers(_NUMBERS))
        return PhantomStudy(
            images=images,
            views=[state.position, "LATERAL"] if lateral else [state.position],
            report=report.text,
            labels=report.labels,
            patient_id=str(10_000_000 + (where.patient * _SHUFFLE + shift) % _NUMBERS),
            study_id=str(50_000_000 + (index * _SHUFFLE + shift) % _NUMBERS),
            dicom_ids=[_dicom_id(self.seed, index, view) for view in range(len(images))],
            split=where.split,
            state=state,
            prior=prior,
        )

    def masks(self, index: int) -> dict[str, ndarray]:
        """{observation: (size, size) booleans} of a study's frontal film: where its findings lie.

        Of those that have a place of their own (opacity, consolidation, pneumothorax, effusion, nodule, plates). A
        finding is in the picture whatever the report says of it.

        Raises:
            IndexError: as of :meth:`study`.
        """
        if not 0 <= index < MOST_STUDIES:
            raise IndexError(f"a phantom archive has studies 0 to {MOST_STUDIES - 1}, got {index}")
        where = slot(self.seed, index)
        state = study_state(self.seed, where.patient, where.visit, self.findings)
        return places(state, self.size, np.random.default_rng((self.seed, _KEY_PICTURE, index)))

    def _has_lateral(self, index: int, state: State) -> bool:
        """A portable film is taken in bed, where nobody takes a lateral one."""
        drawn = np.random.default_rng((self.seed, _KEY_VIEWS, index)).random() if self.lateral_fraction else 1.0
        return state.position == "PA" and drawn < self.lateral_fraction


def _dicom_id(seed: int, index: int, view: int) -> str:
    digits = hashlib.sha256(f"phantom {seed} {index} {view}".encode()).hexdigest()
    return "-".join(digits[start : start + 8] for start in range(0, 40, 8))
