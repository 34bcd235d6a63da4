"""Configuration of stage 2's training."""

from dataclasses import asdict, dataclass, field, fields
from typing import Literal

from medunifier.shared.training.config import LoopConfig, OptimConfig


@dataclass(frozen=True)
class DataConfig:
    """Token shards, and what is drawn from them."""

    shards: str
    """Folder or URL of token shards (`medunifier tokenize`)."""
    text_dropout: float = 0.1
    """Share of the studies whose image is learned without its report, for guidance."""
    section_dropout: float = 0.0
    """Share of the reports of several sections that show one of them alone, so that each can be asked for."""
    max_report_tokens: int = 192
    """Longer reports are cut; how many are is printed at the start."""
    max_views: int = 1
    """Most images of a study that a row shows; which ones, and in which order, is drawn anew each time."""
    view_dropout: float = 0.0
    """Share of the rows that show one image though max_views allows several, for uses that have one alone."""
    prior: bool = False
    """Begin a follow-up's row with an image of the visit before: the shards must tell the order of the visits."""

    def __post_init__(self) -> None:
        for name in ("text_dropout", "section_dropout", "view_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"data.{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.max_report_tokens < 1:
            raise ValueError(f"data.max_report_tokens must be at least 1, got {self.max_report_tokens}")
        if self.max_views < 1:
            raise ValueError(f"data.max_views must be at least 1, got {self.max_views}")
        if self.view_dropout and self.max_views == 1:
            raise ValueError("data.view_dropout leaves one image of several: give data.max_views 2 or more")


@dataclass(frozen=True)
class TextConfig:
    """The report tokenizer."""

    vocabulary_size: int = 8192
    """Most ids of the BPE trained on the training split; at least 256, one a byte."""
    tokenizer: str = ""
    """A local Hugging Face tokenizer in its place."""

    def __post_init__(self) -> None:
        if self.vocabulary_size < 256:
            raise ValueError(f"text.vocabulary_size must be at least 256, got {self.vocabulary_size}")


@dataclass(frozen=True)
class BackboneConfig:
    """The decoder: a checkpoint, or a new Qwen3 (pre-norm, QK-norm, RoPE, grouped queries, SwiGLU)."""

    pretrained: str = ""
    """A local Hugging Face checkpoint of a causal language model to begin with, and with its tokenizer; all but
    embedding_dim below is then its own."""

    hidden_dim: int = 768
    """Hidden size."""
    num_layers: int = 12
    """Decoder layers."""
    num_heads: int = 12
    """Query heads."""
    num_kv_heads: int = 4
    """Key and value heads; divides heads."""
    head_dim: int = 64
    """Width of a head."""
    mlp_dim: int = 2048
    """Inner width of the feed-forward part."""
    embedding_dim: int = 256
    """Width of the contrastive embeddings."""
    rope_theta: float = 10_000.0
    """Of the rotary positions: the longest wavelength is about 2 pi times this. A row of some hundred tokens and
    narrow heads tells its places apart sooner with less."""
    bidirectional_images: bool = False
    """Codes of an image that is read see each other in both directions; one that is drawn stays causal. Such a model
    cannot be exported as a stock causal LM."""

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"model.num_heads ({self.num_heads}) must be a multiple of model.num_kv_heads ({self.num_kv_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"model.head_dim must be even for rotary positions, got {self.head_dim}")
        if self.rope_theta <= 1:
            raise ValueError(f"model.rope_theta must be above 1, got {self.rope_theta}")

    def to_transformers(self, positions: int) -> dict[str, object]:
        """The same as ``transformers`` spells it."""
        return {
            "model_type": "qwen3",
            "hidden_size": self.hidden_dim,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.mlp_dim,
            "max_position_embeddings": positions,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
        }


@dataclass(frozen=True)
class DecoderOptimConfig(OptimConfig):
    """The optimizer and its schedule; one learning rate serves both kinds."""

    kind: Literal["muon", "adamw"] = "muon"
    """muon: orthogonal updates for the matrices of the decoder's layers, AdamW for all else; adamw: AdamW alone
    (what FSDP needs, since it cuts matrices up)."""


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters in place of training the decoder's layers (needs peft)."""

    rank: int = 0
    """Of the adapters; 0 = none, everything is trained."""
    alpha: float = 16.0
    """Adapters count alpha / rank."""

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha <= 0:
            raise ValueError(f"lora.rank must be at least 0 and lora.alpha positive, got {self.rank}, {self.alpha}")


@dataclass(frozen=True)
class LossWeights:
    """Weight of each objective in the sum that is trained; 0 leaves its gradient out."""

    contrast: float = 1.0
    """Image-text contrast."""
    matching: float = 1.0
    """Image-text matching."""
    report: float = 1.0
    """Report from an image."""
    image: float = 1.0
    """Image from a report."""
    z: float = 1e-4
    """Squared log-normaliser of all token logits."""

    def __post_init__(self) -> None:
        values = asdict(self)
        if min(values.values()) < 0 or max(values.values()) == 0:
            raise ValueError(f"weights must be at least 0 and not all 0, got {values}")


OBJECTIVES = tuple(weight.name for weight in fields(LossWeights) if weight.name != "z")
"""Names of the objectives, without the penalty on the logits' normaliser."""


@dataclass(frozen=True)
class Stage2Config:
    """Train the unified model on token shards."""

    data: DataConfig
    """Token shards."""
    tokenizer: str
    """Folder of the frozen image tokenizer that made them."""
    run_dir: str
    """Run folder; the model is exported to model/ in it."""
    text: TextConfig = field(default_factory=TextConfig)
    """Report tokenizer."""
    model: BackboneConfig = field(default_factory=BackboneConfig)
    """Decoder."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters."""
    weights: LossWeights = field(default_factory=LossWeights)
    """Objectives."""
    negative_hardness: float = 1.0
    """Hard negatives are drawn by similarity times this: 1 = as the contrast has it, 0 = any other report alike.
    Small batches of like reports want less than 1: their nearest neighbours say the same in other words."""
    optim: DecoderOptimConfig = field(default_factory=DecoderOptimConfig)
    """Optimizer."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """Length and intervals."""
    compile: bool = False
    """torch.compile for the norms and feed-forward parts of the decoder's layers. It needs a compiler, and a minute
    at the start."""
    gradient_checkpointing: bool = False
    """Gradient checkpointing, a decoder layer at a time: less memory, about a third more arithmetic, the same
    gradients."""

    def __post_init__(self) -> None:
        if self.negative_hardness < 0:
            raise ValueError(f"negative_hardness must be at least 0, got {self.negative_hardness}")
        if self.lora.rank and not self.model.pretrained:
            raise ValueError("lora.rank adapts a decoder that knows something: give model.pretrained")
        if self.lora.rank and self.optim.kind != "adamw":
            raise ValueError("lora.rank needs optim.kind adamw: an adapter's two factors are not to be orthogonal")
