"""Drawing a radiograph: exactly N codes after a report, with guidance as paired rows in one batch.

Classifier-free guidance (Ho and Salimans, 2022): each radiograph has a second row that reads ``<uncond>`` in
place of the report, and ``logits = without + guidance x (with - without)``.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stage2_unified.vocabulary import UNCOND

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
) -> Tensor:
    """Draw one radiograph a row.

    Args:
        model: in eval mode.
        report: (B, T) report ids padded on the right.
        report_length: (B,).
        view: (B,) view ids.
        seeds: (B,) integers; a row's codes depend on its own seed, not on the batch it is in.
        guidance: 1 = the report as it is; more exaggerates it.
        temperature: 0 takes the most probable code.
        top_k: only the k most probable codes.
        top_p: only the most probable codes that together reach p.

    Returns:
        (B, N) codes in [0, K).
    """
    paired = guidance != 1.0
    if paired:
        unconditional = torch.full_like(report, model.vocabulary["<pad>"])
        unconditional[:, 0] = model.vocabulary[UNCOND]
        report = torch.cat([report, unconditional])
        report_length = torch.cat([report_length, torch.ones_like(report_length)])
        view = view.repeat(2)
    prompt, attention_mask, position_ids = _left_padded(
        model.text_row_ids(report, report_length, view), report_length
    )
    generators = [torch.Generator(device="cpu").manual_seed(int(seed)) for seed in seeds]
    embedded, cache, drawn = model.embed_ids(prompt), None, []
    for _ in range(model.config.image_tokens):
        output = model.model(
            inputs_embeds=embedded,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        cache = output.past_key_values
        logits = model.image_logits(output.last_hidden_state[:, -1]).float()
        if paired:
            conditional, unconditioned = logits.chunk(2)
            logits = unconditioned + guidance * (conditional - unconditioned)
        codes = _draw(logits, generators, temperature, top_k, top_p)
        drawn.append(codes)
        rows = codes.repeat(2) if paired else codes
        embedded = model.embed_codes(rows)[:, None].to(embedded.dtype)
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(rows), 1)], dim=1)
        position_ids = position_ids[:, -1:] + 1
    return torch.stack(drawn, dim=1)


def _left_padded(ids: Tensor, report_length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded prompts moved to the right edge, so that all rows draw at the same column."""
    length = report_length + 4  # <bos> … <emb_txt> <view> <boi>
    width = int(length.max())
    shift = (width - length)[:, None]
    columns = torch.arange(width, device=ids.device)[None, :]
    moved = ids.gather(1, (columns - shift).clamp(min=0))
    return moved, (columns >= shift).long(), (columns - shift).clamp(min=0)


def _draw(
    logits: Tensor, generators: list[torch.Generator], temperature: float, top_k: int | None, top_p: float | None
) -> Tensor:
    """(B, K) logits -> (B,) codes, each row by its own generator."""
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
    # Gumbel's trick with noise of each row's own generator: the draw does not depend on the batch.
    noise = torch.stack([torch.rand(logits.shape[-1], generator=generator) for generator in generators])
    gumbel = -(-noise.clamp(min=1e-20).log()).log()
    return (logits + gumbel.to(logits.device)).argmax(dim=-1)
