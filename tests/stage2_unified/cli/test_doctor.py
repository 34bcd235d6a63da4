"""The doctor's counts equal those of the models, and missing things are named with their remedy."""

import json

import pytest
import torch
import yaml
from torch import nn

from medunifier.shared.training.hardware import GIB, Accelerator, Machine
from medunifier.stage1_tokenizer.config import model_config
from medunifier.stage1_tokenizer.model.vqgan import VQGAN
from medunifier.stage2_unified.cli.doctor import requirements as needs
from medunifier.stage2_unified.cli.doctor.command import CONFIGS, _size_lines, main
from medunifier.stage2_unified.cli.doctor.sizes import TRAINING_BYTES, Size, bytes_kept, preset_sizes


@pytest.fixture(scope="module")
def sizes():
    return {size.name: size for size in preset_sizes(CONFIGS)}


def test_every_preset_has_its_own_parameters(sizes):
    assert sizes.keys() == {f"{path.parent.name}/{path.stem}" for path in CONFIGS.glob("stage[12]/*.yaml")}
    config = yaml.safe_load((CONFIGS / "stage1" / "demo.yaml").read_text())
    counted = sum(p.numel() for p in VQGAN(model_config(config["model"])).parameters())
    assert sizes["stage1/demo"].parameters == counted
    assert 92e6 < sizes["stage2/base_256"].parameters < 94e6, "its head says about 93 M"
    assert sizes["stage1/demo"].batch == config["loop"]["batch_size"]


def test_activations_are_those_that_autograd_keeps():
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5, bias=False))
    x = torch.empty(3, 10, device="meta")
    # The first layer keeps its input, ReLU its output, which is also the second layer's input; weights do not count.
    assert bytes_kept(model.to("meta"), lambda: model(x)) == 4 * (3 * 10 + 3 * 20)


def test_larger_images_keep_more_and_a_batch_is_what_is_left(sizes):
    assert sizes["stage1/cxr_f16_512"].sample > 3 * sizes["stage1/cxr_f16"].sample
    assert sizes["stage2/base_256"].sample > 20 * sizes["stage2/demo"].sample
    size = Size("a", 10, state=160, sample=7, use=40, batch=2)
    assert [size.largest_batch(n) for n in (0, 160, 166, 167, 181)] == [0, 0, 0, 1, 3]
    demo = sizes["stage2/demo"]
    assert demo.state == demo.parameters * TRAINING_BYTES


def test_the_largest_batch_that_fits_is_shown(sizes):
    one = Accelerator("cuda:0", "a GPU", 24 * GIB, True)
    machine = Machine("x", 2, 2.0, 2, 8 * GIB, 7 * GIB, False, (one,), ".", GIB)
    lines = {line.split()[0]: line for line in _size_lines(machine, list(sizes.values()))[3:]}
    assert "fits with its batch of 16" in lines["stage2/demo"]
    huge = Size("stage2/huge", 10**11, 16 * 10**11, 10**9, 4 * 10**11, 8)
    middle = Size("stage2/middle", 10**9, 16 * 10**9, 2 * 10**9, 4 * 10**9, 64)
    said = _size_lines(machine, [huge, middle])[3:]
    assert "does not fit" in said[0] and "with a batch of 4" in said[1]


def test_missing_things_come_with_their_remedy(monkeypatch, tmp_path):
    assert all(need.found for need in needs.packages())
    assert all(need.found for need in needs.decoders()), "the project's own dependencies bring them"
    extras = {need.name: need for need in needs.optional_packages()}
    assert extras["gradio"].remedy == "pip install 'medunifier[app]'"
    assert extras["distributed"].remedy == "pip install 'medunifier[cluster]'"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (need,) = needs.weights(CONFIGS)
    assert not need.found and need.name in need.remedy and "cxr_f16" in need.purpose
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / need.name).touch()
    assert needs.weights(CONFIGS)[0].found


def test_the_command_prints_machine_packages_and_sizes(tmp_path, capsys):
    main(["--out", str(tmp_path / "doctor.json"), "--place", str(tmp_path)])
    said = capsys.readouterr().out
    for words in ("cores", "memory", "disk", "JPEG 2000", "gradio", "stage1/cxr_f16", "stage2/base_256"):
        assert words in said
    content = json.loads((tmp_path / "doctor.json").read_text())
    assert content["machine"]["cores"] >= 1 and len(content["sizes"]) >= 8
