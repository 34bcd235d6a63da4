"""ONNX graphs of the tokenizer against PyTorch: equal codes and images for any batch size; deviations are refused."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime", reason="ONNX export needs its extra: pip install 'medunifier[onnx]'")
pytest.importorskip("onnxscript", reason="ONNX export needs its extra: pip install 'medunifier[onnx]'")

import onnx
from onnxruntime import InferenceSession

from medunifier.shared.command import run_command
from medunifier.shared.errors import UserError
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer, export
from medunifier.stage1_tokenizer.model.vqgan import VQGAN
from medunifier.stage2_unified.cli.export import main
from medunifier.stage2_unified.export import tokenizer_onnx as onnx_export
from medunifier.stage2_unified.export.tokenizer_onnx import (
    DECODER,
    ENCODER,
    PIXEL_TOLERANCE,
    SIDECAR,
    check_images,
    compare,
)
from tests.stage1_tokenizer.conftest import SIZE, TINY, blobs

# Front ends, attention and quantisers, covered by as few exports as possible.
KINDS = {
    "haar": {},
    "attention and a linear layer": {"front_end": "none", "front_end_levels": 0, "attn_resolutions": [16],
                                     "quantizer": "gumbel_vq"},
}  # fmt: skip


def images(count):
    grey = np.stack([blobs(100 + number) for number in range(count)])[:, None]
    return torch.from_numpy(grey).float() / 127.5 - 1


@pytest.fixture(
    scope="module", params=[kind if kind == "haar" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def exported(request, tmp_path_factory):
    """Return a tokenizer folder and its export."""
    root = tmp_path_factory.mktemp("onnx")
    torch.manual_seed(0)
    export(VQGAN({**TINY, **KINDS[request.param]}), root / "tokenizer")
    options = ["--tokenizer", str(root / "tokenizer"), "--format", "onnx", "--out", str(root / "graphs")]
    assert run_command(main, options) == 0
    return root / "tokenizer", root / "graphs"


def test_codes_are_equal_and_images_within_the_tolerance_for_any_batch(exported):
    frozen = FrozenTokenizer.from_pretrained(exported[0])
    encoder, decoder = (InferenceSession(str(exported[1] / name)) for name in (ENCODER, DECODER))
    for count in (1, 4, 7):
        codes = frozen.encode_indices(images(count))
        (theirs,) = encoder.run(None, {"images": images(count).numpy()})
        assert theirs.dtype == np.int64 and np.array_equal(theirs, codes.numpy()) and len(np.unique(theirs)) > 1
        (decoded,) = decoder.run(None, {"codes": theirs})
        assert np.abs(decoded - frozen.decode_indices(codes).numpy()).max() <= PIXEL_TOLERANCE


def test_the_sidecar_describes_inputs_and_outputs(exported):
    folder, out = exported
    sidecar, frozen = json.loads((out / SIDECAR).read_text()), FrozenTokenizer.from_pretrained(folder)
    assert sidecar["fingerprint"] == frozen.fingerprint and sidecar["grid"] == list(frozen.grid)
    assert sidecar["value_range"] == [-1, 1] and sidecar["checked"]["codes"] == 4 * frozen.grid[0] * frozen.grid[1]
    for name, key in ((ENCODER, "input"), (DECODER, "output")):
        graph = onnx.load(out / name)
        onnx.checker.check_model(graph)
        assert {entry.domain: entry.version for entry in graph.opset_import}[""] == sidecar["opset"]
        assert sidecar[name][key]["shape"] == ["batch", 1, SIZE, SIZE]
        (given,), (got,) = graph.graph.input, graph.graph.output
        for value, row in ((given, sidecar[name]["input"]), (got, sidecar[name]["output"])):
            shape = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            assert (value.name, shape) == (row["name"], row["shape"])


def test_a_repeated_export_is_a_no_op_and_other_folders_are_not_overwritten(exported, tmp_path, capsys):
    options = ["--tokenizer", str(exported[0]), "--format", "onnx", "--out"]
    assert run_command(main, [*options, str(exported[1])]) == 0
    assert "already complete" in capsys.readouterr().out
    (tmp_path / "mine").mkdir()
    assert run_command(main, [*options, str(tmp_path / "mine")]) == 1
    assert "another --out" in capsys.readouterr().err


def other_weights(folder, change):
    """Return the tokenizer with modified weights, which no longer match the graphs."""
    frozen = FrozenTokenizer.from_pretrained(folder)
    with torch.no_grad():
        change(frozen)
    return frozen


def test_different_codes_or_pixels_are_refused(exported):
    folder, out = exported
    given = check_images(FrozenTokenizer.from_pretrained(folder))
    moved = other_weights(folder, lambda frozen: frozen._model.quant_conv.bias.add_(1.0))
    with pytest.raises(UserError, match="different codes"):
        compare(moved, out, given)
    brighter = other_weights(folder, lambda frozen: frozen._model.decoder.conv_out.bias.add_(0.01))
    with pytest.raises(UserError, match="differ from PyTorch's"):
        compare(brighter, out, given)


def test_only_near_ties_may_differ(exported):
    frozen = FrozenTokenizer.from_pretrained(exported[0])
    given = images(1)
    codes = frozen.encode_indices(given)
    other = codes.clone()
    other[0, 0, 0] = (other[0, 0, 0] + 1) % frozen.codebook_size
    assert onnx_export._tied(frozen, given, codes, other).sum() == codes.numel() - 1
    table = frozen.lookup_tables()[0]
    table[other[0, 0, 0]] = table[codes[0, 0, 0]] * (1 + 1e-7)  # now the two entries are nearly equal
    if (bias := frozen.lookup_tables()[1]) is not None:
        bias[other[0, 0, 0]] = bias[codes[0, 0, 0]]
    assert onnx_export._tied(frozen, given, codes, other).all()


def test_a_missing_extra_is_named(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx_export, "_NEEDED", ("onnx", "not_installed_anywhere"))
    options = ["--tokenizer", str(exported[0]), "--format", "onnx", "--out", str(tmp_path / "out")]
    assert run_command(main, options) == 1
    error = capsys.readouterr().err
    assert "not_installed_anywhere" in error and "medunifier[onnx]" in error and not (tmp_path / "out").exists()
    assert run_command(main, ["--format", "onnx", "--out", str(tmp_path / "out")]) == 2
