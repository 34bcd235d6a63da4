"""CheXbert: the 14 observations of a report by a fine-tuned BERT, from weights of the user's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medunifier.shared.artifacts import sha256_file
from medunifier.shared.errors import UserError
from medunifier.shared.files.model_folder import checked_model_folder
from medunifier.shared.files.weights import check_weight_file

WEIGHTS = "chexbert.pth"
BLANK, POSITIVE, NEGATIVE, UNCERTAIN = range(4)
_VALUES = {POSITIVE: 1, NEGATIVE: 0, UNCERTAIN: -1}
HEADS = (4,) * 13 + (2,)
"""Classes a head: blank, positive, negative, uncertain; No Finding has the first two alone."""


class Chexbert:
    """Labels reports as CheXbert does (Smit et al., 2020); the network is BERT's with a linear head a finding.

    Args:
        folder: with ``chexbert.pth`` (its published checkpoint) and BERT's own ``config.json`` and
            ``vocab.txt`` (bert-base-uncased).
        observations: names of the heads, in CheXbert's order.
        device: where it runs; an accelerator if there is one.

    Raises:
        UserError: if a file is missing or does not fit.
    """

    def __init__(self, folder: str, observations: Sequence[str], device: str | None = None) -> None:
        from transformers import BertConfig, BertModel, BertTokenizerFast

        root = Path(folder)
        missing = [name for name in (WEIGHTS, "config.json", "vocab.txt") if not (root / name).is_file()]
        if missing:
            raise UserError(
                f"CheXbert needs {', '.join(missing)} in {folder}: {WEIGHTS} is its published checkpoint, the others "
                "are bert-base-uncased's; nothing is downloaded"
            )
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._names = tuple(observations)
        with checked_model_folder(root, "bert-base-uncased"):
            config = BertConfig.from_pretrained(root, local_files_only=True)
            self._tokenizer = BertTokenizerFast(vocab=str(root / "vocab.txt"), do_lower_case=True)
            self._bert = BertModel(config)
        self._heads = nn.ModuleList(nn.Linear(config.hidden_size, classes) for classes in HEADS)
        self._load(root / WEIGHTS)
        self._bert.to(self._device).eval()
        self._heads.to(self._device).eval()
        self._longest = int(config.max_position_embeddings)
        self.sha256 = sha256_file(root / WEIGHTS)

    def _load(self, path: Path) -> None:
        check_weight_file(path)
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
            state: dict[str, Tensor] = {
                key.removeprefix("module."): value for key, value in loaded["model_state_dict"].items()
            }
        except Exception as error:  # torch raises what its unpickler, its zip reader and the disk raise
            raise UserError(f"{path} is not CheXbert's checkpoint: {' '.join(str(error).split())[:120]}") from None
        own = {f"bert.{key}": value for key, value in self._bert.state_dict().items()}
        own |= {f"linear_heads.{key}": value for key, value in self._heads.state_dict().items()}
        # The published file was written by an older transformers, which stored position_ids among the weights.
        mismatched = sorted(key for key in own if key not in state or state[key].shape != own[key].shape)
        mismatched += sorted(key for key in state if key not in own and not key.endswith("position_ids"))
        if mismatched:
            raise UserError(
                f"{path} does not fit CheXbert's network: {len(mismatched)} tensors differ, such as {mismatched[0]}"
            )
        for prefix, part in (("bert.", self._bert), ("linear_heads.", self._heads)):
            part.load_state_dict({key.removeprefix(prefix): state[key] for key in own if key.startswith(prefix)})

    def __call__(self, reports: Sequence[str], batch_size: int = 16) -> list[dict[str, int]]:
        """Labels ``{finding: 1 | 0 | -1}`` of each report; an observation it finds blank has no entry."""
        labels: list[dict[str, int]] = []
        for begin in range(0, len(reports), batch_size):
            texts = [" ".join(report.split()) for report in reports[begin : begin + batch_size]]
            inputs = self._tokenizer(
                texts, padding=True, truncation=True, max_length=self._longest, return_tensors="pt"
            ).to(self._device)
            with torch.inference_mode():
                first = self._bert(inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state[
                    :, 0
                ]
                classes = torch.stack([head(first).argmax(dim=1) for head in self._heads], dim=1).tolist()
            labels += [
                {name: _VALUES[found] for name, found in zip(self._names, row, strict=True) if found != BLANK}
                for row in classes
            ]
        return labels

    def describe(self) -> dict[str, Any]:
        """Return the description for a result file."""
        return {"model": "CheXbert", "sha256": self.sha256}
