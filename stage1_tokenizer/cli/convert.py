"""``medunifier convert``: convert taming checkpoints to frozen tokenizers and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from medunifier.shared.artifacts import atomic_file, read_json, write_json
from medunifier.shared.config import parse_config
from medunifier.shared.errors import UsageError, UserError
from medunifier.stage1_tokenizer import taming
from medunifier.stage1_tokenizer.config import ModelConfig
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer, tokenizer_folder
from medunifier.stage1_tokenizer.model.vqgan import VQGAN

CHECKPOINT_RECORD, OTHER_TENSORS = "taming.json", "taming.safetensors"
"""Files in a converted tokenizer's folder: the YAML's values, and the tensors that are not part of the tokenizer."""

_MODEL_PREFIXES = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")


@dataclass(frozen=True)
class ConvertConfig:
    """Convert a taming-transformers checkpoint to a frozen tokenizer (--from taming), or back (--to taming)."""

    taming_config: str = ""
    """--from: the YAML that the checkpoint was trained with. Passed as --config."""
    checkpoint: str = ""
    """--from: the checkpoint, FILE.ckpt."""
    tokenizer: str = ""
    """--to: folder of the frozen tokenizer."""
    out: str = ""
    """--from: output folder of the tokenizer. --to: output FILE.ckpt; FILE.yaml is written beside it."""
    source: Literal["", "taming"] = ""
    """Format of the checkpoint to convert. Passed as --from."""
    target: Literal["", "taming"] = ""
    """Format to convert the tokenizer to. Passed as --to."""


_FIELD_OPTIONS = {"--from": "--source", "--to": "--target", "--config": "--taming_config"}


def _rename_option(argument: str) -> str:
    """Replace an option by its field's: ``from`` is a Python keyword, and ``--config`` is taming's file here."""
    name, equals, value = argument.partition("=")
    return _FIELD_OPTIONS.get(name, name) + equals + value


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``medunifier convert --from taming … | --to taming …``.

    Raises:
        UsageError: if not exactly one of --from and --to is passed, or a file is missing from the options.
        UserError: if checkpoint and configuration do not match, with every difference.
    """
    config = parse_arguments(argv or [])
    if config.source:
        tokenizer, notes = from_taming(config.checkpoint, config.taming_config, config.out)
        print(f"{config.out} written (fingerprint {tokenizer.fingerprint[:12]})")
    else:
        notes = to_taming(config.tokenizer, config.out)
        print(f"{config.out} and {_yaml_beside(config.out)} written")
    for note in notes:
        print(f"note: {note}")


def parse_arguments(argv: Sequence[str]) -> ConvertConfig:
    """Parse the command line, including ``--from``, ``--to`` and ``--config``.

    Raises:
        UsageError: if not exactly one of --from and --to is passed, or a file is missing from the options.
    """
    config = parse_config(ConvertConfig, [_rename_option(argument) for argument in argv], prog="medunifier convert")
    if bool(config.source) == bool(config.target):
        raise UsageError(
            "convert needs either --from taming (checkpoint to tokenizer) or --to taming (tokenizer to checkpoint)"
        )
    required = ("checkpoint", "taming_config", "out") if config.source else ("tokenizer", "out")
    options = {"taming_config": "--config"}
    if missing := [options.get(name, f"--{name}") for name in required if not getattr(config, name)]:
        raise UsageError(f"convert {'--from' if config.source else '--to'} taming needs {', '.join(missing)}")
    return config


def from_taming(checkpoint: str | Path, config: str | Path, out: str | Path) -> tuple[FrozenTokenizer, list[str]]:
    """Convert a checkpoint to a frozen tokenizer in ``out``, with the files needed to convert it back.

    Returns:
        The tokenizer, and notes for the user.

    Raises:
        UserError: if the configuration has an unknown key, or the checkpoint does not match it (with every
            difference).
    """
    read = taming.read_config(config)
    state = taming.load_state(checkpoint)
    taming.check(state, read, Path(checkpoint), Path(config))
    notes = []
    if cast := sorted({str(t.dtype) for n, t in state.items() if _is_model(n) and t.dtype != torch.float32}):
        notes.append(f"weights of {', '.join(cast)} are converted to float32")
    if not any(name.startswith("loss.") for name in state) and read.loss is not None:
        notes.append("the checkpoint has no tensors of its loss; the tokenizer does not need them")
    tokenizer = _freeze(state, read, notes)
    other_tensors = {name: tensor.clone() for name, tensor in state.items() if not _is_recoverable(name, read)}

    def write_extra(folder: Path) -> None:
        # The key order is part of a checkpoint, and safetensors sorts keys.
        record = {"fingerprint": tokenizer.fingerprint, "config": read.document, "keys": list(state)}
        write_json(folder / CHECKPOINT_RECORD, record)
        save_file({name: tensor.contiguous() for name, tensor in other_tensors.items()}, folder / OTHER_TENSORS)

    card = "\nConverted from a taming-transformers checkpoint; `medunifier convert --to taming` converts it back.\n"
    tokenizer.save(out, card, write_extra)
    return tokenizer, notes


def _is_model(name: str) -> bool:
    return name.startswith((*_MODEL_PREFIXES, "quantize.")) and name != "quantize.used"


def _is_recoverable(name: str, config: taming.TamingConfig) -> bool:
    """Return whether a tensor of the checkpoint can be recovered from the tokenizer's files."""
    return name.startswith(_MODEL_PREFIXES) or (name.startswith("quantize.") and not config.remapped)


def _freeze(state: dict[str, Tensor], config: taming.TamingConfig, notes: list[str]) -> FrozenTokenizer:
    weights = {name: tensor.float() for name, tensor in state.items() if _is_model(name)}
    model, remap = config.model, None
    if config.remapped:
        weights, model, remap = _fold_remap(weights, state["quantize.used"].long(), config, notes)
    vqgan = VQGAN(model)
    loaded = vqgan.load_state_dict(weights, strict=False)
    assert not loaded.unexpected_keys and set(loaded.missing_keys) <= {"quantize.steps"}  # noqa: S101 - narrows a type
    return FrozenTokenizer(vqgan, remap)


def _fold_remap(
    weights: dict[str, Tensor], used: Tensor, config: taming.TamingConfig, notes: list[str]
) -> tuple[dict[str, Tensor], ModelConfig, tuple[Tensor, Tensor] | None]:
    """Reduce the codebook to the entries in ``used``, so that codes are indices into ``used``.

    ``unknown_index`` ``extra`` adds one code for all other entries, which decodes as the first used entry; an integer
    is the code of all other entries.

    Returns:
        Weights and configuration of the reduced model, and the ``remap`` of :class:`FrozenTokenizer`.
    """
    entries, unknown, codes = config.model.n_embed, config.unknown_index, len(used)
    if codes == 0 or int(used.min()) < 0 or int(used.max()) >= entries:
        raise UserError(f"quantize.used must hold indices of entries, 0 to {entries - 1}")
    kept = torch.cat([used, used[:1]]) if unknown == "extra" else used
    table_key = "quantize.embed.weight" if config.model.quantizer.kind == "gumbel_vq" else "quantize.embedding.weight"
    table = weights[table_key]
    folded = weights | {table_key: table[kept]}
    remap = None
    if config.model.quantizer.kind == "gumbel_vq":
        # Taming's Gumbel quantizer only computes the used logits, so no entry is unknown.
        bias = weights["quantize.proj.bias"][kept].clone()
        if unknown == "extra":
            bias[-1] = torch.finfo(torch.float32).min
        folded |= {"quantize.proj.weight": weights["quantize.proj.weight"][kept], "quantize.proj.bias": bias}
    elif unknown == "random":
        notes.append(
            "remap with unknown_index random: unknown codes become the nearest *used* entry; taming samples one"
        )
    else:
        other = codes if unknown == "extra" else int(unknown)
        if not 0 <= other < len(kept):
            raise UserError(
                f"model.params.unknown_index must be random, extra or a number below {codes}, got {unknown}"
            )
        code = torch.full((entries,), other)
        code[used.flip(0)] = torch.arange(codes).flip(0)  # the first index of an entry that is listed twice
        remap = (table, code)
    values = {name: getattr(config.model, name) for name in config.model.__dataclass_fields__}
    return folded, ModelConfig(**values | {"n_embed": len(kept)}), remap


def _yaml_beside(out: str | Path) -> Path:
    return Path(out).with_suffix(".yaml")


def to_taming(tokenizer: str | Path, out: str | Path) -> list[str]:
    """Write a frozen tokenizer as the checkpoint ``out`` with a YAML beside it, and return notes for the user.

    A tokenizer that was converted from a checkpoint is written with every tensor and setting of that checkpoint.

    Raises:
        UserError: if taming's layers cannot represent the model.
    """
    path, notes = tokenizer_folder(tokenizer), []
    frozen = FrozenTokenizer.from_pretrained(path)
    state = {
        name: tensor for name, tensor in frozen.state_dict_of_model().items() if name.startswith(_MODEL_PREFIXES)
    }
    if frozen.config.quantizer.kind == "gumbel_vq":
        state |= {n: t for n, t in frozen.state_dict_of_model().items() if n.startswith("quantize.proj.")}
        state["quantize.embed.weight"] = frozen.codebook
    else:
        state["quantize.embedding.weight"] = frozen.codebook
    if (path / CHECKPOINT_RECORD).is_file():
        document, state = _restore_checkpoint(path, frozen, state)
    else:
        document = taming.write_document(frozen.config)
        notes.append(
            "the checkpoint has no loss (DummyLoss): discriminator and perceptual net are not part of a tokenizer"
        )
    if frozen.config.front_end_levels:
        notes.append(
            f"encoder and decoder work on Haar coefficients ({frozen.config.front_end_levels} levels), not pixels; "
            "codebook and codes are as taming's"
        )
    with atomic_file(out) as partial:
        torch.save({"state_dict": {name: tensor.contiguous() for name, tensor in state.items()}}, partial)
    with atomic_file(_yaml_beside(out)) as partial:
        partial.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return notes


def _restore_checkpoint(
    path: Path, frozen: FrozenTokenizer, state: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    record = read_json(path / CHECKPOINT_RECORD, "the record of a converted tokenizer")
    if record.get("fingerprint") != frozen.fingerprint:
        raise UserError(f"{path / CHECKPOINT_RECORD} belongs to another tokenizer: convert the checkpoint again")
    try:
        state = state | load_file(path / OTHER_TENSORS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path / OTHER_TENSORS} cannot be read: {error}; convert the checkpoint again") from None
    document: dict[str, Any] = record["config"]
    checkpoint = {name: state[name] for name in record["keys"]}
    taming.check(
        checkpoint, taming.parse_document(document, path / CHECKPOINT_RECORD), path, path / CHECKPOINT_RECORD
    )
    return document, checkpoint
