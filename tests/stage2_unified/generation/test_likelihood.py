"""Likelihood of images without a report, and the limits beyond which an image is unlike the training data."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from medunifier.data.images.resize import fit_square
from medunifier.data.phantom import Phantom
from medunifier.shared.command import run_command
from medunifier.shared.errors import UserError
from medunifier.shared.metrics.auroc import auroc
from medunifier.stage2_unified.cli import calibrate, classify, report
from medunifier.stage2_unified.generation import likelihood
from medunifier.stage2_unified.generation.likelihood import REFERENCE, LikelihoodReference, image_nll
from medunifier.stage2_unified.inference.inputs import FileImages
from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline
from medunifier.stage2_unified.model.sequences import ImageSpans
from tests.files import read_csv
from tests.stage2_unified.conftest import CODES, GRID, make_model

LEARNED = ("cardiomegaly", "effusion", "pneumothorax", "opacity", "nodule")  # by the model of the repository


@pytest.fixture(scope="module")
def shipped(root):
    return MedUnifierPipeline.from_pretrained(root / "models" / "phantom" / "model", "cpu", 64)


def test_the_score_is_the_mean_over_the_codes_each_predicted_from_those_before(monkeypatch):
    monkeypatch.setattr(likelihood, "_CHUNK", 7)  # several chunks of one image
    model = make_model().eval()
    vocabulary = model.vocabulary
    codes = torch.randint(CODES, (3, GRID[0] * GRID[1]))
    view = torch.tensor([vocabulary.view(name) for name in ("PA", "AP", "")])
    scores = image_nll(model, ImageSpans.of(codes, view))
    for image in range(3):
        ids = [vocabulary[name] for name in ("<bos>", "<uncond>", "<emb_txt>")] + [
            int(view[image]),
            vocabulary["<boi>"],
        ]
        total = 0.0
        for code in codes[image].tolist():
            with torch.no_grad():
                hidden = model.run_decoder(model.embed_ids(torch.tensor([ids])))[0, -1]
                total -= float(model.image_logits(hidden).log_softmax(dim=-1)[code])
            ids.append(vocabulary.offset + code)
        assert float(scores[image]) == pytest.approx(total / codes.shape[1], rel=1e-5)


def test_of_an_unknown_view_the_most_likely_counts(model_folder):
    pipeline = MedUnifierPipeline.from_pretrained(model_folder, "cpu", 3)
    codes = np.random.default_rng(0).integers(0, pipeline.tokenizer.codebook_size, (2, *pipeline.tokenizer.grid))
    known = np.stack([pipeline.image_nll(codes, [view] * 2) for view in ("PA", "AP", "LATERAL")])
    unknown = pipeline.image_nll(codes, ["", ""])
    assert (unknown <= known.min(axis=0) + 1e-6).all() and (unknown < known.max(axis=0) - 1e-6).all()
    assert np.allclose(pipeline.image_nll(codes, ["PA", ""]), [known[0, 0], unknown[1]], atol=1e-6)


def reference(seed=0, model="m"):
    nll = np.random.default_rng(seed).normal(2.0, 0.2, 1000)
    return nll, LikelihoodReference.of(nll, model, "phantom", "validate")


def test_one_per_cent_of_the_validation_images_and_both_extremes_lie_outside():
    nll, made = reference()
    assert made.outside(nll).mean() == pytest.approx(0.01, abs=0.001)
    assert made.outside(np.array([0.0, made.median, nll.max() + 1])).tolist() == [True, False, True]
    low, high = made.limits
    assert made.outside(np.array([low - 0.01, low + 0.01, high - 0.01, high + 0.01])).tolist() == [
        True,
        False,
        False,
        True,
    ]
    with pytest.raises(UserError, match="50"):
        LikelihoodReference.of(nll[:50], "m", "phantom", "test")


def test_the_file_is_read_as_it_was_written_and_a_damaged_one_is_refused(tmp_path):
    _, made = reference()
    assert LikelihoodReference.load(tmp_path, "m") is None
    made.save(tmp_path)
    assert LikelihoodReference.load(tmp_path, "m") == made
    path = tmp_path / REFERENCE
    whole = json.loads(path.read_text())
    damaged = [
        {**whole, "distances": whole["distances"][:-1]},
        {**whole, "distances": whole["distances"][::-1]},
        {**whole, "distances": ["1"] * 101},
        {**whole, "median": None},
        {**whole, "format_version": 0},
        {name: value for name, value in whole.items() if name != "median"},
        {**whole, "model": "another"},
        [],
    ]
    for content in [*map(json.dumps, damaged), path.read_text()[:100], path.read_text().replace("1.", "NaN, 1.", 1)]:
        path.write_text(content)
        with pytest.raises(UserError, match=REFERENCE):
            LikelihoodReference.load(tmp_path, "m")


def test_noise_lies_outside_the_shipped_models_data_and_held_out_phantoms_do_not(shipped):
    phantom, size = Phantom(64, 77, LEARNED), shipped.tokenizer.image_size
    studies = [phantom.study(number) for number in range(50)]
    pixels = np.stack([fit_square(study.images[0], size) for study in studies])
    generator = np.random.default_rng(0)
    noise = generator.random((8, size, size), dtype=np.float32)
    flat = np.full((4, size, size), np.arange(4).reshape(4, 1, 1) / 3, np.float32)
    inside, views = shipped.encode(pixels), [study.views[0] for study in studies]
    assert shipped.reference.outside(shipped.image_nll(inside, views)).sum() <= 3
    assert shipped.reference.outside(shipped.image_nll(inside[:20], [""] * 20)).sum() <= 2, "of files without a view"
    unlike = np.concatenate([noise, flat, 1 - pixels[:8], pixels[:8, ::-1]])
    assert shipped.reference.outside(shipped.image_nll(shipped.encode(unlike), ["PA"] * len(unlike))).all()


@pytest.mark.slow
def test_real_radiographs_lie_outside_the_shipped_models_data(shipped, shared_data):
    folders = [shared_data(f"radiographs/{name}") for name in ("nih/px64", "cc-by/mhh", "nc/cohen-nc-sa")]
    phantom, size = Phantom(64, 78, LEARNED), shipped.tokenizer.image_size
    studies = [phantom.study(number) for number in range(400)]
    pixels = np.stack([fit_square(study.images[0], size) for study in studies])
    held_out = shipped.image_nll(shipped.encode(pixels), [study.views[0] for study in studies])
    for folder in folders:
        files = sorted(folder.glob("*.[pj][np]*g"))
        images = FileImages(files, size)
        readable = [image for image in map(images.read, range(len(files))) if not image.error]
        codes = shipped.encode(np.stack([image.pixels for image in readable]))
        real = shipped.image_nll(codes, [image.view for image in readable])
        truth = np.repeat([0.0, 1.0], [len(held_out), len(real)])
        scores = shipped.reference.distance(np.concatenate([held_out, real]))
        assert len(real) > 100 and auroc(truth, scores) >= 0.99, folder


@pytest.fixture
def calibrated(model_folder, phantom_shards, tmp_path, monkeypatch, capsys):
    """Return a copy of the model's folder with a reference, made by the command from few images."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    options = ["--model", str(folder), "--data", str(phantom_shards)]
    assert run_command(calibrate.main, [*options, "--split=test"]) == 1 and "images" in capsys.readouterr().err
    monkeypatch.setattr(likelihood, "LEAST_IMAGES", 20)
    assert run_command(calibrate.main, [*options, "--split=train"]) == 0
    return folder


def limits(folder, median, limit):
    """Replace the reference of a folder by one with this median and 99th percentile."""
    model = MedUnifierPipeline.from_pretrained(folder, "cpu").fingerprint
    made = LikelihoodReference.load(folder, model)
    replace(made, median=median, distances=(*[0.0] * 99, limit, limit)).save(folder)


def test_report_and_classify_state_which_images_lie_outside(calibrated, image_folder, tmp_path, capsys):
    common = ["--model", str(calibrated), "--input", str(image_folder), "--view=PA"]
    for number, (limit, outside) in enumerate([(1e-6, 5), (100.0, 0)]):
        limits(calibrated, 2.0, limit)
        capsys.readouterr()
        table = tmp_path / f"{number}.csv"
        assert run_command(classify.main, [*common, "--labels=edema", f"--out={table}"]) == 0
        rows = [row for row in read_csv(table) if not row["error"]]
        assert [row["outside_training_data"] for row in rows] == [str(bool(outside))] * 5
        assert ("5 of 5" in capsys.readouterr().err) == bool(outside)
    assert run_command(report.main, common) == 0
    readable = [row for row in map(json.loads, capsys.readouterr().out.splitlines()) if "error" not in row]
    assert [row["outside_training_data"] for row in readable] == [False] * 5
    assert [row["image_nll"] for row in readable] == [
        pytest.approx(float(row["image_nll"]), abs=1e-3) for row in rows
    ]


def test_of_several_images_the_most_unusual_one_counts(calibrated):
    from medunifier.stage2_unified.cli.outside import OutsideColumns

    pipeline = MedUnifierPipeline.from_pretrained(calibrated, "cpu", 8)
    grids = np.random.default_rng(0).integers(0, pipeline.tokenizer.codebook_size, (5, *pipeline.tokenizer.grid))
    alone = pipeline.image_nll(grids, ["PA"] * 5)
    lists = [["PA", "PA"], ["PA", "PA", "PA"]]
    found = OutsideColumns(pipeline, str(calibrated)).rows([grids[:2], grids[2:]], lists)
    distance = pipeline.reference.distance
    expected = [max(of_study, key=lambda value: distance(value)) for of_study in (alone[:2], alone[2:])]
    assert [row["image_nll"] for row in found] == pytest.approx(expected, abs=1e-3)


def test_without_the_file_there_are_no_columns_and_a_line_says_how_to_make_it(model_folder, image_folder, capsys):
    assert (
        run_command(classify.main, ["--model", str(model_folder), "--input", str(image_folder), "--labels=edema"])
        == 0
    )
    output = capsys.readouterr()
    assert "medunifier calibrate" in output.err and "outside_training_data" not in output.out
