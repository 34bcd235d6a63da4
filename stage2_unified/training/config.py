"""Configuration of stage-2 training."""

from dataclasses import asdict, dataclass, field
from typing import Literal

from medunifier.shared.training.config import CompileSetting, LoopConfig, OptimConfig


@dataclass(frozen=True)
class DataConfig:
    """Token shards, and how studies become model inputs."""

    shards: str
    """Folder or URL of token shards (`medunifier tokenize`)."""
    text_dropout: float = 0.1
    """Fraction of the studies whose image is learned without its report, for classifier-free guidance."""
    section_dropout: float = 0.0
    """Fraction of the reports with several sections that are reduced to one, so that each can be requested alone."""
    max_report_tokens: int = 192
    """Longer reports are truncated; the number of these is printed at the start."""
    max_views: int = 1
    """Maximum number of images of a study in a sequence; which ones, and their order, is sampled anew each epoch."""
    view_dropout: float = 0.0
    """Fraction of the studies with several images that are reduced to one, for uses with a single image."""
    prior: bool = False
    """Add an image of the prior study to the sequences of a follow-up; the shards must have the order of studies."""
    statements: int = 0
    """Statements a study and step: sentences of its report, and phrases that state or deny its labels. 0 = none.
    Studies with labels and without text then take part too."""
    statement_tokens: int = 32
    """Ids that statements are padded to; longer sentences are not used."""

    def __post_init__(self) -> None:
        for name in ("text_dropout", "section_dropout", "view_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"data.{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.max_report_tokens < 1:
            raise ValueError(f"data.max_report_tokens must be at least 1, got {self.max_report_tokens}")
        if self.max_views < 1:
            raise ValueError(f"data.max_views must be at least 1, got {self.max_views}")
        if self.statements < 0 or self.statement_tokens < 8:
            raise ValueError(
                "data.statements must be at least 0 and data.statement_tokens at least 8, got "
                f"{self.statements} and {self.statement_tokens}"
            )
        if self.view_dropout and self.max_views == 1:
            raise ValueError("data.view_dropout keeps one image of several: set data.max_views to 2 or more")


@dataclass(frozen=True)
class TextConfig:
    """The report tokenizer."""

    vocabulary_size: int = 8192
    """Maximum number of ids of the BPE trained on the training split; at least 256, one for each byte."""
    tokenizer: str = ""
    """Folder of a local Hugging Face tokenizer to use instead."""

    def __post_init__(self) -> None:
        if self.vocabulary_size < 256:
            raise ValueError(f"text.vocabulary_size must be at least 256, got {self.vocabulary_size}")


@dataclass(frozen=True)
class BackboneConfig:
    """The decoder: a checkpoint, or a new Qwen3 (pre-norm, QK-norm, RoPE, grouped queries, SwiGLU)."""

    pretrained: str = ""
    """Folder of a local Hugging Face causal language model to start from, with its tokenizer; of the sizes below only
    embedding_dim then applies."""

    hidden_dim: int = 768
    """Hidden size."""
    num_layers: int = 12
    """Decoder layers."""
    num_heads: int = 12
    """Query heads."""
    num_kv_heads: int = 4
    """Key and value heads; must divide num_heads."""
    head_dim: int = 64
    """Size of a head; even."""
    mlp_dim: int = 2048
    """Hidden size of the feed-forward part."""
    embedding_dim: int = 256
    """Size of the contrastive embeddings."""
    rope_theta: float = 10_000.0
    """Base of the rotary position embeddings; the longest wavelength is about 2 pi times this. With sequences of a
    few hundred tokens and small heads, a smaller base learns to distinguish positions sooner."""
    bidirectional_images: bool = False
    """Let the codes of an encoded image attend to each other in both directions; a generated image stays causal. Such
    a model cannot be exported as a stock causal LM."""
    experts: Literal["none", "feed_forward", "all"] = "none"
    """Weights of their own for each kind of token (text, codes of images that are read, codes of images that are
    generated): none; feed_forward, with the norms of a layer; all of a layer but the attention over the sequence. A
    token costs the same arithmetic; such a model cannot be exported as a stock causal LM."""

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
        """Return the arguments of a ``transformers`` Qwen3 configuration for sequences of ``positions`` tokens."""
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
    """The optimizer and its schedule; Muon and AdamW share one learning rate."""

    kind: Literal["muon", "adamw"] = "muon"
    """muon: orthogonalised updates for the matrices of the decoder's layers, AdamW for all other parameters; adamw:
    AdamW alone (required by FSDP, which shards matrices)."""
    balance: Literal["none", "gradient_norm"] = "none"
    """gradient_norm: multiply the weights of the objectives by factors in [0.1, 10], such that their gradients at the
    decoder's last hidden states have norms in proportion to the weights."""
    balance_every: int = 50
    """Steps between two measurements of these norms, of which a running mean is kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.balance_every < 1:
            raise ValueError(f"optim.balance_every must be at least 1, got {self.balance_every}")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters in place of training the decoder's layers (needs peft)."""

    rank: int = 0
    """Rank of the adapters; 0 = no adapters, all parameters are trained."""
    alpha: float = 16.0
    """Adapters are scaled by alpha / rank."""

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha <= 0:
            raise ValueError(f"lora.rank must be at least 0 and lora.alpha positive, got {self.rank}, {self.alpha}")


@dataclass(frozen=True)
class LossWeights:
    """Weight of each objective in the loss; 0 removes its gradient."""

    contrast: float = 1.0
    """Image-text contrast (ITC)."""
    matching: float = 1.0
    """Image-text matching (ITM)."""
    report: float = 1.0
    """Report generation from images."""
    image: float = 1.0
    """Image generation from a report."""
    statement_contrast: float = 1.0
    """Contrast of images with statements, with data.statements."""
    statement_report: float = 0.0
    """Contrast of reports with statements, with data.statements: it trains the text embeddings without images."""
    statement_matching: float = 1.0
    """Matching of images with statements, with data.statements."""
    z: float = 1e-4
    """Squared log-normaliser of all token logits."""

    def __post_init__(self) -> None:
        values = asdict(self)
        if min(values.values()) < 0 or max(values.values()) == 0:
            raise ValueError(f"weights must be at least 0 and not all 0, got {values}")


OBJECTIVES = ("contrast", "matching", "report", "image")
"""Names of the losses of the four objectives."""
STATEMENT_LOSSES = ("statement_contrast", "statement_report", "statement_matching")
"""Names of the losses of statements."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Understand first, then generate."""

    generate_from: int = 0
    """Step from which images are generated: before it, the image loss has weight 0. Experts of generated images then
    begin as copies of those of images that are read."""
    reader_rate: float = 1.0
    """From that step on, learning rate of all weights but the experts of generated images and the rows of image codes
    in the head, as a fraction of theirs; 0 = frozen, and the image loss alone counts. Needs model.experts."""

    def __post_init__(self) -> None:
        if self.generate_from < 0 or not 0 <= self.reader_rate <= 1:
            raise ValueError(
                f"schedule.generate_from must be at least 0 and schedule.reader_rate lie in [0, 1], got "
                f"{self.generate_from}, {self.reader_rate}"
            )

    def objectives(self, step: int) -> tuple[str, ...]:
        """Return the names of the objectives that count at ``step`` (from 0)."""
        if step < self.generate_from:
            return tuple(name for name in OBJECTIVES if name != "image")
        return OBJECTIVES if self.reader_rate else ("image",)

    def rate_of_reader(self, step: int) -> float:
        """Return the fraction of the learning rate at ``step`` (from 0)."""
        return self.reader_rate if step >= self.generate_from else 1.0


@dataclass(frozen=True)
class Stage2Config:
    """Train the unified model on token shards."""

    data: DataConfig
    """Token shards."""
    tokenizer: str
    """Folder of the frozen image tokenizer that made the shards."""
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
    """Hard negatives are sampled by softmax of this times the contrastive similarity: 1 = that of the contrast, 0 =
    uniform. Use less than 1 for small batches of similar reports, whose nearest neighbours are paraphrases."""
    optim: DecoderOptimConfig = field(default_factory=DecoderOptimConfig)
    """Optimizer."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Order of the tasks."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """Length of the training and intervals."""
    compile: CompileSetting = "auto"
    """Compile the decoder's layers and the loss of its tokens with torch.compile: true, false or auto, which is true
    on a GPU. Takes a minute or two at the start, and on a CPU a C++ compiler."""
    gradient_checkpointing: bool = False
    """Recompute each decoder layer in the backward pass: less memory, about a third more arithmetic, the same
    gradients."""
    ema_decay: float = 0.0
    """Decay per step of the EMA of the weights, which is validated and exported (lower in the first steps); 0 = none.
    Takes 4 bytes per parameter. Use less than 1 - 10 / loop.steps: the average lags by 1 / (1 - ema_decay) steps."""

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")
        if self.negative_hardness < 0:
            raise ValueError(f"negative_hardness must be at least 0, got {self.negative_hardness}")
        if self.schedule.reader_rate != 1 and self.model.experts == "none":
            raise ValueError("schedule.reader_rate slows all weights but the generating experts: set model.experts")
        if self.lora.rank and not self.model.pretrained:
            raise ValueError("lora.rank adapts a pretrained decoder: set model.pretrained")
        if self.lora.rank and self.optim.kind != "adamw":
            raise ValueError("lora.rank needs optim.kind adamw: Muon would orthogonalise each factor of an adapter")
