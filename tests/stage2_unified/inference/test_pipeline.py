"""Load a pipeline: the included phantom model, and a folder with a missing weight."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from medunifier.data.phantom import Phantom
from medunifier.shared.errors import UserError
from medunifier.stage2_unified.generation.batch_size import bytes_per_study, largest_batch
from medunifier.stage2_unified.inference import pipeline as pipeline_module
from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline
from tests.stage2_unified.conftest import BACKBONE, make_config


def test_the_phantom_model_of_the_repository_generates_a_report(root):
    pipeline = MedUnifierPipeline.from_pretrained(root / "models" / "phantom" / "model", "cpu")
    image = Phantom(pipeline.tokenizer.image_size, 3).study(0).images[0]
    codes = pipeline.encode(image[None])
    (report,) = pipeline.write_reports(codes, ["PA"])
    assert "pneumothorax" in report["findings"]
    wrong = {"findings": "The heart is enlarged. There is a large left pleural effusion."}
    assert pipeline.match(codes, ["PA"], [wrong]).item() < pipeline.match(codes, ["PA"], [report]).item() / 2


def test_the_error_names_a_missing_weight(model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    weights["scale"] = weights.pop("logit_scale")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="logit_scale"):
        MedUnifierPipeline.from_pretrained(tmp_path / "model", "cpu")


def test_the_batch_size_follows_from_the_free_memory_and_changes_no_result(model_folder):
    small, large = make_config(), make_config(text_config=BACKBONE | {"num_hidden_layers": 400})
    need = bytes_per_study(small)
    assert [largest_batch(small, free) for free in (0, 9 * need, 2**50)] == [1, 4, 256]
    assert largest_batch(large, 9 * need) < 4
    results = []
    for size in (None, 2):
        pipeline = MedUnifierPipeline.from_pretrained(model_folder, "cpu", size)
        assert pipeline.batch_size == (size or 32)
        results.append(pipeline.draw([{"findings": "Clear."}] * 3, ["PA"] * 3, seed=4))
    assert (results[0] == results[1]).all()


def test_precision_bf16_is_for_generation_alone(model_folder):
    pipeline, plain = (
        MedUnifierPipeline.from_pretrained(model_folder, "cpu", precision=precision) for precision in ("bf16", "auto")
    )
    codes = pipeline.encode(Phantom(32, 3).study(0).images[0][None])
    assert plain.decoder is plain.model
    assert pipeline.decoder.dtype == torch.bfloat16 and pipeline.model.dtype == torch.float32
    assert pipeline.fingerprint == plain.fingerprint
    assert (pipeline.embed_images(codes, ["PA"]) == plain.embed_images(codes, ["PA"])).all()
    assert pipeline.draw([{"findings": "Clear."}], ["PA"]).shape == codes.shape
    assert list(pipeline.stream_report(codes[0], "PA", max_new_tokens=4))


def test_the_step_is_compiled_for_many_studies_on_a_gpu_and_the_model_is_not(model_folder, monkeypatch):
    compiled = []
    monkeypatch.setattr(pipeline_module, "compile_step", compiled.append)
    pipeline = MedUnifierPipeline.from_pretrained(model_folder, "cpu", precision="bf16")
    pipeline.expect(10**6)
    assert not compiled
    pipeline.device = torch.device("cuda")
    pipeline.expect(pipeline_module.COMPILE_FROM - 1)
    assert not compiled
    for _ in range(2):
        pipeline.expect(pipeline_module.COMPILE_FROM)
    assert compiled == [pipeline.decoder]
