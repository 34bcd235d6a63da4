"""``medunifier export``: write trained models, tokenizers and data in formats that other software reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medunifier.shared.config import parse_config


@dataclass(frozen=True)
class ExportConfig:
    """Export a trained model, a tokenizer or shards in a standard format; nothing is uploaded."""

    model: str = ""
    """Model folder (run_dir/model)."""
    tokenizer: str = ""
    """onnx, hub: folder of the frozen tokenizer; empty = the tokenizer of the model."""
    data: str = ""
    """hub: folder of image or token shards."""
    format: Literal["causal-lm", "onnx", "hub"] = "causal-lm"
    """causal-lm: a checkpoint for transformers' AutoModelForCausalLM and AutoTokenizer. onnx: the tokenizer's encoder
    and decoder as ONNX graphs. hub: repository folders with cards, ready to upload."""
    may_share_data: bool = False
    """hub: confirm that you are permitted to share shards of patient data."""
    out: str = ""
    """Output folder; empty = NAME-FORMAT next to the exported folder."""

    def __post_init__(self) -> None:
        if self.format == "causal-lm" and not self.model:
            raise ValueError("format causal-lm needs model")
        if self.format == "onnx" and not (self.tokenizer or self.model):
            raise ValueError("format onnx needs tokenizer, or a model that has one")
        if self.format == "hub" and not (self.model or self.tokenizer or self.data):
            raise ValueError("format hub needs model, tokenizer or data")
        for name, formats in (("tokenizer", ("onnx", "hub")), ("data", ("hub",)), ("may_share_data", ("hub",))):
            if getattr(self, name) and self.format not in formats:
                raise ValueError(f"{name} does not apply to format {self.format}")


def main(argv: Sequence[str] | None = None) -> None:
    """Export; running the same command again does nothing.

    Raises:
        UserError: for an invalid folder, a missing package, or an output folder that contains something else.
    """
    config = parse_config(ExportConfig, argv, prog="medunifier export")
    # Imported here so that --help does not wait for torch and transformers.
    from medunifier.stage1_tokenizer.frozen import FrozenTokenizer
    from medunifier.stage2_unified.export.causal_lm_folder import export_causal_lm
    from medunifier.stage2_unified.export.hub import export_hub
    from medunifier.stage2_unified.export.tokenizer_onnx import export_onnx

    source = Path(config.model or config.tokenizer or config.data)
    out = Path(config.out) if config.out else source.with_name(f"{source.name}-{config.format}")
    if config.format == "onnx":
        written = export_onnx(FrozenTokenizer.from_pretrained(config.tokenizer or config.model), out)
    elif config.format == "hub":
        written = export_hub(config.model, config.tokenizer, config.data, config.may_share_data, out)
    else:
        written = export_causal_lm(Path(config.model), out)
    print(f"{out} written" if written else f"{out} is already complete")
