"""The console command: one table of commands, each loaded only when it is called."""

import sys
from importlib import import_module

from medunifier import __version__

COMMANDS = {
    "phantom": ("medunifier.data.phantom.command", "write synthetic radiographs and reports in MIMIC-CXR's layout"),
    "ingest": ("medunifier.data.ingest.command", "convert an archive of radiographs to image shards"),
    "train": ("medunifier.train", "train the tokenizer (stage1) or the unified model (stage2)"),
    "tokenize": ("medunifier.stage1_tokenizer.cli.tokenize_shards", "encode image shards as token shards"),
    "convert": ("medunifier.stage1_tokenizer.cli.convert", "import or export taming-transformers checkpoints"),
    "report": ("medunifier.stage2_unified.cli.report", "generate draft reports from radiographs"),
    "synthesize": ("medunifier.stage2_unified.cli.synthesize", "generate radiographs from reports or findings"),
    "retrieve": ("medunifier.stage2_unified.cli.retrieve", "find the studies most similar to a radiograph or a text"),
    "classify": ("medunifier.stage2_unified.cli.classify", "classify findings zero-shot, by sentences"),
    "calibrate": (
        "medunifier.stage2_unified.cli.calibrate",
        "measure which images a model was not trained for",
    ),
    "serve": ("medunifier.stage2_unified.app.command", "serve the web page on this machine"),
    "evaluate": ("medunifier.stage2_unified.evaluate.command", "evaluate a model or a tokenizer: one JSON, one page"),
    "subset": (
        "medunifier.stage2_unified.evaluate.subsets.subset",
        "write study ids and prompts of published protocols",
    ),
    "export": ("medunifier.stage2_unified.cli.export", "export a trained model for other software"),
    "bench": ("medunifier.bench", "measure speed against a peer in the same run"),
    "doctor": ("medunifier.stage2_unified.cli.doctor.command", "check packages, weights and presets that fit"),
}


def _usage() -> str:
    from medunifier.shared.report_page.notice import RESEARCH_ONLY

    width = max(map(len, COMMANDS))
    commands = [f"  {name:{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: medunifier COMMAND [options]     (medunifier COMMAND --help lists the options)",
            "",
            *commands,
            "",
            RESEARCH_ONLY,
        ]
    )


def main() -> int:
    """Run one command; the exit code is 0, 1 (failed) or 2 (wrong use)."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"medunifier {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        from medunifier.shared.errors import nearest

        known = ", ".join(COMMANDS)
        close = nearest(arguments[0], [*COMMANDS, "--help", "--version"])
        print(f"error: unknown command {arguments[0]!r}; available: {known}{close}", file=sys.stderr)
        return 2
    from medunifier.shared.command import run_command

    # Imported within: an interrupt while modules load is one line too.
    return run_command(lambda argv: import_module(COMMANDS[arguments[0]][0]).main(argv), arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
