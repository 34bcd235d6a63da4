"""The training step of stage 2: contrast (ITC), matching (ITM), report and image generation in one forward.

Each study is encoded in two sequences. The image-first prefix gives the image embedding, and three branches continue
it from its keys and values: the study's report and two hard negatives. The text-first sequence gives the text
embedding and, after it, the image loss. Shapes: B studies of the micro-batch, G of the step, T report ids, L ids of a
sequence, S images of N codes, H hidden, E embedding, K codes.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from medunifier.shared.training.loop import TOKENS
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration, Prefix, at_positions
from medunifier.stage2_unified.model.sequences import ImageSpans
from medunifier.stage2_unified.model.vocabulary import EOS, UNCOND
from medunifier.stage2_unified.objectives.contrast import contrastive_loss, contrastive_similarity
from medunifier.stage2_unified.objectives.generation import token_loss
from medunifier.stage2_unified.objectives.matching import NEGATIVES, matching_accuracy, matching_loss
from medunifier.stage2_unified.training.collator import StudyBatch
from medunifier.stage2_unified.training.config import LossWeights
from medunifier.stage2_unified.training.global_batch import Embeddings, GlobalBatch, gather_step

_BRANCHES = 1 + NEGATIVES
_Result = TypeVar("_Result")


class FourObjectives(nn.Module):
    """The losses of a model as one ``forward``: what Accelerate prepares, so that DDP and FSDP2 see one call.

    Its state dict has the names of the model's own, so that a checkpoint's ``model.safetensors`` is the model.

    Args:
        model: the model to train.
        weights: of the losses in their sum.
        negative_hardness: scale on the similarities by which hard negatives are sampled.
    """

    def __init__(
        self, model: MedUnifierForConditionalGeneration, weights: LossWeights, negative_hardness: float = 1.0
    ) -> None:
        super().__init__()
        self.model, self.weights, self.negative_hardness = model, asdict(weights), negative_hardness
        self.pad = model.sequences.pad
        self.register_state_dict_post_hook(_remove_model_prefix)
        self.register_load_state_dict_pre_hook(_add_model_prefix)

    def forward(
        self, batch: StudyBatch, global_batch: GlobalBatch | None = None, embed_only: bool = False
    ) -> dict[str, Tensor] | Embeddings:
        """Return the losses of a micro-batch; their mean over micro-batches and processes is the step's.

        Args:
            batch: the micro-batch.
            global_batch: all studies of the optimizer step; None if this micro-batch (of every process) is all of it.
            embed_only: return the embeddings alone, for the first pass of a step with several micro-batches.

        Returns:
            ``loss`` to differentiate; ``contrast, matching, report, image, z`` in nats, unweighted;
            ``matching_accuracy`` (balanced, in [0, 1]), ``logit_scale`` (the inverse temperature),
            ``padding_fraction`` in [0, 1] of the ``tokens`` that were computed.
        """
        if embed_only:
            return self._embed(batch)
        model, images, scale = self.model, batch.images, self.model.logit_scale.exp()
        prefix = model.encode_images(images)  # hidden (B, H) at <emb_img>
        image_embedding = model.image_embedding(prefix.hidden)  # (B, E)

        text, text_length = self._conditioning_text(batch)  # (B, T), (B,)
        sequences, boi = model.sequences.text_first(text, text_length, images)  # ids (B, L), positions (B, S)
        # The last code and the <eoi> after it predict nothing.
        text_first = model.encode_text_first(sequences.ids[:, :-2])  # (B, L - 2, H)
        text_embedding = model.text_embedding(at_positions(text_first, text_length + 1))  # (B, E)

        if global_batch is None:
            local = Embeddings(image_embedding, text_embedding, scale)
            global_batch = gather_step([batch], [local], self.negative_hardness, self.pad)
        similarity = contrastive_similarity(
            global_batch.with_local(global_batch.image, image_embedding),
            global_batch.with_local(global_batch.text, text_embedding),
            scale,
        )  # (G, G)

        branches = self._encode_branches(prefix, global_batch)  # 3 B hidden states (T + 2, H), in one or two groups
        at_match = branches.at_match()  # (B, 3, H)
        match_logits = model.match_head(at_match, prefix.hidden[:, None].expand_as(at_match))  # (B, 3, 2)
        usable = global_batch.usable[global_batch.local]  # (B,)

        report_sum, report_z = token_loss(*self._report_tokens(prefix, branches, batch))
        image_sum, image_z = token_loss(*self._image_tokens(text_first, boi, images))
        image_tokens = global_batch.images * images.codes.shape[-1]

        losses = {
            "contrast": contrastive_loss(
                similarity, global_batch.report_key, global_batch.patient_key, global_batch.has_text
            ),
            "matching": matching_loss(match_logits, usable) / global_batch.matching_pairs,
            "report": report_sum / global_batch.report_tokens,
            "image": image_sum / image_tokens,
            "z": report_z / global_batch.report_tokens + image_z / image_tokens,
        }
        loss = sum(self.weights[name] * value for name, value in losses.items())

        computed = prefix.sequences.ids.numel() + text_first[..., 0].numel() + branches.computed_tokens
        assert sequences.length is not None  # never of text-first sequences  # noqa: S101 - narrows a type
        needed = prefix.sequences.real_tokens + (sequences.length - 2).sum() + (branches.lengths + 2).sum()
        figures = {
            "matching_accuracy": matching_accuracy(match_logits.detach(), usable),
            "logit_scale": scale.detach(),
            "padding_fraction": 1 - needed / computed,
            TOKENS: torch.tensor(float(computed)),
        }
        return {"loss": loss, **losses, **figures}

    def call_with_model(self, function: Callable[[MedUnifierForConditionalGeneration], _Result]) -> _Result:
        """Return ``function(model)``; under FSDP2 the model's parameters are gathered for it, as for ``forward``."""
        return function(self.model)

    def _embed(self, batch: StudyBatch) -> Embeddings:
        text, text_length = self._conditioning_text(batch)
        image = self.model.get_image_features(batch.images)
        return Embeddings(image, self.model.get_text_features(text, text_length), self.model.logit_scale.exp())

    def _conditioning_text(self, batch: StudyBatch) -> tuple[Tensor, Tensor]:
        """Return (B, T) reports, ``<uncond>`` alone where the text is dropped, and their (B,) lengths."""
        dropped = torch.full_like(batch.report, self.pad)
        dropped[:, 0] = self.model.vocabulary[UNCOND]
        text = torch.where(batch.drop_text[:, None], dropped, batch.report)
        return text, torch.where(batch.drop_text, 1, batch.report_length)

    def _encode_branches(self, prefix: Prefix, global_batch: GlobalBatch) -> "_Branches":
        """Run ``report <eos> <match>`` after the prefixes, for each study's report and its negatives."""
        studies = torch.arange(
            global_batch.local.start, global_batch.local.stop, device=global_batch.negatives.device
        )
        chosen = torch.cat(
            [studies[:, None], global_batch.negatives[global_batch.local]], dim=1
        ).flatten()  # (3 B,) of the G reports
        reports, lengths = global_batch.report[chosen], global_batch.report_length[chosen]
        groups = [torch.arange(len(chosen), device=chosen.device)]
        width = int(lengths.max())
        hidden = self.model.continue_prefix(
            prefix, reports[:, :width].unflatten(0, (-1, _BRANCHES)), lengths.view(-1, _BRANCHES)
        )
        hidden = [hidden.flatten(0, 1)]
        return _Branches(groups, hidden, lengths)

    def _report_tokens(self, prefix: Prefix, branches: "_Branches", batch: StudyBatch) -> tuple[Tensor, Tensor]:
        """Return (M, V) logits and (M,) targets of all report ids and their ``<eos>``.

        ``<emb_img>`` predicts the first id, the last id ``<eos>``.
        """
        target = self.model.sequences.append_specials(batch.report, batch.report_length, EOS)  # (B, T + 1)
        states, targets = [prefix.hidden], [target[:, 0]]
        for studies, hidden in branches.matched():
            width = min(hidden.shape[1] - 2, batch.report.shape[1])  # negatives of other processes may be longer
            real = torch.arange(width, device=studies.device) < batch.report_length[studies][:, None]
            states.append(hidden[:, :width][real])
            targets.append(target[studies, 1 : width + 1][real])
        return self.model.text_logits(torch.cat(states)), torch.cat(targets)

    def _image_tokens(self, hidden: Tensor, boi: Tensor, images: ImageSpans) -> tuple[Tensor, Tensor]:
        """Return (M, K) logits and (M,) targets of all codes of the studies' images, without those of a prior.

        Args:
            hidden: (B, L, H) of the text-first sequences.
            boi: (B, S) positions of ``<boi>``, which predicts c1; c1 predicts c2, and so on.
            images: the targets.
        """
        positions = boi[..., None] + torch.arange(images.codes.shape[-1], device=boi.device)  # (B, S, N)
        target, present = images.codes, self.model.sequences.present(images)
        if present is None:
            states = at_positions(hidden, positions.flatten(1)).flatten(0, 1)
        else:
            target = target[present]
            states = hidden[present.nonzero()[:, :1], positions[present]].flatten(0, 1)
        return self.model.image_logits(states), target.flatten()


@dataclass
class _Branches:
    """Hidden states of 3 B branches. Number 3 i is the report of study i, 3 i + 1 and 3 i + 2 are its negatives.

    Attributes:
        groups: numbers (b,) of the branches of each group.
        hidden: (b, T + 2, H) of each group.
        lengths: (3 B,) report ids by number.
    """

    groups: list[Tensor]
    hidden: list[Tensor]
    lengths: Tensor

    @property
    def computed_tokens(self) -> int:
        """Tokens of all groups, with padding."""
        return sum(hidden[..., 0].numel() for hidden in self.hidden)

    def at_match(self) -> Tensor:
        """Return (B, 3, H) at ``<match>``, in the order of the numbers."""
        states = [
            at_positions(hidden, self.lengths[group] + 1)
            for hidden, group in zip(self.hidden, self.groups, strict=True)
        ]
        ordered = torch.cat(states)[torch.cat(self.groups).argsort()]
        return ordered.view(len(ordered) // _BRANCHES, _BRANCHES, -1)

    def matched(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the studies (b,) of each group's matched reports and their hidden states (b, T + 2, H)."""
        for group, hidden in zip(self.groups, self.hidden, strict=True):
            is_matched = group % _BRANCHES == 0
            yield group[is_matched] // _BRANCHES, hidden[is_matched]


def _remove_model_prefix(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}model.")]:
        state[prefix + name.removeprefix(f"{prefix}model.")] = state.pop(name)


def _add_model_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        state[f"{prefix}model.{name.removeprefix(prefix)}"] = state.pop(name)
