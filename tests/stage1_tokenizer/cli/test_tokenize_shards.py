"""Token shards: deterministic bytes, resumed shard by shard, never mixed between tokenizers."""

import json
from collections import deque

import numpy as np
import pytest
import torch

from medunifier.data.shards.dataset import ShardDataset
from medunifier.shared.command import run_command
from medunifier.shared.training.precision import resolve_precision
from medunifier.stage1_tokenizer.cli import tokenize_shards as tokenize
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer, export
from medunifier.stage1_tokenizer.model.vqgan import VQGAN
from medunifier.stage1_tokenizer.pixel_range import scale_pixels, to_model
from tests.files import contents
from tests.stage1_tokenizer.conftest import TINY, write_image_shards


def make_tokenizer(folder, seed=0, **changes):
    torch.manual_seed(seed)
    model = VQGAN({**TINY, **changes}).eval()
    export(model, folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "t")


def run(tokenizer, shards, out, *options):
    arguments = ["--tokenizer", str(tokenizer), "--shards", str(shards), "--out", str(out)]
    return run_command(tokenize.main, [*arguments, "--threads", "1", *options])


def test_codes_and_keys_match_the_tokenizer_and_the_image_shards(tokenizer, image_shards, tmp_path):
    assert run(tokenizer, image_shards, tmp_path / "out") == 0
    frozen = FrozenTokenizer.from_pretrained(tokenizer)
    for split in ("train", "validate", "test"):
        images, tokens = ShardDataset(image_shards, split), ShardDataset(tmp_path / "out", split)
        assert len(images) == len(tokens)
        for number in range(len(images)):
            study, tokenized = images[number], tokens[number]
            assert (tokenized.key, tokenized.info) == (study.key, study.info)
            assert tokenized.codes.dtype == np.uint16
            assert np.array_equal(tokenized.codes, frozen.encode_images(study.images))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["tokenizer"] == {
        "fingerprint": frozen.fingerprint, "grid": [8, 8], "codes": 32, "image_size": 32,
        "precision": {"float32": "float32", "bf16": "bfloat16"}[resolve_precision("auto", "cpu")],
    }  # fmt: skip
    assert manifest["transform"] == {"size": 32} and manifest["source"] == "blobs"


def test_bytes_do_not_depend_on_the_batch_size(tokenizer, image_shards, tmp_path):
    for size in (1, 3, 64):
        assert run(tokenizer, image_shards, tmp_path / str(size), "--batch_size", str(size)) == 0
    assert contents(tmp_path / "1") == contents(tmp_path / "3") == contents(tmp_path / "64")


def test_resumed_run_keeps_finished_shards_and_equals_an_uninterrupted_one(
    tokenizer, image_shards, tmp_path, monkeypatch, capsys
):
    run(tokenizer, image_shards, tmp_path / "whole")
    out, written = tmp_path / "out", []
    original = tokenize.write_shard

    def write_two_then_die(path, samples):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        return original(path, samples)

    monkeypatch.setattr(tokenize, "write_shard", write_two_then_die)
    assert run(tokenizer, image_shards, out) == 130
    assert not (out / "manifest.json").exists()

    again = []
    monkeypatch.setattr(tokenize, "write_shard", lambda path, s: again.append(path.name) or original(path, s))
    assert run(tokenizer, image_shards, out) == 0
    assert len(written) == 2 and not set(written) & set(again) and len(again) == 3
    assert contents(out) == contents(tmp_path / "whole")
    capsys.readouterr()
    assert run(tokenizer, image_shards, out) == 0
    assert len(again) == 3 and "done already" in capsys.readouterr().out


def test_only_shards_whose_images_changed_are_written_again(tokenizer, tmp_path, monkeypatch):
    shards = write_image_shards(tmp_path / "images")
    run(tokenizer, shards, tmp_path / "out")
    before = contents(tmp_path / "out")
    write_image_shards(tmp_path / "images", studies=7)  # every shard changes
    written = []
    original = tokenize.write_shard
    monkeypatch.setattr(tokenize, "write_shard", lambda path, s: written.append(path.name) or original(path, s))
    assert run(tokenizer, shards, tmp_path / "out") == 0
    assert len(written) == 5 and contents(tmp_path / "out")["manifest.json"] != before["manifest.json"]
    written.clear()
    (tmp_path / "out" / "train-000001.tar").write_bytes(b"cut short")
    assert run(tokenizer, shards, tmp_path / "out") == 0
    assert written == ["train-000001.tar"]


def test_tokens_of_another_tokenizer_or_precision_are_refused(tokenizer, image_shards, tmp_path, capsys):
    run(tokenizer, image_shards, tmp_path / "out")
    before = contents(tmp_path / "out")
    assert run(make_tokenizer(tmp_path / "other", seed=1), image_shards, tmp_path / "out") == 1
    other = {"float32": "bf16", "bf16": "float32"}[resolve_precision("auto", "cpu")]
    assert run(tokenizer, image_shards, tmp_path / "out", "--precision", other) == 1
    errors = capsys.readouterr().err.splitlines()
    assert sum("another --out" in line for line in errors) == 2
    assert contents(tmp_path / "out") == before


def test_codes_of_a_large_codebook_are_uint32(tmp_path):
    image_shards = write_image_shards(tmp_path / "images", shards=1, studies=1)
    large = make_tokenizer(tmp_path / "large", n_embed=2**16 + 1)
    assert run(large, image_shards, tmp_path / "out") == 0
    assert ShardDataset(tmp_path / "out", "test")[0].codes.dtype == np.uint32


def test_invalid_options_and_inputs_are_refused_in_one_line(tokenizer, image_shards, tmp_path, capsys):
    assert run(tokenizer, tmp_path / "nowhere", tmp_path / "out") == 1
    assert run(tmp_path / "nothing", image_shards, tmp_path / "out") == 1
    small = make_tokenizer(tmp_path / "small", resolution=16)
    assert run(small, image_shards, tmp_path / "out") == 1
    assert run(tokenizer, image_shards, image_shards) == 1
    assert run(tokenizer, image_shards, tmp_path / "out", "--batch_size", "0") == 2
    assert run(tokenizer, image_shards, tmp_path / "out", "--precision", "float16") == 2
    assert run(tokenizer, image_shards, tmp_path / "out", "--colour", "red") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    expected = [
        "nowhere",
        "nothing",
        "32 x 32 pixels, the model reads 16 x 16",
        "holds image shards",
        "batch_size",
        "precision",
    ]
    assert len(lines) == 7
    for line, part in zip(lines, [*expected, "colour"], strict=True):
        assert part in line
    assert not list((tmp_path / "out").glob("*.tar"))


def test_compiled_encoder_sees_one_batch_size_and_the_codes_are_equal(tokenizer, image_shards, tmp_path, monkeypatch):
    torch._dynamo.reset()
    shapes, encode, compiler = [], FrozenTokenizer.encode_indices, torch.compile
    monkeypatch.setattr(
        FrozenTokenizer,
        "encode_indices",
        lambda self, images, precision: shapes.append(images.shape) or encode(self, images, precision),
    )
    monkeypatch.setattr(
        torch, "compile", lambda f, **settings: compiler(f, **settings | {"backend": "aot_eager", "options": None})
    )
    assert run(tokenizer, image_shards, tmp_path / "plain", "--batch_size", "5", "--compile", "false") == 0
    assert len(set(shapes)) > 1
    shapes.clear()
    assert run(tokenizer, image_shards, tmp_path / "compiled", "--batch_size", "5", "--compile", "true") == 0
    assert set(shapes) == {(5, 1, 32, 32)}
    assert contents(tmp_path / "compiled") == contents(tmp_path / "plain")


def test_batches_are_full_up_to_the_end_of_a_shard_and_mix_8_and_16_bits():
    eight = [torch.randint(256, (n, 1, 4, 4), dtype=torch.uint8) for n in (3, 1, 5, 2)]
    sixteen = torch.rand(4, 1, 4, 4)
    read = [(([], part), end) for part, end in zip([*eight, sixteen], (False, False, True, False, True), strict=True)]
    batches = list(tokenize._image_batches(read, deque(), 4))
    assert [len(batch) for batch in batches] == [4, 4, 1, 4, 2]
    expected = torch.cat([scale_pixels(part) for part in [*eight, sixteen]])
    assert torch.equal(torch.cat([scale_pixels(batch) for batch in batches]), expected)


def test_tasks_of_the_loader_fit_into_shared_memory(monkeypatch):
    monkeypatch.setattr(tokenize, "free_shared_memory", lambda: 2**40)
    assert tokenize._studies_read(16, 256) == tokenize._STUDIES_READ
    monkeypatch.setattr(tokenize, "free_shared_memory", lambda: 64 * 2**20)  # of a container
    assert 0 < tokenize._studies_read(16, 256) * (4 * 16 + 1) * 256**2 <= 64 * 2**20
    assert tokenize._studies_read(16, 4096) == 1


def test_pixels_are_scaled_on_the_device_as_on_the_host():
    pixels = np.arange(256, dtype=np.uint8)
    assert np.array_equal(scale_pixels(torch.from_numpy(pixels)).numpy(), to_model(pixels))
