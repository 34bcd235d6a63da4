"""Malicious shard folders: nothing outside is read or written, and every defect is a UserError."""

import contextlib
import io
import json
import tarfile

import fsspec
import numpy as np
import pytest

from medunifier.data.shards.dataset import (
    MANIFEST,
    ShardDataset,
    check_codebook_size,
    encode_info,
    encode_npy,
    encode_png,
    read_manifest,
    write_shard,
)
from medunifier.data.shards.index import index_path, read_samples
from medunifier.shared.artifacts import FORMAT_VERSION, sha256_file, write_json
from medunifier.shared.errors import UserError
from tests.data.shards.test_dataset import write_folder

SHARD = "train-000000.tar"
GOOD = {"study_id": "s", "views": ["PA"]}
PNG = encode_png(np.arange(24, dtype=np.uint8).reshape(4, 6))


def change_manifest(root, change):
    manifest = json.loads((root / MANIFEST).read_text())
    change(manifest)
    (root / MANIFEST).write_text(json.dumps(manifest))


def one_sample(root, members):
    """Write a folder with one sample of these members."""
    root.mkdir()
    return with_tar(root, [(f"s.{name}", content, tarfile.REGTYPE) for name, content in members.items()])


def with_tar(root, entries, samples=1):
    with tarfile.open(root / SHARD, "w") as tar:
        for name, content, kind in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.size, entry.linkname = kind, len(content), "/etc/passwd"
            tar.addfile(entry, io.BytesIO(content))
    row = {"samples": samples, "bytes": (root / SHARD).stat().st_size, "sha256": sha256_file(root / SHARD)}
    write_json(root / MANIFEST, {"format_version": FORMAT_VERSION, "splits": {"train": {SHARD: row}}})
    return root


def test_manifests_with_shards_outside_their_folder_are_refused(tmp_path):
    root = write_folder(tmp_path)
    content = (root / MANIFEST).read_text()
    for name in ("../../elsewhere/test-000000.tar", "/tmp/x.tar", "a/b.tar", "..", "", "x\0.tar", "\ud800.tar"):
        for split in ("train", name):
            (root / MANIFEST).write_text(content)
            change_manifest(root, lambda m: m["splits"].update({split: {name: m["splits"]["train"][SHARD]}}))  # noqa: B023
            with pytest.raises(UserError, match="manifest"):
                read_manifest(root)


def test_invalid_manifest_values_are_refused(tmp_path):
    root = write_folder(tmp_path)
    content = (root / MANIFEST).read_text()

    def row(**values):
        return lambda m: m["splits"]["train"][SHARD].update(values)

    for change in (
        row(samples=-1), row(samples="5"), row(samples=True), row(samples=1.5), row(samples=None), row(sha256=3),
        row(samples=2**63), row(samples=2**80),
        row(sha256="../../x"), row(sha256="A" * 64), lambda m: m.update(splits=[]), lambda m: m.update(splits=None),
        lambda m: m["splits"].update(train=[]), lambda m: m["splits"]["train"].update({SHARD: 3}),
        lambda m: m.update(tokenizer=[]), lambda m: m.update(tokenizer={"fingerprint": 3}),
        lambda m: m.update(tokenizer={}), lambda m: m.update(tokenizer={"codes": "512"}),
        lambda m: m.update(transform="x"), lambda m: m.update(source=[]),
    ):  # fmt: skip
        (root / MANIFEST).write_text(content)
        change_manifest(root, change)
        with pytest.raises(UserError, match="manifest"):
            ShardDataset(root, "train")
    for text in ("[" * 200_000, "[]", "\xff", '{"format_version": 1, "splits": {"\\u0000": {}}}'):
        (root / MANIFEST).write_text(text, encoding="latin-1")
        with pytest.raises(UserError, match="manifest"):
            ShardDataset(root, "train")


def test_a_remote_manifest_cannot_write_outside_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDUNIFIER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "shards").mkdir()
    write_folder(tmp_path / "shards")
    memory = fsspec.filesystem("memory")
    for path in (tmp_path / "shards").iterdir():
        memory.pipe_file(f"/hostile/{path.name}", path.read_bytes())
    victim = tmp_path / "victim.lock"  # the lock beside the copy is opened for writing
    victim.write_text("kept")
    manifest = json.loads(memory.cat_file(f"/hostile/{MANIFEST}"))
    for row in manifest["splits"]["train"].values():
        row["sha256"] = str(tmp_path / "victim")
    memory.pipe_file(f"/hostile/{MANIFEST}", json.dumps(manifest).encode())
    with pytest.raises(UserError):
        _ = ShardDataset("memory://hostile", "train")[0]
    assert victim.read_text() == "kept"
    memory.pipe_file(f"/hostile/{MANIFEST}", b"[" * 200_000)
    with pytest.raises(UserError, match="hostile"):
        ShardDataset("memory://hostile", "train")
    memory.store.clear()


def test_an_invalid_index_is_rebuilt_from_the_shard(tmp_path):
    root = write_folder(tmp_path)
    path = index_path(root / SHARD)
    good = path.read_bytes()
    for byte_range in ([-512, 10], [0, -1], [10**10, 10], [512, 10**10], [2**80, 1], [1, 2**80], ["0", 1], [1.5, 1],
                  [True, 1], [None, 1], [0], [0, 1, 2], 3, None, {}):  # fmt: skip
        for member in ("json", "0.png", "../x"):
            index = json.loads(good)
            index["members"][1][1][member] = byte_range
            path.write_text(json.dumps(index))
            sample = ShardDataset(root, "train")[1]
            assert sample.info["n"] == 1 and sample.images[0][1, 1] == 1
            assert path.read_bytes() == good
    for members in (None, 3, [[]], [["0000"]], [["0000", {}]] * 5, [[["0000"], {"json": [0, 1]}]] * 5, {"a": 1}):
        path.write_text(json.dumps(json.loads(good) | {"members": members}))
        assert ShardDataset(root, "train")[1].info["n"] == 1
    for text in (b"[" * 200_000, b"3", b"\xff"):
        path.write_bytes(text)
        assert ShardDataset(root, "train").info(1)["n"] == 1


def test_a_tar_with_other_entries_than_samples_is_refused(tmp_path):
    info = encode_info(GOOD)
    plain = [("s.0.png", PNG, tarfile.REGTYPE), ("s.json", info, tarfile.REGTYPE)]
    assert with_tar(tmp_path, plain) and ShardDataset(tmp_path, "train")[0].info == GOOD
    for extra in (
        [("../s.0.png", PNG, tarfile.REGTYPE), ("../s.json", info, tarfile.REGTYPE)],
        [("/s.json", info, tarfile.REGTYPE)], [("t.json", b"", tarfile.SYMTYPE)], [("t.json", b"", tarfile.LNKTYPE)],
        [("t.json", b"", tarfile.FIFOTYPE)], [("t.json", b"", tarfile.CHRTYPE)], [("t.0.png", PNG, tarfile.REGTYPE)],
    ):  # fmt: skip
        index_path(tmp_path / SHARD).unlink(missing_ok=True)
        with_tar(tmp_path, plain + extra, samples=2)
        with pytest.raises(UserError, match=SHARD):
            _ = ShardDataset(tmp_path, "train")[0]
        with pytest.raises(UserError, match=SHARD):
            list(read_samples(tmp_path / SHARD))


def test_damaged_tar_headers_are_user_errors(tmp_path):
    """Changed header fields: sizes beyond the file, negative sizes, other entry types."""
    with_tar(tmp_path, [("s.0.png", PNG, tarfile.REGTYPE), ("s.json", encode_info(GOOD), tarfile.REGTYPE)])
    content = (tmp_path / SHARD).read_bytes()
    negative = b"\xff" * 12  # base-256 of -1, in the size field
    damaged = [content[:124] + size + content[136:] for size in (negative, b"77777777777\0", b"\x80" + b"\xff" * 11)]
    damaged += [content[:156] + bytes([kind]) + content[157:] for kind in b"LKxgSX\xff"]
    for changed in damaged:
        header = changed[:148] + b" " * 8 + changed[156:512]
        changed = changed[:148] + b"%06o\0 " % sum(header) + changed[156:]
        (tmp_path / SHARD).write_bytes(changed)
        try:
            samples = list(read_samples(tmp_path / SHARD))
        except UserError as error:
            assert SHARD in str(error)
        else:
            assert all("json" in members for _, members in samples)


def test_a_damaged_sample_is_a_user_error_with_its_key(tmp_path):
    info, codes = encode_info(GOOD), encode_npy(np.zeros((1, 2, 2), np.uint16))
    objects = io.BytesIO()
    np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    damaged = [
        {"0.png": PNG, "json": b"[" * 200_000}, {"0.png": PNG, "json": b"[]"}, {"0.png": PNG, "json": b"\xff"},
        {"0.png": PNG, "json": b'{"study_id": "\\u0000", "views": ["PA"]}'},
        {"0.png": PNG, "json": encode_info(GOOD | {"views": "PA"})},
        {"0.png": PNG, "json": encode_info(GOOD | {"views": [1]})},
        {"0.png": PNG, "json": encode_info(GOOD | {"views": ["PA", "PA"]})},
        {"0.png": PNG, "json": encode_info(GOOD | {"report": "text"})},
        {"0.png": PNG, "json": encode_info(GOOD | {"labels": {"Edema": "1"}})},
        {"0.png": PNG, "json": encode_info({"views": ["PA"]})},
        {"json": info}, {"0.png": b"", "json": info}, {"0.png": PNG[:50], "json": info},
        {"0.png": b"GIF89a", "json": info},
        *({"codes.npy": content, "json": info} for content in (
            b"", b"\x93NUMPY", codes[:60], codes[:-1], objects.getvalue(), encode_npy(np.zeros((1, 2, 2))),
            encode_npy(np.zeros((4,), np.uint16)), codes.replace(b"(1, 2, 2)", b"(1,-2,-2)"), b"PK\x03\x04" + codes,
            b"\x93NUMPY\x01\x00" + (9000).to_bytes(2, "little") + b"(" * 9000,
        )),
    ]  # fmt: skip
    for number, members in enumerate(damaged):
        root = one_sample(tmp_path / str(number), members)
        with pytest.raises(UserError, match=f"sample s of shard {SHARD}"):
            _ = ShardDataset(root, "train")[0]


def test_codes_outside_the_codebook_are_refused(tmp_path):
    for number, (value, fits) in enumerate(((0, True), (15, True), (16, False), (-1, False), (2**62, False))):
        codes = encode_npy(np.full((1, 2, 2), value, np.int64))
        root = one_sample(tmp_path / str(number), {"codes.npy": codes, "json": encode_info(GOOD)})
        change_manifest(root, lambda m: m.update(tokenizer={"fingerprint": "f", "codes": 16}))
        if fits:
            assert ShardDataset(root, "train")[0].codes.max() == value
        else:
            with pytest.raises(UserError, match="codebook"):
                _ = ShardDataset(root, "train")[0]
    for size, fits in ((16, True), (15, False), (2**40, False)):
        with contextlib.nullcontext() if fits else pytest.raises(UserError, match="codes"):
            check_codebook_size(read_manifest(root), size, root)


def test_tokenize_writes_nothing_outside_its_folder(tmp_path, capsys):
    from medunifier.shared.command import run_command
    from medunifier.stage1_tokenizer.cli import tokenize_shards as tokenize
    from tests.stage1_tokenizer.cli.test_tokenize_shards import make_tokenizer
    from tests.stage1_tokenizer.conftest import write_image_shards

    shards = write_image_shards(tmp_path / "a" / "shards", shards=1, studies=2)
    victim = tmp_path / "elsewhere" / "test-000000.tar"
    victim.parent.mkdir()
    victim.write_bytes((shards / "test-000000.tar").read_bytes())
    before = victim.read_bytes()
    hostile = "../../elsewhere/test-000000.tar"
    change_manifest(
        shards, lambda m: m["splits"]["test"].update({hostile: m["splits"]["test"].pop("test-000000.tar")})
    )
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    command = ["--tokenizer", str(tokenizer), "--shards", str(shards), "--out", str(tmp_path / "b" / "out")]
    assert run_command(tokenize.main, command) == 1
    assert "elsewhere" in capsys.readouterr().err.splitlines()[-1]
    assert victim.read_bytes() == before and list(victim.parent.iterdir()) == [victim]


def test_writing_refuses_names_that_reading_refuses(tmp_path):
    with pytest.raises(UserError, match=r"\.\./s"):
        write_shard(tmp_path / SHARD, [("../s", {"json": encode_info(GOOD)})])
    assert not list(tmp_path.iterdir())
