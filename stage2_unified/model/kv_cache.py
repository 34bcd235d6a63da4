"""KV caches: a shared prefix continued by several branches, and a preallocated cache for fixed-length decoding."""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin
from transformers.modeling_outputs import BaseModelOutputWithPast

# The name that transformers gives a decoder's cache, as argument and in its output, changed between 5.17 and 5.24.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"


class _PrefixLayer(CacheLayerMixin):
    """Store the first keys and values that it receives, and return those of each call unchanged.

    A layer that is recomputed in the backward pass (gradient checkpointing) passes them a second time, so the cache
    must not grow.
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
    """Prepend the keys and values of the prefix to those of each branch, without storing the result."""

    def __init__(self, prefix: CacheLayerMixin, prefix_of: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.is_initialized = prefix.keys, prefix.values, True
        self.prefix_of = prefix_of

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise NotImplementedError("a branch begins with its prefix")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None  # noqa: S101 - narrows a type
        return self._joined(self.keys, key_states), self._joined(self.values, value_states)

    def _joined(self, prefix: Tensor, branch: Tensor) -> Tensor:
        # Not prefix[…]: on several threads its gradient is summed in no fixed order, and a resumed run would differ.
        return torch.cat([prefix.index_select(0, self.prefix_of), branch], dim=-2)

    def get_seq_length(self) -> int:
        assert self.keys is not None  # noqa: S101 - narrows a type
        return self.keys.shape[-2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


class PrefixCache(Cache):
    """Keys and values of prefixes, for branches to continue.

    Args:
        layers: of the decoder.
        lengths: (prefixes,) ids of each without its padding on the right; None = no padding.
    """

    def __init__(self, layers: int, lengths: Tensor | None = None) -> None:
        super().__init__(layers=[_PrefixLayer() for _ in range(layers)])
        self.lengths = lengths

    def branches(self, prefix_of: Tensor) -> Cache:
        """Return a cache for branches, each of which continues the prefix numbered in ``prefix_of`` (branches,)."""
        return Cache(layers=[_BranchLayer(layer, prefix_of) for layer in self.layers])

    def mask_and_positions(self, prefix_of: Tensor, branch_length: int) -> dict[str, Tensor]:
        """Return the decoder's further arguments for branches of ``branch_length`` ids.

        Returns:
            ``attention_mask`` (branches, columns), 0 on the prefixes' padding, and ``position_ids`` (branches,
            branch_length) that continue from each prefix' last real id; an empty dict where no prefix is padded.
        """
        if self.lengths is None:
            return {}
        keys = self.layers[0].keys
        assert keys is not None  # noqa: S101 - narrows a type
        length = self.lengths[prefix_of][:, None]
        columns = torch.arange(keys.shape[-2] + branch_length, device=keys.device)
        visible = (columns < length) | (columns >= keys.shape[-2])
        return {"attention_mask": visible.long(), "position_ids": length + columns[:branch_length]}


class _PreallocatedLayer(CacheLayerMixin):
    """Write each new column in place and return a view of the columns so far."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns, self.filled = columns, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        batch, heads, _, head_dim = key_states.shape
        self.keys = key_states.new_empty(batch, heads, self.columns, head_dim)
        self.values = value_states.new_empty(batch, heads, self.columns, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None  # noqa: S101 - narrows a type
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
    """Keys and values of sequences of a known length, ``columns`` tokens."""

    def __init__(self, layers: int, columns: int) -> None:
        super().__init__(layers=[_PreallocatedLayer(columns) for _ in range(layers)])
