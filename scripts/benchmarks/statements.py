"""Whether the text embeddings tell agreeing from contradicting statements: trained on Open-I's reports alone.

Open-I's images are not needed: each study has an image of noise, of four codes, and the contrast of reports with
statements is the only loss. Pairs of sentences of held-out reports that each state or deny one finding, the same
one, agree or contradict each other; so do pairs of a held-out report and a phrase. The score of a pair is the cosine
of its embeddings. The peer is the cosine of TF-IDF vectors of words and word pairs, fitted on the training reports.
"""

import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import roc_auc_score

from medunifier.bench import Row
from medunifier.data.reports.observations import NEGATIVE, OBSERVATIONS, POSITIVE
from medunifier.data.shards.dataset import ShardDataset
from medunifier.shared.artifacts import atomic_folder
from medunifier.shared.errors import UserError
from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline
from medunifier.stage2_unified.model.processing.statements import label_vector, phrases, sentence_labels, sentences

ROOT = Path(__file__).resolve().parents[2]
SIZE = 16
SECTIONS = ("findings", "impression")
LEAST_PAIRS = 20
"""Minimum number of pairs of each kind; findings with fewer are not evaluated."""
_MESH = re.compile(rb"<MeSH>.*?</MeSH>", re.DOTALL)

Embed = Callable[[Sequence[tuple[str, str]]], np.ndarray]
"""(section, text) of N texts -> (N, E) embeddings, whose products are compared."""


@dataclass(frozen=True)
class Config:
    """Train text embeddings on Open-I's reports, and compare pairs of statements."""

    reports: str
    """Archive of Open-I's reports (ecgen-radiology, .tgz)."""
    runs: str
    """Folder of the data and the trainings; finished ones are not repeated."""
    out: str = ""
    """File for the table, NAME.json; empty = print it alone."""
    steps: int = 400
    """Steps of each training."""
    seeds: int = 3
    """Trainings, with the seeds 0, 1, and so on."""
    threads: int = 0
    """CPU threads; 0 = all cores."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")


def rows(config: Config) -> list[Row]:
    """Compare the embeddings (ours, mean of the seeds) with TF-IDF (peer): macro AUROC over the findings."""
    runs = Path(config.runs).resolve()
    codes = _prepare(config, runs)
    words = _tf_idf(codes)
    ours = []
    for seed in range(config.seeds):
        model = runs / f"seed-{seed}" / "model"
        if not model.is_dir():
            _train(config, codes, runs, seed)
        ours.append(evaluate(codes, _text_tower(MedUnifierPipeline.from_pretrained(model))))
    peer = evaluate(codes, words)
    results = []
    for kind, of_peer in peer.items():
        mean = {finding: float(np.mean([result[kind][finding] for result in ours])) for finding in of_peer}
        worst = min(mean, key=lambda finding: mean[finding])
        macro = [float(np.mean(list(result[kind].values()))) for result in ours]
        seeds = ", ".join(f"{value:.3f}" for value in macro)
        results += [
            _row(
                f"{kind}, AUROC over {len(mean)} findings (seeds: {seeds})", float(np.mean(macro)), of_peer.values()
            ),
            _row(f"{kind}, AUROC of our worst finding, {worst}", mean[worst], [of_peer[worst]]),
        ]
    return results


def _row(what: str, ours: float, of_peer: Iterable[float]) -> Row:
    peer = float(np.mean(list(of_peer)))
    return Row(what, ours, peer, ours / peer)


def evaluate(codes: Path, embed: Embed) -> dict[str, dict[str, float]]:
    """Return the AUROC by finding, for both kinds of pairs of the test split."""
    studies = list(ShardDataset(str(codes), "test").infos())
    stated: list[tuple[str, str, int, int]] = []  # section, sentence, finding, value
    for section, text in sorted({pair for study in studies for pair in sentences(study["report"], SECTIONS)}):
        known = [(number, value) for number, value in enumerate(sentence_labels(text)) if value in (0, 1)]
        if len(known) == 1:
            stated.append((section, text, *known[0]))
    embedded = embed([(section, text) for section, text, _, _ in stated])
    of_sentences: dict[str, list[tuple[float, bool]]] = {}
    for i, (_, one, finding, value) in enumerate(stated):
        for j, (_, other, same, stated_value) in enumerate(stated[:i]):
            if finding == same and one != other:
                pair = float(embedded[i] @ embedded[j]), value == stated_value
                of_sentences.setdefault(OBSERVATIONS[finding], []).append(pair)
    of_reports: dict[str, list[tuple[float, bool]]] = {}
    whole = embed([("findings", " ".join(study["report"].get(s, "") for s in SECTIONS)) for study in studies])
    for number, name in enumerate(OBSERVATIONS):
        texts = [(text, value) for value in (POSITIVE, NEGATIVE) for text in phrases(name, value)]
        of_texts = embed([("findings", text) for text, _ in texts])
        for vector, study in zip(whole, studies, strict=True):
            label = label_vector(study["labels"], from_report=True)[number]
            of_reports.setdefault(name, []).extend(
                (float(vector @ text), value == label)
                for text, (_, value) in zip(of_texts, texts, strict=True)
                if label in (POSITIVE, NEGATIVE)
            )
    return {
        kind: {finding: auroc for finding, group in pairs.items() if (auroc := _auroc(group)) is not None}
        for kind, pairs in (("pairs of sentences", of_sentences), ("report and phrase", of_reports))
    }


def _auroc(pairs: list[tuple[float, bool]]) -> float | None:
    scores, agree = np.array([score for score, _ in pairs]), np.array([agrees for _, agrees in pairs], dtype=bool)
    if min(agree.sum(), (~agree).sum()) < LEAST_PAIRS:
        return None
    return float(roc_auc_score(agree, scores))


def _text_tower(pipeline: MedUnifierPipeline) -> Embed:
    return lambda texts: pipeline.embed_texts([{section: text} for section, text in texts])


def _tf_idf(codes: Path) -> Embed:
    reports = [study["report"] for study in ShardDataset(str(codes), "train").infos()]
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    vectors.fit([report.get(section, "") for report in reports for section in SECTIONS])
    return lambda texts: vectors.transform([text for _, text in texts]).toarray()


def _prepare(config: Config, runs: Path) -> Path:
    """Write the token shards, by the commands for any archive, and return their folder."""
    root, images, stage1, codes = (runs / name for name in ("archive", "images", "stage1", "codes"))
    if not root.is_dir():
        with atomic_folder(root) as partial:
            _unpack(Path(config.reports), partial)
    if not (images / "manifest.json").is_file():
        _run(
            f"-m medunifier ingest --source openi --size {SIZE} --duplicates ignore --test_fraction 0.2",
            *("--root", f"{root}", "--out", f"{images}", "--key_file", f"{runs / 'pseudonym.key'}"),
        )
    if not (stage1 / "tokenizer").is_dir():
        _run(
            f"stage1_tokenizer/train.py --config configs/stage1/demo.yaml --model.resolution {SIZE} --compile false "
            "--loss.perceptual_weight 0 --loss.perceptual.net none "
            "--loss.semantic.labels.weight 0 --loss.semantic.labels.reconstruction_weight 0 "
            "--loop.steps 20 --loop.validate_every 20 --loop.checkpoint_every 20",
            *("--data.shards", f"{images}", "--run_dir", f"{stage1}"),
        )
    if not (codes / "manifest.json").is_file():
        _run(
            "-m medunifier tokenize",
            *("--tokenizer", f"{stage1 / 'tokenizer'}", "--shards", f"{images}", "--out", f"{codes}"),
        )
    return codes


def _train(config: Config, codes: Path, runs: Path, seed: int) -> None:
    _run(
        "stage2_unified/train.py --config configs/stage2/demo.yaml --compile false --model.experts none "
        "--data.statements 4 --data.statement_tokens 32 --data.max_report_tokens 64 --data.text_dropout 0 "
        "--weights.contrast 0 --weights.matching 0 --weights.report 0 --weights.image 0 --weights.z 0 "
        "--weights.statement_contrast 0 --weights.statement_matching 0 --weights.statement_report 1 "
        f"--loop.steps {config.steps} --loop.batch_size 16 --loop.validate_every {config.steps} "
        f"--loop.checkpoint_every {config.steps} --loop.seed {seed} --loop.threads {config.threads}",
        *("--data.shards", f"{codes}", "--tokenizer", f"{runs / 'stage1' / 'tokenizer'}"),
        *("--run_dir", f"{runs / f'seed-{seed}'}"),
    )


def _unpack(archive: Path, root: Path) -> None:
    """Write the reports without their headings, whose place labels of the text take, and noise for each image."""
    if not archive.is_file():
        raise UserError(f"{archive} not found: pass NLMCXR_reports.tgz")
    folder = root / "ecgen-radiology"
    folder.mkdir()
    generator = np.random.default_rng(0)
    with tarfile.open(archive) as content:
        for member in content:
            file = content.extractfile(member) if member.name.endswith(".xml") else None
            if file is None:
                continue
            text = file.read()
            (folder / Path(member.name).name).write_bytes(_MESH.sub(b"", text))
            for name in re.findall(rb'<parentImage id="([^"]+)"', text)[:1]:
                noise = generator.integers(0, 256, (SIZE * 4, SIZE * 4), dtype=np.uint8)
                Image.fromarray(noise).save(root / f"{name.decode()}.png")


def _run(options: str, *paths: str) -> None:
    """Run Python with these options, separated by spaces, and with paths, which may contain some."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command, environment = [sys.executable, *options.split(), *paths], os.environ | {"PYTHONPATH": path}
    if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode:  # noqa: S603 - fixed program, arguments as a list
        raise UserError(f"{' '.join(command[1:4])} failed with the message above; the same command continues")
