"""The data set of stage 2: studies of token shards that have text or labels, checked against the tokenizer."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medunifier.data.reports.observations import FINDINGS, NEGATIVE, POSITIVE
from medunifier.data.shards.dataset import Sample, ShardDataset, check_codebook_size
from medunifier.data.shards.prior_studies import prior_study_indices
from medunifier.shared.errors import UserError
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer


class StudiesWithText:
    """The studies of a split with text in any of the chosen sections, by index.

    Args:
        dataset: the split.
        sections: chosen sections.
        prior: add the patient's prior study, with or without text, to each sample as its ``prior``.
        labelled: also the studies without text that have a positive or negative label.

    Raises:
        UserError: if there is no such study.
    """

    def __init__(
        self, dataset: ShardDataset, sections: Sequence[str], prior: bool = False, labelled: bool = False
    ) -> None:
        self.dataset, self.sections = dataset, tuple(sections)
        self.with_text = [
            any(info["report"].get(section, "").strip() for section in self.sections) for info in dataset.infos()
        ]
        self.numbers = [
            number
            for number, info in enumerate(dataset.infos())
            if self.with_text[number] or (labelled and is_labelled(info))
        ]
        self._prior_of = prior_study_indices(dataset.infos()) if prior else [None] * len(dataset)
        if not self.numbers:
            raise UserError(
                f"no text in the data: none of the {len(dataset)} {dataset.split} studies of {dataset.root} has "
                f"{' or '.join(self.sections)}{' or a label' if labelled else ''}; stage 2 learns from reports, so "
                "ingest a source that has them, or train on labels with data.statements"
            )

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> Sample:
        study = self.numbers[number]
        sample, prior = self.dataset[study], self._prior_of[study]
        return sample if prior is None else replace(sample, prior=self.dataset[prior])

    @property
    def follow_ups(self) -> int:
        """Number of studies that have a prior one."""
        return sum(self._prior_of[number] is not None for number in self.numbers)

    def reports(self, limit: int | None = None) -> Iterator[dict[str, str]]:
        """Yield the report, by section, of every study with text; or of about ``limit`` of them, evenly spread."""
        numbers = [number for number in self.numbers if self.with_text[number]]
        step = max(1, len(numbers) // limit) if limit else 1
        return (dict(self.dataset.info(number)["report"]) for number in numbers[::step])

    @property
    def without_text(self) -> int:
        """Number of studies that have labels alone."""
        return sum(not self.with_text[number] for number in self.numbers)


def positive_findings(studies: ShardDataset, least: float = 0.001) -> tuple[str, ...]:
    """Return the findings that are positive in at least a fraction ``least`` of the studies, in table order."""
    counts: Counter[str] = Counter()
    for info in studies.infos():
        counts.update(name for name, value in info.get("labels", {}).items() if value == POSITIVE)
    return tuple(name for name in FINDINGS if counts[name] >= max(1, least * len(studies)))


def is_labelled(info: Mapping[str, Any]) -> bool:
    """Return whether a study has a label that is positive or negative."""
    return any(value in (NEGATIVE, POSITIVE) for value in info.get("labels", {}).values())


def check_fingerprint(manifest: dict[str, Any], tokenizer: FrozenTokenizer, shards: str | Path) -> None:
    """Check that codes were made by this tokenizer; a model trained on other codes would be useless.

    Raises:
        UserError: if the shards hold images, or codes of another fingerprint.
    """
    if "tokenizer" not in manifest:
        raise UserError(f"{shards} holds images, not codes: run `medunifier tokenize` on it first")
    found = str(manifest["tokenizer"].get("fingerprint"))
    if found != tokenizer.fingerprint:
        raise UserError(
            f"the codes of {shards} were made by another tokenizer (fingerprint {found[:12]}…) than was passed "
            f"({tokenizer.fingerprint[:12]}…): pass that tokenizer, or tokenize the data again with this one"
        )
    check_codebook_size(manifest, tokenizer.codebook_size, shards)
