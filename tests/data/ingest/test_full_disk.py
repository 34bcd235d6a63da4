"""Ingest on a full disk: one line of error, no partial file, and the same command resumes once there is space."""

import os
import subprocess
import sys

import pytest

from medunifier.data.ingest.command import IngestConfig, ingest
from medunifier.data.phantom.command import PhantomConfig, write_archive

# In a private mount namespace, so that the small disk is visible to this process only and disappears with it.
SCRIPT = """
set -e
mount -t tmpfs -o size=96k none "$DISK"
set +e
"$@" 2>"$LOG"
echo "first $?"
ls -a "$DISK"/out "$DISK"/out/.ingest | grep -c partial
mount -o remount,size=8m "$DISK"
"$@" 2>/dev/null
echo "second $?"
(cd "$DISK"/out && sha256sum * | sort)
"""


def test_ingest_on_a_full_disk(tmp_path):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not allow mounting a small disk (unshare -rm)")
    write_archive(PhantomConfig(out=tmp_path / "tree", studies=20, seed=0, size=64))
    options = {"source": "phantom", "root": tmp_path / "tree", "size": 64, "workers": 1, "shard_studies": 4}
    ingest(IngestConfig(**{**options, "root": str(options["root"]), "out": str(tmp_path / "reference")}))
    (tmp_path / "disk").mkdir()
    # As the `medunifier` command does, without the seconds for importing both stages.
    start = (
        "import sys; from medunifier.data.ingest.command import main; "
        "from medunifier.shared.command import run_command; "
        "sys.exit(run_command(main, sys.argv[1:]))"
    )
    command = [sys.executable, "-c", start]
    command += [f"--{name}={value}" for name, value in options.items()] + [f"--out={tmp_path / 'disk' / 'out'}"]
    result = subprocess.run(
        ["unshare", "-rm", "bash", "-c", SCRIPT, "bash", *command],
        env={**os.environ, "DISK": str(tmp_path / "disk"), "LOG": str(tmp_path / "log")},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = result.stdout.splitlines()
    assert "first 1" in lines and "0" in lines and "second 0" in lines, result.stdout + result.stderr
    error = (tmp_path / "log").read_text()
    assert "No space left on device; free some space" in error.strip().splitlines()[-1]
    assert "Traceback" not in error
    reference = subprocess.run(
        ["bash", "-c", "sha256sum * | sort"], cwd=tmp_path / "reference", capture_output=True, text=True, check=True
    )
    assert lines[-len(reference.stdout.splitlines()) :] == reference.stdout.splitlines()
