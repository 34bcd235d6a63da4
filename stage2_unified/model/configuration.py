"""Configuration of the unified model, in Hugging Face's form."""

from typing import Any, Literal, get_args

from transformers import AutoConfig, PreTrainedConfig

from medunifier.shared.errors import UserError
from medunifier.stage2_unified.model.vocabulary import BOS, EOS, PAD, Vocabulary

MAX_LAYERS = 1000
"""Of the backbone."""

ExpertSetting = Literal["none", "feed_forward", "all"]
"""Which parts of a decoder layer each kind of token has of its own (``experts.py``)."""


def _check(name: str, value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise UserError(f"config.json has no valid {name}: expected {kind.__name__}, got {type(value).__name__}")
    return value


class MedUnifierConfig(PreTrainedConfig):
    """Configuration of the unified model.

    Args:
        text_config: the backbone, a decoder's configuration or its dictionary with ``model_type`` (qwen3, llama, …).
            Its ``vocab_size`` is set to the ids below the image codes.
        text_size: V, ids of the report tokenizer.
        codebook_size: K, entries of the image codebook.
        code_dim: D, size of a codebook entry.
        grid: (h, w) codes of an image.
        embedding_dim: size of the contrastive embeddings.
        tokenizer_fingerprint: of the frozen image tokenizer.
        max_report_tokens: longest report that it was trained on.
        text_choice: sections of the training text ("findings+impression", …).
        initial_scale: inverse temperature of the contrast at the start (CLIP: 1 / 0.07).
        max_views: most images of a study that it was trained on.
        prior: whether it was trained with an image of the prior study.
        statements: whether it was trained with statements, so that matching applies to a sentence as to a report.
        bidirectional_images: codes of an encoded image attend to each other in both directions; needs the attention
            implementation "sdpa".
        experts: parts of each layer that text, codes that are read and codes that are generated have of their own:
            "none"; "feed_forward" and norms; "all" but the attention over the sequence.

    Raises:
        UserError: for keys of an older version, which ``transformers`` would keep without using them.
    """

    model_type = "medunifier"
    sub_configs = {"text_config": AutoConfig}

    def __init__(
        self,
        text_config: dict[str, Any] | PreTrainedConfig | None = None,
        text_size: int = 256,
        codebook_size: int = 512,
        code_dim: int = 8,
        grid: tuple[int, int] = (8, 8),
        embedding_dim: int = 128,
        tokenizer_fingerprint: str = "",
        max_report_tokens: int = 160,
        text_choice: str = "findings+impression",
        initial_scale: float = 1 / 0.07,
        max_views: int = 1,
        prior: bool = False,
        statements: bool = False,
        bidirectional_images: bool = False,
        experts: ExpertSetting = "none",
        **kwargs: Any,
    ) -> None:
        if "codes" in kwargs:
            raise UserError(
                "config.json was written by an older version of medunifier: it has `codes` in place of "
                "`codebook_size`; load the model with that version, or train it again"
            )
        _check("max_report_tokens", max_report_tokens, int)
        _check("text_choice", text_choice, str)
        _check("tokenizer_fingerprint", tokenizer_fingerprint, str)
        if experts not in get_args(ExpertSetting):
            raise UserError(f"config.json has experts {experts!r}: expected {', '.join(get_args(ExpertSetting))}")
        vocabulary = Vocabulary(text_size, codebook_size)
        backbone: Any = text_config
        if not isinstance(text_config, PreTrainedConfig):
            values = dict(text_config or {})
            # transformers makes a list of that length before it looks at the weights.
            layers = _check("text_config.num_hidden_layers", values.get("num_hidden_layers", 1), int)
            if not 0 < layers <= MAX_LAYERS:
                raise UserError(f"config.json has {layers} layers in text_config: expected 1 to {MAX_LAYERS}")
            backbone = AutoConfig.for_model(values.pop("model_type", "qwen3"), **values)
        special_ids = {
            "bos_token_id": vocabulary[BOS],
            "eos_token_id": vocabulary[EOS],
            "pad_token_id": vocabulary[PAD],
        }
        backbone.vocab_size = vocabulary.offset
        for name, value in special_ids.items():
            setattr(backbone, name, value)
            kwargs[name] = value
        self.text_config = backbone
        self.text_size = text_size
        self.codebook_size = codebook_size
        self.code_dim = code_dim
        self.grid = list(grid)
        self.embedding_dim = embedding_dim
        self.tokenizer_fingerprint = tokenizer_fingerprint
        self.max_report_tokens = max_report_tokens
        self.text_choice = text_choice
        self.initial_scale = initial_scale
        self.max_views = max_views
        self.prior = prior
        self.statements = statements
        self.bidirectional_images = bidirectional_images
        self.experts = experts
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)

    @property
    def vocabulary(self) -> Vocabulary:
        """The id space."""
        return Vocabulary(self.text_size, self.codebook_size)

    @property
    def image_tokens(self) -> int:
        """N, codes of an image."""
        return int(self.grid[0] * self.grid[1])


AutoConfig.register(MedUnifierConfig.model_type, MedUnifierConfig)
