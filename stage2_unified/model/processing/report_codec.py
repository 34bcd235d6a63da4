"""Encode reports as ids and decode them: ``<findings> text <impression> text``, without absent sections."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from medunifier.shared.errors import UserError
from medunifier.stage2_unified.model.vocabulary import EOS, SECTIONS, Vocabulary


class ReportCodec:
    """Convert reports to ids and back.

    Args:
        tokenizer: text tokenizer.
        vocabulary: of the model.
        sections: which sections are encoded, in this order; a report without any of them is empty.
        max_tokens: longer reports are truncated to this many ids.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, sections: Sequence[str], max_tokens: int
    ) -> None:
        self.tokenizer, self.vocabulary = tokenizer, vocabulary
        self.sections, self.max_tokens = tuple(sections), max_tokens

    @cached_property
    def word_table(self) -> tuple[Tensor, Tensor]:
        """(T,) word id of each text token and (T,) bool whether it begins a word.

        Tokens that differ in case have the same word id; tokens with digits or other signs than . , ; : have -1. A
        token begins a word if it carries the space before it (GPT-2's ``Ġ``, SentencePiece's ``▁``).
        """
        tokens = [str(token) for token in self.tokenizer.convert_ids_to_tokens(range(self.vocabulary.text_size))]
        texts = [token.lstrip("Ġ▁").lower() for token in tokens]
        known = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        words = [known[text] if text.isalpha() or text in (".", ",", ";", ":") else -1 for text in texts]
        starts = [token[:1] in ("Ġ", "▁") and text.isalpha() for token, text in zip(tokens, texts, strict=True)]
        return torch.tensor(words), torch.tensor(starts)

    def encode(self, report: Mapping[str, str]) -> list[int]:
        """Return the ids of ``{"findings": …, "impression": …}``; an absent or empty section is left out."""
        ids: list[int] = []
        for section in self.sections:
            text = report.get(section, "").strip()
            if text:
                ids.append(self.vocabulary.section(section))
                ids += self.tokenizer.encode(text, add_special_tokens=False)
        return ids[: self.max_tokens]

    def decode(self, ids: Sequence[int]) -> dict[str, str]:
        """Return the sections of ids up to ``<eos>``; text before any section token counts as findings."""
        ids_of: dict[str, list[int]] = {section: [] for section in SECTIONS}
        section_tokens = {self.vocabulary.section(section): section for section in SECTIONS}
        current = SECTIONS[0]
        for token in ids:
            if token == self.vocabulary[EOS]:
                break
            if token in section_tokens:
                current = section_tokens[token]
            elif token < self.vocabulary.text_size:
                ids_of[current].append(token)
        return {section: self.tokenizer.decode(text_ids).strip() for section, text_ids in ids_of.items()}


def sections_of(text_choice: str) -> tuple[str, ...]:
    """Return ("findings", "impression") for ``findings+impression``.

    Raises:
        UserError: for an unknown section.
    """
    sections = tuple(text_choice.split("+"))
    if not set(sections) <= set(SECTIONS):
        raise UserError(f"unknown text choice {text_choice!r}: use findings, impression or findings+impression")
    return sections


def pad_reports(reports: Sequence[Sequence[int]], pad: int, widths: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """Return lists of ids as (B, T), padded on the right, and their (B,) lengths.

    T is the first of the ascending ``widths`` that holds the longest list, or its length if none does.
    """
    length = torch.tensor([len(ids) for ids in reports])
    longest = max(1, int(length.max()))
    width = next((width for width in widths if width >= longest), longest)
    padded = torch.full((len(reports), width), pad, dtype=torch.long)
    for number, ids in enumerate(reports):
        padded[number, : len(ids)] = torch.tensor(ids, dtype=torch.long)
    return padded, length


def normalise_report(text: str) -> str:
    """Return the letters and digits in lower case: equal for reports that count as the same."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))
