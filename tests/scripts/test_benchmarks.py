"""Benchmarks compare like with like, and run."""

import numpy as np
import pytest
import torch

from medunifier.bench import BENCHMARKS, BenchConfig, load_benchmark, main
from medunifier.data.images.radiograph import read_radiograph
from medunifier.data.shards.dataset import ShardDataset
from medunifier.data.shards.loader import sample_stream
from medunifier.shared.errors import UserError
from medunifier.stage2_unified.training.config import LossWeights
from medunifier.stage2_unified.training.four_objectives import FourObjectives


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_each_benchmark_shows_its_options(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"medunifier bench {name}" in shown and "--threads" in shown and "--out" in shown


def test_both_loaders_give_every_sample_of_an_epoch(tmp_path, monkeypatch):
    bench = load_benchmark("loader")
    monkeypatch.setattr(bench, "SHARDS", 2)
    monkeypatch.setattr(bench, "STUDIES", 64)
    bench._write(tmp_path)
    stock = torch.cat(list(bench._stock(sorted(map(str, tmp_path.glob("*.tar"))), workers=0)))
    stream = sample_stream(ShardDataset(tmp_path, "train"), bench._ours, batch_size=bench.BATCH, seed=0)
    ours = torch.cat([next(stream) for _ in range(4)])
    assert ours.shape == stock.shape == (128, 16, 16) and ours.dtype == stock.dtype == torch.int64
    assert sorted(map(tuple, ours.flatten(1).tolist())) == sorted(map(tuple, stock.flatten(1).tolist()))
    assert not torch.equal(ours, stock)


def test_the_ingest_benchmark_runs(tmp_path, monkeypatch, capsys):
    bench = load_benchmark("ingest")
    for name, value in (
        ("STUDIES", 3),
        ("PHANTOM_SIZE", 64),
        ("COPIES", 1),
        ("SIZE", 48),
        ("REAL_IMAGES", tmp_path / "none"),
    ):
        monkeypatch.setattr(bench, name, value)
    (row,) = bench.rows(BenchConfig(rounds=1))
    assert row.ratio > 0
    shares = [float(word[:-1]) for word in capsys.readouterr().out.splitlines()[-1].split() if word.endswith("%")]
    assert len(shares) == 5 and sum(shares) == pytest.approx(100, abs=3)


def test_the_plain_script_is_a_fair_peer(shared_data, tmp_path):
    """Its image correlates with ours above 0.99; only the scale of the grey levels differs."""
    from PIL import Image

    bench = load_benchmark("ingest")
    path = shared_data("dicom/chest/nih-DX-1024-implicitLE.dcm")
    bench.plain_script([path], tmp_path / "out")
    plain = np.asarray(Image.open(tmp_path / "out" / "0.png"), np.float32)
    assert np.corrcoef(plain.ravel(), read_radiograph(path, bench.SIZE).ravel())[0, 1] > 0.99


@pytest.mark.slow
def test_the_fidelity_benchmark_trains_both_sides_on_the_same_images_and_continues(tmp_path, monkeypatch, capsys):
    pytest.importorskip("taming", reason="the fork is in the extra `dev`")
    bench = load_benchmark("fidelity")
    seen = {"ours": [], "fork": []}
    for side, task in (("ours", bench.TokenizerTask), ("fork", bench.ForkTask)):

        def step(self, batches, step, side=side, honest=task.step):
            seen[side] += [(step, *batch.sum(dim=(1, 2, 3)).tolist()) for batch in batches]
            return honest(self, batches, step)

        monkeypatch.setattr(task, "step", step)

    def config(**changes):
        small = {"studies": 40, "size": 32, "width": 8, "codes": 8, "steps": 20, "batch_size": 2}
        return bench.Config(str(tmp_path / "f.json"), str(tmp_path / "runs"), **small | changes)

    assert bench.rows(config(only="phantom-fork")) == [] and not seen["ours"]
    assert "still to be trained: phantom-ours" in capsys.readouterr().out
    rows = bench.rows(config())
    assert seen["ours"] == seen["fork"] and len(seen["ours"]) == 20
    assert bench.rows(config()) == rows and len(seen["ours"]) == 20  # nothing is trained again
    psnr, _, distance, usage, against_target = rows
    assert psnr.ratio == pytest.approx(psnr.ours / psnr.peer) and psnr.target == 1
    assert distance.ratio == pytest.approx(distance.peer / distance.ours)
    assert usage.target is None and against_target.ratio == pytest.approx(usage.ours / 0.95)
    page = (tmp_path / "f.md").read_text()
    assert "Phantoms" in page and f"{psnr.ours:.4g}" in page and (tmp_path / "f.png").is_file()
    with pytest.raises(UserError, match="another configuration"):
        (tmp_path / "runs" / "phantom-ours" / "evaluation.json").unlink()
        bench.rows(config(lr=1e-2))


def test_the_narrow_fork_has_as_many_channels_a_group_as_the_whole_one():
    pytest.importorskip("taming", reason="the fork is in the extra `dev`")
    fork = load_benchmark("stage1").Fork(32, 16, 8, dimensions=32, attention=(2,), groups=4, disc_start=0)
    norms = [module for module in fork.encoder.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert {norm.num_channels // norm.num_groups for norm in norms} == {128 // 32, 256 // 32, 512 // 32}
    images = torch.rand(2, 1, 32, 32) * 2 - 1
    reconstruction, _, codes = fork(images)
    assert reconstruction.shape == images.shape and codes.shape == (2, 2, 2)


def test_the_stage2_benchmarks_peer_computes_the_same_losses():
    bench = load_benchmark("stage2")
    shape = bench.Shape("few", studies=4, grid=(2, 2), shortest=3, longest=9)
    model = bench._model(shape)
    objectives = FourObjectives(model, LossWeights(matching=0.0))  # its negatives are other ones
    batch = bench._batch(model, shape)
    ours, peer = objectives(batch)["loss"], bench.one_pass_an_objective(objectives, batch)
    assert peer.item() == pytest.approx(ours.item(), rel=1e-5)
    tokens = bench._as_many_tokens(objectives, batch)
    # Two rows of <bos> image <emb_img> report <eos> <match>, and two negatives, for each of four studies.
    assert 0.6 < tokens.numel() / (4 * (2 * (1 + 7 + 1 + 9 + 2) + 2 * 11)) <= 1


def test_both_sides_of_the_generate_benchmark_sample_the_same_codes(monkeypatch):
    bench = load_benchmark("generate")
    monkeypatch.setattr(bench, "GRID", (2, 3))
    model = bench._model().eval()
    prompt = bench._prompts(model, 2)
    stock = bench.to_causal_lm(model)
    sampled = bench.ours(model, prompt, temperature=0.0)
    assert sampled.shape == (2, 6) and torch.equal(sampled, bench.peer(model, stock, prompt, temperature=0.0))
