"""Load a pipeline: the included phantom model, and a folder with a missing weight."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from medunifier.data.phantom import Phantom
from medunifier.shared.errors import UserError
from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline


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
