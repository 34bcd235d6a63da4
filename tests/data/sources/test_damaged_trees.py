"""Damaged archives of every layout: a source skips and counts, or ends with a UserError, whatever the bytes are."""

import gzip
import traceback
from pathlib import Path
from random import Random

import pytest

from medunifier.data.ingest.splits import assign_splits
from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.data.shards.prior_studies import number_visits
from medunifier.data.sources import SOURCES, SourceOptions, read_source
from medunifier.shared.errors import UserError
from tests.data.dicom_samples import SAMPLES, mutate, sample
from tests.data.files.test_walk import identified
from tests.data.sources.test_chexpert import HEADER
from tests.data.sources.test_outside_root import write_tree

WORDS = (
    b'"', b",", b"\n", b"\r", b"\0", b"\xff\xfe", b"\xe2\x80\xa8", b"[[[[", b"\\ud800", b"nan", b"-1e999", b"../",
    b"/", b".", b"", b"{}", b"&x;", b"<a>", b"null", b"1" * 5000, b"a" * 300,
)  # fmt: skip


def build(source, root, table):
    """A small tree, with the tables that are optional."""
    if source == "dicom-folder":
        (root / "1.2.3").mkdir(parents=True)
        for name in SAMPLES:
            (root / f"{name}.dcm").write_bytes(sample(name))
        (root / "1.2.3" / "a").write_bytes(identified())
        (root / "a.dcm.gz").write_bytes(gzip.compress(identified("p2")))
        (root / "1.2.3.txt").write_text("FINDINGS: clear")
        return
    write_tree(source, root, ["train/a/b/c", "x", "y.z"], table)
    if "mimic" in source or source == "phantom":
        ids = [f"s{i}" for i in range(3)]
        table(root / "mimic-cxr-2.0.0-split.csv.gz", "study_id,split", [(name, "train") for name in ids])
        labels = ",".join(("study_id", *OBSERVATIONS))
        table(root / "mimic-cxr-2.0.0-chexpert.csv", labels, [(name, *["1.0"] * 14) for name in ids])
        if source != "mimic-cxr-jpg":
            columns = "dicom_id,ViewPosition,StudyDate,StudyTime,ViewCodeSequence_CodeMeaning"
            table(
                root / "mimic-cxr-2.0.0-metadata.csv",
                columns,
                [(i, "PA", "21800506", "83045.5", "") for i in range(3)],
            )
    elif source == "chexpert":
        table(root / "valid.csv", HEADER, [("valid/p/s/v.jpg", "F", 1, "Frontal", "AP", *["1"] * 14)])
    elif source == "chexpert-plus":
        (root / "chexbert_labels").mkdir()
        (root / "chexbert_labels" / "report_fixed.json").write_text('{"path_to_image": "x.png", "Edema": 1.0}\n')
    elif source == "rsna":
        table(root / "stage_2_detailed_class_info.csv", "patientId,class", [("x", "Normal")])
    elif source == "nih":
        for name in ("train_val_list.txt", "test_list.txt"):
            (root / name).write_text("x.png\n")


def damage(content, random):
    """Truncation, flipped bits, random bytes, meaningful words, repeated and removed spans."""
    kind = random.randrange(7)
    at = random.randrange(len(content) + 1)
    if kind == 0:
        return content[:at]
    if kind == 1:
        return mutate(content, random) if content else b""
    if kind == 2:
        return random.randbytes(random.choice((0, 1, 40, 3000)))
    if kind == 3:
        return content[:at] + content[at + random.choice((1, 5, 50)) :]
    if kind == 4:
        return content[:at] + random.choice(WORDS) * random.choice((1, 1, 400)) + content[at:]
    if kind == 5:
        end = at + random.randrange(1, 9)
        return content[:at] + random.choice(WORDS) + content[end:]
    return content[:at] + content


def damaged(path, random):
    content = path.read_bytes()
    if path.suffix == ".gz" and random.random() < 0.7:
        try:
            return gzip.compress(damage(gzip.decompress(content), random), 1, mtime=0)
        except (OSError, EOFError):
            pass
    return damage(content, random)


def rename(root, random):
    """A folder in the place of a file, or a file under a name that is no UTF-8."""
    path = random.choice([entry for entry in sorted(root.rglob("*")) if entry.is_file()])
    if random.random() < 0.5:
        path.unlink()
        path.mkdir()
    else:
        path.rename(path.with_name(path.name + "\udcff" + path.suffix))


def failures(source, folder, table, seeds):
    """Seeds whose tree made the source raise something else, with the traceback; and the outcomes of all."""
    found, outcomes = [], {"read": 0, "refused": 0}
    template = folder / "template"
    build(source, template, table)
    files = {path.relative_to(template): path.read_bytes() for path in sorted(template.rglob("*")) if path.is_file()}
    for seed in seeds:
        random = Random(seed)
        root = folder / f"tree-{seed}"
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        for name in random.sample(sorted(files), min(len(files), random.choice((1, 1, 2)))):
            (root / name).write_bytes(damaged(root / name, random))
        if random.random() < 0.1:
            rename(root, random)
        try:
            archive = read_source(source, root, SourceOptions(outside_root=random.random() < 0.3))
            assert archive.records and all(isinstance(view.path, Path) for r in archive.records for view in r.views)
            number_visits(assign_splits(archive.records, b"key", 0.1, 0.1))
            outcomes["read"] += 1
        except UserError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
        except Exception:
            found.append(f"seed {seed}: {traceback.format_exc()[-1500:]}")
    return found, outcomes


@pytest.mark.parametrize("source", sorted(SOURCES))
def test_damaged_trees_of_a_source(source, tmp_path, table):
    found, outcomes = failures(source, tmp_path, table, range(60))
    assert not found, found[0]
    assert outcomes["read"] > 5  # damage that is always refused would test nothing


@pytest.mark.parametrize("source", sorted(SOURCES.keys() - {"dicom-folder"}))
def test_names_that_no_file_system_takes(source, tmp_path, table):
    write_tree(source, tmp_path / "tree", ["train/a/b/c", "train/a/b/" + "x" * 5000, "." * 3000, "/"], table)
    assert read_source(source, tmp_path / "tree", SourceOptions(outside_root=True)).records


@pytest.mark.slow
@pytest.mark.parametrize("source", sorted(SOURCES))
def test_many_damaged_trees_of_a_source(source, tmp_path, table):
    found, _ = failures(source, tmp_path, table, range(60, 2060))
    assert not found, found[0]
