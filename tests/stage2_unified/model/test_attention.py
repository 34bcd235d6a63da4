"""The decoder's attention against the plain formula, and its masks in both forms."""

import pytest
import torch

from medunifier.stage2_unified.model.attention import BranchGroup, attention, branch_mask


def plain(query, key, value, mask):
    """Return (B, Q, h, d) attention by its formula; ``mask`` (B, 1, Q, C)."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5).masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2)


def make(queries, columns=None, heads=6, groups=2):
    generator = torch.Generator().manual_seed(queries)
    shapes = [(heads, queries), (groups, columns or queries), (groups, columns or queries)]
    return [torch.randn(3, h, length, 4, generator=generator) for h, length in shapes]


@pytest.mark.parametrize("queries", [1, 5])
def test_grouped_heads_with_and_without_mask_equal_the_formula(queries):
    inputs = make(queries, columns=5)
    mask = torch.rand(3, 1, queries, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[..., 0] = True
    assert torch.allclose(attention(torch.nn.Identity(), *inputs, mask)[0], plain(*inputs, mask), atol=1e-6)
    causal = torch.ones(queries, 5, dtype=torch.bool).tril(5 - queries)
    assert torch.allclose(attention(torch.nn.Identity(), *inputs, None)[0], plain(*inputs, causal), atol=1e-6)


def test_a_branch_sees_its_prefix_and_itself_alone():
    lengths = torch.tensor([3, 1])
    mask = branch_mask(lengths, 3, [BranchGroup(2, 2)], structured=False)
    assert mask.shape == (2, 1, 4, 7)
    for study, length in enumerate(lengths.tolist()):
        for query in range(4):
            branch, step = divmod(query, 2)
            expected = set(range(length)) | {3 + 2 * branch + earlier for earlier in range(step + 1)}
            assert set(mask[study, 0, query].nonzero()[:, 0].tolist()) == expected


GROUPS = [BranchGroup(2, 3), BranchGroup(2, 1, whole_prefix=False)]


def test_branches_of_several_widths_see_the_whole_prefix_or_its_first_id():
    mask = branch_mask(torch.tensor([4, 2]), 5, GROUPS, structured=False)
    branches = [(0, 3, True), (3, 3, True), (6, 1, False), (7, 1, False)]  # first column, width, whole prefix
    for study, length in enumerate([4, 2]):
        for begin, width, whole in branches:
            for step in range(width):
                expected = set(range(length if whole else 1)) | {5 + begin + earlier for earlier in range(step + 1)}
                assert set(mask[study, 0, begin + step].nonzero()[:, 0].tolist()) == expected


def test_the_block_mask_gives_the_attention_of_the_matrix():
    query, key, value = make(8, columns=8 + 5)
    lengths = torch.tensor([5, 2, 4])
    outputs = [
        attention(torch.nn.Identity(), query, key, value, branch_mask(lengths, 5, GROUPS, structured))[0]
        for structured in (False, True)
    ]
    assert torch.allclose(*outputs, atol=1e-6)
