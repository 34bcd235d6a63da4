"""Drawing a radiograph: exactly N codes after a report, with guidance as paired rows in one batch.

Classifier-free guidance (Ho and Salimans, 2022): each radiograph has a second row that reads ``<uncond>`` in
place of the report, and ``logits = without + guidance x (with - without)``. The length is known before the first
code, so keys and values have their place from the start, and so has the mask. Of a study of several images each is
drawn after those before it; images of an earlier visit are given to both rows of the pair.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stage2_unified.caches import CACHE, PreallocatedCache
from stage2_unified.rows import Spans, left_padded
from stage2_unified.vocabulary import PAD, UNCOND

if TYPE_CHECKING:
    from stage2_unified.model import MedUnifierForConditionalGeneration


@torch.no_grad()
def generate_images(
    model: "MedUnifierForConditionalGeneration",
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
    """Draw the radiographs of one study a row.

    Args:
        model: in eval mode.
        report: (B, T) report ids padded on the right.
        report_length: (B,).
        view: (B,) view ids; or (B, S) for several images, ``<pad>`` behind the others where a study has fewer.
        seeds: (B,) integers; a row's codes depend on its own seed, not on the batch it is in.
        guidance: 1 = the report as it is; more exaggerates it.
        temperature: 0 takes the most probable code.
        top_k: only the k most probable codes.
        top_p: only the most probable codes that together reach p.
        prior_codes, prior_view: (B, P, N), (B, P) images of the visit before, likewise; what is drawn follows them.

    Returns:
        (B, N) codes in [0, K); (B, S, N) for several images, 0 where there is none.
    """
    views = view.view(len(view), -1)
    drawn = views.new_zeros(*views.shape, model.config.image_tokens)
    for number in range(views.shape[1]):
        some = (views[:, number] != model.vocabulary[PAD]).nonzero()[:, 0]
        before = Spans(drawn[some, :number], views[some, :number], even=True)
        if prior_codes is not None and prior_view is not None:
            before = Spans.of(before.codes, before.view, prior_codes[some], prior_view[some])
        choose = partial(_draw, first=number * drawn.shape[-1], temperature=temperature, top_k=top_k, top_p=top_p)
        drawn[some, number] = _draw_next(
            model, report[some], report_length[some], before, views[some, number], seeds.to(view.device)[some],
            guidance, choose,
        )  # fmt: skip
    return drawn[:, 0] if view.dim() == 1 else drawn


def _draw_next(
    model: "MedUnifierForConditionalGeneration",
    report: Tensor,
    report_length: Tensor,
    before: Spans,
    view: Tensor,
    seeds: Tensor,
    guidance: float,
    draw: Callable[[Tensor, Tensor, int], Tensor],
) -> Tensor:
    """(B, N) codes of one more image behind those ``before``; ``draw`` takes (B, K) logits, seeds, a number."""
    paired = guidance != 1.0
    if paired:
        unconditional = torch.full_like(report, model.vocabulary[PAD])
        unconditional[:, 0] = model.vocabulary[UNCOND]
        report = torch.cat([report, unconditional])
        report_length = torch.cat([report_length, torch.ones_like(report_length)])
        view, before = view.repeat(2), before.twice()
    tokens = model.config.image_tokens
    prompt, visible, position_ids = left_padded(model.rows.text_first(report, report_length, before, view)[0])
    width = prompt.shape[1]
    cache = PreallocatedCache(model.config.text_config.num_hidden_layers, width + tokens)
    # Within the prompt causal and without the padding (which sees itself: no softmax over nothing); a code sees
    # every column but the padding's.
    causal = torch.ones(width, width, dtype=torch.bool, device=prompt.device).tril()
    itself = torch.eye(width, dtype=torch.bool, device=prompt.device)
    mask = (causal & (visible[:, None] | itself))[:, None]
    visible = torch.cat([visible, visible.new_ones(len(visible), tokens)], dim=1)[:, None, None]
    table = model.embed_codes(torch.arange(model.config.codes, device=prompt.device))  # (K, H), each once
    embedded, drawn = model.embed_ids(prompt), []
    for number in range(tokens):
        output = model.model(
            inputs_embeds=embedded,
            attention_mask=mask,
            position_ids=position_ids,
            use_cache=True,
            **{CACHE: cache},
        )
        logits = model.image_logits(output.last_hidden_state[:, -1]).float()
        if paired:
            conditional, unconditioned = logits.chunk(2)
            logits = unconditioned + guidance * (conditional - unconditioned)
        codes = draw(logits, seeds, number)
        drawn.append(codes)
        embedded = table[codes.repeat(2) if paired else codes][:, None].to(embedded.dtype)
        mask = visible[..., : width + number + 1]
        position_ids = position_ids[:, -1:] + 1
    return torch.stack(drawn, dim=1)


def _draw(
    logits: Tensor,
    seeds: Tensor,
    number: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    first: int = 0,
) -> Tensor:
    """(B, K) logits -> (B,) codes: code ``number`` of an image whose first is the study's ``first``."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits / temperature
    if top_k is not None:
        smallest = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    if top_p is not None:
        ordered, order = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
        logits = logits.scatter(1, order, ordered.masked_fill(before >= top_p, float("-inf")))
    gumbel = -(-_uniform(seeds, first + number, logits.shape[-1]).log()).log()  # argmax of logits + Gumbel = a draw
    return (logits + gumbel).argmax(dim=-1)


def _uniform(seeds: Tensor, number: int, count: int) -> Tensor:
    """(B,) seeds -> (B, count) numbers in (0, 1), a function of (seed, number, place) alone.

    SplitMix64 (Steele et al., 2014) of a counter: no generator a row, and the same on every device.
    """
    place = torch.arange(count, device=seeds.device) + number * count
    state = _mix(seeds.long()[:, None] * _GOLDEN) + place * _GOLDEN
    return ((_mix(state) >> 40 & 0x7FFFFF).float() + 0.5) / 2**23


_GOLDEN = -0x61C8864680B583EB  # 2^64 over the golden ratio, as a signed integer; so are the two below


def _mix(state: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, whose products wrap around; its shifts are logical, ours are made so."""
    state = (state ^ (state >> 30 & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    state = (state ^ (state >> 27 & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return state ^ (state >> 31 & 0x1FFFFFFFF)
