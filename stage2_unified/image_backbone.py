"""The model's image side as a network to train further: codes in, states of the whole and of each code out."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from stage2_unified.model import MedUnifierForConditionalGeneration


class ImageBackbone(nn.Module):
    """A copy of a model's decoder over the image-first prefix; training it leaves the model as it is.

    Args:
        model: whose weights it begins with.
        seed: begin with the same architecture's fresh weights instead, drawn with this seed. The codebook stays the
            frozen tokenizer's: what is new to the network is what codes mean, not which there are.
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
        # Float32, since small steps are lost in bfloat16; and all of it, though a model may have frozen parts.
        self.model.to(model.device, torch.float32).requires_grad_(True)
        self.width = int(model.config.text_config.hidden_size)

    def inputs(self, codes: np.ndarray, views: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(N, h, w) codes and N view positions -> what :meth:`forward` takes, on the CPU."""
        ids = [self.model.vocabulary.view(view) for view in views]
        return torch.from_numpy(codes.astype(np.int64)).flatten(1), torch.tensor(ids)

    def forward(self, codes: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) codes, (B,) view ids -> (B, H) state at ``<emb_img>``, (B, N, H) states at the codes.

        The decoder is causal: a code's state knows the codes before it, the first one alone knows all.
        """
        device = self.model.device
        ids = self.model.image_prefix_ids(codes.to(device), view.to(device))
        hidden = self.model.model(inputs_embeds=self.model.embed_ids(ids), use_cache=False).last_hidden_state
        begin = ids.shape[1] - 2 - codes.shape[1]  # <eoi> and <emb_img> behind the codes
        return hidden[:, -1], hidden[:, begin:-2]
