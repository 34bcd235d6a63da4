"""Stage-2 training from the command line: exact resumption, export, FSDP2, and errors in one line."""

import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from medunifier.data.ingest.command import IngestConfig, ingest
from medunifier.data.phantom.command import PhantomConfig, write_archive
from medunifier.data.shards.dataset import MANIFEST, ShardDataset, encode_info, encode_npy, write_shard
from medunifier.shared.command import run_command
from medunifier.stage1_tokenizer.cli.tokenize_shards import main as tokenize
from medunifier.stage1_tokenizer.config import model_config
from medunifier.stage1_tokenizer.frozen import export
from medunifier.stage1_tokenizer.model.vqgan import VQGAN
from medunifier.stage2_unified.generation import likelihood
from medunifier.stage2_unified.generation.likelihood import REFERENCE
from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline
from medunifier.stage2_unified.inference.prompts import trained_findings
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration
from medunifier.stage2_unified.train import main as train
from medunifier.stage2_unified.training.task import UnifiedTask
from tests.stage1_tokenizer.conftest import SIZE, TINY_TOKENIZER
from tests.two_processes import free_port, parted, two_processes

WEIGHTS = "model.safetensors"
OPTIONS = {
    "model.hidden_dim": 32,
    "model.num_layers": 2,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.head_dim": 16,
    "model.mlp_dim": 48,
    "model.embedding_dim": 16,
    "text.vocabulary_size": 300,
    "data.max_report_tokens": 48,
    "optim.lr": 1e-3,
    "optim.warmup_steps": 2,
    "loop.batch_size": 4,
    "loop.accumulation": 2,
    "loop.steps": 12,
    "loop.log_every": 2,
    "loop.checkpoint_every": 4,
    "loop.validate_every": 6,
    "loop.workers": 0,
    "loop.threads": 1,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Token shards of a few phantoms, made by the commands with an untrained tokenizer."""
    root = tmp_path_factory.mktemp("made")
    write_archive(PhantomConfig(out=root / "tree", studies=40, seed=0, size=SIZE, lateral_fraction=0.6, history=True))
    ingest(IngestConfig("phantom", str(root / "tree"), str(root / "images"), size=SIZE, workers=1))
    for name, seed in (("tokenizer", 0), ("other", 1)):
        torch.manual_seed(seed)
        export(VQGAN(model_config(TINY_TOKENIZER)), root / name)
    arguments = ["--tokenizer", root / "tokenizer", "--shards", root / "images", "--out", root / "codes"]
    tokenize([str(argument) for argument in arguments])
    return SimpleNamespace(root=root, codes=root / "codes", tokenizer=root / "tokenizer")


def arguments(made, run, **changes):
    options = {"data.shards": made.codes, "tokenizer": made.tokenizer, "run_dir": run} | OPTIONS
    options |= {name.replace("__", "."): value for name, value in changes.items()}
    return [f"--{name}={value}" for name, value in options.items()]


def lines(run):
    """Return the logged figures that do not depend on time."""
    timed = {"samples_per_s", "tokens_per_s", "mfu", "data_wait_fraction", "memory_gib"}
    content = (run / "metrics.jsonl").read_text().splitlines()
    return [{name: v for name, v in json.loads(line).items() if name not in timed} for line in content]


def test_a_killed_and_restarted_training_equals_the_uninterrupted_one_bit_for_bit(made, tmp_path, no_curves, capsys):
    short = {"loop__steps": 6, "loop__checkpoint_every": 2, "loop__validate_every": 3, "ema_decay": 0.5}
    train(arguments(made, tmp_path / "whole", **short))
    killed = arguments(made, tmp_path / "killed", **short)
    process = parted(train, killed)
    process.start()
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "checkpoints" / "step-2").is_dir() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert not (tmp_path / "killed" / "model").exists(), "the training finished before it was killed"
    train(killed)
    assert "continuing" in capsys.readouterr().out
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    weights = [(tmp_path / name / "model" / WEIGHTS).read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]

    # A third start finds the run finished; the exported model works.
    train(killed)
    assert "done already" in capsys.readouterr().out
    for name in ("config.yaml", "pictures/generated-0000006.png", "pictures/reports-0000006.txt"):
        assert (tmp_path / "killed" / name).is_file()
    check_pipeline(MedUnifierPipeline.from_pretrained(tmp_path / "killed" / "model"))
    assert "Pleural Effusion" in trained_findings(tmp_path / "killed" / "model")


def test_the_average_is_validated_and_exported_and_the_weights_in_training_are_saved(
    made, tmp_path, no_curves, fails, capsys, monkeypatch
):
    short = {"optim__schedule": "constant", "loop__accumulation": 1, "loop__checkpoint_every": 2, "loop__steps": 2}
    raw, averaged = tmp_path / "raw", tmp_path / "averaged"
    train(arguments(made, raw, **short))
    assert "will not be recognized" in capsys.readouterr().out and not (raw / "model" / REFERENCE).exists()
    monkeypatch.setattr(likelihood, "LEAST_IMAGES", 2)
    train(arguments(made, averaged, **short, ema_decay=0.5))
    assert MedUnifierPipeline.from_pretrained(averaged / "model").reference.source == "phantom"
    state = torch.load(averaged / "checkpoints" / "step-2" / "custom_checkpoint_0.pkl")
    trained, exported = (load_file(averaged / p) for p in (f"checkpoints/step-2/{WEIGHTS}", f"model/{WEIGHTS}"))
    unaveraged = load_file(raw / "model" / WEIGHTS)
    for name, weight in state["averages"].items():
        assert torch.equal(trained[name], unaveraged[name])  # the training is the same
        assert torch.equal(exported[name], weight)
    assert not torch.equal(exported["lm_head.weight"], trained["lm_head.weight"])
    losses = [lines(run)[-1]["validation/report"] for run in (raw, averaged)]
    assert losses[0] != losses[1]
    capsys.readouterr()
    fails(arguments(made, raw, **short, ema_decay=0.5), 1, "ema_decay")  # its checkpoint has no average


@pytest.mark.slow  # compiled steps equal eager ones in test_static_step.py; a training continues in the test above
def test_a_compiled_training_continues_and_equals_the_eager_one(made, tmp_path, no_curves, monkeypatch):
    # The whole compiler without its code generation, which needs a C++ compiler and minutes.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    common = {"optim__schedule": "constant", "loop__accumulation": 1, "loop__checkpoint_every": 2, "ema_decay": 0.5}
    train(arguments(made, tmp_path / "eager", **common, loop__steps=4, compile="false"))
    compiled = tmp_path / "compiled"
    train(arguments(made, compiled, **common, loop__steps=2, compile="true"))
    shutil.rmtree(compiled / "model")
    train(arguments(made, compiled, **common, loop__steps=4, compile="true"))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    eager, resumed = ([line for line in lines(tmp_path / run) if "loss" in line] for run in ("eager", "compiled"))
    assert [line["step"] for line in resumed] == [line["step"] for line in eager] == [2, 4]
    for line, expected in zip(resumed, eager, strict=True):
        for name, value in expected.items():
            assert line[name] == pytest.approx(value, rel=1e-5), name


def check_pipeline(pipeline):
    images = np.random.default_rng(0).random((3, SIZE, SIZE), dtype=np.float32)
    codes = pipeline.encode(images)
    assert codes.shape == (3, *pipeline.tokenizer.grid)
    views, reports = ["PA", "AP", ""], [{"findings": "No effusion."}, {"impression": "Normal."}, {}]
    assert np.allclose(np.linalg.norm(pipeline.embed_images(codes, views), axis=1), 1, atol=1e-5)
    assert pipeline.embed_texts(reports).shape == pipeline.embed_images(codes, views).shape
    probability = pipeline.match(codes, views, reports)
    assert probability.min() > 0 and probability.max() < 1
    generated = pipeline.draw(reports, views, seed=5)
    pipeline.batch_size = 2
    assert (pipeline.draw(reports, views, seed=5) == generated).all()
    assert pipeline.decode(generated).shape == (3, SIZE, SIZE)
    written = pipeline.write_reports(codes, views, max_new_tokens=5)
    assert len(written) == 3 and set(written[0]) == {"findings", "impression"}


@pytest.fixture
def fails(capsys):
    """Return ``fails(arguments, code, *words)``: check the exit code and for one line of error with these words."""

    def check(arguments, code, *words):
        assert run_command(train, arguments) == code
        error = capsys.readouterr().err.removeprefix("loading …\n")
        assert error.startswith("error: ") and error.count("\n") == 1
        assert not [word for word in words if word not in error]

    return check


def test_wrong_options_give_one_line_of_error(fails, made, tmp_path):
    run = tmp_path / "run"
    fails(arguments(made, run, loop__stepz=1), 2, "loop.stepz")
    fails(arguments(made, run, model__num_heads=3, model__num_kv_heads=2), 2, "model.num_heads")
    fails(arguments(made, run, tokenizer=made.root / "other"), 1, "another tokenizer", "tokenize the data again")
    fails(arguments(made, run, tokenizer=made.root / "absent"), 1, "absent", "tokenizer folder")
    fails(arguments(made, run, data__shards=made.root / "absent"), 1, "absent", "shard folder")
    fails(arguments(made, run, data__shards=made.root / "images"), 1, "medunifier tokenize")
    assert not run.exists()


def test_data_without_text_are_refused_and_with_statements_trained_by_their_labels(fails, made, tmp_path, no_curves):
    without_text = tmp_path / "without_text"
    shutil.copytree(made.codes, without_text)
    manifest = json.loads((without_text / MANIFEST).read_text())
    for split, shards in manifest["splits"].items():
        dataset = ShardDataset(made.codes, split)
        samples = []
        for sample in (dataset[number] for number in range(len(dataset))):
            info = sample.info | {"report": {"findings": "", "impression": " ", "text": ""}}
            samples.append((sample.key, {"codes.npy": encode_npy(sample.codes), "json": encode_info(info)}))
        name = next(iter(shards))
        manifest["splits"][split] = {name: write_shard(without_text / name, samples)}
    (without_text / MANIFEST).write_text(json.dumps(manifest))
    fails(arguments(made, tmp_path / "run", data__shards=without_text), 1, "no text in the data", "data.statements")
    short = {"loop__steps": 4, "loop__validate_every": 4, "data__statements": 2, "data__statement_tokens": 40}
    train(arguments(made, tmp_path / "labels", data__shards=without_text, **short))
    last = {name: value for line in lines(tmp_path / "labels") for name, value in line.items()}
    assert last["report"] == last["matching"] == last["contrast"] == 0  # there is no report
    assert min(last["image"], last["statement_contrast"], last["statement_matching"]) > 0
    assert last["validation/statement_matching"] > 0
    assert MedUnifierPipeline.from_pretrained(tmp_path / "labels" / "model").statements


def test_two_views_and_a_prior_are_trained_and_saved_in_the_configuration(made, tmp_path, no_curves, capsys, fails):
    views = {"data__max_views": 2, "data__view_dropout": 0.3, "data__prior": "true", "loop__checkpoint_every": 2}
    train(arguments(made, tmp_path / "run", **views, loop__steps=4, loop__validate_every=4))
    assert "have a prior study" in capsys.readouterr().out
    figures = [line for line in lines(tmp_path / "run") if "validation/loss" in line]
    assert figures and all(np.isfinite(figures[-1][f"validation/{name}"]) for name in ("report", "image"))
    pipeline = MedUnifierPipeline.from_pretrained(tmp_path / "run" / "model")
    config = pipeline.model.config
    assert (config.max_views, config.prior) == (2, True)
    codes = config.image_tokens
    assert config.text_config.max_position_embeddings == 2 * (codes + 3) + (codes + 4) + 48 + 5
    grid = np.zeros((2, *pipeline.tokenizer.grid), np.int64)
    written = pipeline.write_reports([grid, grid[:1]], [["PA", "LATERAL"], ["AP"]], [None, (grid[0], "PA")])
    assert len(written) == 2
    check_pipeline(pipeline)
    unordered = made.root / "unordered"  # the same shards, without the order of the studies
    shutil.copytree(made.codes, unordered)
    manifest = json.loads((unordered / MANIFEST).read_text())
    dataset, name = ShardDataset(made.codes, "train"), next(iter(manifest["splits"]["train"]))
    samples = [
        (
            sample.key,
            {
                "codes.npy": encode_npy(sample.codes),
                "json": encode_info({k: v for k, v in sample.info.items() if k != "visit"}),
            },
        )
        for sample in (dataset[number] for number in range(len(dataset)))
    ]
    manifest["splits"]["train"] = {name: write_shard(unordered / name, samples)}
    (unordered / MANIFEST).write_text(json.dumps(manifest))
    fails(arguments(made, tmp_path / "none", **views, data__shards=unordered), 1, "data.prior", "ingest again")
    fails(arguments(made, tmp_path / "none", data__view_dropout=0.3), 2, "data.max_views")
    fails(arguments(made, tmp_path / "none", data__max_views=0), 2, "data.max_views")


def record(patch, arguments):
    """Train and return what each step of this process was given: a list of micro-batches a step."""
    seen = []
    honest = UnifiedTask.step
    patch.setattr(UnifiedTask, "step", lambda self, parts, step: seen.append(parts) or honest(self, parts, step))
    assert run_command(train, arguments) == 0
    patch.undo()
    return seen


def studies(parts):
    """Return the studies of a step in stream order: codes, view, report as shown, whether the text is dropped."""
    return [
        (part.images.codes[row].tolist(), int(part.images.view[row]),
         part.report[row, : part.report_length[row]].tolist(), bool(part.drop_text[row]))
        for part in parts for row in range(len(part))
    ]  # fmt: skip


def _worker(rank, port, folder, arguments):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    steps = [[studies([part]) for part in step] for step in record(pytest.MonkeyPatch(), arguments)]
    (folder / f"{rank}.json").write_text(json.dumps(steps))


def test_another_number_of_processes_continues_over_the_same_studies(
    made, tmp_path, no_curves, monkeypatch, capsys, fails
):
    random = {"data__text_dropout": 0.3, "data__section_dropout": 0.3}
    usual = random | {
        "optim__schedule": "constant",
        "loop__log_every": 1,
        "loop__checkpoint_every": 3,
        "ema_decay": 0.5,
    }
    moved = {"loop__batch_size": 2, "loop__accumulation": 3, "loop__steps": 3}
    with two_processes(_worker, tmp_path, arguments(made, tmp_path / "moved", **usual | moved)):
        whole = usual | {"loop__batch_size": 12, "loop__accumulation": 1, "loop__steps": 6}
        expected = record(monkeypatch, arguments(made, tmp_path / "whole", **whole))
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    steps = zip(*ranks, strict=True)  # the stream gives a micro-batch to each process, then the next
    before = [[row for pair in zip(*step, strict=True) for part in pair for row in part] for step in steps]

    capsys.readouterr()  # half the global batch, on one process
    fails(arguments(made, tmp_path / "moved", **usual | moved), 1, "--loop.batch_size 2 --loop.accumulation 6")
    moved = {"loop__batch_size": 3, "loop__accumulation": 4, "loop__steps": 6}
    after = record(monkeypatch, arguments(made, tmp_path / "moved", **usual | moved))
    found = [[tuple(row) for row in step] for step in before] + [studies(step) for step in after]
    assert len(found) == 6 and found == [studies(step) for step in expected]
    assert any(row[3] for step in found for row in step)
    mine, theirs = ([line for line in lines(tmp_path / name) if "loss" in line] for name in ("moved", "whole"))
    assert [line["step"] for line in mine] == [line["step"] for line in theirs] == [1, 2, 3, 4, 5, 6]
    for line, other in zip(mine, theirs, strict=True):
        for name in ("contrast", "matching", "report", "image"):
            assert line[name] == pytest.approx(other[name], rel=1e-4), (line["step"], name)
    last = "checkpoints/step-6/custom_checkpoint_0.pkl"
    averages, alone = (torch.load(tmp_path / name / last)["averages"] for name in ("moved", "whole"))
    for name, weight in alone.items():
        assert torch.allclose(averages[name], weight, atol=1e-4), name


def _compiled_fsdp(rank, port, arguments):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_FSDP": "true"}
    torch.compile = partial(torch.compile, backend="aot_eager")
    train([*arguments, "--compile=true"])


EXPERTS_IN_ORDER = {
    "model__experts": "all", "optim__balance": "gradient_norm", "optim__balance_every": 3,
    "schedule__generate_from": 3, "schedule__reader_rate": 0.5,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [{}, EXPERTS_IN_ORDER])
def test_two_fsdp_processes_equal_one_and_write_unsharded_checkpoints(tasks, root, made, tmp_path):
    common = {
        "optim__kind": "adamw",
        "optim__schedule": "constant",
        "loop__accumulation": 1,
        "ema_decay": 0.5,
    } | tasks
    train(arguments(made, tmp_path / "one", **common, loop__batch_size=8, loop__steps=8))
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--num_processes=2",
        f"--main_process_port={free_port()}",
    ]
    launch += [
        f"--config_file={root / 'configs' / 'accelerate' / 'fsdp2.yaml'}",
        root / "stage2_unified" / "train.py",
    ]
    for steps in (4, 8):  # the second continues from the first one's checkpoint
        options = arguments(made, tmp_path / "two", **common, loop__batch_size=4, loop__steps=steps)
        subprocess.run([*map(str, launch), *options], check=True, capture_output=True, timeout=300)
    one, two = ({line["step"]: line for line in lines(tmp_path / run) if "loss" in line} for run in ("one", "two"))
    assert one.keys() == two.keys() == {2, 4, 6, 8}
    for step, figures in one.items():
        for name in ("contrast", "matching", "report", "image", "gradient_norm"):
            assert two[step][name] == pytest.approx(figures[name], rel=1e-3), (step, name)
    exported = MedUnifierForConditionalGeneration.from_pretrained(tmp_path / "two" / "model").state_dict()
    plain = MedUnifierForConditionalGeneration.from_pretrained(tmp_path / "one" / "model").state_dict()
    saved = load_file(tmp_path / "two" / "checkpoints" / "step-8" / WEIGHTS)
    averages = torch.load(tmp_path / "two" / "checkpoints" / "step-8" / "custom_checkpoint_0.pkl")["averages"]
    assert saved.keys() == exported.keys()
    for name, weight in plain.items():
        assert torch.equal(averages.get(name, saved[name]), exported[name]), name
        assert torch.allclose(exported[name], weight, atol=1e-4), name
    for name in ("generated-0000008.png", "reports-0000008.txt"):
        assert (tmp_path / "two" / "pictures" / name).is_file()
    with two_processes(
        _compiled_fsdp, arguments(made, tmp_path / "compiled", **common, loop__batch_size=4, loop__steps=4)
    ):
        pass
    compiled = {line["step"]: line for line in lines(tmp_path / "compiled") if "loss" in line}
    for step, figures in compiled.items():
        for name in ("contrast", "matching", "report", "image", "gradient_norm"):
            assert figures[name] == pytest.approx(two[step][name], rel=1e-4), (step, name)
    short = arguments(made, tmp_path / "bf16", **common, loop__steps=2, loop__mixed_precision="bf16")
    subprocess.run([*map(str, launch), *short], check=True, capture_output=True, timeout=300)
    assert MedUnifierForConditionalGeneration.from_pretrained(tmp_path / "bf16" / "model").dtype == torch.float32
