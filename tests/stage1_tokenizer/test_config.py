"""Invalid settings are refused with the name of their key, and all presets are valid."""

from pathlib import Path

import pytest
import torch

from medunifier.shared.config import parse_config
from medunifier.shared.errors import UsageError
from medunifier.stage1_tokenizer import taming
from medunifier.stage1_tokenizer.config import Stage1Config, model_config
from medunifier.stage1_tokenizer.model.vqgan import VQGAN


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (["--model.front_end", "haar"], "model.front_end_levels"),
        (["--model.double_z", "true"], "model.double_z"),
        (["--model.resolution", "250"], "model.resolution"),
        (["--model.resolution", "16"], "loss.perceptual.net none"),
        (["--model.norm_groups", "48"], "model.norm_groups"),
        (["--loss.discriminator.start", "0"], "loss.discriminator.start"),
        (["--loss.gan_weight", "-1"], "loss.gan_weight"),
        (["--model.quantizer.kind", "fsq"], "model.quantizer.kind"),
        (["--model.quantizer.beta", "1"], "model.quantizer.beta"),
        (["--ema_decay", "1"], "ema_decay"),
        (["--model.quantizer.decay", "1"], "model.quantizer.decay"),
        (["--model.quantizer.kl_weight", "-1"], "model.quantizer.kl_weight"),
        (["--model.quantizer.temperature_end", "2"], "model.quantizer.temperature_end"),
        (["--model.quantizer.temperature_steps", "0"], "model.quantizer.temperature_steps"),
        (["--loss.semantic.labels.weight", "-1"], "loss.semantic.labels.weight"),
        (["--loss.semantic.labels.reconstruction_weight", "-1"], "loss.semantic.labels.reconstruction_weight"),
        (["--loss.semantic.report.weight", "-1"], "loss.semantic.report.weight"),
        (["--loss.semantic.teacher.weight", "1"], "loss.semantic.teacher.path"),
        (["--loss.semantic.teacher.size", "-1"], "loss.semantic.teacher.size"),
        (["--loss.discriminator.lecam_weight", "-1"], "loss.discriminator.lecam_weight"),
    ],
)
def test_error_names_the_invalid_key(options, key):
    with pytest.raises(UsageError, match=key) as caught:
        parse_config(Stage1Config, ["--data.shards", "x", "--run_dir", "y", *options])
    assert "\n" not in str(caught.value)


def test_grid_follows_from_front_end_and_levels():
    config = model_config({"resolution": 64, "ch": 32, "ch_mult": [1, 2], "front_end": "haar", "front_end_levels": 2})
    assert config.factor == 8 and config.grid == (8, 8)


def test_a_mapping_with_unknown_keys_is_refused():
    with pytest.raises(ValueError, match="ch_mults"):
        model_config({"ch_mults": [1]})
    with pytest.raises(ValueError, match="beta"):
        model_config({"quantizer": {"beta": 1}})


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "configs" / "stage1").glob("*.yaml")), ids=str)
def test_preset_is_valid_and_its_header_has_command_hardware_and_expected_result(path):
    config = parse_config(Stage1Config, ["--config", str(path), "--data.shards", "x", "--run_dir", "y"])
    with torch.device("meta"):
        VQGAN(config.model)
    text = path.read_text()
    assert f"--config configs/stage1/{path.name}" in text and "Hardware:" in text and "Expected:" in text
    factor = path.stem.split("_f")[1].split("_")[0] if "_f" in path.stem else "8"
    assert config.model.factor == int(factor)
    if path.stem.startswith(
        "taming"
    ):  # taming's losses alone, the published codebook, and layers that taming's classes support
        assert not config.loss.semantic
        target = taming.write_document(config.model)["model"]["target"]
        shapes = taming.model_shapes(config.model)
        target_class, codebook_key, codebook_shape = {
            "taming_f16_1024": ("VQModel", "quantize.embedding.weight", (1024, 256)),
            "taming_f16_16384": ("VQModel", "quantize.embedding.weight", (16384, 256)),
            "taming_f8_gumbel": ("GumbelVQ", "quantize.proj.weight", (8192, 256, 1, 1)),
        }[path.stem]
        assert target.endswith(target_class) and shapes[codebook_key] == codebook_shape
