"""Several views and the prior, from the phantom's dates to reports and images of an untrained model."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from medunifier.data.ingest.command import IngestConfig, ingest
from medunifier.data.ingest.pseudonyms import DEFAULT_KEY_FILE, load_key, pseudonym
from medunifier.data.phantom import Phantom
from medunifier.data.phantom.command import PhantomConfig, write_archive
from medunifier.data.phantom.state import slot
from medunifier.data.shards.dataset import ShardDataset
from medunifier.shared.command import run_command
from medunifier.shared.errors import UserError
from medunifier.stage1_tokenizer.cli.tokenize_shards import main as tokenize
from medunifier.stage2_unified.cli.report import main as report
from medunifier.stage2_unified.cli.synthesize import main as synthesize
from medunifier.stage2_unified.evaluate.subsets.model_inputs import model_inputs
from medunifier.stage2_unified.evaluate.subsets.studies import EvaluationData
from medunifier.stage2_unified.inference.inputs import open_inputs, study_inputs
from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline
from medunifier.stage2_unified.training.collator import StudyCollator
from medunifier.stage2_unified.training.dataset import StudiesWithText
from tests.stage2_unified.conftest import make_model_folder

STUDIES, SIZE = 40, 32


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Image and token shards of phantoms with laterals, and a model with two views and the prior study as inputs."""
    root = tmp_path_factory.mktemp("studies")
    write_archive(PhantomConfig(out=root / "tree", studies=STUDIES, size=SIZE, lateral_fraction=0.6, history=True))
    ingest(IngestConfig("phantom", str(root / "tree"), str(root / "images"), size=SIZE, workers=1))
    model = make_model_folder(root / "trained", max_views=2, prior=True)
    options = {"tokenizer": root / "trained" / "tokenizer", "shards": root / "images", "out": root / "codes"}
    tokenize([f"--{name}={value}" for name, value in options.items()])
    return SimpleNamespace(root=root, images=root / "images", codes=root / "codes", model=model)


def phantom_numbers():
    """Map each study's pseudonym to the number of its phantom."""
    key, phantom = load_key(DEFAULT_KEY_FILE), Phantom(SIZE, 0)
    return {pseudonym(key, "study", phantom.study(number).study_id): number for number in range(STUDIES)}


def test_the_prior_is_the_patients_last_study_in_the_same_split(made):
    number_of, follow_ups = phantom_numbers(), 0
    for split in ("train", "validate", "test"):
        studies = StudiesWithText(ShardDataset(made.codes, split), ("findings", "impression"), prior=True)
        for sample in (studies[number] for number in range(len(studies))):
            current = slot(0, number_of[sample.info["study_id"]])
            assert sample.info["visit"] == current.visit
            if current.visit == 0:
                assert sample.prior is None
                continue
            before = slot(0, number_of[sample.prior.info["study_id"]])
            assert (before.patient, before.visit, before.split) == (current.patient, current.visit - 1, split)
            follow_ups += 1
    assert follow_ups > 5 and studies.follow_ups < len(studies)
    plain = StudiesWithText(ShardDataset(made.codes, "train"), ("findings", "impression"))
    assert plain.follow_ups == 0 and all(plain[number].prior is None for number in range(len(plain)))


def test_shards_provide_all_views_and_the_prior(made, tmp_path):
    arguments = ["--model", str(made.model), "--input", str(made.codes), "--out", str(tmp_path / "out.csv")]
    assert run_command(report, arguments) == 0
    pipeline = MedUnifierPipeline.from_pretrained(made.model, "cpu", 16)
    source = open_inputs(str(made.codes), "train", pipeline.tokenizer, 2, prior=True)
    images = [source.read(number) for number in range(len(source.keys))]
    assert {len(image.others) for image in images} == {0, 1} and {image.prior is None for image in images} == {
        True,
        False,
    }
    together = pipeline.embed_images(**study_inputs(pipeline, images, ""))
    for number in (0, 5, 11):
        one = study_inputs(pipeline, [images[number]], "")
        assert np.allclose(pipeline.embed_images(**one)[0], together[number], atol=1e-5)
    data = EvaluationData(str(made.codes), pipeline.tokenizer)
    studies = data.studies("train")
    evaluated = model_inputs(data, "train", studies, 2, prior=True)
    assert studies.ids == source.keys
    assert np.allclose(pipeline.embed_images(**evaluated.arguments), together, atol=1e-5)
    swapped = evaluated.select([7, 2])
    reports = [{"findings": "No effusion."}] * 2
    matched = pipeline.match(**swapped.arguments, reports=reports)
    assert matched == pytest.approx(
        pipeline.match(**evaluated.select([2, 7]).arguments, reports=reports)[::-1], rel=1e-4
    )
    image_data = EvaluationData(str(made.images), pipeline.tokenizer)
    from_pixels = model_inputs(image_data, "train", image_data.studies("train"), 2, prior=True)
    assert all((a == b).all() for a, b in zip(from_pixels.codes, evaluated.codes, strict=True))
    assert [p is None for p in from_pixels.priors] == [image.prior is None for image in images]


def test_a_folder_of_files_is_one_study_if_requested(made, tmp_path):
    for name, views in (("one", 2), ("two", 1)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for view in range(views):
            pixels = (Phantom(48, 7).study(view).images[0] * 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{view}.png")
    (tmp_path / "images" / "two" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"nothing" * 20)
    arguments = ["--model", str(made.model), "--input", str(tmp_path / "images"), "--view=PA"]
    assert run_command(report, [*arguments, "--out", str(tmp_path / "folders.jsonl"), "--group_by=folder"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "folders.jsonl").read_text().splitlines()]
    assert [(row["path"].rpartition("/")[2], row["view"], row["prior"]) for row in rows] == [
        ("one", "PA,PA", False), ("two", "PA", False),
    ]  # fmt: skip
    assert run_command(report, [*arguments, "--out", str(tmp_path / "files.jsonl")]) == 0
    assert len((tmp_path / "files.jsonl").read_text().splitlines()) == 4


def test_two_views_of_a_study_and_a_follow_up_are_generated(made, tmp_path, capsys):
    def generate(out, *more, model=made.model):
        return run_command(synthesize, ["--model", str(model), "--out", str(tmp_path / out), "--text=Clear.", *more])

    assert generate("two", "--views=PA,LATERAL", "--count=2", "--batch_size=1") == 0
    plan = json.loads((tmp_path / "two" / "prompts.json").read_text())["images"]
    assert [(row["file"], row["view"], row["seed"]) for row in plan] == [
        ("000000-0.png", "PA", 0), ("000000-1.png", "LATERAL", 0),
        ("000001-0.png", "PA", 1), ("000001-1.png", "LATERAL", 1),
    ]  # fmt: skip
    assert generate("one", "--count=2") == 0
    pixels = [np.asarray(Image.open(tmp_path / name), int) for name in ("two/000001-0.png", "one/000001.png")]
    assert np.abs(pixels[0] - pixels[1]).max() <= 1  # the same codes; the decoder's last bit depends on its batch
    (tmp_path / "two" / "000001-1.png").unlink()
    kept = (tmp_path / "two" / "000001-0.png").read_bytes()
    assert generate("two", "--views=PA,LATERAL", "--count=2", "--batch_size=2") == 0
    assert (tmp_path / "two" / "000001-1.png").is_file() and (tmp_path / "two" / "000001-0.png").read_bytes() == kept
    prior = str(tmp_path / "one" / "000000.png")
    assert generate("later", f"--prior={prior}", "--prior_view=PA") == 0
    with Image.open(tmp_path / "later" / "000000.png") as image:
        assert "may be a patient's" in image.text["Comment"] and "shows no patient" not in image.text["Comment"]
    later = np.asarray(Image.open(tmp_path / "later" / "000000.png"))
    assert (later != np.asarray(Image.open(prior))).any()
    capsys.readouterr()
    assert generate("three", "--views=PA,AP,LATERAL") == 1 and "trained with 2" in capsys.readouterr().err
    assert generate("absent", "--prior=nowhere.png") == 1 and "is not a file" in capsys.readouterr().err
    plain = make_model_folder(made.root / "plain")
    assert (
        generate("plain", f"--prior={prior}", model=plain) == 1 and "without prior studies" in capsys.readouterr().err
    )
    assert not any((tmp_path / name).exists() for name in ("three", "absent", "plain"))


def test_a_processor_refuses_what_the_model_was_not_trained_with(made):
    pipeline = MedUnifierPipeline.from_pretrained(made.model, "cpu")
    stack = np.zeros((3, *pipeline.tokenizer.grid), np.int64)
    with pytest.raises(UserError, match="2 images of a study"):
        pipeline.embed_images([stack], [["PA", "AP", "LATERAL"]])
    pipeline.processor.config.prior = False
    with pytest.raises(UserError, match=r"data\.prior"):
        pipeline.embed_images(stack[:1], ["PA"], [(stack[0], "PA")])
    images = [torch.rand(1, 1, SIZE, SIZE), torch.rand(2, 1, SIZE, SIZE)]
    inputs = pipeline.processor(images=images, views=[["PA"], ["AP", "LATERAL"]])
    assert (
        inputs["images"].codes.shape[:2] == (2, 2)
        and inputs["images"].view[0, 1] == pipeline.processor.vocabulary["<pad>"]
    )
    alone = pipeline.processor(images=images[1][1:], views=["LATERAL"])
    assert torch.equal(alone["images"].codes[0, 0], inputs["images"].codes[1, 1])


def test_samples_do_not_depend_on_the_batch(made):
    pipeline = MedUnifierPipeline.from_pretrained(made.model, "cpu")
    studies = StudiesWithText(ShardDataset(made.codes, "train"), ("findings", "impression"), prior=True)
    collate = StudyCollator(pipeline.processor.codec, 0.1, 3, True, max_views=2, view_dropout=0.3)
    samples = [(position, studies[position % len(studies)]) for position in range(24)]
    whole, parts = collate(samples).images, [collate(samples[:9]).images, collate(samples[9:]).images]
    pad = pipeline.processor.vocabulary["<pad>"]
    for row, part in enumerate([(0, n) for n in range(9)] + [(1, n) for n in range(15)]):
        other = parts[part[0]]
        images = int((whole.view[row] != pad).sum())
        assert torch.equal(other.view[part[1], :images], whole.view[row, :images])
        assert torch.equal(other.codes[part[1], :images], whole.codes[row, :images])
        if whole.prior_view[row, 0] != pad:
            assert torch.equal(other.prior_codes[part[1]], whole.prior_codes[row])
    assert 0 < (whole.view[:, 1] != pad).sum() < 24 and 0 < (whole.prior_view != pad).sum() < 24
