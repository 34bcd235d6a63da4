"""Write model, tokenizer and data as repository folders for the Hugging Face Hub, each with a card.

Nothing is uploaded. The front matter of a card is read by the Hub's search and viewers; its text describes the
content and its statistics, and marks the licence as unknown, since only the owner knows it.
"""

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from medunifier.data.ingest.splits import SPLITS
from medunifier.data.reports.observations import NEGATIVE, OBSERVATIONS, POSITIVE, UNCERTAIN
from medunifier.data.shards.dataset import MANIFEST, ShardDataset, read_manifest
from medunifier.data.shards.index import INDEX_SUFFIX
from medunifier.shared.artifacts import atomic_folder, read_json, sha256_file, write_json
from medunifier.shared.errors import UserError
from medunifier.shared.report_page.notice import RESEARCH_ONLY, research_notice
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer, tokenizer_folder
from medunifier.stage2_unified.model.processing.processor import PROCESSOR_CONFIG, MedUnifierProcessor

ORIGIN, CARD = "hub.json", "README.md"
WITHOUT_PATIENTS = ("phantom",)
"""Sources without patient data: the only ones that are exported without confirmation."""

_TAGS = ["chest-radiograph", "radiology", "medunifier", "research-only"]
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LICENCE = """## Licence

**Unknown: not chosen yet.** The code that made this is under Apache-2.0, which does not cover {thing}.
Ask the providers of the data what they permit and name the licence in the front matter before sharing.
"""
_MEMORISATION = """## Privacy

A model may memorise training data and reproduce a report or a radiograph almost exactly. `medunifier evaluate
synthesis` searches for generated images that are closer to a training image than held-out real images are; finding
none does not prove that there are none. For data of patients, keep the repository private until this is assessed.
"""


def export_hub(model: str, tokenizer: str, data: str, may_share_data: bool, out: Path) -> bool:
    """Write ``out/model``, ``out/tokenizer`` and ``out/data``, for those that are passed.

    Args:
        model: model folder, or "".
        tokenizer: folder of a frozen tokenizer; "" = the tokenizer of the model.
        data: local folder of image or token shards, or "".
        may_share_data: the user confirmed that patient data may be shared.
        out: output folder.

    Returns:
        False if ``out`` already contains this export.

    Raises:
        UserError: for an invalid folder, or patient data without confirmation.
    """
    origin: dict[str, str] = {}
    if model:
        origin["model"] = _digest_of(Path(model), read_json(Path(model) / PROCESSOR_CONFIG, "a model folder"))
        MedUnifierProcessor.from_pretrained(model)  # for its error messages
    if tokenizer or model:
        tokenizer = str(tokenizer_folder(tokenizer or model))
        frozen = FrozenTokenizer.from_pretrained(tokenizer)
        origin["tokenizer"] = frozen.fingerprint
    if data:
        manifest = _check_sharable(data, may_share_data)
        origin["data"] = sha256_file(Path(data) / MANIFEST)
    if (out / ORIGIN).is_file() and read_json(out / ORIGIN, "a folder for the hub") == origin:
        return False
    if out.exists():
        raise UserError(f"{out} exists and contains something else: remove it or choose another --out")
    with atomic_folder(out) as partial:
        if model:
            shutil.copytree(model, partial / "model")
            _add_front_matter(partial / "model" / CARD, _model_values(), "the weights", _MEMORISATION)
        if tokenizer:
            shutil.copytree(tokenizer, partial / "tokenizer")
            _add_front_matter(partial / "tokenizer" / CARD, _tokenizer_values(), "the weights", _MEMORISATION)
        if data:
            _copy_shards(Path(data), partial / "data", manifest)
            (partial / "data" / CARD).write_text(data_card(data), encoding="utf-8")
        write_json(partial / ORIGIN, origin)
    return True


def _check_sharable(data: str, may_share_data: bool) -> dict[str, Any]:
    if "://" in data:
        raise UserError(f"--data must be a local folder, got {data}: copy the shards first")
    manifest = {"source": "unknown"} | read_manifest(data)
    if manifest["source"] not in WITHOUT_PATIENTS and not may_share_data:
        raise UserError(
            f"{data} contains radiographs of patients (source {manifest['source']}). If the data providers and "
            "your institution permit sharing, pass --may_share_data"
        )
    return manifest


def _digest_of(folder: Path, content: Any) -> str:
    """Return a digest of a model folder from the bytes of its weights, without loading the model."""
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    return " ".join([str(content["processor_class"]), *(sha256_file(folder / name) for name in names)])


def _copy_shards(source: Path, target: Path, manifest: dict[str, Any]) -> None:
    """Copy manifest, shards and indices, but not the lists of rejected and duplicate studies."""
    target.mkdir()
    names = [name for split in manifest["splits"].values() for name in split]
    for name in [MANIFEST, *names, *(name + INDEX_SUFFIX for name in names)]:
        if not (source / name).is_file():
            if name.endswith(INDEX_SUFFIX):
                continue  # recreated where it is missing
            raise UserError(f"{source / name} not found: the shards are incomplete")
        try:
            os.link(source / name, target / name)  # shards are never modified in place, so a hard link is enough
        except OSError:
            shutil.copy2(source / name, target / name)


def _model_values() -> dict[str, Any]:
    return {
        "license": "other", "license_name": "unknown-ask", "library_name": "transformers",
        "pipeline_tag": "image-to-text", "language": ["en"],
        "tags": [*_TAGS, "report-generation", "image-generation"],
    }  # fmt: skip


def _tokenizer_values() -> dict[str, Any]:
    return {
        "license": "other", "license_name": "unknown-ask", "library_name": "medunifier",
        "pipeline_tag": "image-feature-extraction", "tags": [*_TAGS, "vq-gan", "image-tokenizer"],
    }  # fmt: skip


def _add_front_matter(card: Path, values: dict[str, Any], thing: str, *more: str) -> None:
    """Merge values into the front matter of a card, and append licence and further sections to its text."""
    existing, text = split_card(card.read_text(encoding="utf-8") if card.is_file() else "")
    tags = list(dict.fromkeys([*existing.get("tags", []), *values["tags"]]))
    if RESEARCH_ONLY not in text:
        text = f"{research_notice('It must not be used for the care of a person.', markdown=True)}\n\n{text}"
    body = "\n".join([text.rstrip() + "\n", _LICENCE.format(thing=thing), *more])
    card.write_text(_card(existing | values | {"tags": tags}, body), encoding="utf-8")


def split_card(content: str) -> tuple[dict[str, Any], str]:
    """Split a card into front matter and text."""
    if not content.startswith("---\n"):
        return {}, content
    head, _, text = content.removeprefix("---\n").partition("\n---\n")
    return dict(yaml.safe_load(head) or {}), text


def _card(values: dict[str, Any], text: str) -> str:
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---\n{text}"


def data_card(data: str) -> str:
    """Return the card of a data set: statistics of its shards, source, preprocessing, privacy."""
    manifest = {"source": "unknown"} | read_manifest(data)
    kept, transform = [split for split in SPLITS if manifest["splits"].get(split)], manifest.get("transform", {})
    counted = {split: _count(data, split) for split in kept}
    tokens = manifest.get("tokenizer")
    phantom = manifest["source"] in WITHOUT_PATIENTS
    images = sum(row["images"] for row in counted.values())
    names = {"train": "train", "validate": "validation", "test": "test"}  # the names that the Hub's viewer uses
    values = {
        "license": "other", "license_name": "unknown-ask", "language": ["en"],
        "task_categories": ["image-to-text", "text-to-image"], "tags": [*_TAGS, "webdataset"],
        "size_categories": [next((name for most, name in _SIZES if images < most), "n>1M")],
        "configs": [{"config_name": "default", "data_files": [
            {"split": names[split], "path": f"{split}-*.tar"} for split in kept
        ]}],
    }  # fmt: skip
    what = "Codes of chest radiographs" if tokens else "Chest radiographs"
    lines = [
        f"# {what} with reports, source `{manifest['source']}`",
        "",
        "**For research, not for the care of a person.** "
        + ("The radiographs are phantoms, generated by a program, of no patient." if phantom else ""),
        "",
        "WebDataset shards, one sample per study: "
        + ("`codes.npy` (images, h, w)" if tokens else "`0.png`, `1.png`, …")
        + " and `json` (pseudonyms, views, report, labels). `medunifier.ShardDataset` and `webdataset` read them.",
        "",
        "## Statistics",
        "",
        "| split | patients | studies | images | with findings | with impression |",
        "|---|---|---|---|---|---|",
        *[
            f"| {names[split]} | {row['patients']:,} | {row['studies']:,} | {row['images']:,} | {row['findings']:,} "
            f"| {row['impression']:,} |"
            for split, row in counted.items()
        ],
        "",
        "| observation | stated | denied | uncertain |",
        "|---|---|---|---|",
        *[
            "| " + " | ".join([name, *(f"{_labels(counted, name, value):,}" for value in _VALUES)]) + " |"
            for name in OBSERVATIONS
        ],
        "",
        "Views: " + ", ".join(f"{view or 'unknown'} {count:,}" for view, count in _views(counted)) + ".",
        "",
        "## Preprocessing",
        "",
        *[f"- {name}: {value}" for name, value in transform.items()],
        *([f"- tokenizer fingerprint: `{tokens['fingerprint']}`"] if tokens else []),
        f"- rejected: {manifest.get('counts', {}).get('rejected_images', 0):,} images",
        "",
        _LICENCE.format(thing="the data"),
        "## Privacy",
        "",
        _privacy(phantom, transform),
    ]
    return _card(values, "\n".join(lines))


_VALUES = (POSITIVE, NEGATIVE, UNCERTAIN)


def _count(data: str, split: str) -> dict[str, Any]:
    patients, views, labels = set(), Counter(), Counter()  # type: ignore[var-annotated]
    row = {"studies": 0, "images": 0, "findings": 0, "impression": 0}
    for info in ShardDataset(data, split).infos():
        patients.add(info["patient_id"])
        views.update(info["views"])
        labels.update(info["labels"].items())
        row["studies"] += 1
        row["images"] += len(info["views"])
        for section in ("findings", "impression"):
            row[section] += bool(info["report"].get(section))
    return row | {"patients": len(patients), "views": views, "labels": labels}


def _labels(counted: dict[str, Any], name: str, value: int) -> int:
    return sum(row["labels"][name, value] for row in counted.values())


def _views(counted: dict[str, Any]) -> list[tuple[str, int]]:
    views: Counter[str] = Counter()
    for row in counted.values():
        views += row["views"]
    return views.most_common()


def _privacy(phantom: bool, transform: dict[str, Any]) -> str:
    if phantom:
        return "No real persons: patients, names and dates were generated by a program.\n"
    redact = transform.get("redact", {})
    built_in, custom = redact.get("built_in") or "none", redact.get("own_patterns", 0)
    return f"""Patients and studies have keyed pseudonyms, which can be reversed with the key. Of the DICOM header
only the view was kept. **Reports are free text**: patterns replaced {built_in}, and {custom} custom expressions;
a name without a title matches no pattern. Images whose header declares burned-in text were rejected; undeclared text
is not detected. A chest radiograph may itself be re-identified by comparison with another of the same person.
"""
