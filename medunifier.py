"""The front door: the public names, and the table of commands. Nothing else.

    from medunifier import FrozenTokenizer, MedUnifierForConditionalGeneration, read_radiograph

Importing it registers the model with ``transformers``' Auto classes. Names are loaded when first asked for.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "read_radiograph": "data.radiograph",
    "split_sections": "data.sections",
    "label_report": "data.labels",
    "Phantom": "data.phantom.study",
    "ShardDataset": "data.shards",
    "VQGAN": "stage1_tokenizer.vqgan",
    "FrozenTokenizer": "stage1_tokenizer.frozen",
    "MedUnifierConfig": "stage2_unified.configuration",
    "MedUnifierForConditionalGeneration": "stage2_unified.model",
    "MedUnifierProcessor": "stage2_unified.processor",
}
__all__ = [*_NAMES]

COMMANDS = {
    "phantom": ("data.phantom.command", "write synthetic radiographs and reports in MIMIC-CXR's layout"),
    "ingest": ("data.ingest", "an archive of radiographs in, image shards out"),
    "tokenize": ("stage1_tokenizer.tokenize", "image shards in, token shards out"),
    "convert": ("stage1_tokenizer.convert", "taming-transformers checkpoints in and out"),
    "report": ("stage2_unified.report_command", "write draft reports for radiographs"),
    "synthesize": ("stage2_unified.synthesize_command", "draw radiographs from reports or findings"),
    "retrieve": ("stage2_unified.retrieve_command", "the most similar studies, to a radiograph or a text"),
    "classify": ("stage2_unified.classify_command", "findings by sentences, for any labels"),
    "serve": ("stage2_unified.app.command", "a page that reads and draws, in the browser"),
    "export": ("stage2_unified.export_command", "a trained model in a stock format, for other software"),
    "bench": ("shared.bench", "compare with a peer in the same run"),
    "evaluate": ("stage2_unified.evaluate.command", "evaluate a model or a tokenizer: one JSON, one page"),
    "subset": ("stage2_unified.evaluate.draws", "write the study ids and prompts of published protocols"),
    "doctor": ("stage2_unified.doctor.command", "what this machine can do, what is missing, which sizes fit"),
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'medunifier' has no attribute {name!r}")
    return getattr(import_module(_NAMES[name]), name)


# The console command alone does without: `medunifier --help` should not wait for torch and transformers.
if Path(sys.argv[0]).name != "medunifier":
    import_module("stage2_unified.model")
    import_module("stage2_unified.processor")


def _usage() -> str:
    from shared.notice import RESEARCH_ONLY

    width = max(map(len, COMMANDS))
    lines = [f"  {verb:{width}}  {summary}" for verb, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: medunifier COMMAND [options]     (medunifier COMMAND --help shows them)",
            "",
            *lines,
            "",
            "Trainings: accelerate launch stage1_tokenizer/train.py, accelerate launch stage2_unified/train.py",
            RESEARCH_ONLY,
        ]
    )


def main() -> int:
    """The console command ``medunifier``."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"medunifier {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        print(f"error: unknown command {arguments[0]!r}; there are: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    from shared.command import run_command

    return run_command(import_module(COMMANDS[arguments[0]][0]).main, arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
