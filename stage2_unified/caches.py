"""Where keys and values lie: of a prefix that several branches continue, and of a row whose length is known."""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin
from transformers.modeling_outputs import BaseModelOutputWithPast

# What transformers calls a decoder's cache, as argument and in its output: renamed between 5.17 and 5.24.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"


class _PrefixLayer(CacheLayerMixin):
    """Keeps the first keys and values that it is shown, and hands back what it is given.

    A layer that is computed again in the backward pass (gradient checkpointing) shows them a second time: that
    must change nothing, so this is no list that grows.
    """

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values, self.is_initialized = key_states, value_states, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return key_states, value_states

    def get_seq_length(self) -> int:
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_max_length(self) -> int:
        return -1


class _BranchLayer(CacheLayerMixin):
    """Puts its prefix' keys and values before each branch's own. It keeps nothing."""

    def __init__(self, prefix: CacheLayerMixin, prefixes: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.is_initialized = prefix.keys, prefix.values, True
        self.prefixes = prefixes

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise NotImplementedError("a branch begins with its prefix")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None
        return self._joined(self.keys, key_states), self._joined(self.values, value_states)

    def _joined(self, prefix: Tensor, own: Tensor) -> Tensor:
        # Not prefix[…]: on several threads its gradient adds up in any order, and a resumed run would differ.
        return torch.cat([prefix.index_select(0, self.prefixes), own], dim=-2)

    def get_seq_length(self) -> int:
        assert self.keys is not None
        return self.keys.shape[-2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


class PrefixCache(Cache):
    """Takes up the keys and values of some prefixes, for branches to continue.

    Args:
        layers: of the decoder.
        lengths: (prefixes,) real columns of each, where they are padded on the right; None = all columns.
    """

    def __init__(self, layers: int, lengths: Tensor | None = None) -> None:
        super().__init__(layers=[_PrefixLayer() for _ in range(layers)])
        self.lengths = lengths

    def branches(self, prefixes: Tensor) -> Cache:
        """A cache for branches of which each continues the prefix of that number, (branches,)."""
        return Cache(layers=[_BranchLayer(layer, prefixes) for layer in self.layers])

    def padding(self, prefixes: Tensor, own: int) -> dict[str, Tensor]:
        """What a decoder must be told of branches with ``own`` columns: nothing, where no prefix is padded.

        Returns:
            ``attention_mask`` (branches, columns), 0 on the prefixes' padding, and ``position_ids`` (branches, own)
            that go on from each prefix' last real id; or an empty dict.
        """
        if self.lengths is None:
            return {}
        keys = self.layers[0].keys
        assert keys is not None
        length, columns = self.lengths[prefixes][:, None], torch.arange(keys.shape[-2] + own, device=keys.device)
        visible = (columns < length) | (columns >= keys.shape[-2])
        return {"attention_mask": visible.long(), "position_ids": length + columns[:own]}


class _PreallocatedLayer(CacheLayerMixin):
    """Writes each new column into its place and shows the columns so far, without a copy of the others."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns, self.filled = columns, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, heads, _, width = key_states.shape
        self.keys = key_states.new_empty(rows, heads, self.columns, width)
        self.values = value_states.new_empty(rows, heads, self.columns, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        begin, self.filled = self.filled, self.filled + key_states.shape[-2]
        self.keys[:, :, begin : self.filled] = key_states
        self.values[:, :, begin : self.filled] = value_states
        return self.keys[:, :, : self.filled], self.values[:, :, : self.filled]

    def get_seq_length(self) -> int:
        return self.filled

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.filled + query_length, 0

    def get_max_length(self) -> int:
        return self.columns


class PreallocatedCache(Cache):
    """Keys and values of rows that will have ``columns`` tokens."""

    def __init__(self, layers: int, columns: int) -> None:
        super().__init__(layers=[_PreallocatedLayer(columns) for _ in range(layers)])
