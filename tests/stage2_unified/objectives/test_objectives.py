import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from medunifier.stage2_unified.objectives import generation
from medunifier.stage2_unified.objectives.chance import chance_levels
from medunifier.stage2_unified.objectives.contrast import contrastive_loss, contrastive_similarity
from medunifier.stage2_unified.objectives.generation import token_loss
from medunifier.stage2_unified.objectives.matching import matching_accuracy, matching_loss, sample_negatives

ALL = torch.ones(6, dtype=torch.bool)


def similarity(studies=6, scale=10.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image, text = (normalize(torch.randn(studies, 8, generator=generator), dim=-1) for _ in range(2))
    return contrastive_similarity(image, text, torch.tensor(scale))


def test_contrast_equals_two_cross_entropies_when_all_reports_and_patients_differ():
    logits, labels = similarity(), torch.arange(6)
    expected = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
    assert contrastive_loss(logits, labels, labels, ALL).item() == pytest.approx(expected.item(), rel=1e-6)


def test_contrast_is_at_chance_if_the_scale_is_zero():
    assert contrastive_loss(similarity(scale=0.0), torch.arange(6), torch.arange(6), ALL).item() == pytest.approx(
        math.log(6)
    )


def test_equal_reports_are_positives_so_swapping_their_studies_has_no_effect():
    logits, report = similarity(), torch.tensor([0, 0, 1, 2, 3, 4])
    swapped = logits[:, [1, 0, 2, 3, 4, 5]]
    patients = torch.arange(6)
    assert contrastive_loss(swapped, report, patients, ALL).item() == pytest.approx(
        contrastive_loss(logits, report, patients, ALL).item(), rel=1e-6
    )
    assert contrastive_loss(swapped, patients, patients, ALL) != contrastive_loss(logits, patients, patients, ALL)


def test_another_study_of_the_patient_is_not_a_negative():
    logits, labels = similarity(), torch.arange(6)
    patients = torch.tensor([0, 0, 1, 2, 3, 4])
    changed = logits.clone()
    changed[0, 1] = changed[1, 0] = 50.0  # very similar
    assert contrastive_loss(changed, labels, patients, ALL) == contrastive_loss(logits, labels, patients, ALL)
    assert contrastive_loss(changed, labels, labels, ALL) > contrastive_loss(logits, labels, labels, ALL) + 1


def test_a_study_whose_text_was_dropped_takes_no_part():
    logits, labels = similarity(), torch.arange(6)
    has_text = ALL.clone()
    has_text[2] = False
    changed = logits.clone()
    changed[:, 2] = 99.0  # the embedding of <uncond>: it must not matter
    assert contrastive_loss(changed, labels, labels, has_text) == contrastive_loss(logits, labels, labels, has_text)
    rows = [0, 1, 3, 4, 5]
    expected = (
        cross_entropy(logits[rows][:, rows], torch.arange(5)) + cross_entropy(logits.T[rows], torch.tensor(rows))
    ) / 2
    assert contrastive_loss(logits, labels, labels, has_text).item() == pytest.approx(expected.item(), rel=1e-6)


def test_contrast_of_one_study_is_refused_and_gradients_are_finite():
    with pytest.raises(ValueError, match="at least 2"):
        contrastive_loss(torch.zeros(1, 1), torch.zeros(1), torch.zeros(1), torch.ones(1, dtype=torch.bool))
    logits = similarity().requires_grad_()
    contrastive_loss(logits, torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 1, 2, 2, 2]), ALL).backward()
    assert logits.grad.isfinite().all() and logits.grad.abs().sum() > 0


def test_negatives_are_allowed_hard_and_reproducible():
    logits = torch.zeros(6, 6)
    logits[:, 3] = 4.0
    allowed = ~torch.eye(6, dtype=torch.bool)
    allowed[0] = False  # no report may be sampled for image 0
    negatives = torch.stack([sample_negatives(logits, allowed, seed)[0] for seed in range(300)])
    usable = sample_negatives(logits, allowed, 0)[1]
    assert usable.tolist() == [False] + [True] * 5
    for image in range(1, 6):
        assert (negatives[:, image] != image).all()
    # Odds of exp(4) = 54.6 against three or four others: by image -> text, report 3 is sampled nearly always.
    assert (negatives[:, 1, 0] == 3).float().mean() > 0.85
    assert (sample_negatives(logits, allowed, 9)[0] == sample_negatives(logits, allowed, 9)[0]).all()


def test_the_second_negative_follows_the_text_to_image_similarity():
    logits = torch.zeros(4, 4)
    logits[1, 2] = 6.0  # report 2 is as close to image 1 as to its own image
    logits[2, 2] = 6.0
    logits[1, 3] = 5.9
    logits[3, 3] = logits[0, 3] = logits[2, 3] = 12.0  # report 3 is more similar to every other image
    negatives = torch.stack([sample_negatives(logits, ~torch.eye(4, dtype=torch.bool), s)[0] for s in range(200)])
    frequency = (negatives[:, 1] == 3).float().mean(dim=0)  # of report 3 as a negative of image 1, by direction
    assert frequency[0] > 0.4 and frequency[1] < 0.1


def test_matching_ignores_unusable_negatives():
    logits = torch.randn(3, 3, 2, generator=torch.Generator().manual_seed(0))
    total = matching_loss(logits, ALL[:3], torch.tensor([True, True, False]))
    target = torch.tensor([[1, 0, 0]] * 3)
    expected = cross_entropy(logits[:2].flatten(0, 1), target[:2].flatten(), reduction="sum") + cross_entropy(
        logits[2, :1], target[2, :1], reduction="sum"
    )
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_balanced_accuracy_of_perfect_inverted_and_constant_predictions():
    right = torch.zeros(4, 3, 2)
    right[:, 0, 1] = right[:, 1:, 0] = 1.0
    usable = ALL[:4]
    assert matching_accuracy(right, usable, usable) == 1.0
    assert matching_accuracy(-right, usable, usable) == 0.0
    constant = torch.zeros(4, 3, 2)
    constant[..., 0] = 1.0
    assert matching_accuracy(constant, usable, usable) == 0.5


def test_a_study_without_a_matched_text_counts_neither_in_the_matching_loss_nor_in_its_accuracy():
    logits = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0))
    has_match = torch.tensor([True, False, True])
    changed = logits.clone()
    changed[1, 0] = -5 * logits[1, 0]
    for measure in (matching_loss, matching_accuracy):
        assert measure(changed, has_match, ALL[:3]) == measure(logits, has_match, ALL[:3])
        assert measure(changed, ALL[:3], ALL[:3]) != measure(logits, ALL[:3], ALL[:3])


def test_token_loss_is_a_sum_and_chance_is_the_logarithm():
    total, z = token_loss(torch.ones(5, 3), torch.zeros(8, 3), torch.tensor([0, 3, 7, 1, 1]))
    assert total.item() == pytest.approx(5 * math.log(8)) and z.item() == pytest.approx(5 * math.log(8) ** 2)
    levels = chance_levels(global_batch=32, text_classes=100, image_classes=512)
    assert levels["matching"] == pytest.approx(0.6365, abs=1e-4)
    assert levels["contrast"] == pytest.approx(math.log(32)) and levels["image"] == pytest.approx(math.log(512))


@pytest.mark.parametrize("tokens", [1, 7, 12, 13])  # of chunks of 4: one, unequal parts, equal parts
def test_chunks_give_the_losses_and_gradients_of_the_whole_and_keep_no_logits(tokens, monkeypatch):
    monkeypatch.setattr(generation, "CHUNK", 4)
    hidden, weight = torch.randn(tokens, 3, requires_grad=True), torch.randn(9, 3, requires_grad=True)
    target = torch.randint(0, 9, (tokens,))
    target[: tokens // 3] = generation.IGNORED
    logits = (hidden @ weight.T)[tokens // 3 :]
    whole = (
        cross_entropy(logits, target[tokens // 3 :], reduction="sum"),
        logits.logsumexp(-1).square().sum(),
    )
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda kept: sizes.append(kept.numel()) or kept, lambda kept: kept):
        chunked = token_loss(hidden, weight, target)
    assert tokens <= 4 or max(sizes) <= 9 * 3  # states, weight or targets: no logits
    for found, expected in zip(chunked, whole, strict=True):
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
        found = torch.autograd.grad(found, (hidden, weight), retain_graph=True)
        expected = torch.autograd.grad(expected, (hidden, weight), retain_graph=True)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
