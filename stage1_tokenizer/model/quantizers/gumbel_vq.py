"""The Gumbel quantiser of taming's ``GumbelVQ`` (Jang et al., 2017; keys ``proj`` and ``embed``).

A linear layer gives every entry a logit. In training a noisy softmax, sharp forward and soft backward, chooses
the entry; its temperature falls by a cosine. Outside training the largest logit is the code. (Taming draws noise
there too, so that its codes of one image differ from call to call; the codes here are those without noise.)
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from medunifier.shared.training.distributed import rank, world_size
from medunifier.stage1_tokenizer.config import QuantizerConfig
from medunifier.stage1_tokenizer.model.quantizers.base import CHUNK_ELEMENTS, Quantized, Quantizer


@torch.no_grad()
def largest_logit(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Number of the largest of K logits ``weight @ row + bias``, in float32 and in chunks.

    Args:
        rows: (N, D) vectors.
        weight: (K, D).
        bias: (K,).

    Returns:
        (N,) int64.
    """
    rows, weight, bias = rows.detach().float(), weight.detach().float(), bias.detach().float()
    with torch.autocast(rows.device.type, enabled=False):
        chunks = rows.split(max(1, CHUNK_ELEMENTS // len(weight)))
        return torch.cat([torch.addmm(bias, part, weight.T).argmax(dim=1) for part in chunks])


class GumbelQuantizer(Quantizer):
    """Taming's ``GumbelQuantize``; ``codebook_weight`` and ``commitment_weight`` play no part, ``kl_weight`` does.

    The noise of an image is a pure function of the step and of the image's place in the global batch, so a resumed
    run samples what the uninterrupted one would have sampled, also on another number of processes.
    """

    steps: Tensor

    def __init__(self, codes: int, dimensions: int, config: QuantizerConfig) -> None:
        super().__init__(codes, dimensions, config)
        self.proj = nn.Conv2d(dimensions, codes, 1)
        self.embed = nn.Embedding(codes, dimensions)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._passes = 0  # of the step under way
        self._images = 1  # of the pass under way

    @property
    def temperature(self) -> float:
        """Of the step under way: a cosine from ``temperature_start`` to ``temperature_end``."""
        config = self.config
        share = min(1.0, int(self.steps) / config.temperature_steps)
        high, low = config.temperature_start, config.temperature_end
        return low + (high - low) * (1 + math.cos(math.pi * share)) / 2

    def table(self) -> Tensor:
        return self.embed.weight.float()

    def nearest(self, rows: Tensor) -> Tensor:
        return largest_logit(rows, self.proj.weight.flatten(1), self.proj.get_parameter("bias"))

    def forward(self, z: Tensor) -> Quantized:
        self._images = len(z)
        return super().forward(z)

    def quantize(self, rows: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        logits = nn.functional.linear(rows, self.proj.weight.flatten(1), self.proj.bias)
        probability = logits.softmax(dim=1)
        divergence = (probability * torch.log(probability * self.codes + 1e-10)).sum(dim=1).mean()
        losses = {"divergence": self.config.kl_weight * divergence}
        if not self.training:
            codes = logits.argmax(dim=1)
            return self.embed(codes), codes, losses
        noisy = (logits + self._noise(logits)) / self.temperature
        codes = noisy.argmax(dim=1)
        # The sharp choice forward, the soft one's gradient backward; the entries learn from the sharp one.
        soft = noisy.softmax(dim=1) @ self.embed.weight.detach()
        return self.embed(codes) + (soft - soft.detach()), codes, losses

    def _noise(self, logits: Tensor) -> Tensor:
        first = (self._passes * world_size() + rank()) * self._images
        self._passes += 1
        step, noise = int(self.steps), torch.empty_like(logits)
        generator = torch.Generator(logits.device)
        for number, part in enumerate(noise.chunk(self._images)):
            # Hashed: PyTorch's generator on a CPU takes the lower 32 bits of a seed alone.
            seed = np.random.SeedSequence((step, first + number)).generate_state(1)
            part.exponential_(generator=generator.manual_seed(int(seed[0])))
        return -noise.log()

    @torch.no_grad()
    def end_step(self) -> None:
        self.steps += 1
        self._passes = 0
