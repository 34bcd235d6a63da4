"""``medunifier convert``: a taming checkpoint to a frozen tokenizer, and a frozen tokenizer back to a checkpoint."""

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
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer
from medunifier.stage1_tokenizer.model.vqgan import VQGAN

ORIGIN, REST = "taming.json", "taming.safetensors"
"""In a converted tokenizer's folder: the YAML's values, and the tensors that are no part of the tokenizer."""

_MODEL_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")


@dataclass(frozen=True)
class ConvertConfig:
    """Turn a taming-transformers checkpoint into a frozen tokenizer (--from taming), or back (--to taming)."""

    taming_config: str = ""
    """--from: the YAML that the checkpoint was trained with (the command's --config means this file)."""
    checkpoint: str = ""
    """--from: the checkpoint, FILE.ckpt."""
    tokenizer: str = ""
    """--to: folder of the frozen tokenizer."""
    out: str = ""
    """--from: folder of the tokenizer. --to: FILE.ckpt; FILE.yaml is written beside it."""
    source: Literal["", "taming"] = ""
    """Spelled --from: what the checkpoint is."""
    target: Literal["", "taming"] = ""
    """Spelled --to: what the tokenizer becomes."""


_SPELLING = {"--from": "--source", "--to": "--target", "--config": "--taming_config"}


def _as_fields(argument: str) -> str:
    """``from`` is a word of Python and cannot name a field; ``--config`` is here the other program's file."""
    name, equals, value = argument.partition("=")
    return _SPELLING.get(name, name) + equals + value


def main(argv: Sequence[str] | None = None) -> None:
    """``medunifier convert --from taming … | --to taming …``.

    Raises:
        UsageError: if neither or both ways are asked for, or a file is not named.
        UserError: if the files do not fit each other, with every difference.
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
    """The command line, with ``--from``, ``--to`` and ``--config`` in their fields.

    Raises:
        UsageError: if neither or both ways are asked for, or a file is not named.
    """
    config = parse_config(ConvertConfig, [_as_fields(argument) for argument in argv], prog="medunifier convert")
    if bool(config.source) == bool(config.target):
        raise UsageError(
            "convert needs --from taming (checkpoint to tokenizer) or --to taming (tokenizer to checkpoint)"
        )
    needed = ("checkpoint", "taming_config", "out") if config.source else ("tokenizer", "out")
    spelled = {"taming_config": "--config"}
    if missing := [spelled.get(name, f"--{name}") for name in needed if not getattr(config, name)]:
        raise UsageError(f"convert {'--from' if config.source else '--to'} taming needs {', '.join(missing)}")
    return config


def from_taming(checkpoint: str | Path, config: str | Path, out: str | Path) -> tuple[FrozenTokenizer, list[str]]:
    """Read a checkpoint and write its frozen tokenizer to ``out``, with what leads back beside it.

    Returns:
        The tokenizer, and remarks for the user.

    Raises:
        UserError: if the configuration has an unknown key, or the checkpoint differs from it (every difference).
    """
    read = taming.read_config(config)
    state = taming.load_state(checkpoint)
    taming.check(state, read, Path(checkpoint), Path(config))
    notes = []
    if cast := sorted({str(t.dtype) for n, t in state.items() if _is_model(n) and t.dtype != torch.float32}):
        notes.append(f"weights of {', '.join(cast)} are kept in float32")
    if not any(name.startswith("loss.") for name in state) and read.loss is not None:
        notes.append("the checkpoint holds no tensors of its loss; the tokenizer does not need them")
    tokenizer = _freeze(state, read, notes)
    rest = {name: tensor.clone() for name, tensor in state.items() if not _is_kept(name, read)}

    def write_origin(folder: Path) -> None:
        # The order of the keys is part of a checkpoint, and safetensors sorts them.
        origin = {"fingerprint": tokenizer.fingerprint, "config": read.document, "keys": list(state)}
        write_json(folder / ORIGIN, origin)
        save_file({name: tensor.contiguous() for name, tensor in rest.items()}, folder / REST)

    card = "\nConverted from a taming-transformers checkpoint; `medunifier convert --to taming` leads back.\n"
    tokenizer.save(out, card, write_origin)
    return tokenizer, notes


def _is_model(name: str) -> bool:
    return name.startswith((*_MODEL_PARTS, "quantize.")) and name != "quantize.used"


def _is_kept(name: str, config: taming.TamingConfig) -> bool:
    """Whether a tensor of the checkpoint can be had from the tokenizer's own files."""
    return name.startswith(_MODEL_PARTS) or (name.startswith("quantize.") and not config.remapped)


def _freeze(state: dict[str, Tensor], config: taming.TamingConfig, notes: list[str]) -> FrozenTokenizer:
    own = {name: tensor.float() for name, tensor in state.items() if _is_model(name)}
    model, remap = config.model, None
    if config.remapped:
        own, model, remap = _fold_remap(own, state["quantize.used"].long(), config, notes)
    vqgan = VQGAN(model)
    loaded = vqgan.load_state_dict(own, strict=False)
    assert not loaded.unexpected_keys and set(loaded.missing_keys) <= {"quantize.steps"}
    return FrozenTokenizer(vqgan, remap)


def _fold_remap(
    own: dict[str, Tensor], used: Tensor, config: taming.TamingConfig, notes: list[str]
) -> tuple[dict[str, Tensor], ModelConfig, tuple[Tensor, Tensor] | None]:
    """A model whose codes are positions in ``used``: its table is shortened to those entries.

    ``extra`` adds one code for all other entries, which decodes as the first used one; a number gives it to them.
    """
    entries, unknown, codes = config.model.n_embed, config.unknown_index, len(used)
    if codes == 0 or int(used.min()) < 0 or int(used.max()) >= entries:
        raise UserError(f"quantize.used must hold numbers of entries, 0 to {entries - 1}")
    rows = torch.cat([used, used[:1]]) if unknown == "extra" else used
    table_key = "quantize.embed.weight" if config.model.quantizer.kind == "gumbel_vq" else "quantize.embedding.weight"
    table = own[table_key]
    folded = own | {table_key: table[rows]}
    remap = None
    if config.model.quantizer.kind == "gumbel_vq":
        # Taming's Gumbel quantiser looks at the used logits alone, so no entry is unknown.
        bias = own["quantize.proj.bias"][rows].clone()
        if unknown == "extra":
            bias[-1] = torch.finfo(torch.float32).min
        folded |= {"quantize.proj.weight": own["quantize.proj.weight"][rows], "quantize.proj.bias": bias}
    elif unknown == "random":
        notes.append("remap with unknown_index random: the nearest *used* entry is taken where taming draws one")
    else:
        other = codes if unknown == "extra" else int(unknown)
        if not 0 <= other < len(rows):
            raise UserError(
                f"model.params.unknown_index must be random, extra or a number below {codes}, got {unknown}"
            )
        code = torch.full((entries,), other)
        code[used.flip(0)] = torch.arange(codes).flip(0)  # of an entry that is listed twice, the first place
        remap = (table, code)
    values = {name: getattr(config.model, name) for name in config.model.__dataclass_fields__}
    return folded, ModelConfig(**values | {"n_embed": len(rows)}), remap


def _yaml_beside(out: str | Path) -> Path:
    return Path(out).with_suffix(".yaml")


def to_taming(tokenizer: str | Path, out: str | Path) -> list[str]:
    """Write a frozen tokenizer as ``out`` (a checkpoint) and a YAML beside it; returns remarks for the user.

    One that was converted gives back every tensor and setting of its checkpoint.

    Raises:
        UserError: if taming's layers cannot be this model.
    """
    path, notes = Path(tokenizer), []
    frozen = FrozenTokenizer.from_pretrained(path)
    state = {name: tensor for name, tensor in frozen.state_dict_of_model().items() if name.startswith(_MODEL_PARTS)}
    if frozen.config.quantizer.kind == "gumbel_vq":
        state |= {n: t for n, t in frozen.state_dict_of_model().items() if n.startswith("quantize.proj.")}
        state["quantize.embed.weight"] = frozen.codebook
    else:
        state["quantize.embedding.weight"] = frozen.codebook
    if (path / ORIGIN).is_file():
        document, state = _with_origin(path, frozen, state)
    else:
        document = taming.write_document(frozen.config)
        notes.append("it has no loss (DummyLoss): discriminator and perceptual net are no part of a tokenizer")
    if frozen.config.front_end_levels:
        notes.append(
            f"its encoder reads and its decoder writes Haar coefficients ({frozen.config.front_end_levels} levels), "
            "not pixels; codebook and codes are as taming's"
        )
    with atomic_file(out) as partial:
        torch.save({"state_dict": {name: tensor.contiguous() for name, tensor in state.items()}}, partial)
    with atomic_file(_yaml_beside(out)) as partial:
        partial.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return notes


def _with_origin(
    path: Path, frozen: FrozenTokenizer, state: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    origin = read_json(path / ORIGIN, "the record of a converted tokenizer")
    if origin.get("fingerprint") != frozen.fingerprint:
        raise UserError(f"{path / ORIGIN} belongs to another tokenizer: convert the checkpoint again")
    try:
        state = state | load_file(path / REST)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path / REST} cannot be read: {error}; convert the checkpoint again") from None
    document: dict[str, Any] = origin["config"]
    whole = {name: state[name] for name in origin["keys"]}
    taming.check(whole, taming.parse_document(document, path / ORIGIN), path, path / ORIGIN)
    return document, whole
