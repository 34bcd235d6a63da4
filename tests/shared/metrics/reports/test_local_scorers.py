"""Scorers whose weights are the user's: METEOR, BERTScore, CheXbert, RadGraph. Small made models stand for them."""

import math
import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nltk.stem.porter import PorterStemmer
from torchmetrics.functional.text import bert_score
from transformers import BertConfig, BertModel, BertTokenizerFast

from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.shared.errors import UserError
from medunifier.shared.metrics.reports.bertscore import BertScore
from medunifier.shared.metrics.reports.chexbert import HEADS, Chexbert
from medunifier.shared.metrics.reports.meteor import load_wordnet, meteor_each
from medunifier.shared.metrics.reports.radgraph import RadGraph, radgraph_f1
from tests.seeds import for_seeds

WORDS = ["heart", "lungs", "clear", "effusion", "effusions", "small", "smaller", "no", "is", "are", "left", "opacity"]
SYNONYMS = {"opacity": {"density"}, "small": {"little"}}


class SmallWordnet:
    """Synonyms in the shape in which nltk asks WordNet for them."""

    def synsets(self, word):
        if word not in SYNONYMS:
            return []
        lemmas = [SimpleNamespace(name=lambda n=name: n) for name in {word, *SYNONYMS[word]}]
        return [SimpleNamespace(lemmas=lambda: lemmas)]


def by_hand(words, truth):
    """METEOR as nltk has it: matched from the end, exactly, by stem, then by synonyms of the stems."""
    left, right = list(enumerate(words)), list(enumerate(truth))
    matches = []
    stem = PorterStemmer().stem
    for same in (
        lambda a, b: a == b,
        lambda a, b: stem(a) == stem(b),
        lambda a, b: stem(b) in {stem(a), *SYNONYMS.get(stem(a), ())},
    ):
        for i, a in left[::-1]:
            for j, b in right[::-1]:
                if same(a, b):
                    matches.append((i, j))
                    left.remove((i, a))
                    right.remove((j, b))
                    break
    if not matches:
        return 0.0
    matches.sort()
    chunks = 1 + sum(b[0] != a[0] + 1 or b[1] != a[1] + 1 for a, b in zip(matches, matches[1:], strict=False))
    precision, recall = len(matches) / len(words), len(matches) / len(truth)
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    return mean * (1 - 0.5 * (chunks / len(matches)) ** 3)


@for_seeds(200)
def test_meteor_equals_its_definition(seed):
    rng = random.Random(seed)
    words, truth = ([rng.choice([*WORDS, "density", "little"]) for _ in range(rng.randint(1, 9))] for _ in range(2))
    got = meteor_each([" ".join(words)], [" ".join(truth)], SmallWordnet())
    assert got[0] == pytest.approx(by_hand([*words, "."], [*truth, "."]))


def test_meteor_of_an_empty_report_is_zero_and_wordnet_is_required(tmp_path):
    assert meteor_each(["", "clear"], ["clear", ""], SmallWordnet()).tolist() == [0, 0]
    with pytest.raises(UserError, match="WordNet.*downloaded"):
        load_wordnet(str(tmp_path))
    (tmp_path / "index.noun").write_text("")
    with pytest.raises(UserError, match="cannot be read"):
        load_wordnet(str(tmp_path))


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    """A BERT of 16 features with a vocabulary of the words above."""
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64,
    )  # fmt: skip
    model = BertModel(config).eval()
    model.save_pretrained(folder)
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    heads = torch.nn.ModuleList(torch.nn.Linear(16, classes) for classes in HEADS)
    state = {f"module.bert.{key}": value for key, value in model.state_dict().items()}
    state |= {f"module.linear_heads.{key}": value for key, value in heads.state_dict().items()}
    torch.save({"model_state_dict": state}, folder / "chexbert.pth")
    return folder, model, heads


def hidden(bert_folder, text, layer=-1):
    tokenizer = BertTokenizerFast.from_pretrained(bert_folder[0])
    with torch.inference_mode():
        return bert_folder[1](**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[layer][
            0
        ]


def test_bertscore_equals_torchmetrics_a_pair_at_a_time(bert_folder):
    rng = random.Random(0)
    texts = [[" ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 8))) for _ in range(60)] for _ in range(2)]
    got = BertScore(str(bert_folder[0]), layer=1, device="cpu")(*texts)
    tokenizer = BertTokenizerFast.from_pretrained(bert_folder[0])
    for value, written, reference in zip(got, *texts, strict=True):
        expected = bert_score(
            [written], [reference], model=bert_folder[1], user_tokenizer=tokenizer, num_layers=1, max_length=62
        )
        assert value == pytest.approx(float(expected["f1"]), abs=1e-4)


def test_bertscore_at_the_ceiling_of_nothing_and_without_a_model(bert_folder, tmp_path):
    scorer = BertScore(str(bert_folder[0]), device="cpu")
    assert scorer(["lungs clear", "", "x"], ["lungs clear", "clear", ""]) == pytest.approx([1, 0, 0], abs=1e-5)
    assert len(scorer.describe()["sha256"]) == 64 and scorer.describe()["layer"] == 2
    with pytest.raises(UserError, match=f"{tmp_path}.*downloaded"):
        BertScore(str(tmp_path))
    with pytest.raises(UserError, match="2.*5"):
        BertScore(str(bert_folder[0]), layer=5)


def test_chexbert_reads_the_published_checkpoints_form(bert_folder):
    labeler = Chexbert(str(bert_folder[0]), OBSERVATIONS, device="cpu")
    rng = random.Random(1)
    reports = [" ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 20))) + "\n." for _ in range(60)]
    got = labeler(reports)
    seen = set()
    for report, labels in zip(reports, got, strict=True):
        first = hidden(bert_folder, " ".join(report.split()))[0].clone()
        for name, head in zip(OBSERVATIONS, bert_folder[2], strict=True):
            expected = {0: None, 1: 1, 2: 0, 3: -1}[int(head(first).argmax())]
            assert labels.get(name) == expected
            seen.add(expected)
    assert len(seen) >= 3
    assert len(labeler(["lungs " * 200])) == 1  # longer than the positions


def test_chexbert_names_missing_and_invalid_files(bert_folder, tmp_path):
    with pytest.raises(UserError, match=r"chexbert\.pth, config\.json, vocab\.txt"):
        Chexbert(str(tmp_path), OBSERVATIONS)
    for name in ("config.json", "vocab.txt"):
        (tmp_path / name).write_bytes((bert_folder[0] / name).read_bytes())
    (tmp_path / "chexbert.pth").write_text("no")
    with pytest.raises(UserError, match="checkpoint"):
        Chexbert(str(tmp_path), OBSERVATIONS)
    torch.save({"model_state_dict": {"module.bert.x": torch.zeros(1)}}, tmp_path / "chexbert.pth")
    with pytest.raises(UserError, match=r"\d+ tensors"):
        Chexbert(str(tmp_path), OBSERVATIONS)


def entity(tokens, label="OBS-DP", *relations):
    return {"tokens": tokens, "label": label, "relations": [list(relation) for relation in relations]}


def test_radgraph_f1_by_levels():
    truth = {"entities": {"1": entity("effusion", "OBS-DP", ("located_at", "2")), "2": entity("Left", "ANAT-DP")}}
    moved = {"entities": {"7": entity("Effusion", "OBS-DP", ("located_at", "9")), "9": entity("right", "ANAT-DP")}}
    bare = {"entities": {"1": entity("effusion"), "2": entity("left", "ANAT-DP")}}
    denied = {"entities": {"1": entity("effusion", "OBS-DA", ("located_at", "2")), "2": entity("left", "ANAT-DP")}}
    figures = [[radgraph_f1(x, truth, level) for level in ("simple", "partial", "complete")]
               for x in (truth, moved, bare, denied, {"entities": {}})]  # fmt: skip
    assert figures == [[1, 1, 1], [0.5, 0.5, 0], [1, 0.5, 0.5], [0.5, 0.5, 0.5], [0, 0, 0]]


@for_seeds(200)
def test_radgraph_f1_is_that_of_the_counts(seed):
    rng = random.Random(seed)

    def annotation():
        names = [str(i) for i in range(rng.randint(1, 6))]
        return {
            "entities": {
                n: entity(
                    rng.choice("abc"), rng.choice(["X", "Y"]), *([("r", rng.choice(names))] * rng.randint(0, 1))
                )
                for n in names
            }
        }

    a, b = annotation(), annotation()
    listed = [
        sorted({(e["tokens"], e["label"], len(e["relations"]) > 0) for e in x["entities"].values()}) for x in (a, b)
    ]
    hits = sum(1 for fact in listed[0] if fact in listed[1])
    precision, recall = hits / len(listed[0]), hits / len(listed[1])
    expected = 2 * precision * recall / (precision + recall) if hits else 0
    assert math.isclose(radgraph_f1(a, b, "partial"), expected)


def test_radgraph_asks_for_its_package_and_model(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "radgraph", None)
    with pytest.raises(UserError, match="radgraph"):
        RadGraph(str(tmp_path))

    def annotate(texts):
        assert all(texts)
        return {str(i): {"text": t, "entities": {"1": entity(t)}} for i, t in enumerate(texts)}

    stub = SimpleNamespace(RadGraph=lambda model_type, model_cache_dir, tokenizer_cache_dir: annotate)
    monkeypatch.setitem(sys.modules, "radgraph", stub)
    with pytest.raises(UserError, match=f"{tmp_path}.*downloaded"):
        RadGraph(str(tmp_path))
    (tmp_path / "radgraph.tar.gz").write_text("")
    scores = RadGraph(str(tmp_path))(["clear", "", "opacity"], ["clear", "x", "effusion"])
    assert {level: values.tolist() for level, values in scores.items()} == dict.fromkeys(
        ("simple", "partial", "complete"), [1, 0, 0]
    )
    assert RadGraph(str(tmp_path))([""], [""])["simple"] == np.zeros(1)
