"""Public names of medunifier: one model that understands and generates chest radiographs.

    from medunifier import FrozenTokenizer, MedUnifierForConditionalGeneration, read_radiograph

A name is imported when it is first used, so that ``import medunifier`` and ``medunifier --help`` do not load
torch. Importing a model name registers the classes with the Auto classes of ``transformers``.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "read_radiograph": "medunifier.data.images.radiograph",
    "split_sections": "medunifier.data.reports.sections",
    "label_report": "medunifier.data.reports.labeler",
    "Phantom": "medunifier.data.phantom.study",
    "ShardDataset": "medunifier.data.shards.dataset",
    "VQGAN": "medunifier.stage1_tokenizer.model.vqgan",
    "FrozenTokenizer": "medunifier.stage1_tokenizer.frozen",
    "MedUnifierConfig": "medunifier.stage2_unified.model.configuration",
    "MedUnifierForConditionalGeneration": "medunifier.stage2_unified.model.modeling",
    "MedUnifierProcessor": "medunifier.stage2_unified.model.processing.processor",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'medunifier' has no attribute {name!r}")
    if name.startswith("MedUnifier"):
        import_module("medunifier.stage2_unified.model.modeling")  # registers the Auto classes
    return getattr(import_module(_MODULES[name]), name)
