"""Memory requirements of the presets of ``configs/``."""

from pathlib import Path
from typing import Any

import yaml

from medunifier.shared.training.config import LoopConfig
from medunifier.shared.training.memory import Size
from medunifier.stage1_tokenizer.config import ModelConfig, model_config
from medunifier.stage1_tokenizer.training.size import tokenizer_size
from medunifier.stage2_unified.model.configuration import MedUnifierConfig
from medunifier.stage2_unified.model.memory import unified_size
from medunifier.stage2_unified.model.sequences import longest_sequence
from medunifier.stage2_unified.training.config import BackboneConfig


def preset_sizes(configs: Path) -> list[Size]:
    """Return the sizes of all presets. A stage-2 preset uses the tokenizer preset of its name, else ``cxr_f16``."""
    stage1 = {path.stem: _read(path) for path in sorted((configs / "stage1").glob("*.yaml"))}
    tokenizers = {name: model_config(values["model"]) for name, values in stage1.items()}
    sizes = [tokenizer_size(f"stage1/{name}", tokenizers[name], _loop(values)) for name, values in stage1.items()]
    for path in sorted((configs / "stage2").glob("*.yaml")):
        tokenizer = tokenizers.get(path.stem) or tokenizers.get("cxr_f16")
        if tokenizer is not None:
            values = _read(path)
            averaged = bool(values.get("ema_decay"))
            unified = _unified_config(values, tokenizer)
            sizes.append(unified_size(f"stage2/{path.stem}", unified, _loop(values), averaged))
    return sizes


def _read(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def _loop(values: dict[str, Any]) -> LoopConfig:
    return LoopConfig(**values.get("loop", {}))


def _unified_config(values: dict[str, Any], tokenizer: ModelConfig) -> MedUnifierConfig:
    data, text = values.get("data", {}), values.get("text", {})
    backbone = BackboneConfig(**values.get("model", {}))
    height, width = tokenizer.grid
    report = int(data.get("max_report_tokens", 192))
    longest = longest_sequence(height * width, report, int(data.get("max_views", 1)), bool(data.get("prior", False)))
    return MedUnifierConfig(
        text_config=backbone.to_transformers(longest),
        text_size=int(text.get("vocabulary_size", 8192)),
        codebook_size=tokenizer.n_embed,
        code_dim=tokenizer.embed_dim,
        grid=tokenizer.grid,
        embedding_dim=backbone.embedding_dim,
        max_report_tokens=report,
    )
