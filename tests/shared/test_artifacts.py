import errno
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from medunifier.shared.artifacts import (
    PARTIAL_PREFIX,
    atomic_file,
    atomic_folder,
    fingerprint,
    remove_partial,
    write_json,
)
from medunifier.shared.errors import UserError


def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("writer", [atomic_file, atomic_folder])
def test_a_full_disk_is_one_line_and_nothing_half_written(tmp_path, writer):
    with pytest.raises(UserError, match="free some space"), writer(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_takes_the_place_of_the_old_one_whole(tmp_path):
    target = tmp_path / "model"
    for name in ("first", "second"):
        with atomic_folder(target) as partial:
            (partial / name).write_text(name)
            assert not (target / name).exists()
    assert [entry.name for entry in target.iterdir()] == ["second"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / f"{PARTIAL_PREFIX}1-x").write_text("half")
    (tmp_path / f"{PARTIAL_PREFIX}2-y").mkdir()
    (tmp_path / "kept").write_text("whole")
    remove_partial(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept"]


def test_remnants_of_other_names_stay_when_names_are_given(tmp_path):
    for name in ("1-a.json", "x_2-a.json-old", "3-b-a.json", "4-other"):
        (tmp_path / f"{PARTIAL_PREFIX}{name}").mkdir()
    remove_partial(tmp_path, "a.json")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".partial-3-b-a.json", ".partial-4-other"]


_WRITER = """
import sys
from medunifier.shared.artifacts import atomic_file, atomic_folder
with atomic_file(sys.argv[1] + "/file") as file, atomic_folder(sys.argv[1] + "/folder") as folder:
    file.write_text("half")
    (folder / "image").write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_what_a_live_process_is_writing_stays_until_it_is_killed(tmp_path, root):
    command = [sys.executable, "-c", _WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root) as writer:
        assert writer.stdout.readline() == b"writing\n"
        remove_partial(tmp_path)
        names = sorted(entry.name.split("-")[-1] for entry in tmp_path.iterdir())
        assert names == ["file", "folder"] and len(list(tmp_path.rglob("image"))) == 1
        writer.kill()
    assert len(list(tmp_path.iterdir())) == 2
    with atomic_folder(tmp_path / "folder"):
        pass  # the next attempt at one of the names removes what was left of it
    assert sorted(entry.name.split("-")[-1] for entry in tmp_path.iterdir()) == ["file", "folder"]
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_dir()] == ["folder"]
    remove_partial(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_json_refuses_what_other_readers_refuse(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_fingerprint_sees_every_byte_shape_and_setting_but_not_the_order():
    a, b = torch.arange(4.0), torch.ones(2, 3, dtype=torch.bfloat16)
    known = fingerprint({"k": 1}, {"a": a, "b": b})
    assert fingerprint({"k": 1}, {"b": b, "a": a.clone()}) == known
    changed = a.clone()
    changed[3] = 3.0000002
    others = [
        fingerprint({"k": 2}, {"a": a, "b": b}),
        fingerprint({"k": 1}, {"a": changed, "b": b}),
        fingerprint({"k": 1}, {"a": a.view(2, 2), "b": b}),
        fingerprint({"k": 1}, {"a": a, "c": b}),
    ]
    assert len({known, *others}) == 5


def test_the_umask_decides_who_may_read_weights(tmp_path):
    for umask, of_folder, of_file in ((0o022, 0o755, 0o644), (0o077, 0o700, 0o600)):
        before = os.umask(umask)
        try:
            with atomic_folder(tmp_path / "model") as partial:
                save_file({"weight": torch.zeros(1)}, partial / "model.safetensors")
        finally:
            os.umask(before)
        modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("model", "model/model.safetensors")]
        assert modes == [of_folder, of_file]
