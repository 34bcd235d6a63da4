"""`Phantom`: synthetic studies with known ground truth, each a pure function of (size, seed, index)."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from medunifier.data.phantom.rendering.frontal import finding_masks, render_frontal
from medunifier.data.phantom.rendering.lateral import render_lateral
from medunifier.data.phantom.report import write_report
from medunifier.data.phantom.state import FINDINGS, State, slot, study_state

_KEY_REPORT, _KEY_IMAGE, _KEY_NUMBERS, _KEY_VIEWS = 10, 11, 12, 13

# MIMIC-CXR ids have eight digits; patient ids start with 1, study ids with 5. Multiplication by a number
# coprime to ten million shuffles them without collisions.
_NUMBERS = 10_000_000
_SHUFFLE = 6_180_339

MOST_STUDIES = _NUMBERS
SMALLEST_SIZE = 32


@dataclass(frozen=True)
class PhantomStudy:
    """A study as it would be in an archive, with its ground truth."""

    images: list[ndarray]
    """(size, size) float32 in [0, 1], one per view."""
    views: list[str]
    """"PA" or "AP", optionally followed by "LATERAL"; one per image."""
    report: str
    """The whole report in MIMIC-CXR's form."""
    labels: dict[str, int]
    """{finding: 1 | 0 | -1} as stated in the report; a finding without an entry is not mentioned."""
    patient_id: str
    """Eight digits, the first a 1."""
    study_id: str
    """Eight digits, the first a 5."""
    dicom_ids: list[str]
    """Five groups of eight hexadecimal digits, one per image."""
    split: str
    """train, validate or test; all studies of a patient have the same."""
    state: State
    """The findings with side, size and location."""
    prior: State | None = None
    """With `history`: the patient's state in the prior study, None for the first study."""


class Phantom:
    """A synthetic archive of chest radiographs with reports.

    `study(i)` does not depend on previous calls, and only the pixels depend on `size`. Of every 20
    consecutive studies, 16 are for training, 2 for validation and 2 for test.
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
            seed: not negative; each seed gives a different archive.
            findings: findings that may occur, by default all.
            lateral_fraction: fraction of the studies with a PA view that also have a lateral view.
            history: reports of follow-up studies state what is new, unchanged, increased, decreased or resolved
                since the prior study. The images are the same with and without.

        Raises:
            ValueError: if a number is out of range, or a finding is not in FINDINGS.
        """
        if size < SMALLEST_SIZE:
            raise ValueError(f"size must be at least {SMALLEST_SIZE} pixels to show the findings, got {size}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        if unknown := sorted(set(findings) - set(FINDINGS)):
            raise ValueError(f"unknown findings {', '.join(unknown)}; choose from {', '.join(FINDINGS)}")
        if not set(findings) - {"devices"}:
            raise ValueError("findings must include at least one besides devices")
        if not 0 <= lateral_fraction <= 1:
            raise ValueError(f"lateral_fraction must be between 0 and 1, got {lateral_fraction}")
        self.size, self.seed, self.findings = size, seed, findings
        self.lateral_fraction, self.history = lateral_fraction, history

    def study(self, index: int) -> PhantomStudy:
        """Return the study at an index of the archive.

        Raises:
            IndexError: if the index is negative, or ten million or more.
        """
        if not 0 <= index < MOST_STUDIES:
            raise IndexError(f"a phantom archive has studies 0 to {MOST_STUDIES - 1}, got {index}")
        entry = slot(self.seed, index)
        state = study_state(self.seed, entry.patient, entry.visit, self.findings)
        prior = None
        if self.history and entry.visit:
            prior = study_state(self.seed, entry.patient, entry.visit - 1, self.findings)
        lateral = self._has_lateral(index, state)
        report = write_report(
            state,
            np.random.default_rng((self.seed, _KEY_REPORT, index)),
            prior=prior,
            history=self.history,
            lateral=lateral,
        )
        images = [render_frontal(state, self.size, np.random.default_rng((self.seed, _KEY_IMAGE, index)))]
        if lateral:
            images.append(render_lateral(state, self.size, np.random.default_rng((self.seed, _KEY_IMAGE, index, 1))))
        shift = int(np.random.default_rng((self.seed, _KEY_NUMBERS)).integers(_NUMBERS))
        return PhantomStudy(
            images=images,
            views=[state.position, "LATERAL"] if lateral else [state.position],
            report=report.text,
            labels=report.labels,
            patient_id=str(10_000_000 + (entry.patient * _SHUFFLE + shift) % _NUMBERS),
            study_id=str(50_000_000 + (index * _SHUFFLE + shift) % _NUMBERS),
            dicom_ids=[_dicom_id(self.seed, index, view) for view in range(len(images))],
            split=entry.split,
            state=state,
            prior=prior,
        )

    def masks(self, index: int) -> dict[str, ndarray]:
        """Return {observation: (size, size) booleans}: the finding masks of a study's frontal view.

        Only for localized findings (opacity, consolidation, pneumothorax, effusion, nodule, atelectasis). A
        finding has a mask even if the report does not mention it.

        Raises:
            IndexError: as for :meth:`study`.
        """
        if not 0 <= index < MOST_STUDIES:
            raise IndexError(f"a phantom archive has studies 0 to {MOST_STUDIES - 1}, got {index}")
        entry = slot(self.seed, index)
        state = study_state(self.seed, entry.patient, entry.visit, self.findings)
        return finding_masks(state, self.size, np.random.default_rng((self.seed, _KEY_IMAGE, index)))

    def _has_lateral(self, index: int, state: State) -> bool:
        """Return whether a study has a lateral view. Portable (AP) studies are acquired in bed, without one."""
        sample = np.random.default_rng((self.seed, _KEY_VIEWS, index)).random() if self.lateral_fraction else 1.0
        return state.position == "PA" and sample < self.lateral_fraction


def _dicom_id(seed: int, index: int, view: int) -> str:
    digits = hashlib.sha256(f"phantom {seed} {index} {view}".encode()).hexdigest()
    return "-".join(digits[start : start + 8] for start in range(0, 40, 8))
