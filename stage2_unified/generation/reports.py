"""Report generation: reports of studies after the image-first prefix.

Greedy decoding and sampling run on the static decoding step; beams and the further arguments of ``transformers``'
``generate()`` run through that function.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from medunifier.shared.errors import UserError
from medunifier.stage2_unified.generation.decoding import DecodingStep, decoding_step, round_up
from medunifier.stage2_unified.generation.no_repeats import WINDOW, NoRepeatedWords
from medunifier.stage2_unified.generation.sampling import sample
from medunifier.stage2_unified.model.attention import ATTENTION
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration
from medunifier.stage2_unified.model.processing.report_codec import ReportCodec
from medunifier.stage2_unified.model.sequences import ImageSpans, left_padded
from medunifier.stage2_unified.model.vocabulary import EOS, NEVER_WRITTEN, PAD, SECTIONS

CHECK_EVERY = 16
"""Tokens between two looks at whether all reports are finished: each makes the host wait for the device."""
_TOP_K = 50  # of generate(), where it is not passed


@dataclass(frozen=True)
class ReportSampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: of a report, with its end.
        temperature: 0 = greedy.
        top_k: only the k most probable tokens.
        top_p: only the most probable tokens that together reach p.
        ends: ids that end a report.
    """

    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    ends: tuple[int, ...]

    @classmethod
    def of(
        cls, model: MedUnifierForConditionalGeneration, ends: tuple[int, ...], generate: dict[str, Any]
    ) -> "ReportSampling | None":
        """Return the settings of arguments of ``generate()``; None if they ask for more than a decoding step does."""
        known = {"max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "num_beams"}
        if not set(generate) <= known or None in generate.values():
            return None
        length = generate.get("max_new_tokens", model.config.max_report_tokens + 1)
        temperature = generate.get("temperature", 1.0) if generate.get("do_sample") else 0.0
        top_k, top_p = generate.get("top_k", _TOP_K), generate.get("top_p", 1.0)
        defaults = GenerationConfig.from_model_config(model.config).to_diff_dict()
        supported = (
            generate.get("num_beams", 1) == 1
            and (temperature > 0 or not generate.get("do_sample"))
            and (top_k >= 0 and 0 < top_p <= 1 and length > 0)
            and model.model.config._attn_implementation == ATTENTION
            and (model.generation_config is None or model.generation_config.to_diff_dict() == defaults)
        )
        return cls(length, temperature, top_k or None, top_p if top_p < 1 else None, ends) if supported else None


class ReportStep(DecodingStep):
    """Extend each report by one token; after its end, by ``<pad>``."""

    kind = "text"

    def __init__(
        self,
        model: MedUnifierForConditionalGeneration,
        batch: int,
        columns: int,
        sampling: ReportSampling,
        codec: ReportCodec,
    ) -> None:
        super().__init__(model, batch, batch, columns)
        self.seeds, self.finished = torch.zeros_like(self.token), torch.zeros_like(self.token, dtype=torch.bool)
        self._sampling, self._no_repeats = sampling, _no_repeats(codec, model)
        self._recent = self.token.new_zeros(batch, WINDOW)
        self._pad, self._ends = model.vocabulary[PAD], self.token.new_tensor(sampling.ends)
        self._never = self.token.new_tensor([model.vocabulary[name] for name in NEVER_WRITTEN])

    def state(self) -> list[Tensor]:
        """Return the buffers that a step changes."""
        return [*super().state(), self.finished, self._recent]

    def start(
        self, model: MedUnifierForConditionalGeneration, prompts: tuple[Tensor, Tensor, Tensor], seeds: Tensor
    ) -> None:
        """Encode the prompts, as :func:`left_padded` returns them."""
        self.seeds.copy_(seeds)
        self.finished.zero_()
        recent = prompts[0][:, -WINDOW:]
        self._recent.fill_(self._pad)
        self._recent[:, WINDOW - recent.shape[1] :] = recent
        self.begin(model, *prompts)

    def embed(self, model: MedUnifierForConditionalGeneration) -> Tensor:
        """Return the embeddings of the last tokens."""
        embedded: Tensor = model.get_input_embeddings()(self.token[:, None])
        return embedded

    def choose(self, model: MedUnifierForConditionalGeneration, hidden: Tensor) -> Tensor:
        """Choose the next tokens, without repeated words."""
        settings = self._sampling
        scores = self._no_repeats(self._recent, model.text_logits(hidden).float())
        scores = scores.index_fill(1, self._never, -torch.inf)
        token = sample(scores, self.seeds, self.number, settings.temperature, settings.top_k, settings.top_p)
        token = token.masked_fill(self.finished, self._pad)
        self.finished |= (token[:, None] == self._ends).any(dim=1)
        self._recent.copy_(torch.cat([self._recent[:, 1:], token[:, None]], dim=1))
        return token


@torch.no_grad()
def generate_reports(
    model: MedUnifierForConditionalGeneration,
    codec: ReportCodec,
    images: ImageSpans,
    section: str | None = None,
    **generate: Any,
) -> list[dict[str, str]]:
    """Generate a report for each of B studies, as sections; greedy by default, without immediately repeated words.

    Args:
        model: in eval mode.
        codec: of the model's processor.
        images: of B studies.
        section: generate only this section ("findings", "impression"); needs a model that was trained with
            ``data.section_dropout``.
        generate: arguments of ``transformers``' ``generate()``.

    Raises:
        UserError: for a section that the model was not trained on.
    """
    vocabulary = model.vocabulary
    ids, visible, positions = left_padded(model.sequences.image_first(images))
    prefix_length, ends = ids.shape[1], [EOS]
    if section is not None:
        if section not in codec.sections:
            raise UserError(f"the model writes {' and '.join(codec.sections)}, not {section!r}")
        ids = torch.cat([ids, torch.full_like(ids[:, :1], vocabulary.section(section))], dim=1)
        visible = torch.cat([visible, visible[:, -1:]], dim=1)
        positions = torch.cat([positions, positions[:, -1:] + 1], dim=1)
        ends += [f"<{name}>" for name in SECTIONS]  # the beginning of another section ends this one
    sampling = ReportSampling.of(model, tuple(vocabulary[name] for name in ends), generate)
    if sampling is not None:
        written = _decode(model, codec, (ids, visible, positions), sampling)
        written = torch.cat([ids[:, prefix_length:], written], dim=1)
    else:
        defaults = {
            "max_new_tokens": model.config.max_report_tokens + 1,
            "do_sample": False,
            "logits_processor": LogitsProcessorList([_no_repeats(codec, model)]),
        }
        written = model.generate(
            ids,
            attention_mask=visible.long(),
            suppress_tokens=[vocabulary[name] for name in NEVER_WRITTEN],
            eos_token_id=[vocabulary[name] for name in ends],
            pad_token_id=vocabulary[PAD],
            **{**defaults, **generate},
        )[:, prefix_length:]
    return [codec.decode(sequence) for sequence in written.tolist()]


def _no_repeats(codec: ReportCodec, model: MedUnifierForConditionalGeneration) -> NoRepeatedWords:
    return NoRepeatedWords(*(table.to(model.device) for table in codec.word_table))


def _decode(
    model: MedUnifierForConditionalGeneration,
    codec: ReportCodec,
    prompts: tuple[Tensor, Tensor, Tensor],
    sampling: ReportSampling,
) -> Tensor:
    """Return (B, T) ids after the prompts, ``<pad>`` after the end of each."""
    batch, width = prompts[0].shape
    columns = round_up(width + sampling.max_new_tokens)
    # From the generator that generate() uses; the tokens of a report then depend on its own seed.
    seeds = torch.randint(2**62, (batch,)) if sampling.temperature else torch.zeros(batch, dtype=torch.long)
    key = ReportStep, batch, columns, sampling, codec
    with decoding_step(model, key, lambda: ReportStep(model, batch, columns, sampling, codec)) as step:
        step.start(model, prompts, seeds)
        left = sampling.max_new_tokens - 1
        while left > 0 and not bool(step.finished.all()):
            step.advance(model, min(left, CHECK_EVERY))
            left -= CHECK_EVERY
        return step.ids[:, width : width + sampling.max_new_tokens - max(left, 0)].clone()
