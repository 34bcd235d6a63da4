"""Every command of README and docs: understood by the very parser that reads it, and run, or a reason why not."""

import json
import os
import re
import shutil
import tomllib
from importlib import import_module

import numpy as np
import pytest
from accelerate.state import AcceleratorState

from medunifier.__main__ import COMMANDS as COMMANDS_TABLE
from medunifier.__main__ import main
from medunifier.data.images.synthetic import save_synthetic_dicom
from medunifier.data.phantom import Phantom
from medunifier.data.phantom.command import main as phantom
from medunifier.shared.command import run_command
from medunifier.shared.errors import UsageError
from medunifier.train import STAGES
from tests.conftest import ROOT
from tests.docs.pages import commands, module_and_arguments, pages, strays, understand
from tests.stage1_tokenizer.conftest import TINY_TOKENIZER
from tests.stage2_unified.training.test_train import OPTIONS

# What no test can have, by what stands in the line: looked at in this order, the first that fits is the reason.
NOT_RUN = {
    r"^git clone": "the repository's address is the reader's",
    r"^make": "tests/scripts/test_demo.py runs the demo's steps; its target is looked up",
    r"^pip install": "nothing is installed by a test; the extra that it names is looked up",
    r"^dask ": "machines of a cluster; tests/data/ingest/test_executors.py ingests on one",
    r"^(aws|hf) |s3://": "a bucket or the hub; test_remote_ingest.py and test_hub_export.py have their like",
    r"^vllm": "vLLM and a GPU; tests/stage2_unified/export/test_vllm_recipe.py sends its requests to transformers",
    r"^sbatch": "a Slurm cluster",
    r"serve": "it serves until it is stopped; tests/stage2_unified/app starts it",
    r"medunifier bench": "minutes beside a peer; tests/scripts/test_benchmarks.py runs them small",
    r"--cluster": "machines of a cluster; tests/data/ingest/test_executors.py ingests on one",
    r"--num_processes|model\.pretrained": "GPUs, or a large checkpoint; test_two_processes.py, test_backbone.py",
    r"calibrate": "a hundred validation images; tests/stage2_unified/generation/test_likelihood.py runs it",
    r"convert": "a taming checkpoint; tests/stage1_tokenizer/cli/test_convert.py makes one",
    r"--feature_net inception": "files of weights; tests/stage1_tokenizer/test_evaluate.py has their like",
    r"--format onnx": "half a minute; tests/stage2_unified/export/test_tokenizer_onnx.py runs the command",
    r"--generated": "sets of images of another system; tests/stage2_unified/evaluate/external/test_external.py",
    r"subset (5|8)x200|CheXpert": "CheXpert's table; tests/stage2_unified/evaluate/subsets/test_subset.py writes one",
    r"--source (?!phantom|dicom-folder --root /data)": "an archive of patients; tests/data/sources builds its layout",
    r"evaluate (all|TASK|tokenizer|synthesis|finetune)": "minutes; tests/stage2_unified/evaluate runs every task",
    r"^(accelerate|medunifier train)": "minutes; run by the slow test below",
}
# What makes a command small; the last of two values of an option counts.
SMALL = {
    r"medunifier phantom": ["--studies=40", "--size=48"],
    r"medunifier ingest": ["--size=32", "--workers=1"],
    r"--beams": ["--beams=1"],
    r"subset pool": ["--size=3"],
    r"medunifier evaluate [a-z-]+ --": ["--bootstrap=5"],
}
TRAINING = {
    "medunifier.stage1_tokenizer.train": {
        **{f"model.{name}": value for name, value in TINY_TOKENIZER.items()},
        "loss.perceptual.net": "none", "loss.perceptual_weight": 0, "loss.gan_weight": 0, "loop.steps": 4,
        "loop.batch_size": 4, "loop.log_every": 2, "loop.validate_every": 4, "loop.checkpoint_every": 4,
        "loop.workers": 0, "loop.threads": 1, "data.pictures": 2,
    },
    "medunifier.stage2_unified.train": OPTIONS | {"loop.steps": 4},
}  # fmt: skip
WITH_COMMANDS = [page for page in pages(ROOT) if commands(ROOT, page)]
LONG = "run by the slow test below"


def reason_of(text):
    return next((reason for pattern, reason in NOT_RUN.items() if re.search(pattern, text)), None)


def quick(page):
    """The page's commands that are run in every test run."""
    return [line for line in commands(ROOT, page) if reason_of(line.text) is None]


def long(page):
    """Those that take minutes."""
    return [line for line in commands(ROOT, page) if LONG in (reason_of(line.text) or "")]


def test_no_command_stands_outside_a_block_that_is_read(root):
    assert not {page: lines for page in pages(root) if (lines := strays(root, page))}


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_its_commands_are_understood(root, page, monkeypatch):
    lines = commands(root, page)
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert lines
    for line in lines:
        monkeypatch.chdir(root)
        words = [word.replace("TASK", "all") for word in line.words]
        if words[0] in ("medunifier", "accelerate"):
            if words[1:] != ["--help"]:
                understand(words, monkeypatch)
        elif words[0] == "make":
            assert set(words[1:]) <= targets, line.text
        elif words[0] == "pip":
            assert words[1] == "install"
            assert set(re.findall(r"\[(\w+)\]", line.text)) <= extras.keys(), line.text
        else:
            assert reason_of(line.text), f"{line.text}: neither ours nor one that no test can run"


def test_a_wrong_option_would_be_found(root, monkeypatch):
    monkeypatch.chdir(root)
    for words in (
        ["medunifier", "report", "--model", "M", "--input", "x", "--nope"],
        ["medunifier", "evaluate", "external-reports", "--predictions", "a.csv", "--nope", "1", "--out", "a.json"],
        ["accelerate", "launch", "stage2_unified/train.py", "--config", "configs/stage2/demo.yaml", "--nope", "1"],
    ):
        with pytest.raises(UsageError):
            understand(words, monkeypatch)


def test_every_command_is_shown_somewhere_and_no_reason_is_left_over(root):
    lines = [line for page in pages(root) for line in commands(root, page)]
    verbs = {line.words[1] for line in lines if line.words[0] == "medunifier"}
    assert verbs >= COMMANDS_TABLE.keys(), "every command is shown somewhere"
    unused = [pattern for pattern in NOT_RUN if not any(re.search(pattern, line.text) for line in lines)]
    assert not unused, unused


@pytest.fixture
def workplace(root, tmp_path, monkeypatch, model_folder, phantom_shards, image_folder):
    """A folder with what the pages' commands find: a model, a tokenizer, images, an archive, tables."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(root / "configs")
    (tmp_path / "MODEL").symlink_to(model_folder)
    for run in ("runs", "runs/try"):
        for name, target in ((f"{run}/stage1/tokenizer", model_folder / "image_tokenizer"),
                             (f"{run}/stage2/model", model_folder)):  # fmt: skip
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).symlink_to(target)
    shutil.copytree(image_folder, "radiographs")
    (tmp_path / "radiographs" / "broken.png").unlink()
    save_synthetic_dicom(tmp_path / "radiograph.dcm", Phantom(48, 3).study(4).images[0], "a phantom", "PA")
    phantom(["--out=tree", "--studies=40", "--size=48", "--seed=3"])
    (tmp_path / "data").mkdir()
    shutil.copytree("tree/files", "data/archive")  # reports lie beside the studies' folders, as MIMIC-CXR has them
    (tmp_path / "prompts.csv").write_text("labels,count,view\nEdema|no Fracture,2,PA\n")
    said = ["The lungs are clear.", "There is edema.", "No effusion.", "Large heart."]
    for name in ("theirs.csv", "test.csv"):
        (tmp_path / name).write_text("study_id,report\n" + "".join(f"s{n},{text}\n" for n, text in enumerate(said)))
    vectors = np.random.default_rng(0).normal(size=(12, 8))
    np.savez("theirs.npz", image=vectors, text=vectors)
    return phantom_shards


def small(line):
    return [option for pattern, options in SMALL.items() if re.search(pattern, line.text) for option in options]


def run(line, capsys):
    """One command, in this process: no interpreter is started, and what it prints is looked at."""
    text = (
        line.text.replace("/data/archive", "data/archive").replace("/data/new", "radiographs").replace("TASK", "all")
    )
    words = type(line)(line.page, text).words
    if words[1] in ("--help", "doctor"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", words)
            code = main()
    else:
        name, arguments = module_and_arguments(words)
        if name == "medunifier.train":
            name = STAGES[arguments.pop(0)].module
        options = [f"--{key}={json.dumps(value)}" if isinstance(value, list) else f"--{key}={value}"
                   for key, value in TRAINING.get(name, {}).items()]  # fmt: skip
        code = run_command(import_module(name).main, [*arguments, *small(line), *options])
    said = capsys.readouterr()
    assert code == 0, f"{line.text}\n{said.err}"
    return said.out


@pytest.mark.parametrize("page", [page for page in WITH_COMMANDS if quick(page)])
def test_its_commands_run_in_order_on_phantoms(page, workplace, capsys):
    lines = quick(page)
    bring_shards(lines, workplace)
    for line in lines:
        if "evaluate compare" in line.text:
            shutil.copy("theirs.json", "ours.json")
        said = run(line, capsys)
        out = re.search(r"--out (\S+)", line.text)
        assert os.path.exists(out[1]) if out else said, f"{line.text}: it left nothing"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in WITH_COMMANDS if long(page)])
def test_trainings_run_too(page, workplace, capsys):
    """The pages' trainings, small, with what comes before them: from an archive to a model."""
    before = re.compile("medunifier (phantom|ingest|tokenize)")
    lines = [
        line
        for line in commands(ROOT, page)
        if line in long(page) or (line in quick(page) and before.match(line.text))
    ]
    bring_shards(lines, workplace)
    if any(re.match("accelerate|medunifier train", line.text) for line in lines):
        shutil.rmtree("runs")
    for line in lines:
        AcceleratorState._reset_state(reset_partial_state=True)  # one process, several trainings, each its precision
        run(line, capsys)
        out = re.search(r"--(?:out|run_dir) (\S+)", line.text)
        assert os.path.exists(out[1]), f"{line.text}: it left nothing"


def bring_shards(lines, shards):
    """Put shards/images where no command of the page makes them."""
    if not any("ingest" in line.text and "shards/images" in line.text for line in lines):
        shutil.copytree(shards, "shards/images")


def test_the_archive_path_of_the_readme_needs_no_file_of_weights(root):
    lines = [
        line for line in (root / "README.md").read_text().splitlines() if "medunifier train stage1 --config" in line
    ]
    assert lines and all("--loss.perceptual.weights random" in line for line in lines)
