"""Weight files that arrived incomplete: the error names the file and the remedy."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from medunifier.shared.errors import UserError
from medunifier.shared.files.weights import check_weight_file

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 6716948\n"


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": np.arange(100, dtype=np.float32), "b": np.zeros((3, 0), np.float32)}, path, {"note": "x"})
    return path


def test_complete_files_pass(weights, tmp_path):
    check_weight_file(weights)
    save_file({}, tmp_path / "empty.safetensors")
    check_weight_file(tmp_path / "empty.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"a": 1}))
    check_weight_file(tmp_path / "config.json")


def test_every_cut_is_found(weights):
    content = weights.read_bytes()
    for length in (0, 1, 7, 8, 9, 60, len(content) // 2, len(content) - 1):
        weights.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"model\.safetensors.*again"):
            check_weight_file(weights)


def test_a_pointer_is_named_in_any_file(tmp_path):
    for name in ("model.safetensors", "tokenizer.json", "vgg16.pth"):
        (tmp_path / name).write_bytes(POINTER)
        with pytest.raises(UserError, match=f"{name}.*git lfs pull"):
            check_weight_file(tmp_path / name)


def test_an_absent_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="absent"):
        check_weight_file(tmp_path / "absent.safetensors")


def test_a_header_that_is_none_is_left_to_the_loader(tmp_path):
    for content in (b"\x08" + bytes(7) + b"[1, 2, 3", b"\xff" * 100, b"\x02" + bytes(7) + b"{}xx"):
        (tmp_path / "x.safetensors").write_bytes(content)
        check_weight_file(tmp_path / "x.safetensors")
