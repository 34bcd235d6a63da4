"""Phantom shards, and an oracle model that returns the ground truth."""

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np
import torch

from medunifier.data.images.masks import member_name
from medunifier.data.phantom import Phantom
from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.data.reports.sections import one_line, split_sections
from medunifier.data.shards.dataset import MANIFEST, encode_info, encode_npy, encode_png, shard_name, write_shard
from medunifier.shared.artifacts import FORMAT_VERSION, write_json
from medunifier.stage2_unified.model.processing.report_codec import normalise_report

SIZE = 32


def write_shards(root, studies, codes=None, source="phantom", masks=None):
    """Write image shards of (pixels, info) pairs, or token shards if ``codes`` are passed; one shard per split.

    ``masks`` are {finding: (H, W) booleans} for each study.
    """
    splits = {}
    for split in ("train", "validate", "test"):
        rows = []
        for number, (pixels, info) in enumerate(studies):
            if info["split"] == split:
                member = (
                    {"0.png": encode_png(pixels)} if codes is None else {"codes.npy": encode_npy(codes[number][None])}
                )
                for finding, mask in (masks[number] if masks else {}).items():
                    member[member_name(0, finding)] = encode_png(mask.astype(np.uint8) * np.uint8(255))
                rows.append((info["study_id"], member | {"json": encode_info(info)}))
        name = shard_name(split, 0)
        splits[split] = {name: write_shard(root / name, rows)} if rows else {}
    manifest = {
        "format_version": FORMAT_VERSION,
        "source": source,
        "transform": {"size": SIZE, "bits": 8, "text": "findings+impression"},
        "splits": splits,
    }
    if codes is not None:
        manifest["tokenizer"] = {"fingerprint": FakeTokenizer.fingerprint, "codes": FakeTokenizer.codebook_size}
    write_json(root / MANIFEST, manifest)
    return root


def phantom_studies(count):
    """Return (pixels, info) pairs in the format of ingest."""
    phantom, studies = Phantom(SIZE, 3), []
    for index in range(count):
        study = phantom.study(index)
        sections = split_sections(study.report)
        report = {name: one_line(sections.get(name, "")) for name in ("findings", "impression")}
        info = {
            "study_id": study.study_id,
            "patient_id": study.patient_id,
            "views": study.views[:1],
            "split": study.split,
            "report": report | {"text": " ".join(report.values()).strip()},
            "labels": study.labels,
            "source": "phantom",
        }
        studies.append(((study.images[0] * 255).astype(np.uint8), info))
    return studies


class FakeTokenizer:
    """Encode an image to a digest of its pixels, so that different images have different codes."""

    fingerprint = "f" * 64
    image_size = SIZE
    codebook_size = 2**16

    def encode_images(self, images, batch_size=32):
        return np.stack([code_of(image) for image in images])


def code_of(pixels):
    digest = hashlib.sha256(pixels.tobytes()).digest()
    return np.frombuffer(digest, dtype=np.uint16).astype(np.int64).reshape(4, 4)


def _line(report):
    return normalise_report(f"{report['findings']} {report['impression']}")


@dataclass
class Oracle:
    """Return the ground truth of the study or, if ``shuffled``, of another patient's study.

    An embedding concatenates a random vector of the text, equal for equal texts, and the findings.
    """

    studies: list
    shuffled: bool = False
    tokenizer: FakeTokenizer = field(default_factory=FakeTokenizer)
    masks: list | None = None
    fingerprint: str = "e" * 64
    sections: str = "findings+impression"

    def __post_init__(self):
        count = len(self.studies)
        # Shuffled: the study a seventh of the list further on, of another patient.
        self._target = [(i + count // 7) % count if self.shuffled else i for i in range(count)]
        self._by_code = {code_of(pixels).tobytes(): i for i, (pixels, _) in enumerate(self.studies)}
        self._lines = [_line(info["report"]) for _, info in self.studies]
        # Studies with the same report, test split first, so that generating for all test studies returns each image.
        self._by_line = defaultdict(list)
        for i in sorted(range(count), key=lambda i: self.studies[i][1]["split"] != "test"):
            self._by_line[self._lines[i]].append(i)

    def _number(self, codes):
        return self._target[self._by_code[np.ascontiguousarray(codes).tobytes()]]

    def _text_embedding(self, line):
        return np.random.default_rng(list(line.encode())).normal(size=256) / 16

    def embed_images(self, codes, views):
        rows = []
        for code in codes:
            i = self._number(code)
            labels = self.studies[i][1]["labels"]
            findings = np.array([float(labels.get(name) == 1) for name in OBSERVATIONS])
            rows.append(np.concatenate([self._text_embedding(self._lines[i]), findings]))
        return np.array(rows)

    def embed_texts(self, reports):
        rows = []
        for report in reports:
            prompt = report["findings"].rstrip(".").lower().removeprefix("there is ")
            # A negative prompt points in the opposite direction, so that the threshold is 0.
            sign = -1.0 if prompt.startswith("no ") else 1.0
            finding = np.array([sign * (prompt.removeprefix("no ") == name.lower()) for name in OBSERVATIONS])
            rows.append(np.concatenate([self._text_embedding(_line(report)) * (not finding.any()), finding]))
        return np.array(rows)

    def match(self, codes, views, reports):
        pairs = zip(codes, reports, strict=True)
        return np.array([float(self._lines[self._number(code)] == _line(report)) for code, report in pairs])

    def match_all(self, codes, views, reports):
        findings = self.embed_images(codes, views)[:, 256:] * 2 - 1  # a finding that is not positive is denied
        return 1 / (1 + np.exp(-5 * (findings @ self.embed_texts(reports)[:, 256:].T)))

    def write_reports(self, codes, views):
        return [dict(self.studies[self._number(code)][1]["report"]) for code in codes]

    def draw(self, reports, views, seed=0, guidance=2.0, temperature=1.0, top_k=None, top_p=None):
        requests = Counter()
        codes = []
        for line in map(_line, reports):
            numbers = self._by_line[line]
            codes.append(code_of(self.studies[self._target[numbers[requests[line] % len(numbers)]]][0]))
            requests[line] += 1
        return np.stack(codes)

    def image_backbone(self, seed=None):
        target = self._target if seed is None else None
        return OracleBackbone(self, target, seed)

    def decode(self, codes):
        rows = [self.studies[self._by_code[np.ascontiguousarray(code).tobytes()]][0] for code in codes]
        return np.stack(rows).astype(np.float32) / 255


class OracleBackbone(torch.nn.Module):
    """Backbone whose states contain the labels and masks of the studies ``target``; random states if it is None.

    The pooled state holds the findings; the state of each of the 4 x 4 codes holds its 8 x 8 pixels of each mask.
    """

    def __init__(self, oracle, target, seed):
        super().__init__()
        self._numbers = oracle._by_code
        labels = [[float(info["labels"].get(name) == 1) for name in OBSERVATIONS] for _, info in oracle.studies]
        marked = sorted({finding for masks in oracle.masks or [{}] for finding in masks})
        patches = np.zeros((len(oracle.studies), 16, max(64 * len(marked), len(OBSERVATIONS))), dtype=np.float32)
        for i, masks in enumerate(oracle.masks or []):
            for finding, mask in masks.items():
                f = marked.index(finding)
                pixels = mask.reshape(4, 8, 4, 8).transpose(0, 2, 1, 3).reshape(16, 64)
                patches[i, :, 64 * f : 64 * (f + 1)] = pixels
        self.width = patches.shape[2]
        pooled = np.zeros((len(labels), self.width), dtype=np.float32)
        pooled[:, : len(OBSERVATIONS)] = labels
        order = np.arange(len(labels)) if target is None else np.array(target)
        self.pooled, self.patches = torch.from_numpy(pooled[order]), torch.from_numpy(patches[order])
        if target is None:
            rng = torch.Generator().manual_seed(seed)
            self.pooled = torch.randn(self.pooled.shape, generator=rng)
            self.patches = torch.randn(self.patches.shape, generator=rng)
        self.gain = torch.nn.Parameter(torch.tensor(4.0))

    def inputs(self, codes, views):
        return (torch.tensor([self._numbers[np.ascontiguousarray(code).tobytes()] for code in codes]),)

    def forward(self, numbers):
        return self.gain * self.pooled[numbers], self.gain * self.patches[numbers]
