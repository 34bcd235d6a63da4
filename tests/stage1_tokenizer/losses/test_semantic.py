"""Semantic objectives and heads: balance, unknown labels, pooling, negatives of the contrast."""

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize

from medunifier.stage1_tokenizer.config import SemanticConfig, SemanticLabelsConfig, SemanticReportConfig
from medunifier.stage1_tokenizer.losses.semantic.heads import WIDTH, LabelHead, ReportEmbedding, SemanticHeads
from medunifier.stage1_tokenizer.losses.semantic.objectives import (
    LabelBalance,
    alignment_loss,
    feature_distance,
    label_loss,
    report_contrast,
)

NAN = float("nan")


def balance_of(labels):
    """Weights such that present and absent cases of these labels have equal shares."""
    cases = len(labels) / 2
    return LabelBalance(cases / (labels == 1).sum(dim=0), cases / (labels == 0).sum(dim=0))


def test_label_loss_is_the_mean_of_present_and_absent_cases_however_rare_and_unknown():
    labels = torch.tensor([[1.0, 0], [0, NAN], [0, 1], [0, NAN], [0, 1]])
    logits = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    found = label_loss(logits, labels, balance_of(labels))
    halves = []
    for finding in range(2):
        for value in (0, 1):
            rows = labels[:, finding] == value
            halves.append(binary_cross_entropy_with_logits(logits[rows, finding], labels[rows, finding]))
    assert float(found) == pytest.approx(float(torch.stack(halves).mean()), rel=1e-6)
    assert float(label_loss(torch.zeros(5, 2), labels, balance_of(labels))) == pytest.approx(math.log(2))


def test_unknown_labels_and_findings_without_weight_have_no_gradient():
    labels = torch.tensor([[1.0, 0, 1], [NAN, 1, 0]])
    balance = LabelBalance(torch.tensor([1.0, 1, 0]), torch.tensor([1.0, 1, 0]))
    logits = torch.ones(2, 3, requires_grad=True)
    label_loss(logits, labels, balance).backward()
    assert (logits.grad != 0).tolist() == [[True, True, False], [False, True, False]]


def test_label_loss_of_parts_averages_to_that_of_the_whole():
    """A normaliser of the batch itself would weigh the known labels of a process by how few it has."""
    labels = torch.tensor([[1.0], [NAN], [NAN], [0]])
    balance, logits = balance_of(labels), torch.tensor([[0.3], [1], [2], [-0.7]])
    parts = [label_loss(logits[i : i + 2], labels[i : i + 2], balance) for i in (0, 2)]
    assert float(sum(parts)) / 2 == pytest.approx(float(label_loss(logits, labels, balance)))


def test_one_code_of_many_decides_a_finding():
    """Mean pooling would move the logit by 1 / 256 of the code's."""
    head = LabelHead(1)
    with torch.no_grad():
        head.local.weight.zero_()[0, 0] = 1.0
        head.whole.weight.zero_()
    features = torch.zeros(1, WIDTH, 16, 16)
    before = head(features)
    features[0, 0, 3, 5] = 12.0
    assert float((head(features) - before).detach()) > 6


def test_contrast_of_distinct_studies_is_two_cross_entropies():
    image, report = (normalize(torch.randn(5, 8), dim=1) for _ in range(2))
    keys, everyone = torch.arange(5), torch.ones(5, dtype=torch.bool)
    logits = 3 * image @ report.T
    expected = (cross_entropy(logits, keys) + cross_entropy(logits.T, keys)) / 2
    assert float(report_contrast(image, report, torch.tensor(3.0), keys, keys, everyone)) == pytest.approx(
        float(expected), rel=1e-5
    )


def test_equal_reports_attract_and_other_studies_of_a_patient_or_without_report_do_not_repel():
    image, report = (normalize(torch.randn(5, 8), dim=1).requires_grad_() for _ in range(2))
    report_key, patient_key = torch.tensor([7, 7, 1, 2, 3]), torch.tensor([0, 1, 2, 2, 4])
    has_report = torch.tensor([True, True, True, True, False])
    loss = report_contrast(image, report, torch.tensor(3.0), report_key, patient_key, has_report)
    similarity = (3 * image @ report.T).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss, image)
    assert torch.isfinite(gradient).all() and not gradient[4].any()
    # By hand: studies 0 and 1 share a report, 2 and 3 a patient.
    total = 0.0
    for logits in (similarity, similarity.T):
        log0, log1 = (logits[i, :4].log_softmax(dim=0) for i in (0, 1))
        total -= (log0[0] + log0[1] + log1[0] + log1[1]) / 2
        total -= logits[2, [2, 0, 1]].log_softmax(dim=0)[0] + logits[3, [3, 0, 1]].log_softmax(dim=0)[0]
    assert float(loss.detach()) == pytest.approx(float(total.detach()) / 8, rel=1e-5)


def test_alignment_is_zero_for_parallel_features_and_two_for_opposite_ones():
    features = torch.randn(2, 6, 3, 3)
    assert float(alignment_loss(4 * features, features)) == pytest.approx(0, abs=1e-6)
    assert float(alignment_loss(-features, features)) == pytest.approx(2)


def test_feature_distance_is_zero_at_the_original_alone_and_independent_of_scale():
    features = [torch.randn(2, 4, 6, 6), torch.randn(2, 8, 3, 3)]
    assert float(feature_distance(features, [3 * x for x in features])) == pytest.approx(0, abs=1e-6)
    assert float(feature_distance(features, [-x for x in features])) == pytest.approx(4, rel=1e-5)
    one = [features[0], torch.where(torch.arange(9).view(3, 3) == 4, -1.0, 1.0) * features[1]]
    assert float(feature_distance(features, one)) == pytest.approx(4 / 9 / 2, rel=1e-5)


def test_report_embedding_depends_on_the_order_of_words_and_not_on_padding():
    """As a bag of words "effusion no pneumothorax" and "no effusion pneumothorax" would be equal."""
    embed = ReportEmbedding()
    a, b = torch.tensor([[5, 9, 3, 0, 0]]), torch.tensor([[9, 5, 3, 0, 0]])
    assert not torch.allclose(embed(a), embed(b), atol=1e-3)
    assert torch.allclose(embed(a), embed(a[:, :3]), atol=1e-6)
    assert torch.isfinite(embed(torch.zeros(1, 5, dtype=torch.long))).all()


def test_heads_learn_a_finding_of_one_code_and_the_report_of_an_image():
    """Fixed codes: half of the images have one other vector at a random place, and a report that states it."""
    generator = torch.Generator().manual_seed(0)
    present = torch.arange(32) % 2
    z_q = normalize(torch.randn(32, 4, 1, 1, generator=generator).expand(-1, -1, 6, 6).clone(), dim=1)
    for image in present.nonzero()[:, 0]:
        y, x = torch.randint(6, (2,), generator=generator)
        z_q[image, :, y, x] = torch.tensor([0.0, 0, 0, 3])
    words = torch.stack([torch.full((32,), 11), 20 + present], dim=1)
    config = SemanticConfig(labels=SemanticLabelsConfig(1.0), report=SemanticReportConfig(1.0))
    heads = SemanticHeads(config, 4, (6, 6), 48, 1)
    labels, balance = present.float()[:, None], LabelBalance(torch.ones(1), torch.ones(1))
    optimizer = torch.optim.AdamW(heads.parameters(), lr=3e-3)
    everyone = torch.ones(32, dtype=torch.bool)
    first = None
    for _ in range(60):
        out = heads(z_q, torch.zeros(32, 1, 48, 48), words)
        losses = (
            label_loss(out["labels"], labels, balance),
            report_contrast(out["image"], out["report"], out["scale"], present, torch.arange(32), everyone),
        )
        first = first or [float(loss.detach()) for loss in losses]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
    # The contrast cannot fall below ln(16): sixteen images share each report.
    assert float(losses[0].detach()) < first[0] / 3
    assert float(losses[1].detach()) - math.log(16) < (first[1] - math.log(16)) / 2
