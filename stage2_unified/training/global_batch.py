"""The global batch: what the objectives across studies need, from all micro-batches and processes of a step.

The contrast of a step is one matrix of all its studies, and negatives are sampled from all of them, however the step
is split. Each part (a micro-batch of a process) computes the whole loss from all embeddings and differentiates it for
its own studies alone; the mean over the parts is then the gradient of the one large batch. With several micro-batches
the embeddings come from a first pass without gradient (gradient caching: Gao et al., "Scaling Deep Contrastive
Learning Batch Size under Memory Limited Setup", 2021), so that memory is that of one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_right

from medunifier.shared.training.distributed import all_gather, rank, world_size
from medunifier.stage2_unified.objectives.contrast import contrastive_similarity
from medunifier.stage2_unified.objectives.matching import sample_negatives
from medunifier.stage2_unified.objectives.statements import relations, sample_contradicting
from medunifier.stage2_unified.training.collator import StatementBatch, StudyBatch


@dataclass
class Embeddings:
    """Embeddings of one micro-batch.

    Attributes:
        image, text: (B, E) unit-norm.
        scale: inverse temperature of the contrast.
        statement: (B, n, E) unit-norm; None without statements, or if the losses' own pass embeds them.
    """

    image: Tensor
    text: Tensor
    scale: Tensor
    statement: Tensor | None = None


@dataclass
class GlobalStatements:
    """The statements of the G studies, S = G n.

    Attributes:
        batch: of all studies.
        relation: (G, S) of :func:`relations`.
        contradicting, usable: (G,), (G,) of :func:`sample_contradicting`.
        embedding: (G, n, E) unit-norm, without gradient; None if the losses' own pass embeds them.
    """

    batch: StatementBatch
    relation: Tensor
    contradicting: Tensor
    usable: Tensor
    embedding: Tensor | None

    @property
    def has_own(self) -> Tensor:
        """(G,) bool, whether a study's first statement is not padding."""
        return (self.batch.stated[:, 0] >= 0).any(dim=1)


@dataclass
class GlobalBatch:
    """The G studies of a step: micro-batch by micro-batch, within it in the order of ranks.

    Attributes:
        image, text: (G, E) unit-norm embeddings, without gradient.
        report, report_length: (G, T), (G,) ids of all reports, of one width on all processes.
        report_key, patient_key: (G,) as in :class:`StudyBatch`.
        has_text, has_report: (G,) bool, whether a report counts as a text of the contrast, and as one to be learned.
        image_count: (G,) images of each study, without those of the prior study.
        negatives, usable: (G, 2), (G,) from :func:`sample_negatives`.
        parts: micro-batches x processes.
        part: number of this process' micro-batch whose losses are computed.
    """

    image: Tensor
    text: Tensor
    report: Tensor
    report_length: Tensor
    report_key: Tensor
    patient_key: Tensor
    has_text: Tensor
    has_report: Tensor
    image_count: Tensor
    negatives: Tensor
    usable: Tensor
    parts: int
    part: int = 0
    statements: GlobalStatements | None = None

    @property
    def local(self) -> slice:
        """Studies of this process' micro-batch ``part``."""
        size = len(self.image) // self.parts
        begin = (self.part * world_size() + rank()) * size
        return slice(begin, begin + size)

    def with_local(self, gathered: Tensor, local: Tensor) -> Tensor:
        """Return ``gathered`` (G, E) with a gradient for this part's (B, E), scaled for the mean over parts."""
        scaled = local.detach() + self.parts * (local - local.detach())  # the value is `local`, to the last bit
        return torch.cat([gathered[: self.local.start], scaled, gathered[self.local.stop :]])

    # Normalisers: the mean of a part's sum over the parts, divided by these, is the mean over the whole step.

    @property
    def matching_pairs(self) -> Tensor:
        """Mean number of counted image-report pairs a part."""
        return (self.has_report.sum() + self.negatives.shape[1] * self.usable.sum()).clamp(min=1) / self.parts

    @property
    def statement_pairs(self) -> Tensor:
        """Mean number of counted image-statement pairs a part."""
        assert self.statements is not None  # noqa: S101 - narrows a type
        return (self.statements.has_own.sum() + self.statements.usable.sum()).clamp(min=1) / self.parts

    @property
    def images(self) -> Tensor:
        """Mean number of images a part whose codes are learned."""
        return self.image_count.sum() / self.parts

    @property
    def report_tokens(self) -> Tensor:
        """Mean number of report ids with their ``<eos>`` a part."""
        return ((self.report_length + 1) * self.has_report).sum().clamp(min=1) / self.parts


def gather_step(
    batches: Sequence[StudyBatch], embeddings: Sequence[Embeddings], hardness: float, pad: int, longest: int
) -> GlobalBatch:
    """Gather the studies of a step from all processes and sample its negatives, the same on each.

    Args:
        batches: this process' micro-batches, all of one size.
        embeddings: theirs.
        hardness: scale on the similarities by which negatives are sampled.
        pad: id that reports are padded with.
        longest: ids of the longest report. Several processes pad to it: to compare their widths, each would wait for
            the others and its device.
    """
    width = longest if world_size() > 1 else max(batch.report.shape[1] for batch in batches)

    def gathered(values: Sequence[Tensor]) -> Tensor:
        return torch.cat([all_gather(value) for value in values])

    image, text = gathered([e.image for e in embeddings]), gathered([e.text for e in embeddings])
    report_key, patient_key = gathered([b.report_key for b in batches]), gathered([b.patient_key for b in batches])
    has_report = gathered([batch.has_report for batch in batches])
    has_text = gathered([~batch.drop_text for batch in batches]) & has_report
    different = (report_key[:, None] != report_key[None, :]) & (patient_key[:, None] != patient_key[None, :])
    similarity = contrastive_similarity(image, text, embeddings[0].scale.detach())
    negatives, usable = sample_negatives(
        similarity * hardness, different & has_text[None, :] & has_report[:, None], batches[0].negative_seed
    )
    return GlobalBatch(
        image=image,
        text=text,
        report=gathered([pad_right(b.report, (0, width - b.report.shape[1]), value=pad) for b in batches]),
        report_length=gathered([batch.report_length for batch in batches]),
        report_key=report_key,
        patient_key=patient_key,
        has_text=has_text,
        has_report=has_report,
        image_count=gathered([batch.images.count(pad) for batch in batches]),
        negatives=negatives,
        usable=usable,
        parts=len(batches) * world_size(),
        statements=_gathered_statements(batches, embeddings, gathered),
    )


def _gathered_statements(
    batches: Sequence[StudyBatch],
    embeddings: Sequence[Embeddings],
    gathered: Callable[[Sequence[Tensor]], Tensor],
) -> GlobalStatements | None:
    parts = [batch.statements for batch in batches if batch.statements is not None]
    if not parts:
        return None
    whole = StatementBatch(**{f.name: gathered([getattr(part, f.name) for part in parts]) for f in fields(parts[0])})
    relation = relations(whole.labels, whole.stated, whole.general)
    contradicting, usable = sample_contradicting(relation, batches[0].negative_seed)
    embedded = [e.statement for e in embeddings if e.statement is not None]
    return GlobalStatements(whole, relation, contradicting, usable, gathered(embedded) if embedded else None)
