"""Untrusted model folders: any invalid file raises a UserError."""

import json
import os
import shutil

import pytest

from medunifier.shared.errors import UserError
from medunifier.shared.files.model_folder import checked_model_folder
from medunifier.stage1_tokenizer.frozen import IMAGE_TOKENIZER, FrozenTokenizer
from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline
from medunifier.stage2_unified.model.backbones import pretrained_config
from medunifier.stage2_unified.model.processing.text_tokenizer import load_text_tokenizer


@pytest.fixture
def copy(model_folder, tmp_path):
    """A copy of the model folder to modify."""
    return shutil.copytree(model_folder, tmp_path / "model")


DAMAGE = ("[" * 200_000, '{"a":' * 200_000, "[]", "{", '"x"', "\xff", "")


def test_damaged_json_of_a_model_folder_is_one_error(copy):
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json", "processor_config.json"):
        content = (copy / name).read_bytes()
        for text in DAMAGE:
            (copy / name).write_text(text, encoding="latin-1")
            with pytest.raises(UserError, match="model"):
                MedUnifierPipeline.from_pretrained(copy, "cpu")
        (copy / name).write_bytes(content)
    assert MedUnifierPipeline.from_pretrained(copy, "cpu").fingerprint


def test_wrong_types_in_a_model_folder_are_one_error(copy):
    for name, changes in {
        "config.json": {"grid": "x", "codebook_size": -1, "text_config": 3, "model_type": ["x"]},
        "tokenizer.json": {"model": 3, "added_tokens": "x"},
        "processor_config.json": {"specials": 3},
    }.items():
        content = json.loads((copy / name).read_text())
        for key, value in changes.items():
            (copy / name).write_text(json.dumps(content | {key: value}))
            with pytest.raises(UserError):
                MedUnifierPipeline.from_pretrained(copy, "cpu")
        (copy / name).write_text(json.dumps(content))


def test_a_damaged_tokenizer_folder_is_one_error(copy):
    folder = copy / IMAGE_TOKENIZER
    content = (folder / "config.json").read_text()
    config = json.loads(content)
    texts = [*DAMAGE, json.dumps(config | {"model": 3}), json.dumps(config | {"model": config["model"] | {"ch": 0}})]
    texts += [json.dumps(config | {"model": config["model"] | {"ch_mult": 3}}), json.dumps({"format_version": 1})]
    for text in texts:
        (folder / "config.json").write_text(text, encoding="latin-1")
        with pytest.raises(UserError):
            FrozenTokenizer.from_pretrained(folder)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(UserError):
        FrozenTokenizer.from_pretrained(folder)


def test_sizes_of_a_tokenizer_are_compared_with_its_weights_before_a_model_is_built(copy, monkeypatch):
    folder = copy / IMAGE_TOKENIZER
    config = json.loads((folder / "config.json").read_text())
    built = []
    monkeypatch.setattr("medunifier.stage1_tokenizer.frozen.VQGAN", built.append)
    for change in (
        {"n_embed": 2**40}, {"embed_dim": 2**36}, {"ch": 2**20}, {"z_channels": 2**30}, {"num_res_blocks": 10**9},
        {"in_channels": 2**40}, {"ch_mult": [1] * 500}, {"n_embed": config["model"]["n_embed"] + 1},
    ):  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config | {"model": config["model"] | change}))
        with pytest.raises(UserError):
            FrozenTokenizer.from_pretrained(folder)
        assert not built, change


def test_wrong_settings_that_take_effect_late_are_one_error(copy):
    config, text = (json.loads((copy / name).read_text()) for name in ("config.json", "tokenizer_config.json"))
    layers = {"text_config": config["text_config"] | {"num_hidden_layers": 10**9}}
    for change in ({"max_report_tokens": "x"}, {"text_choice": 1}, {"tokenizer_fingerprint": 1}, layers):
        (copy / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=next(iter(change))):
            MedUnifierPipeline.from_pretrained(copy, "cpu")
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "tokenizer_config.json").write_text(json.dumps(text | {"model_max_length": "x"}))
    with pytest.raises(UserError, match="text tokenizer"):
        load_text_tokenizer(str(copy))
    (copy / "tokenizer_config.json").write_text(json.dumps(text))
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    panics = {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer | panics))
    with pytest.raises(UserError, match="text tokenizer"):
        load_text_tokenizer(str(copy))


def test_a_weight_index_may_only_name_files_of_its_folder(tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    for weight_map in ({"a": "../../x.safetensors"}, {"a": "/x.safetensors"}, {"a": 3}, [], None):
        path.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(UserError, match=r"index\.json"), checked_model_folder(tmp_path, "a model"):
            raise AssertionError("loaded")
    path.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    with checked_model_folder(tmp_path, "a model"):
        pass


def test_other_folders_are_checked_too(copy, tmp_path):
    for text in DAMAGE:
        for name in ("config.json", "tokenizer_config.json"):
            (tmp_path / name).write_text(text, encoding="latin-1")
        with pytest.raises(UserError):
            pretrained_config(str(tmp_path), 8)
        with pytest.raises(UserError):
            load_text_tokenizer(str(tmp_path))


def test_code_in_a_model_folder_is_not_run(tmp_path):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    auto = {"AutoConfig": "evil.C", "AutoTokenizer": ["evil.T", None], "AutoModelForCausalLM": "evil.M"}
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(json.dumps({"model_type": "evil", "auto_map": auto}))
    for load in (lambda: pretrained_config(str(tmp_path), 8), lambda: load_text_tokenizer(str(tmp_path))):
        with pytest.raises(UserError):
            load()
    assert not (tmp_path / "ran").exists()


def test_an_incomplete_copy_of_a_model_folder_names_the_file(copy):
    """As `git clone` without LFS leaves it, or a copy that was interrupted."""
    for path in sorted(copy.rglob("*")):
        if path.suffix not in (".json", ".safetensors"):
            continue
        content = path.read_bytes()
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        if path.name not in ("processor_config.json",) and path.parent == copy or path.suffix == ".safetensors":
            with pytest.raises(UserError, match=f"{path.name}.*git lfs pull"):
                MedUnifierPipeline.from_pretrained(copy, "cpu")
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError, match=path.name):
            MedUnifierPipeline.from_pretrained(copy, "cpu")
        path.write_bytes(content)
    assert MedUnifierPipeline.from_pretrained(copy, "cpu").fingerprint
