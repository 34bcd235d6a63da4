"""The model's image encoder as a backbone for fine-tuning: codes in, hidden states of the image and its codes out."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration
from medunifier.stage2_unified.model.sequences import ImageSpans


class ImageBackbone(nn.Module):
    """A copy of a model's decoder over the image-first prefix; training it does not change the model.

    Args:
        model: with the initial weights.
        seed: initialise the same architecture at random with this seed instead. The codebook stays the frozen
            tokenizer's; the projection of its entries is new.
    """

    def __init__(self, model: MedUnifierForConditionalGeneration, seed: int | None = None) -> None:
        super().__init__()
        if seed is None:
            self.model = copy.deepcopy(model)
        else:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                self.model = type(model)(copy.deepcopy(model.config))
            self.model.set_codebook(model.codebook.cpu())
        # Float32, since small updates are lost in bfloat16; all parameters, though a model may have frozen ones.
        self.model.to(model.device, torch.float32).requires_grad_(True)
        self.width = int(model.config.text_config.hidden_size)

    def inputs(self, codes: np.ndarray, views: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(N, h, w) codes and N view positions -> arguments of :meth:`forward`, on the CPU."""
        ids = [self.model.vocabulary.view(view) for view in views]
        return torch.from_numpy(codes.astype(np.int64)).flatten(1), torch.tensor(ids)

    def forward(self, codes: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) codes, (B,) view ids -> (B, H) hidden state at ``<emb_img>``, (B, N, H) at the codes.

        The decoder is causal: the state of a code depends on the codes before it, that at ``<emb_img>`` on all.
        """
        device = self.model.device
        sequences = self.model.sequences.image_first(ImageSpans.of(codes.to(device), view.to(device)))
        ids, routing = sequences.ids, self.model.route(sequences.ids, sequences.codes)
        hidden = self.model.run_routed(self.model.embed_ids(ids), routing, use_cache=False).last_hidden_state
        begin = ids.shape[1] - 2 - codes.shape[1]  # <eoi> and <emb_img> follow the codes
        return hidden[:, -1], hidden[:, begin:-2]
