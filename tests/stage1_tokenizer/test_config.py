"""Impossible combinations are refused by the name of their key."""

import pytest

from shared.config import parse_config
from shared.errors import UsageError
from stage1_tokenizer.config import Stage1Config, model_config


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (["--model.front_end", "haar"], "model.front_end_levels"),
        (["--model.double_z", "true"], "model.double_z"),
        (["--model.resolution", "250"], "model.resolution"),
        (["--model.norm_groups", "48"], "model.norm_groups"),
        (["--loss.discriminator.start", "0"], "loss.discriminator.start"),
        (["--loss.gan_weight", "-1"], "loss.gan_weight"),
        (["--model.quantizer.kind", "fsq"], "model.quantizer.kind"),
        (["--model.quantizer.beta", "1"], "model.quantizer.beta"),
        (["--average_decay", "1"], "average_decay"),
    ],
)
def test_refusal_names_the_key(options, key):
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
