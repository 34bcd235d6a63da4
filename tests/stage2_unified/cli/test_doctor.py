"""`medunifier doctor`: sizes equal those of the real models, and missing requirements name their remedy."""

import json

import pytest
import torch
import yaml
from torch import nn

from medunifier.shared.training.hardware import GIB, Accelerator, Machine
from medunifier.shared.training.memory import TRAINING_BYTES, Size, bytes_kept
from medunifier.stage1_tokenizer.config import model_config
from medunifier.stage1_tokenizer.model.vqgan import VQGAN
from medunifier.stage2_unified.cli.doctor import requirements
from medunifier.stage2_unified.cli.doctor.command import CONFIGS, _size_lines, main
from medunifier.stage2_unified.cli.doctor.sizes import preset_sizes


@pytest.fixture(scope="module")
def sizes():
    return {size.name: size for size in preset_sizes(CONFIGS)}


def test_parameters_of_every_preset_are_counted(sizes):
    assert sizes.keys() == {f"{path.parent.name}/{path.stem}" for path in CONFIGS.glob("stage[12]/*.yaml")}
    config = yaml.safe_load((CONFIGS / "stage1" / "demo.yaml").read_text())
    counted = sum(p.numel() for p in VQGAN(model_config(config["model"])).parameters())
    assert sizes["stage1/demo"].parameters == counted
    assert 92e6 < sizes["stage2/base_256"].parameters < 94e6, "its header states about 93 M"
    assert sizes["stage1/demo"].batch == config["loop"]["batch_size"]


def test_activations_equal_what_autograd_saves():
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5, bias=False))
    x = torch.empty(3, 10, device="meta")
    # Saved: the input of the first layer, and the output of ReLU (the input of the second). Weights do not count.
    assert bytes_kept(model.to("meta"), lambda: model(x)) == 4 * (3 * 10 + 3 * 20)


def test_larger_images_need_more_memory_and_the_batch_fills_what_is_left(sizes):
    assert sizes["stage1/cxr_f16_512"].sample > 3 * sizes["stage1/cxr_f16"].sample
    assert sizes["stage2/base_256"].sample > 20 * sizes["stage2/demo"].sample
    size = Size("a", 10, state=160, sample=7, use=40, batch=2)
    assert [size.largest_batch(n) for n in (0, 160, 166, 167, 181)] == [0, 0, 0, 1, 3]
    demo = sizes["stage2/demo"]
    assert demo.state == demo.parameters * TRAINING_BYTES


def test_the_largest_batch_that_fits_is_shown(sizes):
    gpu = Accelerator("cuda:0", "a GPU", 24 * GIB, True)
    machine = Machine("x", 2, 2.0, 2, 8 * GIB, 7 * GIB, False, (gpu,), ".", GIB)
    lines = {line.split()[0]: line for line in _size_lines(machine, list(sizes.values()))[3:]}
    assert "fits with its batch size of 16" in lines["stage2/demo"]
    huge = Size("stage2/huge", 10**11, 16 * 10**11, 10**9, 4 * 10**11, 8)
    middle = Size("stage2/middle", 10**9, 16 * 10**9, 2 * 10**9, 4 * 10**9, 64)
    shown = _size_lines(machine, [huge, middle])[3:]
    assert "does not fit" in shown[0] and "with a batch size of 4" in shown[1]


def test_missing_requirements_name_their_remedy(monkeypatch, tmp_path):
    assert all(need.found for need in requirements.packages())
    assert all(need.found for need in requirements.decoders()), "included in the dependencies"
    extras = {need.name: need for need in requirements.optional_packages()}
    assert extras["gradio"].remedy == "pip install 'medunifier[app]'"
    assert extras["distributed"].remedy == "pip install 'medunifier[cluster]'"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (need,) = requirements.weights(CONFIGS)
    assert not need.found and need.name in need.remedy and "cxr_f16" in need.purpose
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / need.name).touch()
    assert requirements.weights(CONFIGS)[0].found


def test_the_command_prints_machine_packages_and_sizes(tmp_path, capsys):
    main(["--out", str(tmp_path / "doctor.json"), "--place", str(tmp_path)])
    output = capsys.readouterr().out
    for words in ("cores", "memory", "disk", "JPEG 2000", "gradio", "stage1/cxr_f16", "stage2/base_256"):
        assert words in output
    content = json.loads((tmp_path / "doctor.json").read_text())
    assert content["machine"]["cores"] >= 1 and len(content["sizes"]) >= 8
