"""Benchmarks compare like with like, and run."""

import numpy as np
import pytest
import torch

from data.loader import sample_stream
from data.radiograph import read_radiograph
from data.shards import ShardDataset
from shared.bench import BenchConfig, _load


def test_both_loaders_give_every_sample_of_an_epoch(tmp_path, monkeypatch):
    bench = _load("loader")
    monkeypatch.setattr(bench, "SHARDS", 2)
    monkeypatch.setattr(bench, "STUDIES", 64)
    bench._write(tmp_path)
    stock = torch.cat(list(bench._stock(sorted(map(str, tmp_path.glob("*.tar"))), workers=0)))
    stream = sample_stream(ShardDataset(tmp_path, "train"), bench._ours, batch_size=bench.BATCH, seed=0)
    ours = torch.cat([next(stream) for _ in range(4)])
    assert ours.shape == stock.shape == (128, 16, 16) and ours.dtype == stock.dtype == torch.int64
    assert sorted(map(tuple, ours.flatten(1).tolist())) == sorted(map(tuple, stock.flatten(1).tolist()))
    assert not torch.equal(ours, stock)


def test_the_ingest_benchmark_runs_and_its_peer_draws_the_same_films(tmp_path, monkeypatch, capsys):
    bench = _load("ingest")
    for name, value in (("STUDIES", 3), ("FILM", 64), ("COPIES", 1), ("SIZE", 48), ("REAL_FILMS", tmp_path / "none")):
        monkeypatch.setattr(bench, name, value)
    (row,) = bench.rows(BenchConfig(rounds=1))
    assert row.ratio > 0 and row.target == 1.9
    shares = [float(word[:-1]) for word in capsys.readouterr().out.splitlines()[-1].split() if word.endswith("%")]
    assert len(shares) == 5 and sum(shares) == pytest.approx(100, abs=3)


def test_the_plain_script_is_a_fair_peer(shared_data, tmp_path):
    """It shows what we show, up to the scale of its grey levels."""
    from PIL import Image

    bench = _load("ingest")
    film = shared_data("dicom/chest/nih-DX-1024-implicitLE.dcm")
    bench.plain_script([film], tmp_path / "out")
    plain = np.asarray(Image.open(tmp_path / "out" / "0.png"), np.float32)
    assert np.corrcoef(plain.ravel(), read_radiograph(film, bench.SIZE).ravel())[0, 1] > 0.99
