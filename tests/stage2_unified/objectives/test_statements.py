"""Relations of images and statements, their contrast against the formula, and sampled contradictions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.nn.functional import normalize

from medunifier.stage2_unified.objectives.contrast import contrastive_loss, contrastive_similarity
from medunifier.stage2_unified.objectives.statements import relations, sample_contradicting, statement_contrast

VALUES = st.sampled_from([-1, 0, 1])


@st.composite
def studies(draw):
    """Return label vectors of 4 studies and of their 2 statements each, of 3 findings."""
    labels = draw(arrays("int8", (4, 3), elements=VALUES))
    stated = draw(arrays("int8", (4, 2, 3), elements=VALUES))
    general = draw(arrays("bool", (4, 2)))
    return torch.from_numpy(labels), torch.from_numpy(stated), torch.from_numpy(general)


@settings(max_examples=80, deadline=None)
@given(studies())
def test_an_image_agrees_with_what_its_labels_confirm_and_contradicts_what_they_deny(made):
    labels, stated, general = made
    found = relations(labels, stated, general)
    for image in range(4):
        for number in range(8):
            values = zip(labels[image].tolist(), stated.flatten(0, 1)[number].tolist(), strict=True)
            pairs = [(a, b) for a, b in values if b != -1]
            if not pairs:
                expected = 0  # padding
            elif number // 2 == image:
                expected = 1
            elif any(a != -1 and a != b for a, b in pairs):
                expected = -1
            else:
                expected = int(all(a == b for a, b in pairs) and bool(general.flatten()[number]))
            assert found[image, number] == expected


@settings(max_examples=40, deadline=None)
@given(studies(), st.integers(0, 2))
def test_a_denial_turns_agreement_into_contradiction(made, finding):
    """Of a statement about one finding the opposite contradicts each other study that the statement agrees with."""
    labels, stated, general = made
    stated, general = torch.full_like(stated, -1), torch.ones_like(general)
    stated[..., finding] = 1
    opposite = torch.where(stated == -1, stated, 1 - stated)
    others = torch.arange(8)[None] // 2 != torch.arange(4)[:, None]
    assert torch.equal(relations(labels, stated, general)[others], -relations(labels, opposite, general)[others])


def random_similarity(images, statements, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image, text = (normalize(torch.randn(n, 8, generator=generator), dim=-1) for n in (images, statements))
    return contrastive_similarity(image, text, torch.tensor(5.0))


def test_with_one_positive_and_all_else_negative_the_loss_is_that_of_reports():
    similarity, numbers = random_similarity(6, 6), torch.arange(6)
    relation = torch.where(torch.eye(6, dtype=torch.bool), 1, -1)
    expected = contrastive_loss(similarity, numbers, numbers, torch.ones(6, dtype=torch.bool))
    assert statement_contrast(similarity, relation).item() == pytest.approx(expected.item(), rel=1e-6)
    assert statement_contrast(0 * similarity, relation).item() == pytest.approx(math.log(6), rel=1e-6)


def test_an_unknown_pair_has_no_gradient_and_rows_without_both_kinds_are_left_out():
    similarity = random_similarity(4, 8).requires_grad_()
    relation = torch.randint(-1, 2, (4, 8), generator=torch.Generator().manual_seed(1))
    relation[:, 0], relation[:, 1], relation[:, 2] = 1, -1, 0  # statements without negatives, positives, and either
    loss = statement_contrast(similarity, relation)
    loss.backward()
    assert similarity.grad.isfinite().all()
    assert (similarity.grad[relation == 0] == 0).all() and (similarity.grad[relation != 0] != 0).all()
    assert (similarity.grad[relation > 0] < 0).all() and (similarity.grad[relation < 0] > 0).all()
    nothing = statement_contrast(similarity, torch.zeros_like(relation))
    assert nothing == 0
    nothing.backward()
    assert similarity.grad.isfinite().all()


def test_positives_do_not_repel_each_other():
    """The loss reaches 0 with many positives, which a softmax over all of them would not."""
    relation = torch.tensor([[1, 1, -1], [1, 1, -1], [-1, -1, 1]])
    assert statement_contrast(30.0 * relation, relation).item() == pytest.approx(0, abs=1e-6)


def test_contradicting_statements_are_sampled_evenly_and_missing_where_there_are_none():
    relation = torch.tensor([[1, -1, 0, -1, -1, 1], [1, 0, 0, 1, 1, 1]])
    columns = []
    for seed in range(300):
        column, usable = sample_contradicting(relation, seed)
        assert usable.tolist() == [True, False]
        columns.append(int(column[0]))
    assert set(columns) == {1, 3, 4} and all(70 < columns.count(column) < 130 for column in (1, 3, 4))
