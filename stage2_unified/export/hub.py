"""Model, tokenizer and data as folders that are ready to be uploaded to the Hugging Face hub, each with its card.

Nothing is uploaded here. A card's front matter is what the hub's search and viewers read; its text says what the
thing is, what was counted, and what nobody but the owner can know: under which terms it may be passed on.
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
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer
from medunifier.stage2_unified.model.processing.processor import (
    IMAGE_TOKENIZER,
    PROCESSOR_CONFIG,
    MedUnifierProcessor,
)

ORIGIN, CARD = "hub.json", "README.md"
WITHOUT_PATIENTS = ("phantom",)
"""Sources whose shards show nobody: the only ones that are written without a word from the user."""

_TAGS = ["chest-radiograph", "radiology", "medunifier", "research-only"]
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LICENCE = """## Licence

**Unknown: nobody has chosen one yet.** The code that made this is under Apache-2.0, which says nothing of {thing}.
Ask the makers of the data what they allow, name the licence in the front matter, and only then upload for others.
"""
_MAY_REMEMBER = """## Privacy

A model may remember what it was trained on, and give back a report or a film nearly as it was. `medunifier evaluate
synthesis` looks for drawings that lie nearer to a training image than unseen real ones do; that none was found does
not prove that there is none. Unless the data show no patients, keep the repository private until that was judged.
"""


def export_hub(model: str, tokenizer: str, data: str, may_share_data: bool, out: Path) -> bool:
    """Write ``out/model``, ``out/tokenizer`` and ``out/data``, as far as they are given.

    Args:
        model: model folder, or "".
        tokenizer: folder of a frozen tokenizer; "" takes the model's own.
        data: folder of image or token shards on this machine, or "".
        may_share_data: the user's word that shards of patients may be passed on.
        out: the folder.

    Returns:
        False if ``out`` holds the same already.

    Raises:
        UserError: for a folder that is not what it should be, or data that may not be passed on.
    """
    origin: dict[str, str] = {}
    if model:
        origin["model"] = _digest_of(Path(model), read_json(Path(model) / PROCESSOR_CONFIG, "a model folder"))
        MedUnifierProcessor.from_pretrained(model)  # its errors speak to a user
        tokenizer = tokenizer or str(Path(model) / IMAGE_TOKENIZER)
    if tokenizer:
        frozen = FrozenTokenizer.from_pretrained(tokenizer)
        origin["tokenizer"] = frozen.fingerprint
    if data:
        manifest = _sharable(data, may_share_data)
        origin["data"] = sha256_file(Path(data) / MANIFEST)
    if (out / ORIGIN).is_file() and read_json(out / ORIGIN, "a folder for the hub") == origin:
        return False
    if out.exists():
        raise UserError(f"{out} exists and holds something else: remove it or give another --out")
    with atomic_folder(out) as partial:
        if model:
            shutil.copytree(model, partial / "model")
            _add_front_matter(partial / "model" / CARD, _model_values(), "the weights", _MAY_REMEMBER)
        if tokenizer:
            shutil.copytree(tokenizer, partial / "tokenizer")
            _add_front_matter(partial / "tokenizer" / CARD, _tokenizer_values(), "the weights", _MAY_REMEMBER)
        if data:
            _copy_shards(Path(data), partial / "data", manifest)
            (partial / "data" / CARD).write_text(data_card(data), encoding="utf-8")
        write_json(partial / ORIGIN, origin)
    return True


def _sharable(data: str, may_share_data: bool) -> dict[str, Any]:
    if "://" in data:
        raise UserError(f"--data must be a folder of this machine, got {data}: copy the shards here first")
    manifest = {"source": "unknown"} | read_manifest(data)
    if manifest["source"] not in WITHOUT_PATIENTS and not may_share_data:
        raise UserError(
            f"{data} holds radiographs of patients (source {manifest['source']}): if their makers and your "
            "hospital allow you to pass them on, say --may_share_data"
        )
    return manifest


def _digest_of(folder: Path, content: Any) -> str:
    """A model folder's identity, by its weights' bytes: no model is built to copy its files."""
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    return " ".join([str(content["processor_class"]), *(sha256_file(folder / name) for name in names)])


def _copy_shards(source: Path, target: Path, manifest: dict[str, Any]) -> None:
    """Manifest, shards and indices. Lists of rejected and repeated studies stay at home: nobody else needs them."""
    target.mkdir()
    names = [name for split in manifest["splits"].values() for name in split]
    for name in [MANIFEST, *names, *(name + INDEX_SUFFIX for name in names)]:
        if not (source / name).is_file():
            if name.endswith(INDEX_SUFFIX):
                continue  # made anew where it is missing
            raise UserError(f"{source / name} not found: the shards are not complete")
        try:
            os.link(source / name, target / name)  # shards are never changed in place, so one copy is enough
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
    """Values join those that a card has; licence and further sections are appended to its text."""
    had, text = split_card(card.read_text(encoding="utf-8") if card.is_file() else "")
    tags = list(dict.fromkeys([*had.get("tags", []), *values["tags"]]))
    if RESEARCH_ONLY not in text:
        text = f"{research_notice('It must not be used for the care of a person.', markdown=True)}\n\n{text}"
    body = "\n".join([text.rstrip() + "\n", _LICENCE.format(thing=thing), *more])
    card.write_text(_card(had | values | {"tags": tags}, body), encoding="utf-8")


def split_card(content: str) -> tuple[dict[str, Any], str]:
    """A card's front matter and its text."""
    if not content.startswith("---\n"):
        return {}, content
    head, _, text = content.removeprefix("---\n").partition("\n---\n")
    return dict(yaml.safe_load(head) or {}), text


def _card(values: dict[str, Any], text: str) -> str:
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---\n{text}"


def data_card(data: str) -> str:
    """A data set's card: what was counted in its shards, where it comes from, what it may hold of people."""
    manifest = {"source": "unknown"} | read_manifest(data)
    kept, transform = [split for split in SPLITS if manifest["splits"].get(split)], manifest.get("transform", {})
    counted = {split: _count(data, split) for split in kept}
    tokens = manifest.get("tokenizer")
    phantom = manifest["source"] in WITHOUT_PATIENTS
    images = sum(row["images"] for row in counted.values())
    names = {"train": "train", "validate": "validation", "test": "test"}  # the hub's viewer knows these
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
        + ("The radiographs are phantoms: drawn by a program, they show nobody." if phantom else ""),
        "",
        "WebDataset shards, one sample a study: "
        + ("`codes.npy` (images, h, w)" if tokens else "`0.png`, `1.png`, …")
        + " and `json` (pseudonyms, views, report, labels). `medunifier.ShardDataset` and `webdataset` read them.",
        "",
        "## What was counted",
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
        "## How it was made",
        "",
        *[f"- {name}: {value}" for name, value in transform.items()],
        *([f"- tokenizer fingerprint: `{tokens['fingerprint']}`"] if tokens else []),
        f"- left out: {manifest.get('counts', {}).get('rejected_images', 0):,} images",
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
        return "There are no people in it: patients, names and dates were made up by a program.\n"
    redact = transform.get("redact", {})
    built_in, own = redact.get("built_in") or "none", redact.get("own_patterns", 0)
    return f"""Patients and studies bear pseudonyms (keyed; whoever has the key can go back). Of a DICOM header the
view alone was kept. **Reports are free text**: patterns replaced {built_in}, and {own} expressions of the owner's; a
name without a title has no form that a pattern finds. Words burned into a picture are refused where the header tells
of them, and nothing looks for those that it does not. A chest radiograph may itself be recognised beside another of
the same person.
"""
