"""Image generation: sample exactly N codes after a report, with classifier-free guidance as pairs in one batch.

Guidance (Ho and Salimans, 2022): each image has a second sequence with ``<uncond>`` in place of the report, and
``logits = unconditional + guidance x (conditional - unconditional)``. Several images of a study are generated one
after the other; images of the prior study precede both sequences of a pair.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from medunifier.stage2_unified.generation.decoding import DecodingStep, decoding_step, round_up
from medunifier.stage2_unified.generation.sampling import sample
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration
from medunifier.stage2_unified.model.sequences import ImageSpans, left_padded
from medunifier.stage2_unified.model.vocabulary import PAD, UNCOND


@dataclass(frozen=True)
class ImageSampling:
    """How codes are chosen.

    Attributes:
        guidance: 1 = none; more strengthens the effect of the report.
        temperature: 0 = the most probable code.
        top_k: only the k most probable codes.
        top_p: only the most probable codes that together reach p.
    """

    guidance: float = 2.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None


class ImageStep(DecodingStep):
    """Extend each image by one code."""

    kind = "generated"

    def __init__(
        self, model: MedUnifierForConditionalGeneration, batch: int, columns: int, sampling: ImageSampling
    ) -> None:
        super().__init__(model, batch, batch * 2 if sampling.guidance != 1.0 else batch, columns)
        self.seeds, self._sampling = torch.zeros_like(self.token), sampling
        table = model.get_input_embeddings().weight
        self._table = table.new_empty(model.config.codebook_size, table.shape[1])  # (K, H)

    def start(
        self,
        model: MedUnifierForConditionalGeneration,
        prompts: tuple[Tensor, Tensor, Tensor],
        seeds: Tensor,
        number: int,
    ) -> None:
        """Encode the prompts, as :func:`left_padded` returns them; ``number`` is that of the first code."""
        self._table.copy_(model.embed_codes(torch.arange(len(self._table), device=self._table.device)))
        self.seeds.copy_(seeds)
        self.begin(model, *prompts, number=number)

    def embed(self, model: MedUnifierForConditionalGeneration) -> Tensor:
        """Return the embeddings of the last codes, for both sequences of a pair."""
        token = self.token if self._sampling.guidance == 1.0 else self.token.repeat(2)
        return self._table[token[:, None]]

    def choose(self, model: MedUnifierForConditionalGeneration, hidden: Tensor) -> Tensor:
        """Sample the next codes."""
        settings = self._sampling
        logits = model.image_logits(hidden).float()
        if settings.guidance != 1.0:
            conditional, unconditioned = logits.chunk(2)
            logits = unconditioned + settings.guidance * (conditional - unconditioned)
        return sample(logits, self.seeds, self.number, settings.temperature, settings.top_k, settings.top_p)


@torch.no_grad()
def generate_images(
    model: MedUnifierForConditionalGeneration,
    report: Tensor,
    report_length: Tensor,
    view: Tensor,
    seeds: Tensor,
    guidance: float = 2.0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    prior_codes: Tensor | None = None,
    prior_view: Tensor | None = None,
) -> Tensor:
    """Generate the image codes of B studies.

    Args:
        model: in eval mode.
        report: (B, T) report ids padded on the right.
        report_length: (B,).
        view: (B,) view ids; or (B, S) for several images, ``<pad>`` after the others where a study has fewer.
        seeds: (B,) integers; a study's codes depend on its own seed, not on the batch.
        guidance: 1 = none; more strengthens the effect of the report.
        temperature: 0 = the most probable code.
        top_k: only the k most probable codes.
        top_p: only the most probable codes that together reach p.
        prior_codes, prior_view: (B, P, N), (B, P) images of the prior study, padded likewise.

    Returns:
        (B, N) codes in [0, K); (B, S, N) for several images, 0 where there is none.
    """
    sampling = ImageSampling(guidance, temperature, top_k, top_p)
    views = view.view(len(view), -1)
    generated = views.new_zeros(*views.shape, model.config.image_tokens)
    for number in range(views.shape[1]):
        studies = (views[:, number] != model.vocabulary[PAD]).nonzero()[:, 0]
        images = ImageSpans(generated[studies, :number], views[studies, :number])
        if prior_codes is not None and prior_view is not None:
            images = ImageSpans.of(images.codes, images.view, prior_codes[studies], prior_view[studies])
        generated[studies, number] = _generate_next(
            model, report[studies], report_length[studies], images, views[studies, number],
            seeds.to(view.device)[studies], sampling, first=number * generated.shape[-1],
        )  # fmt: skip
    return generated[:, 0] if view.dim() == 1 else generated


def _generate_next(
    model: MedUnifierForConditionalGeneration,
    report: Tensor,
    report_length: Tensor,
    images: ImageSpans,
    view: Tensor,
    seeds: Tensor,
    sampling: ImageSampling,
    first: int,
) -> Tensor:
    """Return (B, N) codes of one more image after ``images``, the study's codes from number ``first`` on."""
    batch, tokens = len(view), model.config.image_tokens
    if sampling.guidance != 1.0:
        unconditional = torch.full_like(report, model.vocabulary[PAD])
        unconditional[:, 0] = model.vocabulary[UNCOND]
        report = torch.cat([report, unconditional])
        report_length = torch.cat([report_length, torch.ones_like(report_length)])
        view, images = view.repeat(2), images.doubled()
    prompts = left_padded(model.sequences.text_first(report, report_length, images, view)[0])
    width = prompts[0].shape[1]
    columns = round_up(width + tokens)
    key = ImageStep, batch, columns, sampling
    with decoding_step(model, key, lambda: ImageStep(model, batch, columns, sampling)) as step:
        step.start(model, prompts, seeds, first)
        step.advance(model, tokens - 1)
        return step.ids[:, width : width + tokens].clone()
