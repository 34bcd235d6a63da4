"""Checkpoints of CompVis/taming-transformers: their configuration and keys. The one place that knows them.

A checkpoint is ``{"state_dict": {key: tensor}}`` (what Lightning adds is passed over), its configuration a YAML with
``model.params``. Reading is strict: every key is known, has its shape and is there, and every setting is one that
taming's classes have. Only tensors are taken from the file; no code of it runs.

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
from medunifier.stage1_tokenizer.config import ModelConfig, model_config
from medunifier.stage1_tokenizer.model.discriminator import PatchDiscriminator
from medunifier.stage1_tokenizer.model.vqgan import VQGAN

Shapes = dict[str, tuple[int, ...]]

MODELS = {"VQModel": "vq", "VQNoDiscModel": "vq", "GumbelVQ": "gumbel_vq"}
"""Last part of ``model.target`` -> our quantiser."""

_TOP = {"model", "data", "lightning"}
_MODEL = {"base_learning_rate", "target", "params"}
_PARAMS = {
    "ddconfig", "lossconfig", "n_embed", "embed_dim", "ckpt_path", "ignore_keys", "image_key", "colorize_nlabels",
    "monitor", "remap", "unknown_index", "sane_index_shape", "temperature_scheduler_config", "kl_weight",
}  # fmt: skip
_SIZES = ("resolution", "in_channels", "out_ch", "ch", "ch_mult", "num_res_blocks", "attn_resolutions", "z_channels")
_FRONT_END = ("front_end", "front_end_levels")
"""Ours, in a place where taming takes no notice of them: the encoder then reads coefficients, not pixels."""
_DDCONFIG = {*_SIZES, *_FRONT_END, "double_z", "dropout", "resamp_with_conv"}
_LOSS = {
    "disc_start", "codebook_weight", "pixelloss_weight", "disc_num_layers", "disc_in_channels", "disc_factor",
    "disc_weight", "perceptual_weight", "use_actnorm", "disc_conditional", "disc_ndf", "disc_loss",
}  # fmt: skip
_UPKEEP = ("quantize.steps", "quantize.use", "quantize.count", "quantize.total")
"""Buffers of our quantisers that taming has not."""
_VGG = {1: (0, 2), 2: (5, 7), 3: (10, 12, 14), 4: (17, 19, 21), 5: (24, 26, 28)}
_VGG_WIDTHS = {1: 64, 2: 128, 3: 256, 4: 512, 5: 512}


@dataclass(frozen=True)
class TamingConfig:
    """What a taming YAML says, checked."""

    model: ModelConfig
    """As our model; ``n_embed`` counts all entries, remapped or not."""
    remapped: bool = False
    """Codes are numbers among the ``used`` entries."""
    unknown_index: int | str = "random"
    """What a code outside of ``used`` becomes: ``random``, ``extra`` or a number."""
    loss: dict[str, Any] | None = None
    """Parameters of the loss; None where it has no tensors (``DummyLoss``)."""
    document: dict[str, Any] = field(default_factory=dict)
    """The YAML as it was read."""


def _refuse_unknown(found: Mapping[str, Any], known: set[str], place: str, path: Path) -> None:
    if unknown := sorted(map(str, found.keys() - known)):
        raise UserError(f"{path}: unknown key in {place}: {', '.join(unknown)} (known: {', '.join(sorted(known))})")


def read_config(path: str | Path) -> TamingConfig:
    """Read a taming YAML.

    Raises:
        UserError: if it cannot be read, names a key that taming's classes do not have, or describes what is not a VQ
            or Gumbel model.
    """
    path = Path(path)
    try:
        document = yaml.safe_load(read_bounded(path, MAX_CONFIG_BYTES).decode("utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as a taming configuration: {' '.join(str(error).split())}") from None
    return parse_document(document, path)


def parse_document(document: Any, path: Path) -> TamingConfig:
    """As :func:`read_config`, for a YAML that is already read; ``path`` is named in errors."""
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
        raise UserError(f"{path}: kl_weight and temperature_scheduler_config belong to GumbelVQ, not to {target}")
    if params.get("colorize_nlabels") is not None:
        raise UserError(f"{path}: colorize_nlabels belongs to models of label maps, not of images")
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
        raise UserError(f"{path}: ddconfig.double_z must be false (taming's default is true): this is no KL model")
    if not sizes.get("resamp_with_conv", True):
        raise UserError(f"{path}: ddconfig.resamp_with_conv must be true: resampling without convolution is not read")
    if kind == "gumbel_vq" and params["embed_dim"] != sizes["z_channels"]:
        raise UserError(f"{path}: GumbelVQ needs embed_dim equal to ddconfig.z_channels")
    levels = int(sizes.get("front_end_levels", 0))
    values = {name: sizes[name] for name in (*_SIZES, *_FRONT_END, "dropout") if name in sizes}
    values |= {"resolution": sizes["resolution"] << levels, "in_channels": sizes["in_channels"] >> 2 * levels}
    values["out_ch"] = sizes["out_ch"] >> 2 * levels
    # Both of taming's quantisers are built with beta on the codebook term (`legacy`).
    quantizer: dict[str, Any] = {"kind": kind, "codebook_weight": 0.25, "commitment_weight": 1.0}
    if kind == "gumbel_vq":
        quantizer["kl_weight"] = float(params.get("kl_weight", 1e-8))
    values |= {"n_embed": params["n_embed"], "embed_dim": params["embed_dim"], "quantizer": quantizer}
    try:
        return model_config(values)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} describes no model that can be built: {error}") from None


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
    """Keys and shapes of ``VQLPIPSWithDiscriminator``: LPIPS on VGG-16 and the patch discriminator."""
    shapes: Shapes = {f"scaling_layer.{name}": (1, 3, 1, 1) for name in ("shift", "scale")}
    before = 3
    for part, layers in _VGG.items():
        width = _VGG_WIDTHS[part]
        for layer in layers:
            shapes[f"net.slice{part}.{layer}.weight"] = (width, before, 3, 3)
            shapes[f"net.slice{part}.{layer}.bias"] = (width,)
            before = width
        shapes[f"lin{part - 1}.model.1.weight"] = (1, width, 1, 1)
    shapes = {f"loss.perceptual_loss.{name}": shape for name, shape in shapes.items()}
    actnorm = bool(params.get("use_actnorm", False))
    channels, width = params.get("disc_in_channels", 3), params.get("disc_ndf", 64)
    with torch.device("meta"):
        # A convolution before actnorm has a bias, as one before our group norm.
        norm = PatchDiscriminator(channels, width, params.get("disc_num_layers", 3), "group" if actnorm else "batch")
    for name, module in norm.main.named_children():
        prefix = f"loss.discriminator.main.{name}"
        if actnorm and isinstance(module, torch.nn.GroupNorm):
            one = (1, module.num_channels, 1, 1)
            shapes |= {f"{prefix}.loc": one, f"{prefix}.scale": one, f"{prefix}.initialized": ()}
        else:
            shapes |= {f"{prefix}.{key}": tuple(value.shape) for key, value in module.state_dict().items()}
    return shapes


def model_shapes(config: ModelConfig) -> Shapes:
    """Keys and shapes of encoder, decoder, quantiser and the two 1x1 convolutions."""
    with torch.device("meta"):
        state = VQGAN(config).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if name not in _UPKEEP}


def load_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's ``state_dict``.

    Lightning stores objects of its callbacks beside them; such classes are replaced by empty ones, so the file loads
    without Lightning and without running anything that it names.

    Raises:
        UserError: if the file cannot be read, or has no ``state_dict`` of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} not found")
    try:
        loaded = _load_tensors(path)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0][:200]
        raise UserError(f"{path} cannot be read as a checkpoint of tensors: {reason}") from None
    state = loaded.get("state_dict") if isinstance(loaded, Mapping) else None
    if not isinstance(state, Mapping):
        raise UserError(f"{path} has no `state_dict`: a taming checkpoint is {{'state_dict': {{name: tensor}}}}")
    if wrong := [str(name) for name, value in state.items() if not isinstance(value, Tensor)]:
        raise UserError(f"{path}: state_dict holds what is no tensor: {', '.join(wrong)}")
    return dict(state)


def _load_tensors(path: Path) -> Any:
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (RuntimeError, ValueError):  # a file of torch before 1.6
        named = []
    empty: list[Any] = [(type(name.rsplit(".", 1)[-1], (), {}), name) for name in named]
    with torch.serialization.safe_globals(empty) if empty else nullcontext():
        return torch.load(path, map_location="cpu", weights_only=True)


def differences(state: Mapping[str, Tensor], config: TamingConfig) -> list[str]:
    """Every way in which ``state`` is not what ``config`` describes, a phrase each; empty if it fits.

    The loss' tensors may be absent altogether (they serve training alone), not in part.
    """
    expected = model_shapes(config.model)
    if config.loss is not None and any(name.startswith("loss.") for name in state):
        expected |= loss_shapes(config.loss)
    found = dict(state)
    lines = []
    used = found.pop("quantize.used", None)
    if config.remapped and (used is None or used.ndim != 1 or used.is_floating_point()):
        lines.append("missing quantize.used (a list of numbers), since model.params.remap is set")
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
    """Refuse a checkpoint that is not what its configuration describes.

    Raises:
        UserError: with every difference.
    """
    if lines := differences(state, config):
        raise UserError(
            f"{checkpoint} is not the model of {path}: {len(lines)} difference(s): {'; '.join(lines)}. "
            "Give the configuration that the checkpoint was trained with"
        )


def write_document(config: ModelConfig) -> dict[str, Any]:
    """The YAML of a model of ours, without loss.

    Raises:
        UserError: if taming's layers cannot be such a model.
    """
    if config.norm_groups != 32:
        raise UserError(
            f"taming's GroupNorms have 32 groups, this tokenizer has {config.norm_groups}: no taming checkpoint is it"
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
