"""Shards of phantoms, and an oracle that knows the truth and must be evaluated as perfect."""

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
    """Image shards of (pixels, info) pairs, or token shards where ``codes`` are given; one shard a split.

    ``masks`` are {finding: (H, W) booleans} of each study.
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
        manifest["tokenizer"] = {"fingerprint": FakeTokenizer.fingerprint}
    write_json(root / MANIFEST, manifest)
    return root


def phantom_studies(count):
    """(pixels, info) as ingest would write them."""
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
    """Codes are a digest of the pixels: different images have different codes."""

    fingerprint = "f" * 64
    image_size = SIZE

    def encode_images(self, images, batch_size=32):
        return np.stack([code_of(image) for image in images])


def code_of(pixels):
    digest = hashlib.sha256(pixels.tobytes()).digest()
    return np.frombuffer(digest, dtype=np.uint16).astype(np.int64).reshape(4, 4)


def _line(report):
    return normalise_report(f"{report['findings']} {report['impression']}")


@dataclass
class Oracle:
    """Answers every question from the truth, of the study itself or, if ``shuffled``, of another one.

    An embedding has a part for the text, equal for equal texts, and one for the findings.
    """

    studies: list
    shuffled: bool = False
    tokenizer: FakeTokenizer = field(default_factory=FakeTokenizer)
    masks: list | None = None
    fingerprint: str = "e" * 64
    sections: str = "findings+impression"

    def __post_init__(self):
        count = len(self.studies)
        # Every study answers for the one that stands a seventh of the archive further on: other patients.
        self._answer = [(i + count // 7) % count if self.shuffled else i for i in range(count)]
        self._by_code = {code_of(pixels).tobytes(): i for i, (pixels, _) in enumerate(self.studies)}
        self._lines = [_line(info["report"]) for _, info in self.studies]
        # Of studies with one report, those of the test split come first: whoever asks for all of these gets each.
        self._by_line = defaultdict(list)
        for i in sorted(range(count), key=lambda i: self.studies[i][1]["split"] != "test"):
            self._by_line[self._lines[i]].append(i)

    def _number(self, codes):
        return self._answer[self._by_code[np.ascontiguousarray(codes).tobytes()]]

    def _text_part(self, line):
        return np.random.default_rng(list(line.encode())).normal(size=256) / 16

    def embed_images(self, codes, views):
        rows = []
        for code in codes:
            i = self._number(code)
            labels = self.studies[i][1]["labels"]
            findings = np.array([float(labels.get(name) == 1) for name in OBSERVATIONS])
            rows.append(np.concatenate([self._text_part(self._lines[i]), findings]))
        return np.array(rows)

    def embed_texts(self, reports):
        rows = []
        for report in reports:
            prompt = report["findings"].rstrip(".").lower().removeprefix("there is ")
            # A denial points away from the finding, so that 0 lies between.
            sign = -1.0 if prompt.startswith("no ") else 1.0
            finding = np.array([sign * (prompt.removeprefix("no ") == name.lower()) for name in OBSERVATIONS])
            rows.append(np.concatenate([self._text_part(_line(report)) * (not finding.any()), finding]))
        return np.array(rows)

    def match(self, codes, views, reports):
        pairs = zip(codes, reports, strict=True)
        return np.array([float(self._lines[self._number(code)] == _line(report)) for code, report in pairs])

    def write_reports(self, codes, views):
        return [dict(self.studies[self._number(code)][1]["report"]) for code in codes]

    def draw(self, reports, views, seed=0, guidance=2.0, temperature=1.0, top_k=None, top_p=None):
        asked = Counter()
        rows = []
        for line in map(_line, reports):
            numbers = self._by_line[line]
            rows.append(code_of(self.studies[self._answer[numbers[asked[line] % len(numbers)]]][0]))
            asked[line] += 1
        return np.stack(rows)

    def image_backbone(self, seed=None):
        answer = self._answer if seed is None else None
        return OracleBackbone(self, answer, seed)

    def decode(self, codes):
        rows = [self.studies[self._by_code[np.ascontiguousarray(code).tobytes()]][0] for code in codes]
        return np.stack(rows).astype(np.float32) / 255


class OracleBackbone(torch.nn.Module):
    """States from which a linear head can read the truth of ``answer``; without one, noise that knows nothing.

    The state of the whole is the findings; those of the 4 x 4 codes are the 8 x 8 pixels of each mask there.
    """

    def __init__(self, oracle, answer, seed):
        super().__init__()
        self._numbers = oracle._by_code
        labels = [[float(info["labels"].get(name) == 1) for name in OBSERVATIONS] for _, info in oracle.studies]
        marked = sorted({finding for masks in oracle.masks or [{}] for finding in masks})
        cells = np.zeros((len(oracle.studies), 16, max(64 * len(marked), len(OBSERVATIONS))), dtype=np.float32)
        for i, masks in enumerate(oracle.masks or []):
            for finding, mask in masks.items():
                f = marked.index(finding)
                patches = mask.reshape(4, 8, 4, 8).transpose(0, 2, 1, 3).reshape(16, 64)
                cells[i, :, 64 * f : 64 * (f + 1)] = patches
        self.width = cells.shape[2]
        whole = np.zeros((len(labels), self.width), dtype=np.float32)
        whole[:, : len(OBSERVATIONS)] = labels
        order = np.arange(len(labels)) if answer is None else np.array(answer)
        self.whole, self.cells = torch.from_numpy(whole[order]), torch.from_numpy(cells[order])
        if answer is None:
            rng = torch.Generator().manual_seed(seed)
            self.whole = torch.randn(self.whole.shape, generator=rng)
            self.cells = torch.randn(self.cells.shape, generator=rng)
        self.gain = torch.nn.Parameter(torch.tensor(4.0))

    def inputs(self, codes, views):
        return (torch.tensor([self._numbers[np.ascontiguousarray(code).tobytes()] for code in codes]),)

    def forward(self, numbers):
        return self.gain * self.whole[numbers], self.gain * self.cells[numbers]
