"""Configuration and checkpoint keys of CompVis/taming-transformers, all in this file.

A checkpoint is ``{"state_dict": {key: tensor}}`` (Lightning's additions are ignored), its configuration a YAML with
``model.params``. Reading is strict: every expected key must be present with its shape, and no other key or setting is
accepted. Only tensors are read from the file; no code in it is executed.

Source followed: ``taming/models/vqgan.py`` (VQModel, GumbelVQ), ``taming/modules/losses/vqperceptual.py``.
"""

import pickle
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from medunifier.shared.errors import UserError
from medunifier.shared.files.input_files import MAX_CONFIG_BYTES, read_bounded
from medunifier.shared.files.weights import check_weight_file
from medunifier.stage1_tokenizer.config import ModelConfig, model_config
from medunifier.stage1_tokenizer.model.discriminator import PatchDiscriminator
from medunifier.stage1_tokenizer.model.vqgan import VQGAN

Shapes = dict[str, tuple[int, ...]]

MODELS = {"VQModel": "vq", "VQNoDiscModel": "vq", "GumbelVQ": "gumbel_vq"}
"""Last part of ``model.target`` -> quantizer kind."""

_TOP = {"model", "data", "lightning"}
_MODEL = {"base_learning_rate", "target", "params"}
_PARAMS = {
    "ddconfig", "lossconfig", "n_embed", "embed_dim", "ckpt_path", "ignore_keys", "image_key", "colorize_nlabels",
    "monitor", "remap", "unknown_index", "sane_index_shape", "temperature_scheduler_config", "kl_weight",
}  # fmt: skip
_SIZES = ("resolution", "in_channels", "out_ch", "ch", "ch_mult", "num_res_blocks", "attn_resolutions", "z_channels")
_FRONT_END = ("front_end", "front_end_levels")
"""Keys of this project in ``ddconfig``, which taming ignores: encoder and decoder then work on Haar
coefficients, not pixels."""
_DDCONFIG = {*_SIZES, *_FRONT_END, "double_z", "dropout", "resamp_with_conv"}
_LOSS = {
    "disc_start", "codebook_weight", "pixelloss_weight", "disc_num_layers", "disc_in_channels", "disc_factor",
    "disc_weight", "perceptual_weight", "use_actnorm", "disc_conditional", "disc_ndf", "disc_loss",
}  # fmt: skip
_TRAINING_BUFFERS = ("quantize.steps", "quantize.use", "quantize.count", "quantize.total")
"""Buffers of this project's quantizers that taming's do not have."""
_VGG = {1: (0, 2), 2: (5, 7), 3: (10, 12, 14), 4: (17, 19, 21), 5: (24, 26, 28)}
_VGG_WIDTHS = {1: 64, 2: 128, 3: 256, 4: 512, 5: 512}


@dataclass(frozen=True)
class TamingConfig:
    """A validated taming configuration."""

    model: ModelConfig
    """The model; ``n_embed`` counts all entries, remapped or not."""
    remapped: bool = False
    """Whether codes are indices into the ``used`` entries."""
    unknown_index: int | str = "random"
    """Replacement of a code outside of ``used``: ``random``, ``extra`` or an integer."""
    loss: dict[str, Any] | None = None
    """Parameters of the loss; None if it has no tensors (``DummyLoss``)."""
    document: dict[str, Any] = field(default_factory=dict)
    """The unmodified YAML."""


def _refuse_unknown(found: Mapping[str, Any], known: set[str], section: str, path: Path) -> None:
    if unknown := sorted(map(str, found.keys() - known)):
        raise UserError(f"{path}: unknown key in {section}: {', '.join(unknown)} (known: {', '.join(sorted(known))})")


def read_config(path: str | Path) -> TamingConfig:
    """Read a taming YAML.

    Raises:
        UserError: if it cannot be read, has a key that taming's classes do not have, or does not describe a VQ or
            Gumbel model.
    """
    path = Path(path)
    try:
        document = yaml.safe_load(read_bounded(path, MAX_CONFIG_BYTES).decode("utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as a taming configuration: {' '.join(str(error).split())}") from None
    return parse_document(document, path)


def parse_document(document: Any, path: Path) -> TamingConfig:
    """Validate a parsed YAML as :func:`read_config` does; ``path`` is used in errors."""
    if not isinstance(document, Mapping) or not isinstance(document.get("model"), Mapping):
        raise UserError(f"{path} is not a taming configuration: it has no `model:` with `params:`")
    _refuse_unknown(document, _TOP, "the file", path)
    _refuse_unknown(document["model"], _MODEL, "model", path)
    params = document["model"].get("params")
    if not isinstance(params, Mapping) or not isinstance(params.get("ddconfig"), Mapping):
        raise UserError(f"{path} is not a taming configuration: it has no model.params.ddconfig")
    _refuse_unknown(params, _PARAMS, "model.params", path)
    gumbel = "temperature_scheduler_config" in params or "kl_weight" in params
    target = str(document["model"].get("target", "GumbelVQ" if gumbel else "VQModel")).rsplit(".", 1)[-1]
    if target not in MODELS:
        raise UserError(f"{path}: model.target {target} is not one of {', '.join(MODELS)}")
    if gumbel and MODELS[target] != "gumbel_vq":
        raise UserError(
            f"{path}: kl_weight and temperature_scheduler_config are settings of GumbelVQ, not of {target}"
        )
    if params.get("colorize_nlabels") is not None:
        raise UserError(f"{path}: colorize_nlabels is for models of label maps, not of images")
    model = _model(params, MODELS[target], path)
    return TamingConfig(
        model,
        params.get("remap") is not None,
        params.get("unknown_index", "random"),
        _loss(params.get("lossconfig"), path),
        dict(document),
    )


def _model(params: Mapping[str, Any], kind: str, path: Path) -> ModelConfig:
    sizes = params["ddconfig"]
    _refuse_unknown(sizes, _DDCONFIG, "model.params.ddconfig", path)
    missing = [f"ddconfig.{name}" for name in _SIZES if name not in sizes]
    missing += [name for name in ("n_embed", "embed_dim") if name not in params]
    if missing:
        raise UserError(f"{path}: {', '.join(missing)} missing under model.params")
    if sizes.get("double_z", True):
        raise UserError(
            f"{path}: ddconfig.double_z must be false (taming's default is true): KL models are not supported"
        )
    if not sizes.get("resamp_with_conv", True):
        raise UserError(
            f"{path}: ddconfig.resamp_with_conv must be true: resampling without convolution is not supported"
        )
    if kind == "gumbel_vq" and params["embed_dim"] != sizes["z_channels"]:
        raise UserError(f"{path}: GumbelVQ needs embed_dim equal to ddconfig.z_channels")
    levels = int(sizes.get("front_end_levels", 0))
    values = {name: sizes[name] for name in (*_SIZES, *_FRONT_END, "dropout") if name in sizes}
    values |= {"resolution": sizes["resolution"] << levels, "in_channels": sizes["in_channels"] >> 2 * levels}
    values["out_ch"] = sizes["out_ch"] >> 2 * levels
    # taming builds both of its quantizers with beta on the codebook loss (`legacy`).
    quantizer: dict[str, Any] = {"kind": kind, "codebook_weight": 0.25, "commitment_weight": 1.0}
    if kind == "gumbel_vq":
        quantizer["kl_weight"] = float(params.get("kl_weight", 1e-8))
    values |= {"n_embed": params["n_embed"], "embed_dim": params["embed_dim"], "quantizer": quantizer}
    try:
        return model_config(values)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} describes a model that cannot be built: {error}") from None


def _loss(config: Any, path: Path) -> dict[str, Any] | None:
    if config is None:
        return None
    target = str(config.get("target", "")).rsplit(".", 1)[-1]
    if target == "DummyLoss":
        return None
    if target != "VQLPIPSWithDiscriminator":
        raise UserError(f"{path}: lossconfig.target {target} is neither VQLPIPSWithDiscriminator nor DummyLoss")
    params = dict(config.get("params") or {})
    _refuse_unknown(params, _LOSS, "lossconfig.params", path)
    return params


def loss_shapes(params: Mapping[str, Any]) -> Shapes:
    """Return keys and shapes of ``VQLPIPSWithDiscriminator``: LPIPS on VGG-16 and the patch discriminator."""
    shapes: Shapes = {f"scaling_layer.{name}": (1, 3, 1, 1) for name in ("shift", "scale")}
    in_width = 3
    for number, layers in _VGG.items():
        width = _VGG_WIDTHS[number]
        for layer in layers:
            shapes[f"net.slice{number}.{layer}.weight"] = (width, in_width, 3, 3)
            shapes[f"net.slice{number}.{layer}.bias"] = (width,)
            in_width = width
        shapes[f"lin{number - 1}.model.1.weight"] = (1, width, 1, 1)
    shapes = {f"loss.perceptual_loss.{name}": shape for name, shape in shapes.items()}
    actnorm = bool(params.get("use_actnorm", False))
    channels, width = params.get("disc_in_channels", 3), params.get("disc_ndf", 64)
    with torch.device("meta"):
        # A convolution before actnorm has a bias, as one before GroupNorm has here.
        discriminator = PatchDiscriminator(
            channels, width, params.get("disc_num_layers", 3), "group" if actnorm else "batch"
        )
    for name, module in discriminator.main.named_children():
        prefix = f"loss.discriminator.main.{name}"
        if actnorm and isinstance(module, torch.nn.GroupNorm):
            per_channel = (1, module.num_channels, 1, 1)
            shapes |= {f"{prefix}.loc": per_channel, f"{prefix}.scale": per_channel, f"{prefix}.initialized": ()}
        else:
            shapes |= {f"{prefix}.{key}": tuple(value.shape) for key, value in module.state_dict().items()}
    return shapes


def model_shapes(config: ModelConfig) -> Shapes:
    """Return keys and shapes of encoder, decoder, quantizer and the two 1x1 convolutions."""
    with torch.device("meta"):
        state = VQGAN(config).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if name not in _TRAINING_BUFFERS}


def load_state(path: str | Path) -> dict[str, Tensor]:
    """Load the ``state_dict`` of a checkpoint.

    Lightning stores callback objects in the same file. Their classes are replaced by empty ones, so the file loads
    without Lightning and without executing code that it references.

    Raises:
        UserError: if the file cannot be read, or has no ``state_dict`` of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} not found")
    check_weight_file(path)
    try:
        loaded = _load_tensors(path)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0][:200]
        raise UserError(f"{path} cannot be read as a checkpoint of tensors: {reason}") from None
    state = loaded.get("state_dict") if isinstance(loaded, Mapping) else None
    if not isinstance(state, Mapping):
        raise UserError(f"{path} has no `state_dict`: a taming checkpoint is {{'state_dict': {{name: tensor}}}}")
    if wrong := [str(name) for name, value in state.items() if not isinstance(value, Tensor)]:
        raise UserError(f"{path}: these values of state_dict are not tensors: {', '.join(wrong)}")
    return dict(state)


def _load_tensors(path: Path) -> Any:
    try:
        class_names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (RuntimeError, ValueError):  # written by torch before 1.6
        class_names = []
    empty: list[Any] = [(type(name.rsplit(".", 1)[-1], (), {}), name) for name in class_names]
    with torch.serialization.safe_globals(empty) if empty else nullcontext():
        return torch.load(path, map_location="cpu", weights_only=True)


def differences(state: Mapping[str, Tensor], config: TamingConfig) -> list[str]:
    """Return every difference between ``state`` and the model of ``config``, as phrases; empty if they match.

    The tensors of the loss may be missing altogether (they are only needed for training), but not in part.
    """
    expected = model_shapes(config.model)
    if config.loss is not None and any(name.startswith("loss.") for name in state):
        expected |= loss_shapes(config.loss)
    found = dict(state)
    lines = []
    used = found.pop("quantize.used", None)
    if config.remapped and (used is None or used.ndim != 1 or used.is_floating_point()):
        lines.append("missing quantize.used (1-D integers), since model.params.remap is set")
    if not config.remapped and used is not None:
        lines.append("unexpected quantize.used: model.params.remap is not set")
    lines += [f"missing {name} {shape}" for name, shape in expected.items() if name not in found]
    lines += [f"unexpected {name} {tuple(tensor.shape)}" for name, tensor in found.items() if name not in expected]
    lines += [
        f"shape of {name}: found {tuple(found[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    return lines


def check(state: Mapping[str, Tensor], config: TamingConfig, checkpoint: Path, path: Path) -> None:
    """Refuse a checkpoint that does not match its configuration.

    Raises:
        UserError: with every difference.
    """
    if lines := differences(state, config):
        raise UserError(
            f"{checkpoint} does not match {path}: {len(lines)} difference(s): {'; '.join(lines)}. "
            "Pass the configuration that the checkpoint was trained with"
        )


def write_document(config: ModelConfig) -> dict[str, Any]:
    """Return taming's YAML for a model of this project, without loss.

    Raises:
        UserError: if taming's layers cannot represent the model.
    """
    if config.norm_groups != 32:
        raise UserError(
            f"taming's GroupNorms have 32 groups, but this tokenizer has {config.norm_groups}: "
            "it cannot be written as a taming checkpoint"
        )
    levels = config.front_end_levels
    sizes: dict[str, Any] = {"double_z": False, "dropout": config.dropout}
    for name in _SIZES:
        value = getattr(config, name)
        sizes[name] = list(value) if isinstance(value, Sequence) else value
    if levels:
        sizes |= {
            "resolution": config.resolution >> levels,
            "in_channels": config.in_channels << 2 * levels,
            "out_ch": config.out_ch << 2 * levels,
            "front_end": config.front_end,
            "front_end_levels": levels,
        }
    params: dict[str, Any] = {
        "embed_dim": config.embed_dim,
        "n_embed": config.n_embed,
        "ddconfig": sizes,
        "lossconfig": {"target": "taming.modules.losses.vqperceptual.DummyLoss"},
    }
    target = "VQModel"
    if config.quantizer.kind == "gumbel_vq":
        target, quantizer = "GumbelVQ", config.quantizer
        scheduler = {
            "warm_up_steps": 0,
            "max_decay_steps": quantizer.temperature_steps,
            "lr_start": quantizer.temperature_start,
            "lr_max": quantizer.temperature_start,
            "lr_min": quantizer.temperature_end,
        }
        params["kl_weight"] = quantizer.kl_weight
        params["temperature_scheduler_config"] = {
            "target": "taming.lr_scheduler.LambdaWarmUpCosineScheduler",
            "params": scheduler,
        }
    return {"model": {"base_learning_rate": 4.5e-6, "target": f"taming.models.vqgan.{target}", "params": params}}
