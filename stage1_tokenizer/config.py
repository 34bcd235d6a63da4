"""Configuration of stage 1: the dataclasses define both the command line options and the YAML keys."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from medunifier.shared.training.config import CompileSetting, LoopConfig, OptimConfig


@dataclass(frozen=True)
class QuantizerConfig:
    """The vector quantizer."""

    kind: Literal["vq", "cosine_vq", "ema_vq", "gumbel_vq"] = "cosine_vq"
    """vq: Euclidean nearest entry, as taming. cosine_vq: entries and vectors normalized to unit length. ema_vq:
    Euclidean, entries are moving averages of their vectors. gumbel_vq: Gumbel-softmax over K logits, as taming's
    GumbelVQ."""
    codebook_weight: float = 1.0
    """Weight of the codebook loss |sg(z) - e|^2, which moves entries towards vectors (sg: stop-gradient)."""
    commitment_weight: float = 0.25
    """Weight of the commitment loss |z - sg(e)|^2, which keeps vectors close to their entries. (taming's default,
    `legacy`, is the reverse: codebook_weight 0.25, commitment_weight 1.)"""
    dead_code_interval: int = 20
    """cosine_vq, ema_vq: steps between dead-code replacements, which set dead entries to vectors of the batch.
    0 = never."""
    dead_code_threshold: float = 0.1
    """cosine_vq, ema_vq: an entry is dead if its usage is below this fraction of uniform usage (1 / n_embed)."""
    decay: float = 0.99
    """ema_vq: decay of the moving average per step."""
    kl_weight: float = 1e-8
    """gumbel_vq: weight of the KL divergence between the logits' softmax and the uniform distribution, in nats."""
    temperature_start: float = 1.0
    """gumbel_vq: temperature of the Gumbel-softmax at the first step."""
    temperature_end: float = 0.0625
    """gumbel_vq: final temperature of the cosine schedule."""
    temperature_steps: int = 150_000
    """gumbel_vq: steps of the cosine schedule."""

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
    """The VQ-GAN. Names up to `embed_dim` are those of taming's `ddconfig` and `params`."""

    resolution: int = 256
    """Height and width of an image in pixels."""
    in_channels: int = 1
    """Channels of an image."""
    out_ch: int = 1
    """Channels of a reconstruction."""
    ch: int = 128
    """Base number of channels, multiplied by `ch_mult`."""
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Channel multiplier of each level; the resolution is halved between levels."""
    num_res_blocks: int = 2
    """Residual blocks per level in the encoder; the decoder has one more."""
    attn_resolutions: tuple[int, ...] = (16,)
    """Resolutions whose levels have attention, measured after the front end."""
    dropout: float = 0.0
    """Dropout in the residual blocks."""
    double_z: bool = False
    """Taming's switch for KL autoencoders; must be false for a VQ model."""
    z_channels: int = 256
    """Channels between encoder and `quant_conv`."""
    n_embed: int = 1024
    """Number of codebook entries, K."""
    embed_dim: int = 256
    """Dimension of a codebook entry, D."""
    norm_groups: int = 32
    """Groups of the GroupNorms; 32 in taming's checkpoints."""
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    """The vector quantizer."""
    front_end: Literal["none", "haar"] = "none"
    """Invertible transform before the encoder, inverted after the decoder. haar: wavelet coefficients in place of
    pixels."""
    front_end_levels: int = 0
    """How often the Haar front end halves the resolution."""

    def __post_init__(self) -> None:
        if self.double_z:
            raise ValueError("model.double_z must be false: it is for KL autoencoders, and this is a VQ model")
        if (self.front_end == "haar") != (self.front_end_levels > 0):
            raise ValueError(
                f"model.front_end_levels ({self.front_end_levels}) must be 1 or more with model.front_end haar, "
                "and 0 with none"
            )
        if not self.ch_mult or min(self.ch_mult) < 1:
            raise ValueError(
                f"model.ch_mult must have a positive multiplier for each level, got {list(self.ch_mult)}"
            )
        if self.resolution % self.factor:
            raise ValueError(
                f"model.resolution ({self.resolution}) must be a multiple of {self.factor}, "
                "the downsampling factor of model.front_end_levels and the levels of model.ch_mult"
            )
        for width in (self.ch, *(self.ch * mult for mult in self.ch_mult)):
            if width % self.norm_groups:
                raise ValueError(
                    f"model.norm_groups ({self.norm_groups}) must divide every width of model.ch and model.ch_mult, "
                    f"but does not divide {width}"
                )
        if self.n_embed < 2:
            raise ValueError(f"model.n_embed must be at least 2, got {self.n_embed}")

    @property
    def factor(self) -> int:
        """Downsampling factor: pixels along one side of a code."""
        return int(2 ** (self.front_end_levels + len(self.ch_mult) - 1))

    @property
    def grid(self) -> tuple[int, int]:
        """Code grid of an image: (h, w)."""
        return self.resolution // self.factor, self.resolution // self.factor


def model_config(values: Mapping[str, Any]) -> ModelConfig:
    """Return the :class:`ModelConfig` of plain values (JSON, YAML); ``quantizer`` may be a kind or a mapping.

    Raises:
        ValueError: for unknown keys, which it names, or an invalid combination.
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
    """Perceptual loss: LPIPS (Zhang et al., 2018), or a distance of radiograph features."""

    net: Literal["vgg", "alex", "squeeze", "xrv", "none"] = "vgg"
    """LPIPS backbone; or xrv, torchxrayvision's DenseNet-121, trained on chest radiographs; none omits the loss."""
    weights: str = ""
    """Path of the net's state dict; empty = torchvision's file in torch's cache; `random` = untrained weights, never
    used otherwise."""
    sha256: str = ""
    """Expected leading hex digits of the file's SHA-256; empty = those of torchvision's published file. Required for
    xrv, which has no published file of this form."""


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The patch discriminator and its schedule."""

    width: int = 64
    """Filters of the first layer."""
    layers: int = 3
    """Layers of stride 2; 3 have a receptive field of 70 pixels."""
    norm: Literal["batch", "group"] = "group"
    """batch: as taming. group: no statistics shared between images or processes."""
    train_from: int = 0
    """First step in which the discriminator is trained."""
    start: int = 10_000
    """First step in which the adversarial loss reaches the generator; must be later than train_from."""
    ramp: int = 1_000
    """Steps over which the adversarial loss is ramped up to its full weight."""
    lecam_weight: float = 0.0
    """Weight of LeCAM, a regularizer that limits the gap between real and generated logits; for small data sets.
    0 = none."""

    def __post_init__(self) -> None:
        if self.start <= self.train_from:
            raise ValueError(
                f"loss.discriminator.start ({self.start}) must come after loss.discriminator.train_from "
                f"({self.train_from}): an untrained discriminator degrades the images"
            )
        if self.ramp < 1:
            raise ValueError(f"loss.discriminator.ramp must be at least 1, got {self.ramp}")
        if self.lecam_weight < 0:
            raise ValueError(f"loss.discriminator.lecam_weight must not be negative, got {self.lecam_weight}")


@dataclass(frozen=True)
class SemanticLabelsConfig:
    """A head that predicts the 14 observations from the quantized features."""

    weight: float = 0.0
    """Weight of the balanced binary cross-entropy of the studies' labels, in nats; 0 = no head."""
    reconstruction_weight: float = 0.0
    """Weight of the distance between images and reconstructions in the features of a second head, which learns the
    labels from the images; 0 = no such head. The first head rewards codes that hold a finding, this one its decoding.
    """
    unmentioned: Literal["absent", "unknown"] = "absent"
    """An observation without a label in a study that has a report or labels. absent: as in the evaluation; unknown:
    left out, unless the study's No Finding is present."""

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"loss.semantic.labels.weight must not be negative, got {self.weight}")
        if self.reconstruction_weight < 0:
            raise ValueError(
                f"loss.semantic.labels.reconstruction_weight must not be negative, got {self.reconstruction_weight}"
            )

    def __bool__(self) -> bool:
        return bool(self.weight or self.reconstruction_weight)


@dataclass(frozen=True)
class SemanticReportConfig:
    """Contrast of the quantized features with the study's report."""

    weight: float = 0.0
    """Weight of the symmetric InfoNCE in nats; 0 = no contrast."""

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"loss.semantic.report.weight must not be negative, got {self.weight}")


@dataclass(frozen=True)
class SemanticTeacherConfig:
    """Alignment of the quantized features with those of a frozen net."""

    weight: float = 0.0
    """Weight of 1 - cosine between projected features and the teacher's; 0 = no teacher."""
    kind: Literal["transformers", "densenet121", "efficientnet_lite"] = "transformers"
    """transformers: a model folder in Hugging Face's layout (RAD-DINO, DINOv2, ViT, ResNet). densenet121:
    torchvision's file, or torchxrayvision's saved as a state dict. efficientnet_lite: timm's state dict."""
    path: str = ""
    """Folder or file of the weights on this machine; nothing is downloaded."""
    sha256: str = ""
    """Expected leading hex digits of the SHA-256 of the file, or of the folder's model.safetensors; required."""
    size: int = 0
    """Side in pixels to which images are resized for the teacher; 0 = its own size."""

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"loss.semantic.teacher.weight must not be negative, got {self.weight}")
        if self.size < 0:
            raise ValueError(f"loss.semantic.teacher.size must not be negative, got {self.size}")
        if self.weight and not self.path:
            raise ValueError("loss.semantic.teacher.path must name the teacher's weights if its weight is above 0")


@dataclass(frozen=True)
class SemanticConfig:
    """Semantic terms: the codes of an image must hold what its report describes."""

    labels: SemanticLabelsConfig = field(default_factory=SemanticLabelsConfig)
    """A head that predicts the 14 observations from the quantized features."""
    report: SemanticReportConfig = field(default_factory=SemanticReportConfig)
    """Contrast of the quantized features with the study's report."""
    teacher: SemanticTeacherConfig = field(default_factory=SemanticTeacherConfig)
    """Alignment of the quantized features with those of a frozen net."""

    def __bool__(self) -> bool:
        return bool(self.labels or self.report.weight or self.teacher.weight)


@dataclass(frozen=True)
class LossConfig:
    """Training losses of the tokenizer."""

    l1_weight: float = 1.0
    """Weight of the mean absolute error of the pixels in [-1, 1]."""
    l2_weight: float = 0.0
    """Weight of the mean squared error of the pixels in [-1, 1]; penalizes errors in the few pixels of a nodule more
    than l1."""
    perceptual_weight: float = 1.0
    """Weight of the perceptual loss."""
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    """Net and weights of the perceptual loss."""
    gan_weight: float = 0.75
    """Weight of the adversarial (hinge) loss, multiplied by the adaptive weight; 0 disables the discriminator."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """The patch discriminator and its schedule."""
    semantic: SemanticConfig = field(default_factory=SemanticConfig)
    """Semantic terms on the quantized features; all weights 0 = none."""

    def __post_init__(self) -> None:
        if self.l1_weight <= 0:
            raise ValueError(f"loss.l1_weight must be positive, got {self.l1_weight}")
        for name in ("l2_weight", "perceptual_weight", "gan_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"loss.{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True)
class DataConfig:
    """Training and validation data."""

    shards: str
    """Folder or URL of image shards from `medunifier ingest`; its --size must equal model.resolution."""
    pictures: int = 8
    """Validation images that are saved with their reconstructions at every validation."""

    def __post_init__(self) -> None:
        if self.pictures < 1:
            raise ValueError(f"data.pictures must be at least 1, got {self.pictures}")


@dataclass(frozen=True)
class Stage1Config:
    """Train a radiograph tokenizer (VQ-GAN) on image shards and export it."""

    data: DataConfig
    """Training and validation data."""
    run_dir: str
    """Run folder; an existing run is resumed. The tokenizer is exported to `tokenizer/` in it."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The VQ-GAN."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Training losses."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(betas=(0.5, 0.9)))
    """Optimizer of the generator and of the discriminator."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """Length of the training, logging and checkpoints."""
    compile: CompileSetting = "auto"
    """Compile tokenizer, perceptual net and discriminator with torch.compile: true, false or auto, which is true on a
    GPU. Takes minutes at the start, and on a CPU a C++ compiler."""
    gradient_checkpointing: bool = False
    """Gradient checkpointing: less memory per step, about a third more FLOPs, the same gradients."""
    ema_decay: float = 0.999
    """Decay per step of the EMA of the weights, which is validated and exported (lower in the first steps)."""

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")
        if self.model.resolution < 32 and self.loss.perceptual.net != "none":
            raise ValueError(
                f"model.resolution ({self.model.resolution}) is below the 32 pixels that perceptual nets need: raise "
                "it, or set loss.perceptual.net none and loss.perceptual_weight 0"
            )
