import io
import json
import os
import time

import numpy as np
import pytest
import torch
import webdataset

from medunifier.data.shards.dataset import (
    MANIFEST,
    MAX_OPEN_SHARDS,
    ShardDataset,
    decode_npy,
    encode_info,
    encode_npy,
    encode_png,
    write_shard,
)
from medunifier.data.shards.index import index_path, scan_shard
from medunifier.data.shards.loader import batches_once, epoch_order, ordered_batches, sample_at, sample_stream
from medunifier.shared.artifacts import FORMAT_VERSION, write_json
from medunifier.shared.errors import UserError


def write_folder(root, counts=(5, 3), bits=8):
    """Write shards of the train split; the pixels of a sample equal its index."""
    rows, number = {}, 0
    for shard, count in enumerate(counts):
        samples = []
        for _ in range(count):
            pixels = np.full((4, 6), number, dtype=np.uint16 if bits == 16 else np.uint8)
            pixels[0, 0] = 2**bits - 1
            codes = np.full((1, 2, 2), number, dtype=np.uint16)
            info = {"study_id": f"{number:04d}", "views": ["PA"], "n": number}
            members = {"0.png": encode_png(pixels), "codes.npy": encode_npy(codes), "json": encode_info(info)}
            samples.append((f"{number:04d}", members))
            number += 1
        rows[f"train-{shard:06d}.tar"] = write_shard(root / f"train-{shard:06d}.tar", samples)
    write_json(root / MANIFEST, {"format_version": FORMAT_VERSION, "splits": {"train": rows, "test": {}}})
    return root


@pytest.mark.parametrize("bits", [8, 16])
def test_round_trip_at_random_access(tmp_path, bits):
    dataset = ShardDataset(write_folder(tmp_path, bits=bits), "train")
    assert len(dataset) == 8
    for number in (7, 0, 4, 5):
        sample = dataset[number]
        assert sample.info["n"] == number == dataset.info(number)["n"]
        assert sample.images[0].shape == (4, 6) and sample.images[0][1, 1] == number
        assert sample.images[0][0, 0] == 2**bits - 1
        assert sample.codes is not None and (sample.codes == number).all()


def test_stock_webdataset_reads_the_shards(tmp_path):
    write_folder(tmp_path)
    urls = sorted(str(path) for path in tmp_path.glob("*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("l"))
    assert [sample["json"]["n"] for sample in samples] == list(range(8))
    assert samples[3]["__key__"] == "0003" and samples[3]["0.png"].shape == (4, 6)


def test_the_bytes_depend_only_on_the_samples(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_folder(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_missing_or_damaged_index_is_rebuilt(tmp_path):
    write_folder(tmp_path)
    index = index_path(tmp_path / "train-000000.tar")
    content = index.read_bytes()
    of_another = index_path(tmp_path / "train-000001.tar").read_bytes()
    for damage in (index.unlink, lambda: index.write_text("{"), lambda: index.write_bytes(of_another)):
        damage()
        assert ShardDataset(tmp_path, "train")[2].info["n"] == 2
        assert index.read_bytes() == content


def test_damaged_and_missing_shards_are_reported(tmp_path):
    with pytest.raises(UserError, match=r"not found.*shard folder"):
        ShardDataset(tmp_path / "absent", "train")
    write_folder(tmp_path)
    with pytest.raises(UserError, match="test.*train"):
        ShardDataset(tmp_path, "test")
    shard = tmp_path / "train-000001.tar"
    content = shard.read_bytes()
    for damaged in (content[: 512 * 3], content[:-1], content[:700] + b"?" + content[701:]):
        shard.write_bytes(damaged)
        dataset = ShardDataset(tmp_path, "train")
        assert dataset[4].info["n"] == 4  # in the other shard
        with pytest.raises(UserError, match=r"train-000001\.tar.*damaged"):
            _ = dataset[7]
    (tmp_path / "train-000001.tar").unlink()
    with pytest.raises(UserError, match="not on disk"):
        _ = ShardDataset(tmp_path, "train")[7]


def test_a_shard_truncated_while_open_is_an_error(tmp_path):
    dataset = ShardDataset(write_folder(tmp_path), "train")
    assert dataset[0].info["n"] == 0
    os.truncate(tmp_path / "train-000000.tar", 512 * 3)
    with pytest.raises(UserError, match=r"train-000000\.tar.*cut short"):
        _ = dataset[4]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4)])
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">i4", "<f8", "?"])
def test_npy_decoding_matches_numpy(dtype, shape, order):
    array = np.asarray(np.random.default_rng(0).integers(0, 100, shape).astype(dtype), order=order)
    content = encode_npy(array)
    expected = np.load(io.BytesIO(content))
    for source in (content, memoryview(b"?" + content)[1:]):  # also unaligned
        found = decode_npy(source)
        assert found.dtype == expected.dtype and found.shape == expected.shape and found.flags.writeable
        assert (found == expected).all()


def test_npy_with_objects_or_truncated_is_refused():
    objects = io.BytesIO()
    np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    for content in (objects.getvalue(), encode_npy(np.arange(9))[:-1]):
        with pytest.raises(ValueError):
            decode_npy(content)


def numbers(samples):
    return [(position, sample.info["n"]) for position, sample in samples]


def test_every_sample_is_read_once_per_epoch_with_any_number_of_processes(tmp_path):
    dataset = ShardDataset(write_folder(tmp_path), "train")
    steps_by_world = {}
    for world in (1, 2, 4):
        streams = [
            sample_stream(dataset, numbers, batch_size=8 // world, seed=3, rank=r, world=world) for r in range(world)
        ]
        steps = [[entry for stream in streams for entry in next(stream)] for _ in range(3)]
        for step in steps:
            assert sorted(n for _, n in step) == list(range(8))  # 8 positions per step: one epoch
        steps_by_world[world] = steps
    assert steps_by_world[1] == steps_by_world[2] == steps_by_world[4]
    assert len({tuple(n for _, n in step) for step in steps_by_world[1]}) == 3  # another order each epoch


def test_resume_continues_the_order_with_other_workers(tmp_path):
    dataset = ShardDataset(write_folder(tmp_path), "train")
    whole = sample_stream(dataset, numbers, batch_size=3, seed=1)
    expected = [next(whole) for _ in range(6)]
    resumed = sample_stream(dataset, numbers, batch_size=3, seed=1, position=6, workers=2)
    assert [next(resumed) for _ in range(4)] == expected[2:]


def test_order_is_a_function_of_seed_epoch_and_position():
    assert sorted(epoch_order(100, 5, 2)) == list(range(100))
    assert (epoch_order(100, 5, 2) == epoch_order(100, 5, 2)).all()
    assert (epoch_order(100, 5, 2) != epoch_order(100, 6, 2)).any()
    assert [sample_at(p, 100, 5) for p in range(200, 300)] == list(epoch_order(100, 5, 2))


def test_an_evaluation_pass_reads_every_sample_once(tmp_path):
    dataset = ShardDataset(write_folder(tmp_path), "train")
    both = [entry for rank in (0, 1) for batch in batches_once(dataset, numbers, batch_size=3, rank=rank, world=2)
            for entry in batch]  # fmt: skip
    assert sorted(both) == [(n, n) for n in range(8)]
    assert sum(len(batch) for batch in batches_once(dataset, numbers, batch_size=3, limit=4)) == 4


def test_many_shards_need_few_file_descriptors(tmp_path):
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    dataset = ShardDataset(write_folder(tmp_path, counts=(1,) * (3 * MAX_OPEN_SHARDS)), "train")
    before = descriptors()
    assert [dataset[number].info["n"] for number in range(len(dataset))] == list(range(len(dataset)))
    assert dataset[0].info["n"] == 0, "an evicted shard is opened again"
    assert descriptors() - before <= MAX_OPEN_SHARDS
    del dataset
    assert descriptors() <= before


class _Failing:
    """A data set whose samples end or stop the process that reads them."""

    def __init__(self, fail):
        self._fail = fail

    def __len__(self):
        return 8

    def __getitem__(self, number):
        self._fail()


@pytest.mark.parametrize(("fail", "seconds"), [(lambda: os._exit(1), 60), (lambda: time.sleep(30), 1)])
def test_a_loader_process_that_died_or_hangs_ends_the_run_in_words(monkeypatch, fail, seconds):
    monkeypatch.setattr("medunifier.data.shards.loader._MAX_SECONDS", seconds)
    monkeypatch.setattr("medunifier.data.shards.loader.free_shared_memory", lambda: None)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)  # its wait for a hanging process
    with pytest.raises(UserError, match="loader process"):
        next(sample_stream(_Failing(fail), list, batch_size=2, seed=0, workers=1))


def test_ordered_batches_of_loader_processes_are_those_of_this_process(tmp_path, monkeypatch):
    monkeypatch.setattr("medunifier.data.shards.loader.free_shared_memory", lambda: None)
    dataset, keys = ShardDataset(write_folder(tmp_path), "train"), [[3, 0], [1], [4, 2, 5]]

    def read(workers):
        return list(ordered_batches(dataset, keys, lambda s: [x.key for x in s], workers=workers, option="--threads"))

    assert read(2) == read(0) == [[dataset[number].key for number in batch] for batch in keys]


def test_an_error_in_a_loader_process_is_its_message_alone(monkeypatch):
    def fail():
        raise UserError("shard 7 cannot be read: make it again")

    monkeypatch.setattr("medunifier.data.shards.loader.free_shared_memory", lambda: None)
    with pytest.raises(UserError) as caught:
        next(sample_stream(_Failing(fail), list, batch_size=2, seed=0, workers=1))
    assert str(caught.value) == "shard 7 cannot be read: make it again"


def test_too_little_shared_memory_is_refused_before_training_hangs(tmp_path, monkeypatch):
    def pixels(samples):
        return {"pixels": torch.stack([torch.tensor(sample.images[0]) for _, sample in samples])}

    dataset = ShardDataset(write_folder(tmp_path), "train")
    batch = 2 * 4 * 6
    monkeypatch.setattr("medunifier.data.shards.loader.free_shared_memory", lambda: 9 * batch - 1)
    with pytest.raises(UserError, match="shm-size"):
        sample_stream(dataset, pixels, batch_size=2, seed=0, workers=2)
    assert next(sample_stream(dataset, pixels, batch_size=2, seed=0, workers=0))["pixels"].shape == (2, 4, 6)
    monkeypatch.setattr("medunifier.data.shards.loader.free_shared_memory", lambda: 9 * batch)
    assert next(sample_stream(dataset, pixels, batch_size=2, seed=0, workers=2))["pixels"].shape == (2, 4, 6)


def test_the_index_that_is_written_is_that_of_the_tar(tmp_path):
    samples = [(f"study{n}", {"0.png": bytes(700 * n), "json": encode_info({"n": n})}) for n in range(3)]
    row = write_shard(tmp_path / "a.tar", samples)
    written = json.loads(index_path(tmp_path / "a.tar").read_text())["members"]
    assert written == json.loads(json.dumps(scan_shard(tmp_path / "a.tar"))) and len(written) == row["samples"] == 3
