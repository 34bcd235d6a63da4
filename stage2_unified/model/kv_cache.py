"""A preallocated KV cache for fixed-length decoding."""

from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin
from transformers.modeling_outputs import BaseModelOutputWithPast

# The name that transformers gives a decoder's cache, as argument and in its output, changed between 5.17 and 5.24.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"


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
