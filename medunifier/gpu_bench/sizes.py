"""Sizes of the GPU benchmark, and its rehearsal on a CPU, which runs the same code on tiny ones."""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from medunifier.shared.training.config import CompileSetting

IDLE = 0.8
"""A matrix product at this fraction of the peak rate shows that nothing else uses the GPU."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of all measurements.

    Attributes:
        batch: studies or images of a training step, and the larger batch of the generation rows.
        peer_batch: images of a step of taming's layers, which need more memory.
        encode_batch: images of an encoding or decoding call, and of a batch of ``medunifier tokenize``.
        steps, seconds: a timing ends after this many calls, or earlier if they take longer, but not below 3.
        shard_images, shards, shard_size: images per shard on disk, shards, and pixels along a side of an image.
        shortest, longest: ids of the reports.
        peer_length: ids of a sequence of the stock model.
        report_tokens: ids of a generated report.
        peer_codes: codes that the stock ``generate()`` writes.
        stage1, taming, stage2, large: options on top of the presets.
    """

    batch: int = 64
    peer_batch: int = 8
    encode_batch: int = 256
    steps: int = 10
    seconds: float = 2.0
    shard_images: int = 512
    shards: int = 12
    shard_size: int = 256
    shortest: int = 30
    longest: int = 110
    peer_length: int = 832
    report_tokens: int = 100
    peer_codes: int = 32
    stage1: tuple[str, ...] = ()
    taming: tuple[str, ...] = ()
    stage2: tuple[str, ...] = ()
    large: tuple[str, ...] = (
        "--model.hidden_dim=1024", "--model.num_layers=24", "--model.num_heads=16", "--model.num_kv_heads=4",
        "--model.mlp_dim=2816",
    )  # fmt: skip


_TINY_IMAGES = (
    "--model.resolution=32", "--model.ch=16", "--model.norm_groups=8", "--model.z_channels=16", "--model.n_embed=64",
    "--model.ch_mult=[1,2]", "--loss.perceptual.net=squeeze", "--loss.discriminator.width=8",
    "--loss.discriminator.layers=1",
)  # fmt: skip
FULL = Sizes()
REHEARSAL = Sizes(
    batch=3, peer_batch=2, encode_batch=2, steps=3, seconds=0.1, shard_images=4, shards=3, shard_size=32,
    shortest=3, longest=11, peer_length=12, report_tokens=5, peer_codes=3,
    stage1=(*_TINY_IMAGES, "--model.embed_dim=4"),
    taming=(*_TINY_IMAGES, "--model.embed_dim=16", "--model.attn_resolutions=[16]"),
    stage2=(
        "--model.hidden_dim=32", "--model.num_layers=2", "--model.num_heads=2", "--model.num_kv_heads=1",
        "--model.head_dim=16", "--model.mlp_dim=64", "--text.vocabulary_size=256",
    ),
    large=("--model.num_layers=3",),
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What a measurement is passed.

    Attributes:
        device: ``cuda`` or ``cpu``.
        sizes: of the run.
        folder: temporary folder.
        peak: FLOP/s of a large bfloat16 matrix product on this device, the denominator of MFU.
        compile: of all that is compiled by default on a GPU.
    """

    device: str
    sizes: Sizes
    folder: str
    peak: float = 1.0
    compile: CompileSetting = "auto"


@dataclass
class Figures:
    """Result of a measurement for one row.

    Attributes:
        value: in the row's unit.
        details: further figures by name, JSON values.
    """

    value: float
    details: dict[str, Any] = field(default_factory=dict)


Measurement = Generator[None, None, dict[str, Figures]]
"""Builds and warms up, yields once, measures, and returns the figures by row."""
