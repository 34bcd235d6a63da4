"""The training step of stage 2: contrast (ITC), matching (ITM), report and image generation in one forward.

The first pass encodes each study in both orders, as 2 B sequences of one width. The image-first one holds the
study's report, so that the image embedding, the report loss and the matched pair come from it; the text-first one
gives the text embedding and the image loss. Negatives are sampled from the embeddings, and the second pass runs them
as branches over the keys and values of the image-first prefixes. Statements, with ``data.statements``, are further
branches of that pass: for matching, one that agrees and one that contradicts continue the prefix; for the contrast,
all of a study continue its ``<bos>`` alone, like a text without an image.

All shapes follow from those of the batch, and nothing is read back from the device: masks and ignored targets take
the place of indices that the host would have to know. Kernels are then launched ahead of the device, and compiled
layers see few shapes.

Shapes: B studies of the micro-batch, G of the step, T report ids, L ids of a sequence, S images of N codes, H hidden,
E embedding, K codes; n statements a study, S of the step.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from medunifier.shared.training.distributed import all_gather
from medunifier.shared.training.loop import TOKENS
from medunifier.stage2_unified.model.modeling import (
    Branches,
    MedUnifierForConditionalGeneration,
    at_last,
    at_positions,
)
from medunifier.stage2_unified.model.vocabulary import EOS, UNCOND
from medunifier.stage2_unified.objectives.balance import shared_gradients
from medunifier.stage2_unified.objectives.contrast import contrastive_loss, contrastive_similarity
from medunifier.stage2_unified.objectives.generation import IGNORED, ChunkLoss, sum_of_chunk, token_loss
from medunifier.stage2_unified.objectives.matching import matching_accuracy, matching_loss
from medunifier.stage2_unified.objectives.statements import statement_contrast
from medunifier.stage2_unified.training.collator import StudyBatch
from medunifier.stage2_unified.training.config import OBJECTIVES, LossWeights
from medunifier.stage2_unified.training.global_batch import Embeddings, GlobalBatch, gather_step

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
        self._sum_of_chunk = sum_of_chunk
        self.register_state_dict_post_hook(_remove_model_prefix)
        self.register_load_state_dict_pre_hook(_add_model_prefix)

    def compile_parts(self) -> None:
        """Compile the decoder's layers, and head and loss of a chunk of tokens. Call it before sharding."""
        self.model.compile_layers()
        self._sum_of_chunk = torch.compile(sum_of_chunk, fullgraph=True, dynamic=False)

    def forward(
        self,
        batch: StudyBatch,
        global_batch: GlobalBatch | None = None,
        embed_only: bool = False,
        counted: Collection[str] = OBJECTIVES,
        factors: Tensor | None = None,
        measure: bool = False,
    ) -> dict[str, Tensor] | Embeddings:
        """Return the losses of a micro-batch; their mean over micro-batches and processes is the step's.

        Args:
            batch: the micro-batch.
            global_batch: all studies of the optimizer step; None if this micro-batch (of every process) is all of it.
            embed_only: return the embeddings alone, for the first pass of a step with several micro-batches.
            counted: objectives in the sum; the others have weight 0.
            factors: (objectives,) on the weights; None = 1.
            measure: also return ``gradients``, (objectives, H, H) of :func:`shared_gradients`.

        Returns:
            ``loss`` to differentiate; ``contrast, matching, report, image, z`` in nats, unweighted;
            ``matching_accuracy`` (balanced, in [0, 1]), ``logit_scale`` (the inverse temperature),
            ``padding_fraction`` in [0, 1] of the ``tokens`` that were computed; with statements also
            ``statement_contrast, statement_report, statement_matching`` and ``statement_matching_accuracy``.
        """
        model, images, scale = self.model, batch.images, self.model.logit_scale.exp()
        text, text_length = self._conditioning_text(batch)  # (B, T), (B,)
        if embed_only:
            return Embeddings(
                model.get_image_features(images),
                model.get_text_features(text, text_length),
                scale.detach(),
                self._statement_features(batch),
            )
        # First pass
        image_prefix = model.sequences.image_first(images)
        image_first = model.sequences.with_report(image_prefix, batch.report, batch.report_length)
        text_first, boi = model.sequences.text_first(text, text_length, images)  # boi: (B, S) positions
        image_states, text_states, prefix = model.encode_both_orders(
            image_prefix, image_first, text_first
        )  # (B, L, H)
        emb_img = image_prefix.length - 1  # (B,) positions
        image_embedding = model.image_embedding(prefix.hidden)  # (B, E)
        text_embedding = model.text_embedding(at_positions(text_states, text_length + 1))  # (B, E)

        if global_batch is None:
            local = Embeddings(image_embedding, text_embedding, scale)
            global_batch = gather_step([batch], [local], self.negative_hardness, self.pad, self._longest)
        every_image = global_batch.with_local(global_batch.image, image_embedding)  # (G, E)
        every_text = global_batch.with_local(global_batch.text, text_embedding)
        similarity = contrastive_similarity(every_image, every_text, scale)  # (G, G)

        # Second pass
        negatives = global_batch.negatives[global_batch.local]  # (B, 2) of the G reports
        lengths = global_batch.report_length[negatives]  # (B, 2)
        groups = [model.match_branches(global_batch.report[negatives], lengths)]
        groups += self._statement_branches(batch, global_batch)
        branches, *of_statements = model.run_branches(prefix, groups)  # (B, 2, T + 2, H)
        at_match = torch.cat([
            at_positions(image_states, emb_img + batch.report_length + 2)[:, None],
            at_positions(branches.flatten(0, 1), lengths.flatten() + 1).unflatten(0, lengths.shape),
        ], dim=1)  # (B, 3, H): the matched report and the negatives  # fmt: skip
        match_logits = model.match_head(at_match, prefix.hidden[:, None].expand_as(at_match))  # (B, 3, 2)
        usable, has_report = global_batch.usable[global_batch.local], batch.has_report  # (B,)

        # <emb_img> predicts the report's first id, its last id <eos>; <boi> predicts c1, c1 predicts c2, and so on.
        report_target = self._report_target(batch)  # (B, T + 1)
        report_at = emb_img[:, None] + torch.arange(report_target.shape[1], device=emb_img.device)
        # The graphs of compiled functions cannot be kept for a second backward pass.
        chunk_loss = sum_of_chunk if measure else self._sum_of_chunk
        report_sum, report_z = _token_loss(image_states, report_at, model.text_head, report_target, chunk_loss)
        code_at = boi[..., None] + torch.arange(images.codes.shape[-1], device=boi.device)  # (B, S, N)
        code_target = images.codes.masked_fill((images.view == self.pad)[..., None], IGNORED)  # (B, S, N)
        image_sum, image_z = _token_loss(text_states, code_at, model.image_head, code_target, chunk_loss)
        image_tokens = global_batch.images * images.codes.shape[-1]

        losses: dict[str, Tensor] = {
            "contrast": contrastive_loss(
                similarity, global_batch.report_key, global_batch.patient_key, global_batch.has_text
            ),
            "matching": matching_loss(match_logits, has_report, usable) / global_batch.matching_pairs,
            "report": report_sum / global_batch.report_tokens,
            "image": image_sum / image_tokens,
            "z": ("report" in counted) * report_z / global_batch.report_tokens
            + ("image" in counted) * image_z / image_tokens,
        }
        computed = image_states[..., 0].numel() + text_states[..., 0].numel() + sum(g.ids.numel() for g in groups)
        needed = image_first.length.sum() + text_first.length.sum() + sum(g.length.sum() for g in groups)
        figures = {
            "matching_accuracy": matching_accuracy(match_logits.detach(), has_report, usable),
            "logit_scale": scale.detach(),
            "padding_fraction": 1 - needed / computed,
            TOKENS: torch.tensor(float(computed)),
        }
        if of_statements:
            states = [at_last(hidden, group) for hidden, group in zip(of_statements, groups[1:], strict=True)]
            more, accuracy = self._statement_losses(
                global_batch, every_image, every_text, prefix.hidden, states, scale
            )
            losses |= more
            figures["statement_matching_accuracy"] = accuracy
        weights: dict[str, float | Tensor] = {
            name: weight * (name in counted or name not in OBJECTIVES) for name, weight in self.weights.items()
        }
        if factors is not None:
            weights |= {name: weights[name] * factor for name, factor in zip(OBJECTIVES, factors, strict=True)}
        loss: Any = sum(weights[name] * value for name, value in losses.items())
        if measure:
            shared = [image_states, text_states, branches]
            losses["gradients"] = shared_gradients([losses[name] for name in OBJECTIVES], shared)
        return {"loss": loss, **losses, **figures}

    def _statement_branches(self, batch: StudyBatch, global_batch: GlobalBatch) -> list[Branches]:
        """Return the branches of the statements to match, agreed and contradicted, and of those to embed, or none."""
        own, every = batch.statements, global_batch.statements
        if own is None or every is None:
            return []
        chosen = every.contradicting[global_batch.local]  # (B,) of the S statements
        text = torch.stack([own.ids[:, 0], every.batch.ids.flatten(0, 1)[chosen]], dim=1)  # (B, 2, W)
        length = torch.stack([own.length[:, 0], every.batch.length.flatten()[chosen]], dim=1)
        return [self.model.match_branches(text, length), self.model.text_branches(own.ids, own.length)]

    def _statement_losses(
        self,
        global_batch: GlobalBatch,
        images: Tensor,
        reports: Tensor,
        prefixes: Tensor,
        states: Sequence[Tensor],
        scale: Tensor,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the losses of the statements, and the balanced accuracy of their matching.

        Args:
            global_batch: with statements.
            images: (G, E) embeddings.
            reports: (G, E) embeddings.
            prefixes: (B, H) hidden states at ``<emb_img>``.
            states: (B, 2, H) and (B, n, H) hidden states of the statements to match, and of those to embed.
            scale: inverse temperature.
        """
        every, local = global_batch.statements, global_batch.local
        assert every is not None  # noqa: S101 - narrows a type
        embedding = self.model.text_embedding(states[1])  # (B, n, E)
        gathered = all_gather(embedding) if every.embedding is None else every.embedding  # (G, n, E)
        texts = global_batch.with_local(gathered, embedding).flatten(0, 1)  # (S, E)
        logits = self.model.match_head(states[0], prefixes[:, None].expand_as(states[0]))  # (B, 2, 2)
        has_own, usable = every.has_own[local], every.usable[local]
        losses = {
            "statement_contrast": statement_contrast(contrastive_similarity(images, texts, scale), every.relation),
            "statement_report": statement_contrast(
                contrastive_similarity(reports, texts, scale), every.relation * global_batch.has_text[:, None]
            ),
            "statement_matching": matching_loss(logits, has_own, usable) / global_batch.statement_pairs,
        }
        return losses, matching_accuracy(logits.detach(), has_own, usable)

    def _statement_features(self, batch: StudyBatch) -> Tensor | None:
        """Return (B, n, E) embeddings of the statements."""
        own = batch.statements
        if own is None:
            return None
        features = self.model.get_text_features(own.ids.flatten(0, 1), own.length.flatten())
        return features.unflatten(0, own.length.shape)

    def call_with_model(self, function: Callable[[MedUnifierForConditionalGeneration], _Result]) -> _Result:
        """Return ``function(model)``; under FSDP2 the model's parameters are gathered for it, as for ``forward``."""
        return function(self.model)

    def _conditioning_text(self, batch: StudyBatch) -> tuple[Tensor, Tensor]:
        """Return (B, T) reports, ``<uncond>`` alone where the text is dropped, and their (B,) lengths."""
        dropped = torch.full_like(batch.report, self.pad)
        dropped[:, 0] = self.model.vocabulary[UNCOND]
        text = torch.where(batch.drop_text[:, None], dropped, batch.report)
        return text, torch.where(batch.drop_text, 1, batch.report_length)

    def _report_target(self, batch: StudyBatch) -> Tensor:
        """Return (B, T + 1) report ids and their ``<eos>``, the padding ignored."""
        target = self.model.sequences.append_specials(batch.report, batch.report_length, EOS)
        return target.masked_fill((target == self.pad) | ~batch.has_report[:, None], IGNORED)

    @property
    def _longest(self) -> int:
        longest: int = self.model.config.max_report_tokens
        return longest


def _token_loss(
    hidden: Tensor, positions: Tensor, head: Tensor, target: Tensor, chunk_loss: ChunkLoss
) -> tuple[Tensor, Tensor]:
    """Return the loss and z sums of ``target`` (B, …), predicted from (B, L, H) at ``positions`` (B, …)."""
    states = at_positions(hidden, positions.flatten(1)).flatten(0, 1)
    return token_loss(states, head, target.flatten(), chunk_loss)


def _remove_model_prefix(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}model.")]:
        state[prefix + name.removeprefix(f"{prefix}model.")] = state.pop(name)


def _add_model_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        state[f"{prefix}model.{name.removeprefix(prefix)}"] = state.pop(name)
