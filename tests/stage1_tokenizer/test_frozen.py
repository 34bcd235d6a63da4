"""The frozen tokenizer: export and load round trip; modified, incomplete and old folders are refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from medunifier.shared.errors import UserError
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer, export
from medunifier.stage1_tokenizer.model.vqgan import VQGAN
from tests.stage1_tokenizer.conftest import SIZE, TINY, blobs


@pytest.fixture(scope="module", params=["cosine_vq", "vq"])
def model(request):
    torch.manual_seed(0)
    model = VQGAN({**TINY, "quantizer": request.param}).eval()
    with torch.no_grad():
        model.quantize.embedding.weight.copy_(torch.randn(32, 4))
    return model


@pytest.fixture
def folder(model, tmp_path):
    export(model, tmp_path / "tokenizer", card="\n- psnr: 30\n")
    return tmp_path / "tokenizer"


def images(count=5):
    return torch.from_numpy(np.stack([blobs(n) for n in range(count)])[:, None]).float() / 127.5 - 1


def test_exported_tokenizer_has_the_codes_and_reconstructions_of_the_model(model, folder):
    frozen = FrozenTokenizer.from_pretrained(folder)
    with torch.no_grad():
        codes = model.encode_indices(images())
        assert torch.equal(frozen.encode_indices(images()), codes)
        torch.testing.assert_close(frozen.decode_indices(codes), model.decode_indices(codes), atol=1e-5, rtol=0)
    assert frozen.codebook.shape == (32, 4) and frozen.codebook.dtype == torch.float32
    assert (frozen.image_size, frozen.grid, frozen.codebook_size) == (SIZE, (8, 8), 32)
    assert torch.equal(load_file(folder / "codebook.safetensors")["codebook"], frozen.codebook)
    assert (
        frozen.fingerprint in (folder / "README.md").read_text() and "psnr: 30" in (folder / "README.md").read_text()
    )


def test_uint8_and_uint16_arrays_are_encoded_and_others_refused(folder):
    frozen = FrozenTokenizer.from_pretrained(folder)
    eight = [blobs(n) for n in range(5)]
    sixteen = [image.astype(np.uint16) * 257 for image in eight]
    expected = frozen.encode_indices(images()).numpy()
    assert np.array_equal(frozen.encode_images(eight, batch_size=2, precision="float32"), expected)
    assert np.array_equal(frozen.encode_images(sixteen, precision="float32"), expected)
    with pytest.raises(ValueError, match="uint8 or uint16"):
        frozen.encode_images([eight[0].astype(float)])
    with pytest.raises(ValueError, match="pixels"):
        frozen.encode_images([eight[0][:16]])


def test_auto_precision_encodes_in_bf16_if_the_device_supports_it(folder, monkeypatch):
    """Vectors are bfloat16, but the lookup is float32: the codes equal those of a float64 lookup."""
    frozen = FrozenTokenizer.from_pretrained(folder)
    monkeypatch.setattr("medunifier.shared.training.precision.has_bf16", lambda device: True)
    outputs = []
    frozen._model.quant_conv.register_forward_hook(lambda module, inputs, z: outputs.append(z))
    codes = frozen.encode_indices(images(), "auto")
    (z,) = outputs
    assert z.dtype == torch.bfloat16
    vectors = z.double().permute(0, 2, 3, 1).flatten(0, 2)
    assert torch.equal(torch.cdist(vectors, frozen.codebook.double()).argmin(1), codes.flatten())
    frozen.encode_indices(images())
    assert outputs[1].dtype == torch.float32


def test_fingerprint_depends_on_the_weights_and_not_on_the_export(model, folder, tmp_path):
    again = export(model, tmp_path / "again")
    first = json.loads((folder / "config.json").read_text())["fingerprint"]
    assert again.fingerprint == first == FrozenTokenizer.from_pretrained(tmp_path / "again").fingerprint


@pytest.mark.parametrize("change", ["weights", "codebook", "config"])
def test_a_modified_folder_is_refused(folder, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    if change == "config":
        values = json.loads((copy / "config.json").read_text())
        values["model"]["attn_resolutions"] = [1024]  # the weights still load, but the configuration differs
        (copy / "config.json").write_text(json.dumps(values))
    else:
        path = copy / ("model.safetensors" if change == "weights" else "codebook.safetensors")
        tensors = load_file(path)
        name = sorted(tensors)[0]
        tensors[name].view(-1)[0] += 1e-3
        save_file(tensors, path)
    with pytest.raises(UserError, match="changed"):
        FrozenTokenizer.from_pretrained(copy)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "codebook.safetensors"])
def test_an_incomplete_tokenizer_folder_is_refused_in_one_line(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(UserError, match=missing) as caught:
        FrozenTokenizer.from_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("old", ["classic", "unit_norm", "moving_average", "gumbel", "codes"])
def test_a_folder_of_an_older_version_is_refused_in_one_line(folder, old):
    values = json.loads((folder / "config.json").read_text())
    if old == "codes":  # the earlier name of `codebook_size`
        values["codes"] = values.pop("codebook_size")
    else:
        values["model"]["quantizer"]["kind"] = old
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"older version.*{old}.*export.*train") as caught:
        FrozenTokenizer.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_stays_in_evaluation_mode_without_gradients(folder):
    frozen = torch.nn.Sequential(FrozenTokenizer.from_pretrained(folder)).train()[0]
    assert not any(module.training for module in frozen.modules())
    assert not frozen.decode_indices(frozen.encode_indices(images().requires_grad_())).requires_grad


def test_settings_added_later_are_omitted_at_their_defaults_so_that_fingerprints_stay_valid(folder):
    saved = json.loads((folder / "config.json").read_text())
    assert saved["model"]["quantizer"].keys() == {
        "kind", "codebook_weight", "commitment_weight", "dead_code_interval", "dead_code_threshold",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["image_tokenizer", "tokenizer"])
def test_a_tokenizer_is_found_within_a_model_folder_and_a_run_folder(folder, tmp_path, name):
    outer = tmp_path / "outer"
    shutil.copytree(folder, outer / name)
    (outer / "config.json").write_text('{"model_type": "medunifier"}')
    assert FrozenTokenizer.from_pretrained(outer).fingerprint == FrozenTokenizer.from_pretrained(folder).fingerprint


def test_decoder_runs_in_bf16_on_request_and_returns_float32(folder):
    frozen = FrozenTokenizer.from_pretrained(folder)
    codes = frozen.encode_indices(images())
    dtypes = []
    frozen._model.decoder.conv_in.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    exact, coarse = frozen.decode_indices(codes), frozen.decode_indices(codes, "bf16")
    assert dtypes == [torch.float32, torch.bfloat16]
    assert exact.dtype == coarse.dtype == torch.float32 and not torch.equal(exact, coarse)
    assert (coarse - exact).norm() < 0.05 * exact.norm()


@pytest.mark.slow  # test_compile.py compiles the whole network, test_tokenize_shards.py the frozen encoder
@pytest.mark.parametrize("model", ["cosine_vq", "vq"], indirect=True)
def test_compiled_tokenizer_encodes_and_decodes_alike(folder, monkeypatch):
    torch._dynamo.reset()
    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **settings: compiler(f, **settings | {"backend": "aot_eager", "options": None})
    )
    frozen, compiled = (FrozenTokenizer.from_pretrained(folder) for _ in range(2))
    compiled.compile_graphs()
    codes = frozen.encode_indices(images())
    for precision in ("float32", "bf16"):
        assert torch.equal(compiled.encode_indices(images(), precision), frozen.encode_indices(images(), precision))
        torch.testing.assert_close(
            compiled.decode_indices(codes, precision), frozen.decode_indices(codes, precision), atol=1e-5, rtol=1e-5
        )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 4
