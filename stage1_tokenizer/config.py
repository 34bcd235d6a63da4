"""Every setting of stage 1, with what it means; the same dataclasses are the command line and the YAML."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from medunifier.shared.training.config import LoopConfig, OptimConfig


@dataclass(frozen=True)
class QuantizerConfig:
    """How a vector becomes a code."""

    kind: Literal["vq", "cosine_vq", "ema_vq", "gumbel_vq"] = "cosine_vq"
    """classic: Euclidean nearest entry, as taming. unit_norm: entries and vectors on the unit sphere.
    moving_average: Euclidean, entries follow the vectors by averages. gumbel: largest of K noisy logits, as
    taming's GumbelVQ."""
    codebook_weight: float = 1.0
    """Weight of |sg(z) - e|^2, which moves the entries to the vectors."""
    commitment_weight: float = 0.25
    """Weight of |z - sg(e)|^2, which keeps the vectors at their entries. (taming's default, `legacy`, has the
    two the other way round: codebook_weight 0.25, commitment_weight 1.)"""
    dead_code_interval: int = 20
    """unit_norm, moving_average: steps between two looks for dead entries, which restart at vectors of the batch;
    0 = never."""
    dead_code_threshold: float = 0.1
    """unit_norm, moving_average: an entry is dead when it is used less than this share of its fair part,
    1 / n_embed."""
    decay: float = 0.99
    """moving_average: share of an entry that a step leaves."""
    kl_weight: float = 1e-8
    """gumbel: weight of the divergence of the logits' softmax from equal use, in nats."""
    temperature_start: float = 1.0
    """gumbel: temperature of the noisy softmax in the first step."""
    temperature_end: float = 0.0625
    """gumbel: where its cosine ends."""
    temperature_steps: int = 150_000
    """gumbel: steps to that end."""

    def __post_init__(self) -> None:
        if self.codebook_weight < 0 or self.commitment_weight < 0:
            raise ValueError("model.quantizer.codebook_weight and commitment_weight must not be negative")
        if self.dead_code_interval < 0:
            raise ValueError(f"model.quantizer.dead_code_interval must be 0 or more, got {self.dead_code_interval}")
        if not 0 <= self.dead_code_threshold < 1:
            raise ValueError(
                f"model.quantizer.dead_code_threshold must lie in [0, 1), got {self.dead_code_threshold}"
            )
        if not 0 <= self.decay < 1:
            raise ValueError(f"model.quantizer.decay must lie in [0, 1), got {self.decay}")
        if self.kl_weight < 0:
            raise ValueError(f"model.quantizer.kl_weight must not be negative, got {self.kl_weight}")
        if not 0 < self.temperature_end <= self.temperature_start:
            raise ValueError(
                f"model.quantizer.temperature_end ({self.temperature_end}) must be positive and not above "
                f"model.quantizer.temperature_start ({self.temperature_start})"
            )
        if self.temperature_steps < 1:
            raise ValueError(f"model.quantizer.temperature_steps must be at least 1, got {self.temperature_steps}")


@dataclass(frozen=True)
class ModelConfig:
    """The VQ-GAN. The names down to `embed_dim` are those of taming's `ddconfig` and `params`."""

    resolution: int = 256
    """Height and width of an image in pixels."""
    in_channels: int = 1
    """Channels of an image."""
    out_ch: int = 1
    """Channels of a reconstruction."""
    ch: int = 128
    """Width that `ch_mult` multiplies."""
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Width of each level; the resolution halves between two levels."""
    num_res_blocks: int = 2
    """Residual blocks a level in the encoder; the decoder has one more."""
    attn_resolutions: tuple[int, ...] = (16,)
    """Levels of this height carry attention (counted where the level works, after the front end)."""
    dropout: float = 0.0
    """In the residual blocks."""
    double_z: bool = False
    """Taming's switch for KL models; a VQ model has it off."""
    z_channels: int = 256
    """Channels between encoder and `quant_conv`."""
    n_embed: int = 1024
    """Entries of the codebook, K."""
    embed_dim: int = 256
    """Dimensions of an entry, D."""
    norm_groups: int = 32
    """Groups of the GroupNorms; taming's checkpoints have 32."""
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    """How a vector becomes a code."""
    front_end: Literal["none", "haar"] = "none"
    """What stands before the encoder and, inverted, behind the decoder."""
    front_end_levels: int = 0
    """Halvings of the resolution by the Haar front end."""

    def __post_init__(self) -> None:
        if self.double_z:
            raise ValueError("model.double_z must be false: it belongs to KL autoencoders, this is a VQ model")
        if (self.front_end == "haar") != (self.front_end_levels > 0):
            raise ValueError(
                f"model.front_end_levels ({self.front_end_levels}) must be 1 or more with model.front_end haar, "
                "and 0 with none"
            )
        if not self.ch_mult or min(self.ch_mult) < 1:
            raise ValueError(f"model.ch_mult must hold a width for each level, got {list(self.ch_mult)}")
        if self.resolution % self.factor:
            raise ValueError(
                f"model.resolution ({self.resolution}) must be a multiple of {self.factor}, "
                "which model.front_end_levels and the levels of model.ch_mult make together"
            )
        for width in (self.ch, *(self.ch * mult for mult in self.ch_mult)):
            if width % self.norm_groups:
                raise ValueError(
                    f"model.norm_groups ({self.norm_groups}) must divide every width of model.ch and model.ch_mult, "
                    f"but not {width}"
                )
        if self.n_embed < 2:
            raise ValueError(f"model.n_embed must be at least 2, got {self.n_embed}")

    @property
    def factor(self) -> int:
        """Pixels along one side of a code."""
        return int(2 ** (self.front_end_levels + len(self.ch_mult) - 1))

    @property
    def grid(self) -> tuple[int, int]:
        """Codes of an image: (h, w)."""
        return self.resolution // self.factor, self.resolution // self.factor


def model_config(values: Mapping[str, Any]) -> ModelConfig:
    """A :class:`ModelConfig` from plain values (JSON, YAML); ``quantizer`` may be a name or a mapping.

    Raises:
        ValueError: naming keys that do not exist, or an impossible combination.
    """
    known = {f.name for f in dataclasses.fields(ModelConfig)}
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"unknown key of the tokenizer's model: {', '.join(unknown)}")
    values = dict(values)
    quantizer = values.get("quantizer", {})
    if isinstance(quantizer, str):
        quantizer = {"kind": quantizer}
    if isinstance(quantizer, Mapping):
        known = {f.name for f in dataclasses.fields(QuantizerConfig)}
        if unknown := sorted(quantizer.keys() - known):
            raise ValueError(f"unknown key of the tokenizer's quantizer: {', '.join(unknown)}")
        values["quantizer"] = QuantizerConfig(**quantizer)
    for name in ("ch_mult", "attn_resolutions"):
        if name in values:
            values[name] = tuple(values[name])
    return ModelConfig(**values)


@dataclass(frozen=True)
class PerceptualConfig:
    """LPIPS, the perceptual distance (Zhang et al., 2018), or a distance of radiograph features."""

    net: Literal["vgg", "alex", "squeeze", "xrv", "none"] = "vgg"
    """LPIPS' backbone; or xrv, the DenseNet-121 of torchxrayvision, trained on radiographs; `none` leaves the term
    out."""
    weights: str = ""
    """Path of the net's state dict; empty = torchvision's file in torch's own cache; `random` = untrained, by this
    name alone."""
    sha256: str = ""
    """Leading hex digits of the SHA-256 that the file must have; empty = those of torchvision's published file. xrv
    has no published file of this form, so there it must be stated."""


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The patch discriminator, and when it has a say."""

    width: int = 64
    """Filters of its first layer."""
    layers: int = 3
    """Layers of stride 2; 3 sees patches of 70 pixels."""
    norm: Literal["batch", "group"] = "group"
    """batch: as taming. group: nothing shared between images or processes."""
    train_from: int = 0
    """Step from which it trains."""
    start: int = 10_000
    """Step from which its loss reaches the generator; it must have trained before."""
    ramp: int = 1_000
    """Steps in which that loss grows to its full weight."""
    lecam_weight: float = 0.0
    """LeCAM: holds the logits near the moving averages of the other side's; for few images. 0 = none."""

    def __post_init__(self) -> None:
        if self.start <= self.train_from:
            raise ValueError(
                f"loss.discriminator.start ({self.start}) must come after loss.discriminator.train_from "
                f"({self.train_from}): an untrained discriminator ruins the images"
            )
        if self.ramp < 1:
            raise ValueError(f"loss.discriminator.ramp must be at least 1, got {self.ramp}")
        if self.lecam_weight < 0:
            raise ValueError(f"loss.discriminator.lecam_weight must not be negative, got {self.lecam_weight}")


@dataclass(frozen=True)
class LossConfig:
    """What the tokenizer is trained on, term by term."""

    l1_weight: float = 1.0
    """Mean absolute error of the pixels in [-1, 1]."""
    l2_weight: float = 0.0
    """Mean squared error of the pixels in [-1, 1]: minds the few pixels of a nodule more than l1 does."""
    perceptual_weight: float = 1.0
    """The perceptual distance."""
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    """Which perceptual distance."""
    gan_weight: float = 0.75
    """The hinge loss, times the adaptive weight; 0 leaves the discriminator out."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """The other side of the hinge loss."""

    def __post_init__(self) -> None:
        if self.l1_weight <= 0:
            raise ValueError(f"loss.l1_weight must be positive, got {self.l1_weight}")
        for name in ("l2_weight", "perceptual_weight", "gan_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"loss.{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True)
class DataConfig:
    """What it is trained on."""

    shards: str
    """Folder or URL of image shards, made by `medunifier ingest`, whose --size is model.resolution."""
    pictures: int = 8
    """Validation images whose originals and reconstructions are drawn at every validation."""

    def __post_init__(self) -> None:
        if self.pictures < 1:
            raise ValueError(f"data.pictures must be at least 1, got {self.pictures}")


@dataclass(frozen=True)
class Stage1Config:
    """Train a radiograph tokenizer (VQ-GAN) on image shards and export it."""

    data: DataConfig
    """What it is trained on."""
    run_dir: str
    """Run folder: made, or continued where it stopped. The tokenizer appears in it as `tokenizer/`."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The VQ-GAN."""
    loss: LossConfig = field(default_factory=LossConfig)
    """What it is trained on, term by term."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(betas=(0.5, 0.9)))
    """Of the generator and of the discriminator."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """How long, and what is left on the way."""
    compile: bool = False
    """torch.compile for the blocks of encoder and decoder. It needs a compiler, and minutes at the start."""
    gradient_checkpointing: bool = False
    """Gradient checkpointing: less memory a step, about a third more arithmetic, the same gradients."""
    ema_decay: float = 0.999
    """Decay a step of the averaged weights, which are validated and exported (shorter in the first steps)."""

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")
