"""GPU hours: the arithmetic, and that page and presets state what the script computes."""

import importlib.util
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from medunifier.gpu_bench.measure import count_flop
from medunifier.gpu_bench.sizes import REHEARSAL
from medunifier.gpu_bench.tokenizer import preset
from medunifier.shared.config import config_to_dict
from medunifier.shared.errors import UserError
from medunifier.stage1_tokenizer.training.task import TokenizerTask


@pytest.fixture(scope="module")
def scale(root):
    """The module scripts/scale.py."""
    spec = importlib.util.spec_from_file_location("scale_script", root / "scripts" / "scale.py")
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def results(**changes):
    """Results with all rows that the script needs."""
    rows = {
        "stage1": {"ours": 800.0, "details": {"peak_memory_gib": 21.0, "batch": 64}},
        "stage1_taming": {"ours": 70.0, "compiled": False},
        "encode": {"ours": 12_000.0},
        "tokenize": {"ours": 3_000.0},
        "stage2": {"ours": 4e5, "details": {"studies_per_s": 500.0, "peak_memory_gib": 20.0}},
        "large": {"ours": 0.4, "details": {"studies_per_s": 100.0, "peak_memory_gib": 60.0}},
    }
    common = {"date": "2030-01-02", "compiled": True, "details": {}}
    rows = [{"row": name, **common, **row, **changes.get(name, {})} for name, row in rows.items()]
    return {"rehearsal": False, "machine": {"gpu": "NVIDIA X9 80GB"}, "rows": rows}


def test_page_and_presets_are_those_that_the_script_writes(scale, root, tmp_path):
    shutil.copytree(root / "configs", tmp_path / "configs")
    (tmp_path / "docs").mkdir()
    shutil.copy(root / "docs" / "scale.md", tmp_path / "docs")
    scale.write(scale.Config(str(root / "docs" / "results" / "gpu.json"), str(tmp_path)))
    for path in [root / "docs" / "scale.md", *(root / "configs").rglob("*.yaml")]:
        assert (tmp_path / path.relative_to(root)).read_text() == path.read_text(), f"{path}: run scripts/scale.py"


@pytest.mark.slow
def test_hours_follow_from_measured_rates(scale, root):
    table = {cost.preset: cost for cost in scale.costs(scale.Rates(results()), root / "configs")}
    assert table["stage1/cxr_f16"].hours == pytest.approx(100_000 * 32 / 800 / 3600)
    assert table["stage1/cxr_f16"].basis == "measured 2030-01-02" and table["stage1/cxr_f16"].memory.startswith("21")
    assert table["tokenize, cxr_f16"].hours == pytest.approx(377_110 / 3_000 / 3600)
    assert table["stage2/base_256"].hours == pytest.approx(200_000 * 64 / 500 / 3600)
    assert table["stage2/base_256"].passes == pytest.approx(200_000 * 64 / 227_835)
    large = table["base_256 with 24 layers of 1,024"]
    assert large.rate == 100 and "measured" in large.basis and large.memory.startswith("60")
    # Four times the pixels: a quarter of the rate, by estimate.
    assert table["stage1/cxr_f16_512"].rate == pytest.approx(200, rel=0.03)
    assert table["stage1/cxr_f16_512"].basis.startswith("estimated")
    assert table["stage1/taming_f16_1024"].basis == "measured 2030-01-02, uncompiled"


def test_failed_rows_and_rehearsals_are_refused(scale):
    for found in (results(stage1={"ours": None}), {**results(), "rehearsal": True}):
        with pytest.raises(UserError, match="bench gpu"):
            scale.Rates(found)


def test_a_presets_cost_is_replaced_not_repeated(scale, root):
    cost = scale.Cost("stage1/x", "", 1, 100.0, "images/s", "measured 2030-01-02", 5.0, "7, measured 2030-01-02")
    text = "# X\n#\n# Hardware: one GPU.\nmodel:\n"
    once = scale.with_cost(text, cost, "H100")
    assert once.count("5.0 h") == 1 and "7 GiB" in once and once.endswith("# Hardware: one GPU.\nmodel:\n")
    later = scale.with_cost(once, scale.Cost("stage1/x", "", 1, 200.0, "images/s", "b", 2.5, "6, b"), "H200")
    assert "5.0 h" not in later and later.count("# One ") == 1


def test_the_estimated_flop_of_a_step_are_those_of_a_real_one(scale):
    config = preset(
        "cxr_f16", 1, *REHEARSAL.stage1, "--loss.perceptual.net=vgg", "--model.ch=32", "--model.norm_groups=16"
    )
    task = TokenizerTask(config, Accelerator(cpu=True), SimpleNamespace(), SimpleNamespace())
    counted = count_flop(lambda: task.step([torch.rand(1, 1, 32, 32)], 10))
    assert scale.step_flop(config_to_dict(config)) == pytest.approx(counted, rel=0.05)


@pytest.mark.slow
def test_the_script_writes_from_a_results_file(scale, root, tmp_path):
    shutil.copytree(root / "configs", tmp_path / "configs")
    (tmp_path / "docs").mkdir()
    shutil.copy(root / "docs" / "scale.md", tmp_path / "docs")
    (tmp_path / "gpu.json").write_text(json.dumps(results(stage1={"ours": 1234.0})))
    scale.main([f"--results={tmp_path / 'gpu.json'}", f"--root={tmp_path}"])
    assert "1,234 images/s" in (tmp_path / "docs" / "scale.md").read_text()
    assert "1,234 images/s" in (tmp_path / "configs" / "stage1" / "cxr_f16.yaml").read_text()
