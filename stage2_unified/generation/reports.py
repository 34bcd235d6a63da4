"""Report generation: reports of studies by ``generate()`` after the image-first prefix."""

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from medunifier.shared.errors import UserError
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration
from medunifier.stage2_unified.model.processing.report_codec import ReportCodec
from medunifier.stage2_unified.model.sequences import ImageSpans, left_padded
from medunifier.stage2_unified.model.vocabulary import EOS, NEVER_WRITTEN, PAD, SECTIONS

LONGEST_REPEAT = 8
"""Tokens of a phrase whose immediate repetition is suppressed; a short sentence fits."""


class NoRepeatedWords(LogitsProcessor):
    """Suppress a word that would repeat the words directly before it ("The The", "right mid right mid").

    On a radiograph unlike the training data the next-word distribution is flat, and the most probable token is then
    often the previous one again; a repeated token makes the next repetition more probable still (Holtzman et al.,
    The Curious Case of Neural Text Degeneration, 2020). Unlike ``no_repeat_ngram_size``, phrases may recur in later
    sentences, as they do in reports ("There is no … There is no …"). Numbers may repeat ("2 x 2 cm").

    Args:
        words: (T,) id of each text token's word, equal for tokens that differ in case; -1 for tokens that are no word
            or punctuation mark.
        starts: (T,) bool, whether the token begins a word.
    """

    def __init__(self, words: Tensor, starts: Tensor) -> None:
        self.words, self.starts = words, starts

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """Return (B, V) scores, -inf for the tokens that would repeat the end of (B, L) ids."""
        size, length = len(self.words), input_ids.shape[1]
        recent = input_ids[:, -2 * LONGEST_REPEAT :].clamp(max=size - 1)
        words = torch.where(input_ids[:, -2 * LONGEST_REPEAT :] < size, self.words[recent], -1)  # (B, ≤ 2 R)
        for count in range(1, min(LONGEST_REPEAT, (length + 1) // 2) + 1):
            span = words[:, words.shape[1] - count :]  # the phrase; the next token would complete its second copy
            before = words[:, words.shape[1] - 2 * count + 1 : words.shape[1] - count]
            repeats = (span[:, 1:] == before).all(dim=1) & (span >= 0).all(dim=1)  # (B,)
            banned = repeats[:, None] & (self.words == span[:, :1]) & self.starts  # (B, T)
            scores[:, :size] = scores[:, :size].masked_fill(banned, -torch.inf)
        return scores


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
    ids, visible, _ = left_padded(model.sequences.image_first(images))
    prefix_length, ends = ids.shape[1], [EOS]
    if section is not None:
        if section not in codec.sections:
            raise UserError(f"the model writes {' and '.join(codec.sections)}, not {section!r}")
        ids = torch.cat([ids, torch.full_like(ids[:, :1], vocabulary.section(section))], dim=1)
        visible = torch.cat([visible, visible[:, -1:]], dim=1)
        ends += [f"<{name}>" for name in SECTIONS]  # the beginning of another section ends this one
    no_repeats = NoRepeatedWords(*(table.to(ids.device) for table in codec.word_table))
    defaults = {
        "max_new_tokens": model.config.max_report_tokens + 1,
        "do_sample": False,
        "logits_processor": LogitsProcessorList([no_repeats]),
    }
    output = model.generate(
        ids,
        attention_mask=visible.long(),
        suppress_tokens=[vocabulary[name] for name in NEVER_WRITTEN],
        eos_token_id=[vocabulary[name] for name in ends],
        pad_token_id=vocabulary[PAD],
        **{**defaults, **generate},
    )
    return [codec.decode(sequence) for sequence in output[:, prefix_length:].tolist()]
