"""Image generation: sample exactly N codes after a report, with classifier-free guidance as pairs in one batch.

Guidance (Ho and Salimans, 2022): each image has a second sequence with ``<uncond>`` in place of the report, and
``logits = unconditional + guidance x (conditional - unconditional)``. The length is known before the first code, so
the KV cache and the mask are allocated once. Several images of a study are generated one after the other; images of
the prior study precede both sequences of a pair.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from medunifier.stage2_unified.model.attention_mask import for_attention
from medunifier.stage2_unified.model.counter_random import gumbel
from medunifier.stage2_unified.model.kv_cache import CACHE, PreallocatedCache
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration
from medunifier.stage2_unified.model.sequences import ImageSpans, left_padded
from medunifier.stage2_unified.model.vocabulary import PAD, UNCOND


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
    views = view.view(len(view), -1)
    generated = views.new_zeros(*views.shape, model.config.image_tokens)
    for number in range(views.shape[1]):
        studies = (views[:, number] != model.vocabulary[PAD]).nonzero()[:, 0]
        images = ImageSpans(generated[studies, :number], views[studies, :number], unpadded=True)
        if prior_codes is not None and prior_view is not None:
            images = ImageSpans.of(images.codes, images.view, prior_codes[studies], prior_view[studies])
        sample = partial(
            _sample, first=number * generated.shape[-1], temperature=temperature, top_k=top_k, top_p=top_p
        )
        generated[studies, number] = _generate_next(
            model, report[studies], report_length[studies], images, views[studies, number],
            seeds.to(view.device)[studies], guidance, sample,
        )  # fmt: skip
    return generated[:, 0] if view.dim() == 1 else generated


def _generate_next(
    model: MedUnifierForConditionalGeneration,
    report: Tensor,
    report_length: Tensor,
    images: ImageSpans,
    view: Tensor,
    seeds: Tensor,
    guidance: float,
    sample: Callable[[Tensor, Tensor, int], Tensor],
) -> Tensor:
    """Return (B, N) codes of one more image after ``images``; ``sample`` takes (B, K) logits, seeds, a number."""
    guided = guidance != 1.0
    if guided:
        unconditional = torch.full_like(report, model.vocabulary[PAD])
        unconditional[:, 0] = model.vocabulary[UNCOND]
        report = torch.cat([report, unconditional])
        report_length = torch.cat([report_length, torch.ones_like(report_length)])
        view, images = view.repeat(2), images.doubled()
    tokens = model.config.image_tokens
    prompt, visible, position_ids = left_padded(model.sequences.text_first(report, report_length, images, view)[0])
    width = prompt.shape[1]
    cache = PreallocatedCache(model.config.text_config.num_hidden_layers, width + tokens)
    # The prompt is causal and masks its padding (a pad attends to itself, since a softmax over no key is NaN); a code
    # attends to every column but the padding's.
    causal = torch.ones(width, width, dtype=torch.bool, device=prompt.device).tril()
    diagonal = torch.eye(width, dtype=torch.bool, device=prompt.device)
    mask = (causal & (visible[:, None] | diagonal))[:, None]
    visible = torch.cat([visible, visible.new_ones(len(visible), tokens)], dim=1)[:, None, None]
    table = model.embed_codes(torch.arange(model.config.codebook_size, device=prompt.device))  # (K, H)
    embedded, generated = model.embed_ids(prompt), []
    for number in range(tokens):
        output = model.model(
            inputs_embeds=embedded,
            attention_mask=for_attention(mask, model.model, embedded.dtype),
            position_ids=position_ids,
            use_cache=True,
            **{CACHE: cache},
        )
        logits = model.image_logits(output.last_hidden_state[:, -1]).float()
        if guided:
            conditional, unconditioned = logits.chunk(2)
            logits = unconditioned + guidance * (conditional - unconditioned)
        codes = sample(logits, seeds, number)
        generated.append(codes)
        embedded = table[codes.repeat(2) if guided else codes][:, None].to(embedded.dtype)
        mask = visible[..., : width + number + 1]
        position_ids = position_ids[:, -1:] + 1
    return torch.stack(generated, dim=1)


def _sample(
    logits: Tensor,
    seeds: Tensor,
    number: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    first: int = 0,
) -> Tensor:
    """(B, K) logits -> (B,) codes: code ``number`` of an image whose first code is the study's ``first``."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits / temperature
    if top_k is not None:
        smallest = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    if top_p is not None:
        ordered, order = logits.sort(dim=-1, descending=True)
        higher = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
        logits = logits.scatter(1, order, ordered.masked_fill(higher >= top_p, float("-inf")))
    return (logits + gumbel(seeds, first + number, logits.shape[-1])).argmax(dim=-1)
