"""`make try` opens the page with the model of this repository, and fails at once where that is absent."""

import os
import shutil
import subprocess

import pytest

if shutil.which("make") is None:
    pytest.skip("make is not on this machine", allow_module_level=True)


def make(root, *arguments):
    # Under `make test`, the variables that make passes to a sub-make would change its output.
    own = {name: value for name, value in os.environ.items() if name not in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS")}
    return subprocess.run(["make", *arguments], cwd=root, env=own, capture_output=True, text=True, timeout=60)


def test_it_serves_the_shipped_model_to_this_machine_alone(root, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    planned = make(root, "--dry-run", "try", f"MODEL={tmp_path}", f"VENV={tmp_path}/venv")
    assert planned.returncode == 0, planned.stderr
    steps = planned.stdout.splitlines()
    assert any("pip install" in step and "'.[app]'" in step for step in steps)
    assert f"serve --model {tmp_path} --phantoms" in steps[-1] and "--host" not in steps[-1]
    if (root / "models" / "phantom" / "model" / "config.json").is_file():
        default = make(root, "--dry-run", "try", f"VENV={tmp_path}/venv")
        assert "serve --model models/phantom/model " in default.stdout


def test_a_missing_model_is_an_error_before_anything_is_installed(root, tmp_path):
    said = make(root, "try", f"MODEL={tmp_path}/none", f"VENV={tmp_path}/venv")
    assert said.returncode == 2 and not (tmp_path / "venv").exists()
    assert f"{tmp_path}/none" in said.stderr and "make demo" in said.stderr
