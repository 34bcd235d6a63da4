"""Experts by kind of token: copies of parts of each decoder layer, of which a token passes the one of its kind.

Mixture-of-Transformers (Liang et al., 2024) and BAGEL (Deng et al., 2025) give each modality its own weights and let
all tokens attend to each other. The kinds here are text with all special tokens, codes of images that are read, and
codes of images that are generated: the tasks then share the attention over the sequence, not the weights around it.

The passes of a training have a fixed number of code columns, so that tokens sorted by kind split at positions that
the host knows: no shape depends on the data, and nothing is read from the device. Layers work on sorted tokens; the
order of the sequence is restored for the attention alone.
"""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from medunifier.shared.errors import UserError
from medunifier.stage2_unified.model.vocabulary import EMB_TXT, EOI, PAD, PRIOR, Vocabulary

Kind = Literal["text", "read", "generated"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_TEXT, _READ, _GENERATED = range(len(KINDS))

_EXPERTS = "experts"  # attribute of a layer: kind -> copies; the layer's own modules are the experts of text
_ATTENTION = "self_attn"
_BEFORE_HEADS, _NORMS, _OUTPUT = ("q_proj", "k_proj", "v_proj"), ("q_norm", "k_norm"), "o_proj"


class _Permute(torch.autograd.Function):
    """Reorder the first dimension; the gradient is reordered back, where index_select would add it up atomically."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return values.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradient.index_select(0, inverse), None, None


@dataclass(frozen=True)
class Routing:
    """The kinds of the tokens of a pass over (R, L) ids.

    Attributes:
        only: the kind of all tokens; None = several kinds.
        sizes: tokens of each kind of :data:`KINDS`; () for a single kind.
        order: (R L,) token at each position of the tokens sorted by kind.
        inverse: (R L,) position of each token among the sorted ones.
    """

    only: Kind | None = None
    sizes: tuple[int, ...] = ()
    order: Tensor | None = None
    inverse: Tensor | None = None

    @classmethod
    def fixed(cls, ids: Tensor, vocabulary: Vocabulary, read: int, generated: int) -> "Routing":
        """Return the routing of ids whose number of codes is bounded by their shapes, without host reads.

        Padding takes the place of absent images, so that each kind has as many tokens as it can have at most.

        Args:
            ids: (R, L) whole sequences, padded.
            vocabulary: of the ids.
            read, generated: codes in all sequences together, if every image is present.
        """
        if not read + generated:
            return cls("text")
        kinds, padding = token_kinds(ids, vocabulary)[0].flatten(), (ids == vocabulary[PAD]).flatten()
        missing = [size - (kinds == kind).sum() for kind, size in ((_READ, read), (_GENERATED, generated))]
        number = padding.cumsum(0)
        instead = torch.where(number <= missing[0] + missing[1], _GENERATED, _TEXT)
        instead = torch.where(number <= missing[0], _READ, instead)
        return cls._sorted(torch.where(padding, instead, kinds), (ids.numel() - read - generated, read, generated))

    @classmethod
    def counted(cls, kinds: Tensor) -> "Routing":
        """Return the routing of (R, L) kinds, as :func:`token_kinds` returns them; the host reads their counts."""
        sizes = kinds.flatten().bincount(minlength=len(KINDS)).tolist()
        if max(sizes) == kinds.numel():
            return cls(KINDS[sizes.index(max(sizes))])
        return cls._sorted(kinds.flatten(), tuple(sizes))

    @classmethod
    def _sorted(cls, kinds: Tensor, sizes: tuple[int, ...]) -> "Routing":
        order = kinds.argsort(stable=True)
        return cls(None, sizes, order, order.argsort())

    def sort(self, values: Tensor) -> Tensor:
        """(R, L, …) values in the order of the sequence -> the same shape, sorted by kind over all sequences."""
        return self._permuted(values, self.order, self.inverse)

    def unsort(self, values: Tensor) -> Tensor:
        """(R, L, …) sorted values -> in the order of the sequence."""
        return self._permuted(values, self.inverse, self.order)

    @staticmethod
    def _permuted(values: Tensor, order: Tensor | None, inverse: Tensor | None) -> Tensor:
        if order is None:
            return values
        permuted: Tensor = _Permute.apply(values.flatten(0, 1), order, inverse)
        return permuted.view(values.shape)

    def apply(self, experts: Mapping[Kind, Callable[[Tensor], Tensor]], values: Tensor) -> Tensor:
        """Apply to the sorted tokens (R, L, …) of each kind its own expert."""
        if self.only is not None:
            return experts[self.only](values)
        parts = values.flatten(0, 1).split(self.sizes)
        results = [experts[kind](part) for kind, part, size in zip(KINDS, parts, self.sizes, strict=True) if size]
        return torch.cat(results).unflatten(0, values.shape[:2])


def token_kinds(ids: Tensor, vocabulary: Vocabulary, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the kind of each token, as a number of :data:`KINDS`.

    Codes after ``<emb_txt>`` are generated, except those of the prior study, which are inputs in both orders.

    Args:
        ids: (R, L), from the beginning of the sequences on, or continuing them.
        vocabulary: of the ids.
        before: the second result for the ids that these continue.

    Returns:
        (R, L) int64 kinds; (R, 2) counts that continue the sequence: ``<emb_txt>``, and ``<prior>`` less ``<eoi>``.
    """
    after_report = (ids == vocabulary[EMB_TXT]).cumsum(1)
    in_prior = ((ids == vocabulary[PRIOR]).long() - (ids == vocabulary[EOI]).long()).cumsum(1)
    if before is not None:
        after_report, in_prior = after_report + before[:, :1], in_prior + before[:, 1:]
    of_codes = torch.where((after_report > 0) & (in_prior <= 0), _GENERATED, _READ)
    kinds = torch.where(ids >= vocabulary.offset, of_codes, _TEXT)
    return kinds, torch.stack([after_report[:, -1], in_prior[:, -1]], dim=1)


class _Replaced:
    """A module as its stock ``forward`` sees it: with other functions in place of some of its children."""

    def __init__(self, module: nn.Module, children: Mapping[str, Callable[..., Any]]) -> None:
        self._module = module
        for name, function in children.items():
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _ExpertLayer:
    """A decoder layer with experts: the stock ``forward`` of its class, over children that route.

    It maps sorted hidden states to sorted ones (``Routing.sort``).
    """

    stock_forward: Callable[..., Any]
    stock_attention_forward: Callable[..., Any]

    def forward(self, hidden_states: Tensor, *args: Any, routing: Routing, **kwargs: Any) -> Any:
        layer: Any = self
        children: dict[str, Callable[..., Any]] = {
            name: partial(routing.apply, _experts(layer, name))
            for name, _ in layer.named_children()
            if name not in (_EXPERTS, _ATTENTION)
        }
        children[_ATTENTION] = partial(_attend, layer, routing)
        return self.stock_forward(_Replaced(layer, children), hidden_states, *args, **kwargs)


def _experts(layer: Any, name: str, of_attention: str = "") -> dict[Kind, Any]:
    """Return a child of the layer, or of its attention, and its copies, by kind."""
    found: dict[Kind, Any] = {"text": getattr(layer, name)}
    found |= {kind: getattr(layer, _EXPERTS)[kind][name] for kind in KINDS[1:]}
    if of_attention:
        found = {kind: _child(module, of_attention) for kind, module in found.items()}
    return found


def _child(module: nn.Module, name: str) -> Any:
    return module[name] if isinstance(module, nn.ModuleDict) else getattr(module, name)


def _attend(layer: Any, routing: Routing, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Run the attention of sorted hidden states over the sequence, with the layer's projections or the experts'."""
    attention = layer.self_attn
    if _ATTENTION not in getattr(layer, _EXPERTS)[KINDS[-1]]:
        output, *rest = attention(routing.unsort(hidden_states), *args, **kwargs)
        return routing.sort(output), *rest
    children: dict[str, Callable[..., Any]] = {}
    for name, _ in attention.named_children():
        experts = _experts(layer, _ATTENTION, name)
        # A norm of queries or keys follows its projection, so that the two are unsorted once.
        sorted_after = name == _OUTPUT or hasattr(attention, name.replace("_proj", "_norm")) and name not in _NORMS
        children[name] = partial(_project, routing, experts, sorted_after, name == _OUTPUT)
    return layer.stock_attention_forward(_Replaced(attention, children), hidden_states, *args, **kwargs)


def _project(
    routing: Routing, experts: Mapping[Kind, Any], sorted_after: bool, unsorted_before: bool, values: Tensor
) -> Tensor:
    result = routing.apply(experts, routing.sort(values) if unsorted_before else values)
    return result if sorted_after else routing.unsort(result)


def add_experts(layers: Sequence[nn.Module], attention: bool) -> None:
    """Give decoder layers experts, which begin as copies of the layers' own modules.

    Args:
        layers: of a decoder.
        attention: also projections and norms of the attention.

    Raises:
        UserError: for layers whose parts are not known to work token by token.
    """
    for layer in layers:
        parts: dict[str, nn.Module] = dict(layer.named_children())
        inner = parts.pop(_ATTENTION, None)
        projections = dict(inner.named_children()) if inner is not None else {}
        if inner is None or (attention and not set(projections) <= {*_BEFORE_HEADS, *_NORMS, _OUTPUT}):
            raise UserError(
                f"model.experts: {type(layer).__name__} has other parts than the layers of Llama or Qwen3; set "
                "model.experts to none or use another decoder"
            )
        if attention:
            parts[_ATTENTION] = nn.ModuleDict(projections)
        setattr(layer, _EXPERTS, nn.ModuleDict({kind: nn.ModuleDict(copy.deepcopy(parts)) for kind in KINDS[1:]}))
        stock: tuple[Any, Any] = type(layer), type(inner)
        layer.__class__ = _expert_class(*stock)


@cache
def _expert_class(layer: Any, attention: Any) -> type[nn.Module]:
    # Without the decorators of transformers, which look at the class of a layer.
    functions = {"stock_forward": layer.forward, "stock_attention_forward": attention.forward}
    return type(
        layer.__name__,
        (_ExpertLayer, layer),
        {name: staticmethod(inspect.unwrap(function)) for name, function in functions.items()},
    )


def kind_of(name: str) -> Kind:
    """Return the kind of an expert's parameter by its name; "text" for all other parameters."""
    return next((kind for kind in KINDS[1:] if f".{_EXPERTS}.{kind}." in name), "text")


def dense_name(name: str) -> str:
    """Return the name of the parameter that an expert's parameter begins as a copy of; others keep their name."""
    return name.replace(f".{_EXPERTS}.{kind_of(name)}.", ".")


@torch.no_grad()
def copy_expert(module: nn.Module, source: Kind, target: Kind) -> None:
    """Copy the weights of all experts of one kind to those of another, in place."""
    parameters = dict(module.named_parameters())
    for name, parameter in parameters.items():
        if kind_of(name) == target:
            of_text = dense_name(name)
            copied = of_text if source == "text" else name.replace(f".{target}.", f".{source}.")
            parameter.copy_(parameters[copied])
