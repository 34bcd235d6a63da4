"""Fine-tuning on the states of an oracle, of random noise and of a real network, with labels and with masks."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from medunifier.data.phantom import Phantom
from medunifier.shared.errors import UsageError
from medunifier.stage2_unified.evaluate.classifiers.heads import FindingHead, FineTuning, MaskHead, train_head
from medunifier.stage2_unified.evaluate.command import EvaluateConfig, evaluate, main
from medunifier.stage2_unified.evaluate.results.result import EvaluationContext
from medunifier.stage2_unified.evaluate.subsets.studies import EvaluationData
from medunifier.stage2_unified.evaluate.tasks.finetune import evaluate_finetune
from tests.stage2_unified.evaluate.phantom_oracle import SIZE, FakeTokenizer, Oracle, write_shards

QUICK = FineTuning(steps=60, rate=0.05, shares=(10, 100))
BY_MASKS = FineTuning(steps=60, rate=0.3, shares=(100,))
MARKED = ("Lung Lesion", "Pleural Effusion")


@pytest.fixture(scope="module")
def masks(studies):
    phantom = Phantom(SIZE, 3)
    everything = [phantom.masks(index) for index in range(len(studies))]
    # Two findings only, since the width of the oracle's states grows with their number.
    return [{name: mask for name, mask in found.items() if name in MARKED} for found in everything]


@pytest.fixture(scope="module")
def masked_shards(studies, masks, tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("masked"), studies, masks=masks)


def evaluated(shards, oracle, **options):
    data = EvaluationData(str(shards), FakeTokenizer())
    return evaluate_finetune(EvaluationContext(oracle, data, **{"limit": 0, "finetune": QUICK} | options))


def test_oracle_states_reach_the_ceiling_and_noise_is_at_chance(image_shards, studies):
    result = evaluated(image_shards, Oracle(studies))
    figures = result.metrics
    assert figures["finetune.full_auroc_100"] > 0.99 and figures["finetune.linear_auroc_100"] == 1
    assert figures["finetune.full_accuracy_100"] > 0.97 > figures["finetune.full_accuracy_100.baseline"]
    assert figures["finetune.scratch_auroc_100"] == pytest.approx(0.5, abs=0.12)
    gain = figures["finetune.full_auroc_10"] - figures["finetune.scratch_auroc_10"]
    assert figures["finetune.gain_10"] == pytest.approx(gain) and gain > 0.3
    low, high = result.samples["finetune"].intervals(50, 0)["finetune.gain_10"]
    assert 0.2 < low < gain < high
    assert "segmentation" not in result.details  # the shards have no masks
    worst = evaluated(image_shards, Oracle(studies, shuffled=True)).metrics
    for method in ("linear", "full"):
        assert worst[f"finetune.{method}_auroc_100"] == pytest.approx(0.5, abs=0.12)


def test_dice_of_oracle_shuffled_oracle_and_noise(masked_shards, studies, masks):
    result = evaluated(masked_shards, Oracle(studies, masks=masks), finetune=BY_MASKS)
    figures = result.metrics
    for method in ("frozen", "full"):
        # Below 1, since a head cannot learn pixels that no training mask contains.
        assert figures[f"finetune.{method}_dice_100"] > 0.85
        assert figures[f"finetune.{method}_dice_all_100"] > figures[f"finetune.{method}_dice_all_100.baseline"]
    assert figures["finetune.scratch_dice_100"] < figures["finetune.scratch_dice_100.baseline"] < 0.6
    assert figures["finetune.dice_gain_100"] == pytest.approx(
        figures["finetune.full_dice_100"] - figures["finetune.scratch_dice_100"]
    )
    found = result.details["segmentation"]
    data = EvaluationData(str(masked_shards), FakeTokenizer())
    test = data.studies("test", with_text=False)
    truth = data.masks("test", test)
    for finding, row in found["findings"].items():
        assert row["images"] == sum((mask == 1).any() for mask in truth[finding]) >= 5
    assert tuple(found["findings"]) == MARKED
    assert {row["finding"] for row in found["examples"]} == found["findings"].keys()
    other_patients = Oracle(studies, shuffled=True, masks=masks)
    shuffled = evaluated(masked_shards, other_patients, finetune=replace(BY_MASKS, scratch=False)).metrics
    assert shuffled["finetune.full_dice_100"] < shuffled["finetune.full_dice_100.baseline"] + 0.05


def test_a_missing_mask_is_unknown_for_a_stated_finding_and_empty_otherwise(studies, masks, tmp_path):
    finding = "Pleural Effusion"
    missing = [i for i, (_, info) in enumerate(studies) if info["labels"].get(finding) == 1][::3]
    kept = [{} if i in missing else dict(found) for i, found in enumerate(masks)]
    data = EvaluationData(str(write_shards(tmp_path, studies, masks=kept)), FakeTokenizer())
    test = data.studies("test", with_text=False)
    found = data.masks("test", test)[finding]
    names = {info["study_id"]: i for i, (_, info) in enumerate(studies)}
    for row, study in enumerate(test.ids):
        i = names[study]
        if i in missing:
            assert (found[row] == -1).all()
        elif finding in kept[i]:
            assert (found[row] == kept[i][finding]).all()
        else:
            assert (found[row] == 0).all()


def test_unknown_labels_and_masks_have_no_gradient():
    logits = torch.zeros(2, 3, requires_grad=True)
    truth = torch.tensor([[1.0, float("nan"), 0.0], [float("nan")] * 3])
    loss = FindingHead.loss(logits, truth)
    loss.backward()
    assert loss.item() == pytest.approx(np.log(2)) and logits.grad.nonzero().tolist() == [[0, 0], [0, 2]]
    maps = torch.zeros(2, 2, 4, 4, requires_grad=True)
    targets = torch.zeros(2, 2, 4, 4, dtype=torch.int8)
    targets[0, 1] = targets[1, 0] = -1
    MaskHead.loss(maps, targets).backward()
    assert maps.grad.abs().amax(dim=(2, 3)).nonzero().tolist() == [[0, 0], [1, 1]]
    assert MaskHead.loss(maps, torch.full_like(targets, -1)).item() == 0


def test_a_code_is_mapped_to_the_pixels_that_it_covers():
    head = MaskHead(3, 2, (2, 3), 12)
    patches = torch.zeros(1, 6, 3)
    base = head(torch.zeros(1, 3), patches)
    patches[0, 4] = 1.0  # second row, second column
    moved = (head(torch.zeros(1, 3), patches) - base)[0].abs().sum(dim=0).nonzero()
    assert base.shape == (1, 2, 12, 12)
    assert moved.amin(dim=0).tolist() == [6, 4] and moved.amax(dim=0).tolist() == [11, 7]


def test_a_frozen_backbone_is_unchanged_and_an_epoch_has_every_study_once():
    visited = []

    class Backbone(torch.nn.Module):
        width = 2

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))

        def forward(self, rows):
            visited.extend(rows.flatten().tolist())
            return rows * self.weight, rows[:, None] * self.weight

    x, truth = torch.arange(10.0)[:, None].expand(-1, 2), torch.ones(10, 1)
    options = FineTuning(steps=5, batch_size=4, rate=0.1)
    for frozen in (True, False):
        visited.clear()
        backbone = Backbone()
        train_head(backbone, FindingHead(2, 1), (x,), truth, options, 0, frozen, "test")
        assert (backbone.weight == 1).all() == frozen
        assert sorted(visited[::2]) == sorted([*range(10)] * 2)


def test_uncertain_labels_are_ignored_or_mapped(studies, tmp_path):
    """A finding that is only uncertain in training can be learned if uncertain is mapped to present."""
    changed = [
        (pixels, info | {"labels": {"Edema": (-1 if info["split"] == "train" else 1) * (i % 2)}})
        for i, (pixels, info) in enumerate(studies[:200])
    ]
    shards = write_shards(tmp_path, changed)
    known = Oracle([(p, info | {"labels": {"Edema": abs(info["labels"]["Edema"])}}) for p, info in changed])
    figures = {
        rule: evaluated(shards, known, finetune=replace(QUICK, steps=0, uncertain=rule)).metrics[
            "finetune.linear_auroc_100"
        ]
        for rule in ("ignore", "chexpert")
    }
    assert figures["ignore"] == 0.5 and figures["chexpert"] > 0.95


def test_only_a_named_label_set_is_evaluated(image_shards, studies):
    result = evaluated(image_shards, Oracle(studies), label_set="chexpert5", finetune=replace(QUICK, steps=0))
    assert set(result.details["positives"]) <= {
        "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion",
    }  # fmt: skip


def test_the_command_runs_a_real_network(model_folder, phantom_shards, tmp_path, capsys):
    """With a tiny untrained network the command writes every metric with its interval, and the recipe."""
    out = tmp_path / "o.json"
    recipe = ["--finetune.steps", "3", "--finetune.batch_size", "4", "--finetune.shares", "[50]", "--bootstrap", "5"]
    main(["finetune", "--model", str(model_folder), "--data", str(phantom_shards), "--out", str(out), *recipe])
    result = json.loads(out.read_text())
    figures, intervals = result["metrics"], result["details"]["finetune"]["intervals"]
    for method in ("linear", "full", "scratch"):
        assert 0 <= figures[f"finetune.{method}_auroc_50"] <= 1 and f"finetune.{method}_auroc_50" in intervals
    assert "finetune.gain_50" in figures and result["details"]["finetune"]["train_studies"] == {"50 %": 16}
    page = out.with_suffix(".html").read_text()
    assert "50 % of the labels: 16 studies" in page and "full, 50 %" in page
    assert result["details"]["finetune"]["recipe"]["steps"] == 3


def test_the_page_shows_predicted_masks(masked_shards, studies, masks, tmp_path):
    config = EvaluateConfig(
        "m", str(masked_shards), str(tmp_path / "o.json"), limit=0, bootstrap=5, finetune=BY_MASKS
    )
    evaluate("finetune", config, FakeTokenizer(), Oracle(studies, masks=masks), "")
    page = (tmp_path / "o.html").read_text()
    assert "Predicted masks" in page and "Dice by finding" in page and "Pleural Effusion, Dice" in page
    figures = json.loads((tmp_path / "o.json").read_text())["details"]["finetune"]["intervals"]
    assert figures["finetune.full_dice_100"][0] > 0.7


@pytest.mark.parametrize(
    "wrong", [["--finetune.shares", "[0]"], ["--finetune.rate", "0"], ["--finetune.steps", "-1"]]
)
def test_invalid_recipes_are_refused(wrong):
    with pytest.raises(UsageError, match="steps must|shares must"):
        main(["finetune", "--model", "m", "--data", "d", "--out", "o.json", *wrong])


def test_auroc_equals_scikit_learn(image_shards, studies):
    result = evaluated(image_shards, Oracle(studies, shuffled=True))
    table = result.samples["finetune"].columns
    truth = table["truth"]
    for method in ("linear", "full", "scratch"):
        scores = table[f"score_{method}_100"]
        known = [~np.isnan(truth[:, f]) for f in range(truth.shape[1])]
        each = [roc_auc_score(truth[k, f], scores[k, f]) for f, k in enumerate(known)]
        assert result.metrics[f"finetune.{method}_auroc_100"] == pytest.approx(np.mean(each))
