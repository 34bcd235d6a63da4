"""Keys and values that passes record, continue and write."""

import torch

from medunifier.stage2_unified.model.kv_cache import ContinuedKV, RecordedKV, StaticKV
from tests.stage2_unified.model.test_attention import make


def test_keys_of_a_pass_are_recorded_and_continued():
    recorded = RecordedKV()
    _, key, value = make(4)
    recorded.update(key, value)
    more_keys, more_values = ContinuedKV(recorded, sequences=2, columns=3).update(key[1:, :, :2], value[1:, :, :2])
    assert torch.equal(more_keys, torch.cat([key[:2, :, :3], key[1:, :, :2]], dim=2))
    assert torch.equal(more_values, torch.cat([value[:2, :, :3], value[1:, :, :2]], dim=2))


def test_static_columns_are_written_in_place():
    _, key, value = make(2)
    static = StaticKV(torch.zeros(3, 2, 5, 4), torch.zeros(3, 2, 5, 4), torch.tensor([1, 2]), 4)
    keys, values = static.update(key, value)
    assert torch.equal(keys, static.keys[:, :, :4]) and torch.equal(values, static.values[:, :, :4])
    assert torch.equal(keys[:, :, 1:3], key) and torch.equal(values[:, :, 1:3], value)
    assert not static.keys[:, :, [0, 3, 4]].any()
