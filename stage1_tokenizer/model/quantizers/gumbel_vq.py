"""The Gumbel-softmax quantizer of taming's ``GumbelVQ`` (Jang et al., 2017; keys ``proj`` and ``embed``).

A linear layer computes a logit for every entry. In training the entry is sampled by a straight-through Gumbel-softmax
whose temperature is annealed by a cosine. Outside training the code is the largest logit. (Taming samples there too,
so that its codes of an image differ between calls.)
"""

import math

import torch
from torch import Tensor, nn

from medunifier.shared.training.distributed import rank, world_size
from medunifier.stage1_tokenizer.config import QuantizerConfig
from medunifier.stage1_tokenizer.model.counter_random import gumbel
from medunifier.stage1_tokenizer.model.quantizers.base import CHUNK_ELEMENTS, Quantized, Quantizer


@torch.no_grad()
def largest_logit(vectors: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the index of the largest of the K logits ``weight @ vector + bias``, computed in float32 and in chunks.

    Args:
        vectors: (N, D).
        weight: (K, D).
        bias: (K,).

    Returns:
        (N,) int64.
    """
    vectors, weight, bias = vectors.detach().float(), weight.detach().float(), bias.detach().float()
    with torch.autocast(vectors.device.type, enabled=False):
        chunks = vectors.split(max(1, CHUNK_ELEMENTS // len(weight)))
        return torch.cat([torch.addmm(bias, chunk, weight.T).argmax(dim=1) for chunk in chunks])


class GumbelQuantizer(Quantizer):
    """Taming's ``GumbelQuantize``. Uses ``kl_weight``; ``codebook_weight`` and ``commitment_weight`` have no effect.

    The noise of a vector is a pure function of the step and of its position in the global batch, so a resumed run
    samples the same noise as an uninterrupted one, also on another number of processes.
    """

    steps: Tensor
    first: Tensor

    def __init__(self, codebook_size: int, dim: int, config: QuantizerConfig) -> None:
        super().__init__(codebook_size, dim, config)
        self.proj = nn.Conv2d(dim, codebook_size, 1)
        self.embed = nn.Embedding(codebook_size, dim)
        # Tensors, so that neither is read back from the device nor compiled as a constant:
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        # Position of the current pass' first vector in the global batch.
        self.register_buffer("first", torch.zeros((), dtype=torch.int64), persistent=False)
        self._passes = 0  # in the current step

    @property
    def temperature(self) -> Tensor:
        """Temperature of the current step, scalar: a cosine from ``temperature_start`` to ``temperature_end``."""
        config = self.config
        progress = (self.steps / config.temperature_steps).clamp(max=1.0)
        high, low = config.temperature_start, config.temperature_end
        return low + (high - low) * (1 + torch.cos(math.pi * progress)) / 2

    def codebook(self) -> Tensor:
        return self.embed.weight.float()

    def nearest(self, vectors: Tensor) -> Tensor:
        return largest_logit(vectors, self.proj.weight.flatten(1), self.proj.get_parameter("bias"))

    def forward(self, z: Tensor) -> Quantized:
        if self.training:
            self.first.fill_((self._passes * world_size() + rank()) * len(z) * z[0, 0].numel())
            self._passes += 1
        return super().forward(z)

    def quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        logits = nn.functional.linear(vectors, self.proj.weight.flatten(1), self.proj.bias)  # (N, K)
        probability = logits.softmax(dim=1)
        divergence = (probability * torch.log(probability * self.codebook_size + 1e-10)).sum(dim=1).mean()
        losses = {"divergence": self.config.kl_weight * divergence}
        if not self.training:
            codes = logits.argmax(dim=1)
            return self.embed(codes), codes, losses
        noisy = (logits + gumbel_noise(self.steps, self.first, logits)) / self.temperature
        codes = noisy.argmax(dim=1)
        # Straight-through: the hard choice forward, the gradient of the soft one backward. The entries receive the
        # gradient of the hard choice.
        soft = noisy.softmax(dim=1) @ self.embed.weight.detach()
        return self.embed(codes) + (soft - soft.detach()), codes, losses

    @torch.no_grad()
    def end_step(self) -> None:
        self.steps += 1
        self._passes = 0


def gumbel_noise(step: Tensor, first: Tensor, like: Tensor) -> Tensor:
    """Return noise of the shape (N, K) of ``like``, a function of step, row and column.

    Args:
        step: scalar int64.
        first: scalar int64, number of the first row.
        like: (N, K).
    """
    rows = first + torch.arange(len(like), device=like.device)
    return gumbel(step[None], rows[:, None], like.shape[1])
