"""What the objectives across studies need: every study of an optimizer step, from all micro-batches and processes.

The contrast of a step is one matrix of all its studies, and negatives are drawn from all of them, however the step
is split. Each part (a micro-batch of a process) computes the whole loss from everybody's embeddings and
differentiates for its own rows alone; the mean over the parts is then the gradient of the one large batch. With
several micro-batches the embeddings come from a first pass without gradient (gradient caching: Gao et al.,
"Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021), so that memory is that of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_right

from shared.distributed import all_gather, all_reduce_max, rank, world_size
from stage2_unified.objectives.contrast import contrastive_similarity
from stage2_unified.objectives.matching import draw_negatives
from stage2_unified.sequences import StudyBatch

_UNEVEN = 1.25  # longest over mean report, above which two passes cost less than the padding of one


@dataclass
class Embeddings:
    """Of the studies of one micro-batch: ``image`` and ``text`` (B, E), and the temperature's inverse ``scale``."""

    image: Tensor
    text: Tensor
    scale: Tensor


@dataclass
class GlobalBatch:
    """The G studies of a step: micro-batch by micro-batch, within it in the order of ranks.

    Attributes:
        image, text: (G, E) unit-norm embeddings, without gradient.
        report, report_length: (G, T), (G,) ids of all reports.
        report_key, patient_key: (G,) as in :class:`StudyBatch`.
        has_text: (G,) bool.
        own_images: (G,) images of each study, without those of an earlier visit.
        negatives, usable: (G, 2), (G,) as drawn by :func:`draw_negatives`.
        parts: micro-batches x processes.
        part: which of this process' micro-batches the losses are asked for.
    """

    image: Tensor
    text: Tensor
    report: Tensor
    report_length: Tensor
    report_key: Tensor
    patient_key: Tensor
    has_text: Tensor
    own_images: Tensor
    negatives: Tensor
    usable: Tensor
    parts: int
    part: int = 0

    @property
    def own(self) -> slice:
        """Rows of this process' micro-batch ``part``."""
        rows = len(self.image) // self.parts
        begin = (self.part * world_size() + rank()) * rows
        return slice(begin, begin + rows)

    def with_own(self, everyone: Tensor, own: Tensor) -> Tensor:
        """``everyone`` (G, E) with this part's rows alive: a gradient flows to them, as large as the mean needs."""
        scaled = own.detach() + self.parts * (own - own.detach())  # the value is `own`, to the last bit
        return torch.cat([everyone[: self.own.start], scaled, everyone[self.own.stop :]])

    def groups(self, lengths: Tensor) -> list[Tensor]:
        """Branches of (b,) ``lengths`` -> their numbers, in one group or the shorter and the longer ones apart.

        Reports differ in length, and each row is padded to the longest beside it. Two passes pay where that is
        much; the lengths of the whole step decide, so that all processes (and FSDP's collectives) do alike.
        """
        order = lengths.argsort(stable=True)
        if self.report_length.max() <= _UNEVEN * self.report_length.float().mean() or len(order) < 2:
            return [order]
        width, count = lengths[order], torch.arange(1, len(order), device=order.device)
        padded = count * width[:-1] + (len(order) - count) * width[-1]
        return list(order.tensor_split([int(padded.argmin()) + 1]))

    @property
    def matching_pairs(self) -> Tensor:
        """Counted pairs of image and report a part, on average: what a part's sum is divided by."""
        return (len(self.usable) + self.negatives.shape[1] * self.usable.sum()) / self.parts

    @property
    def images(self) -> Tensor:
        """Images a part whose codes are learned, on average."""
        return self.own_images.sum() / self.parts

    @property
    def report_tokens(self) -> Tensor:
        """Report ids with their ``<eos>`` a part, on average."""
        return (self.report_length + 1).sum() / self.parts


def gather_step(
    batches: Sequence[StudyBatch], embeddings: Sequence[Embeddings], hardness: float, pad: int
) -> GlobalBatch:
    """Gather a step's studies from all processes and draw its negatives, the same on each.

    Args:
        batches: this process' micro-batches, all of one size.
        embeddings: theirs.
        hardness: scale on the similarities that negatives are drawn by.
        pad: id that reports are padded with.
    """
    longest = torch.tensor(max(batch.report.shape[1] for batch in batches), device=batches[0].report.device)
    width = int(all_reduce_max(longest))

    def everyone(values: Sequence[Tensor]) -> Tensor:
        return torch.cat([all_gather(value) for value in values])

    image, text = everyone([e.image for e in embeddings]), everyone([e.text for e in embeddings])
    keys, patients = everyone([b.report_key for b in batches]), everyone([b.patient_key for b in batches])
    has_text = everyone([~batch.drop_text for batch in batches])
    another = (keys[:, None] != keys[None, :]) & (patients[:, None] != patients[None, :])
    similarity = contrastive_similarity(image, text, embeddings[0].scale.detach())
    negatives, usable = draw_negatives(similarity * hardness, another & has_text[None, :], batches[0].draw_seed)
    return GlobalBatch(
        image=image,
        text=text,
        report=everyone([pad_right(b.report, (0, width - b.report.shape[1]), value=pad) for b in batches]),
        report_length=everyone([batch.report_length for batch in batches]),
        report_key=keys,
        patient_key=patients,
        has_text=has_text,
        own_images=everyone([batch.own_images(pad) for batch in batches]),
        negatives=negatives.to(image.device),
        usable=usable.to(image.device),
        parts=len(batches) * world_size(),
    )
