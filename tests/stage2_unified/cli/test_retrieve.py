"""The index equals an exhaustive comparison, is bound to its model, and resumes an interrupted build."""

import json

import numpy as np
import pytest

from medunifier.data.phantom import Phantom
from medunifier.shared.command import run_command
from medunifier.shared.errors import UserError
from medunifier.stage2_unified.cli.retrieve import main
from medunifier.stage2_unified.inference import embedding_index as study_index
from medunifier.stage2_unified.inference.embedding_index import StudyIndex
from medunifier.stage2_unified.inference.inputs import codes_of, open_inputs
from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline
from tests.files import read_csv


def retrieve(model_folder, *more):
    return run_command(main, ["--model", str(model_folder), *map(str, more)])


@pytest.fixture(scope="module")
def index(model_folder, phantom_shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "studies"
    assert retrieve(model_folder, "--data", phantom_shards, "--index", folder) == 0
    return folder


@pytest.fixture(scope="module")
def pipeline(model_folder):
    return MedUnifierPipeline.from_pretrained(model_folder, "cpu", 8)


def embedded(pipeline, shards):
    source = open_inputs(str(shards), "", pipeline.tokenizer)
    images = [source.read(number) for number in range(len(source.keys))]
    return source.keys, pipeline.embed_images(codes_of(pipeline, images), [image.view for image in images])


@pytest.mark.parametrize("block", [7, 100])
def test_search_equals_exhaustive_comparison(index, pipeline, phantom_shards, monkeypatch, block):
    monkeypatch.setattr(study_index, "_BLOCK", block)
    keys, images = embedded(pipeline, phantom_shards)
    loaded = StudyIndex.load(index, pipeline.fingerprint)
    assert [row["study_id"] for row in loaded.studies] == list(keys)
    assert np.allclose(loaded.embeddings, images, atol=1e-6) and loaded.embeddings.dtype == np.float32
    queries = np.random.default_rng(0).normal(size=(6, images.shape[1])).astype(np.float32)
    similarity, rows = loaded.nearest(queries, 5)
    plain = queries @ images.T
    assert (rows == np.argsort(-plain, axis=1)[:, :5]).all()
    assert np.allclose(similarity, np.sort(plain, axis=1)[:, ::-1][:, :5], atol=1e-5)
    assert loaded.nearest(queries, 400)[1].shape == (6, 40)


def test_faiss_agrees_or_the_error_names_the_package(index, pipeline):
    loaded = StudyIndex.load(index, pipeline.fingerprint)
    queries = loaded.embeddings[:3]
    try:
        import faiss  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match="pip install faiss-cpu"):
            loaded.nearest(queries, 3, "faiss")
        return
    assert np.allclose(loaded.nearest(queries, 3, "faiss")[0], loaded.nearest(queries, 3)[0], atol=1e-5)


def test_a_radiograph_finds_itself_and_a_text_gives_a_ranking(index, model_folder, phantom_shards, tmp_path, capsys):
    folder = tmp_path / "images"
    assert retrieve(model_folder, "--data", phantom_shards, "--index", index, "--text", "Edema.", "--top=2") == 0
    done, answer = capsys.readouterr().out.splitlines()
    assert "already complete" in done
    answer = json.loads(answer)
    assert answer["query"] == "Edema." and [study["rank"] for study in answer["studies"]] == [1, 2]
    assert {"study_id", "view", "similarity"} <= answer["studies"][0].keys()

    folder.mkdir()
    from PIL import Image

    Image.fromarray((Phantom(32, 3).study(4).images[0] * 255).astype(np.uint8)).save(folder / "a.png")
    (folder / "b.png").write_text("not an image")
    view = Phantom(32, 3).study(4).views[0]
    out = tmp_path / "found.csv"
    assert retrieve(model_folder, "--index", index, "--image", folder, "--view", view, "--out", out, "--top=3") == 0
    rows = read_csv(out)
    assert [row["rank"] for row in rows] == ["1", "2", "3", ""] and rows[3]["error"]
    assert rows[0]["study_id"] == Phantom(32, 3).study(4).study_id and float(rows[0]["similarity"]) > 0.999


def test_a_resumed_build_equals_an_uninterrupted_one(model_folder, phantom_shards, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study_index, "PART", 16)
    build = ["--data", phantom_shards, "--batch_size=8"]
    assert retrieve(model_folder, *build, "--index", tmp_path / "whole") == 0
    calls, embed = [], MedUnifierPipeline.embed_images

    def stop_in_the_second_part(self, codes, views):
        calls.append(len(codes))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return embed(self, codes, views)

    monkeypatch.setattr(MedUnifierPipeline, "embed_images", stop_in_the_second_part)
    assert retrieve(model_folder, *build, "--index", tmp_path / "stopped") == 130
    assert not (tmp_path / "stopped").exists()
    calls.clear()
    calls += [0] * 10
    assert retrieve(model_folder, *build, "--index", tmp_path / "stopped") == 0
    assert sum(calls) == 24, "the first part was kept"
    for name in (study_index.EMBEDDINGS, study_index.STUDIES, study_index.INDEX):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stopped", "whole"]
    for remnant in (
        "stopped.unfinished",
        ".partial-1-stopped",
    ):  # left by a killed process
        (tmp_path / remnant).mkdir()
        (tmp_path / remnant / "part-00000000.safetensors").write_text("embeddings")
    assert retrieve(model_folder, *build, "--index", tmp_path / "stopped") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stopped", "whole"]


def test_files_are_indexed_and_unreadable_ones_listed(model_folder, image_folder, tmp_path, capsys):
    assert retrieve(model_folder, "--data", image_folder, "--index", tmp_path / "index") == 0
    assert "5 studies, 1 unreadable" in capsys.readouterr().out
    about = json.loads((tmp_path / "index" / "index.json").read_text())
    assert about["studies"] == 5 and about["unreadable"][0]["path"].endswith("broken.png")


def test_an_index_of_another_model_or_of_other_data_is_refused(
    index, model_folder, other_model_folder, image_folder, tmp_path, capsys
):
    assert retrieve(other_model_folder, "--index", index, "--text", "Edema.") == 1
    assert "built by model" in capsys.readouterr().err
    assert retrieve(model_folder, "--data", image_folder, "--index", index) == 1
    assert "other data" in capsys.readouterr().err
    assert retrieve(model_folder, "--index", tmp_path, "--text", "Edema.") == 1
    assert "not an index" in capsys.readouterr().err
    assert retrieve(model_folder, "--index", index) == 2
    assert retrieve(model_folder, "--index", index, "--image", image_folder / "broken.png") == 1
    assert "cannot be read as a radiograph" in capsys.readouterr().err
