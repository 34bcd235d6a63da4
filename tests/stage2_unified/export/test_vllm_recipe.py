"""The vLLM requests of docs/export.md, run with transformers: a report, and the codes of an image."""

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from medunifier.data.images.radiograph import read_radiograph
from medunifier.shared.command import run_command
from medunifier.stage2_unified.cli.export import main
from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline


@pytest.fixture(scope="module")
def exported(model_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    assert run_command(main, ["--model", str(model_folder), "--out", str(root / "exported")]) == 0
    return root


@pytest.fixture
def recipe(root, exported, monkeypatch):
    """Run the page's Python code next to the exported folder and return its names."""
    text = (root / "docs" / "export.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(exported)
    names = {}
    exec(code, names)
    return names


def answer(folder, request):
    """Run a request as a server would: greedy, only the allowed ids, up to a stop id or the maximum length."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    blocked = torch.ones(model.config.vocab_size, dtype=torch.bool)
    blocked[request["allowed_token_ids"]] = False
    ids = list(request["prompt"])
    for _ in range(request["max_tokens"]):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        ids.append(int(logits.masked_fill(blocked, -torch.inf).argmax()))
        if ids[-1] in request.get("stop_token_ids", []):
            break
    return ids[len(request["prompt"]) :]


def test_the_report_equals_that_of_the_pipeline(recipe, exported, model_folder, image_folder):
    image = image_folder / "image0.png"
    request = recipe["report_request"](image, longest=10)
    written = answer(exported / "exported", json.loads(json.dumps(request)))
    pipeline = MedUnifierPipeline.from_pretrained(model_folder, "cpu")
    codes = pipeline.encode(read_radiograph(image, pipeline.tokenizer.image_size)[None])
    (expected,) = pipeline.write_reports(codes, ["PA"], max_new_tokens=10)
    assert pipeline.processor.codec.decode(written) == expected and any(expected.values())
    first = recipe["first"]
    assert [i - first for i in request["prompt"][3:-2]] == codes.ravel().tolist()


def test_a_generated_image_has_exactly_the_codes_of_the_grid(recipe, exported):
    words = AutoTokenizer.from_pretrained(exported / "exported")
    report = words("<findings> The lungs are clear.", add_special_tokens=False).input_ids
    request = recipe["image_request"](report)
    assert request["prompt"][1 : 1 + len(report)] == report and request["max_tokens"] == request["min_tokens"]
    codes = torch.tensor(answer(exported / "exported", request)) - recipe["first"]
    height, width = recipe["origin"]["grid"]
    assert len(codes) == height * width and 0 <= codes.min() <= codes.max() < recipe["origin"]["codes"]
    assert recipe["tokenizer"].decode_indices(codes.view(1, height, width)).isfinite().all()
