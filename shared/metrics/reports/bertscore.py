"""BERTScore: agreement of two reports word by word in a language model's space, from a folder of the user's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from medunifier.shared.artifacts import fingerprint
from medunifier.shared.errors import UserError
from medunifier.shared.files.model_folder import checked_model_folder


class BertScore:
    """F1 of BERTScore (Zhang et al., 2020) with a local model: no weights by rarity, not rescaled.

    Each word piece is matched with the nearest of the other text by cosine of hidden states; the mean over
    the written ones is precision, over the reference's recall. Our own, since torchmetrics 1.9 sorts both
    sides by length and does not undo it: in a list of pairs it compares texts of different studies.

    Args:
        folder: a transformers folder with model and tokenizer (distilroberta-base is RadCliQ's).
        layer: hidden layer that is compared; None = the last. For distilroberta-base papers use 5.
        device: where it runs; an accelerator if there is one.

    Raises:
        UserError: if the folder is absent or is none.
    """

    def __init__(self, folder: str, layer: int | None = None, device: str | None = None) -> None:
        from transformers import AutoModel, AutoTokenizer

        if not (Path(folder) / "config.json").is_file():
            raise UserError(
                f"no language model in {folder}: BERTScore needs a transformers folder (config.json, weights, "
                "tokenizer), distilroberta-base for one; nothing is downloaded"
            )
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        with checked_model_folder(folder, "a language model"):
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model = AutoModel.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
        layers = int(model.config.num_hidden_layers)
        if layer is not None and not 0 <= layer <= layers:
            raise UserError(f"the language model in {folder} has {layers} layers, but layer {layer} was requested")
        self._model = model.to(self._device).eval()
        self._layer = layers if layer is None else layer
        # RoBERTa counts its positions from 2 on.
        self._longest = min(512, int(getattr(model.config, "max_position_embeddings", 514)) - 2)
        self._name, self._folder = str(model.config.model_type), Path(folder).name

    def __call__(self, written: Sequence[str], references: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """(N,) F1 of each report; 0 where a text has no word."""
        scores = np.zeros(len(written))
        for begin in range(0, len(written), batch_size):
            some = slice(begin, begin + batch_size)
            sides = zip(self._states(written[some]), self._states(references[some]), strict=True)
            for row, (predicted, wanted) in enumerate(sides):
                if len(predicted) and len(wanted):
                    nearness = predicted @ wanted.T  # (pieces written, pieces of the reference)
                    # A piece that is like none of the other text counts 0, as in torchmetrics.
                    precision, recall = (nearness.amax(dim=d).clamp(min=0).mean().item() for d in (1, 0))
                    scores[begin + row] = 2 * precision * recall / max(precision + recall, 1e-12)
        return scores

    def _states(self, texts: Sequence[str]) -> list[Tensor]:
        """(pieces, D) unit-norm hidden states of each text, without those of the special tokens."""
        inputs = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._longest, return_tensors="pt",
            return_special_tokens_mask=True,
        ).to(self._device)  # fmt: skip
        words = ~inputs.pop("special_tokens_mask").bool()
        with torch.inference_mode():
            hidden = self._model(**inputs, output_hidden_states=True).hidden_states[self._layer]
        states = normalize(hidden.float(), dim=-1)
        return [row[chosen] for row, chosen in zip(states, words, strict=True)]

    def describe(self) -> dict[str, Any]:
        """Return the description for a result file."""
        return {
            "model": f"{self._name}, {self._folder}",
            "layer": self._layer,
            "sha256": fingerprint({"model_type": self._name}, self._model.state_dict()),
            "rescaled": False,
        }
