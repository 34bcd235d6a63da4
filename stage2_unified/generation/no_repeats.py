"""Suppress words that would repeat the words directly before them."""

import torch
from torch import Tensor
from transformers import LogitsProcessor

LONGEST_REPEAT = 8
"""Tokens of a phrase whose immediate repetition is suppressed; a short sentence fits."""
WINDOW = 2 * LONGEST_REPEAT
"""Recent ids that decide which words are suppressed."""


class NoRepeatedWords(LogitsProcessor):
    """Suppress a word that would repeat the words directly before it ("The The", "right mid right mid").

    On a radiograph unlike the training data the next-word distribution is flat, and the most probable token is then
    often the previous one again; a repeated token makes the next repetition more probable still (Holtzman et al.,
    The Curious Case of Neural Text Degeneration, 2020). Unlike ``no_repeat_ngram_size``, phrases may recur in later
    sentences, as they do in reports ("There is no … There is no …"). Numbers may repeat ("2 x 2 cm").

    All phrase lengths are compared at once and nothing is read from the device: the decoding step can be captured.

    Args:
        words: (T,) id of each text token's word, in [0, T), equal for tokens that differ in case; -1 for tokens that
            are no word or punctuation mark.
        starts: (T,) bool, whether the token begins a word.
    """

    def __init__(self, words: Tensor, starts: Tensor) -> None:
        self.words, self.starts = words, starts & (words >= 0)
        # The next token would complete the second copy of a phrase of c tokens if each token after the first equals
        # the one c columns earlier. Rows are c = 1 … LONGEST_REPEAT, columns the window.
        count = torch.arange(1, LONGEST_REPEAT + 1, device=words.device)[:, None]
        column = torch.arange(WINDOW, device=words.device)
        self._first = WINDOW - count[:, 0]  # (R,) column of the phrase's first token
        self._compared = column > self._first[:, None]  # (R, W)
        self._earlier = (column - count).clamp(min=0)  # (R, W)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """Return (B, V) scores, -inf for the tokens that would repeat the end of (B, L) ids."""
        size, recent = len(self.words), input_ids[:, -WINDOW:]
        recent = torch.nn.functional.pad(recent, (WINDOW - recent.shape[1], 0), value=-1)
        is_text = (recent >= 0) & (recent < size)
        words = torch.where(is_text, self.words[recent.clamp(0, size - 1)], -1)  # (B, W)
        same = (words[:, None] == words[:, self._earlier]) & (words >= 0)[:, None]  # (B, R, W)
        first = words[:, self._first]  # (B, R)
        repeats = (same | ~self._compared).all(dim=2) & (first >= 0)
        # Column `size` takes the words that are not suppressed.
        suppressed = torch.zeros(len(words), size + 1, dtype=torch.bool, device=words.device)
        suppressed.scatter_(1, torch.where(repeats, first, size), True)
        banned = suppressed[:, self.words.clamp(min=0)] & self.starts  # (B, T)
        return torch.cat([scores[:, :size].masked_fill(banned, -torch.inf), scores[:, size:]], dim=1)
