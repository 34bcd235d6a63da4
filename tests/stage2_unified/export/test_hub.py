"""Folders for the hub: complete, with cards that state counts and unknowns; uploads are recorded, not sent."""

import json

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import CommitInfo, HfApi, ModelCard, RepoUrl
from huggingface_hub.utils import EntryNotFoundError
from transformers.utils import hub

from medunifier.data.shards.dataset import ShardDataset, read_manifest
from medunifier.shared.command import run_command
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer
from medunifier.stage2_unified.cli.export import main
from medunifier.stage2_unified.export.hub import split_card
from medunifier.stage2_unified.model.configuration import MedUnifierConfig
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration
from medunifier.stage2_unified.model.processing.processor import MedUnifierProcessor


def export(*options):
    return run_command(main, ["--format=hub", *map(str, options)])


@pytest.fixture(scope="module")
def folders(model_folder, phantom_shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "hub"
    assert export("--model", model_folder, "--data", phantom_shards, "--out", out) == 0
    return out


def card_of(folder):
    return split_card((folder / "README.md").read_text(encoding="utf-8"))


def test_the_exported_folders_load_unchanged(folders, model_folder, phantom_shards):
    frozen = FrozenTokenizer.from_pretrained(folders / "tokenizer")
    assert MedUnifierProcessor.from_pretrained(folders / "model").image_tokenizer.fingerprint == frozen.fingerprint
    theirs, ours = (
        MedUnifierForConditionalGeneration.from_pretrained(folder).state_dict()
        for folder in (folders / "model", model_folder)
    )
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    split = next(iter(read_manifest(phantom_shards)["splits"]))
    copied, given = ShardDataset(folders / "data", split), ShardDataset(phantom_shards, split)
    assert len(copied) == len(given) and copied[0].info == given[0].info
    assert all(np.array_equal(*pair) for pair in zip(copied[0].images, given[0].images, strict=True))
    assert not (folders / "data" / "rejects.csv").exists()


@pytest.mark.parametrize("name", ["model", "tokenizer", "data"])
def test_every_card_has_front_matter_and_states_what_is_unknown(folders, name):
    values, text = card_of(folders / name)
    assert values["license"] == "other" and values["license_name"] == "unknown-ask"
    assert {"chest-radiograph", "research-only"} <= set(values["tags"])
    assert "Unknown: not chosen yet" in text and "## Privacy" in text
    assert "not a medical device" in text or "not for the care of a person" in text
    assert ModelCard((folders / name / "README.md").read_text()).data.tags, "readable by the Hub's own parser"


def test_the_data_card_counts_the_shards(folders, phantom_shards):
    values, text = card_of(folders / "data")
    manifest = read_manifest(phantom_shards)
    for split in (name for name, rows in manifest["splits"].items() if rows):
        infos = list(ShardDataset(phantom_shards, split).infos())
        shown = {"validate": "validation"}.get(split, split)
        patients, images = len({info["patient_id"] for info in infos}), sum(len(info["views"]) for info in infos)
        assert f"| {shown} | {patients} | {len(infos)} | {images} |" in text
        assert {"split": shown, "path": f"{split}-*.tar"} in values["configs"][0]["data_files"]
    every = [
        i for name, rows in manifest["splits"].items() if rows for i in ShardDataset(phantom_shards, name).infos()
    ]
    stated = [sum(info["labels"].get("Cardiomegaly") == value for info in every) for value in (1, 0, -1)]
    assert f"| Cardiomegaly | {stated[0]} | {stated[1]} | {stated[2]} |" in text and sum(stated)
    assert values["size_categories"] == ["n<1K"] and "phantoms" in text


def test_a_repeated_export_is_a_no_op_and_other_folders_are_not_overwritten(
    folders, model_folder, phantom_shards, tmp_path, capsys
):
    assert export("--model", model_folder, "--data", phantom_shards, "--out", folders) == 0
    assert "already complete" in capsys.readouterr().out
    assert export("--data", phantom_shards, "--out", folders) == 1
    assert "another --out" in capsys.readouterr().err
    assert export("--out", tmp_path / "x") == 2 and export("--model", tmp_path, "--out", tmp_path / "x") == 1


def test_shards_of_patients_need_an_explicit_option(phantom_shards, tmp_path, capsys):
    shards = tmp_path / "shards"
    shards.mkdir()
    for path in phantom_shards.iterdir():
        (shards / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["transform"]["redact"] = {"built_in": "dates", "own_patterns": 2}
    (shards / "manifest.json").write_text(json.dumps(manifest | {"source": "mimic-cxr"}))
    assert export("--data", shards, "--out", tmp_path / "hub") == 1
    assert "--may_share_data" in capsys.readouterr().err and not (tmp_path / "hub").exists()
    assert export("--data", shards, "--may_share_data", "--out", tmp_path / "hub") == 0
    text = card_of(tmp_path / "hub" / "data")[1]
    assert "free text**: patterns replaced dates, and 2 custom expressions" in text and "phantom" not in text


@pytest.fixture
def uploads(monkeypatch):
    """Record uploads without a network: {path in the repository: bytes}, and the repositories created."""
    sent, made = {}, {}

    def create_repo(self, repo_id, private=None, **_):
        made[repo_id] = private
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def create_commit(self, repo_id, operations, **_):
        for operation in operations:
            with operation.as_file() as file:
                sent[operation.path_in_repo] = file.read()
        return CommitInfo(
            commit_url=f"https://huggingface.co/{repo_id}/commit/1", commit_message="", commit_description="", oid="1"
        )

    def upload_folder(self, repo_id, folder_path, **_):
        for path in sorted(folder_path.rglob("*")):
            if path.is_file():
                sent[path.relative_to(folder_path).as_posix()] = path.read_bytes()
        return create_commit(self, repo_id, [])

    def load(*_, **__):
        raise EntryNotFoundError("the repository is new")

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(ModelCard, "load", load)
    for name in ("create_repo", "create_commit"):  # transformers before 5.20 imported them as functions
        if hasattr(hub, name):
            api = HfApi()
            monkeypatch.setattr(hub, name, getattr(api, name))
    return sent, made


@pytest.fixture
def loaded(tmp_path):
    """Return a function that writes the uploaded files to a folder, as a download would."""

    def load(sent):
        for name, content in sent.items():
            path = tmp_path / "loaded" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return tmp_path / "loaded"

    return load


def test_the_tokenizer_is_uploaded_with_its_card(model_folder, uploads, loaded):
    frozen = FrozenTokenizer.from_pretrained(model_folder / "image_tokenizer")
    sent, made = uploads
    assert frozen.push_to_hub("me/tokenizer") == "https://huggingface.co/me/tokenizer/commit/1"
    assert made == {"me/tokenizer": True} and b"not a medical device" in sent["README.md"]
    assert FrozenTokenizer.from_pretrained(loaded(sent)).fingerprint == frozen.fingerprint
    frozen.push_to_hub("me/open", private=False)
    assert made["me/open"] is False


def test_model_and_processor_are_uploaded_into_one_repository(model_folder, uploads, loaded):
    sent, made = uploads
    model = MedUnifierForConditionalGeneration.from_pretrained(model_folder)
    model.push_to_hub("me/model", private=True)
    processor = MedUnifierProcessor.from_pretrained(model_folder)
    processor.push_to_hub("me/model")
    tags = yaml.safe_load(sent["README.md"].decode().split("---")[1])["tags"]
    assert "research-only" in tags and made == {"me/model": True}
    folder = loaded(sent)
    again = MedUnifierForConditionalGeneration.from_pretrained(folder).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
    assert (
        MedUnifierProcessor.from_pretrained(folder).image_tokenizer.codebook_size
        == processor.image_tokenizer.codebook_size
    )
    MedUnifierConfig.from_pretrained(model_folder).push_to_hub("me/config", private=True)
    assert made["me/config"] is True and b"medunifier" in sent["config.json"]
