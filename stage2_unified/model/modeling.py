"""The unified model: one decoder over interleaved report tokens and image codes, and the heads of its four uses.

The sequences are defined in ``stage2_unified/model/sequences.py``, the losses in
``stage2_unified/training/four_objectives.py``; ``stage2_unified/generation/images.py`` samples image codes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import embedding, normalize, pad
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, Cache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from medunifier.shared.errors import UserError
from medunifier.stage2_unified.model.attention import (
    ATTENTION,
    BranchGroup,
    bidirectional_image_mask,
    branch_mask,
    causal_mask,
    for_attention,
)
from medunifier.stage2_unified.model.configuration import MedUnifierConfig
from medunifier.stage2_unified.model.experts import (
    KINDS,
    Kind,
    Routing,
    add_experts,
    copy_expert,
    kind_of,
    token_kinds,
)
from medunifier.stage2_unified.model.kv_cache import KV, ContinuedKV, RecordedKV, give_layers_their_kv
from medunifier.stage2_unified.model.sequences import SPAN_SPECIALS, ImageSpans, SequenceBuilder, Sequences
from medunifier.stage2_unified.model.vocabulary import EMB_IMG, EMB_TXT, EOS, MATCH

# The name that transformers gives a decoder's cache, as argument and in its output, changed between 5.17 and 5.24.
_CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
_TEXTS_A_PASS = 8  # branches of a row in `match_all`: each attends to the columns of all, which a mask hides
_SEQUENCE_STATE = "medunifier_sequence_state"  # attribute of a cache: second result of token_kinds
MAX_LOGIT_SCALE = math.log(100.0)  # CLIP's bound on the inverse temperature


class MatchHead(nn.Module):
    """Two logits from the hidden states at ``<match>`` and at the image's ``<emb_img>``.

    The product of the two projections is a similarity that the head can use from the start; the hidden state of
    ``<match>`` alone would first have to learn to compare.
    """

    def __init__(self, hidden_dim: int, embedding_dim: int) -> None:
        super().__init__()
        self.image = nn.Linear(hidden_dim, embedding_dim)
        self.pair = nn.Linear(hidden_dim, embedding_dim)
        self.out = nn.Linear(hidden_dim + embedding_dim, 2)

    def forward(self, match: Tensor, image: Tensor) -> Tensor:
        """(…, H) at ``<match>``, (…, H) at ``<emb_img>`` -> (…, 2) logits; class 1 = belong together."""
        similarity: Tensor = self.image(image) * self.pair(match)
        logits: Tensor = self.out(torch.cat([match, similarity], dim=-1))
        return logits


@dataclass
class Prefix:
    """An encoded image-first prefix.

    Attributes:
        hidden: (B, H) at ``<emb_img>``.
        kv: keys and values of each layer, which branches continue.
        sequences: its ids, which are the first columns of the keys and values, and the first rows.
    """

    hidden: Tensor
    kv: list[RecordedKV]
    sequences: Sequences


@dataclass
class Branches:
    """Branches of one width that continue the prefixes of B studies.

    Attributes:
        ids, length: (B, n, W) padded on the right, (B, n) without the padding.
        after_images: whether they continue the whole prefix; False: its ``<bos>`` alone.
    """

    ids: Tensor
    length: Tensor
    after_images: bool = True


class MedUnifierForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """One decoder that understands and generates chest radiographs.

    ``forward`` returns the text logits that ``generate`` needs to write reports; image codes are sampled by
    :func:`medunifier.stage2_unified.generation.images.generate_images`.
    """

    config_class = MedUnifierConfig
    model_tags = ["chest-radiograph", "research-only"]  # in the card that an upload makes
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: MedUnifierConfig) -> None:
        super().__init__(config)
        self.vocabulary = config.vocabulary
        self.sequences = SequenceBuilder(config.vocabulary)
        hidden_dim = config.text_config.hidden_size
        self.model = AutoModel.from_config(config.text_config)
        give_layers_their_kv(self.model.layers)
        self._use_own_attention()
        # Arguments of torch.compile for each layer: none for any shape; None = not compiled.
        self._compile: dict[str, Any] | None = None
        self._checkpoint: Callable[..., Any] | None = None
        # The codebook comes frozen from stage 1; the projection of its entries is learned.
        self.register_buffer("codebook", torch.zeros(config.codebook_size, config.code_dim))
        self.code_projection = nn.Sequential(
            nn.Linear(config.code_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, hidden_dim)
        )
        self.lm_head = nn.Linear(hidden_dim, len(self.vocabulary), bias=False)
        self.image_projection = nn.Linear(hidden_dim, config.embedding_dim, bias=False)
        self.text_projection = nn.Linear(hidden_dim, config.embedding_dim, bias=False)
        self.match_head = MatchHead(hidden_dim, config.embedding_dim)
        self.logit_scale = nn.Parameter(torch.tensor(config.initial_scale).log())
        self.post_init()
        if self.has_experts:  # last: with the initial weights of the dense model of the same seed
            add_experts(self.model.layers, attention=config.experts == "all")

    def _use_own_attention(self) -> None:
        if self.model.config._attn_implementation == "sdpa":
            self.model.config._attn_implementation = ATTENTION

    def set_attn_implementation(self, *args: Any, **kwargs: Any) -> None:
        """Set the implementation of the decoder's attention; "sdpa" is needed for all but :meth:`forward`."""
        super().set_attn_implementation(*args, **kwargs)
        self._use_own_attention()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            self.logit_scale.fill_(torch.tensor(self.config.initial_scale).log())
            # Codebook entries have unit norm: at the usual 0.02 their projections would be far smaller than the
            # embeddings of text.
            nn.init.normal_(self.code_projection[0].get_parameter("weight"), std=self.config.code_dim**-0.5)
            # Hidden states have unit size after the last norm; so do these, and their product is a similarity.
            for projection in (self.match_head.image, self.match_head.pair):
                nn.init.normal_(projection.weight, std=projection.in_features**-0.5)

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a model folder as ``transformers`` does; a dense one also with ``experts=``, which copy its weights.

        Raises:
            UserError: if the folder lacks weights, which ``transformers`` would initialise at random.
        """
        return_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(folder, *args, output_loading_info=True, **kwargs)
        if kwargs.get("experts", "none") != "none" and set(info["missing_keys"]) == {
            name for name, _ in model.named_parameters() if kind_of(name) != "text"
        }:
            model.copy_text_expert()
        elif info["missing_keys"]:
            missing, unknown = (", ".join(sorted(info[f"{kind}_keys"])[:3]) for kind in ("missing", "unexpected"))
            raise UserError(
                f"{folder} lacks weights of the model: {missing}"
                + (f", and has unknown ones: {unknown}" if unknown else "")
                + "; it is damaged or was written by an older version of medunifier: copy it again, load it with "
                "that version, or train the model again"
            )
        return (model, info) if return_info else model

    @property
    def has_experts(self) -> bool:
        """Whether the layers have experts by kind of token."""
        return bool(self.config.experts != "none")

    def copy_text_expert(self) -> None:
        """Copy the weights of text, which are those of a dense model, to the other experts."""
        for kind in KINDS[1:]:
            copy_expert(self.model, "text", kind)

    def set_codebook(self, codebook: Tensor) -> None:
        """Copy the frozen tokenizer's (K, D) codebook.

        Raises:
            ValueError: if its shape is not the configuration's.
        """
        if codebook.shape != self.codebook.shape:
            raise ValueError(f"codebook {tuple(codebook.shape)}, the model expects {tuple(self.codebook.shape)}")
        self.codebook.copy_(codebook)

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Bound ``logit_scale``, the logarithm of the contrast's inverse temperature, to [0, ln 100].

        Call it after each optimizer step. A clamp in the forward pass has no gradient above the bound, so that a
        parameter beyond it would stay there.
        """
        self.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Any] = checkpoint, **_: Any
    ) -> None:
        self._checkpoint = gradient_checkpointing_func if enable else None
        self._wrap_layers(self._compile)

    def compile_layers(self, any_shape: bool = False) -> None:
        """Compile each decoder layer; all layers share their graphs.

        Args:
            any_shape: let graphs serve several shapes, as decoding has them. Otherwise a layer is compiled whole,
                without graph breaks, for each shape: kernels for any shape are slower, and a training has few shapes
                (``report_buckets``).
        """
        if any_shape:
            self._wrap_layers({})
            return
        # DDP would split the graphs at its gradient buckets, which fails under gradient checkpointing.
        torch._dynamo.config.optimize_ddp = False
        # Two passes for each bucket, in training and in validation, beside the embeddings of several micro-batches.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)
        self._wrap_layers({"fullgraph": True, "dynamic": False})

    def uncompile_layers(self) -> None:
        """Run the layers uncompiled: those of a copied model would be the compiled ones of the original."""
        self._wrap_layers(None)

    def _wrap_layers(self, compile_options: dict[str, Any] | None) -> None:
        self._compile = compile_options
        for layer in self.model.layers:
            vars(layer).pop("forward", None)
            if compile_options is not None:
                layer.forward = torch.compile(layer.forward, **compile_options)
            # Outside the compiled part, and not by transformers, which drops the cache of a checkpointed layer.
            if self._checkpoint is not None:
                layer.forward = partial(self._checkpoint, layer.forward)

    # Embeddings -----------------------------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the embedding table of text and specials."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding table of text and specials."""
        self.model.set_input_embeddings(value)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """(…, N) codes in [0, K) -> (…, N, H)."""
        # The dtype of weights that FSDP2 gathered in bfloat16, or that were loaded so.
        return self.code_projection(self.codebook[codes].to(self.lm_head.weight.dtype))

    def embed_ids(self, ids: Tensor) -> Tensor:
        """(…, L) ids of any kind -> (…, L, H).

        The device alone knows which ids are codes, so that either each id is projected as if it were a code, or, if
        that is less work, each entry of the codebook.
        """
        text, offset = self.get_input_embeddings(), self.vocabulary.offset
        if ids.numel() > len(self.codebook):
            every = torch.arange(len(self.codebook), device=ids.device)
            codes = self.embed_codes(every).to(text.weight.dtype)  # (K, H)
            return embedding(ids, torch.cat([text.weight, codes]), padding_idx=text.padding_idx)
        codes = self.embed_codes((ids - offset).clamp(min=0)).to(text.weight.dtype)
        return torch.where((ids >= offset)[..., None], codes, text(ids.clamp(max=offset - 1)))

    # Logits and embeddings of hidden states -------------------------------------------------------------

    @property
    def text_head(self) -> Tensor:
        """(offset, H) weight of the logits over text and specials."""
        return self.lm_head.weight[: self.vocabulary.offset]

    @property
    def image_head(self) -> Tensor:
        """(K, H) weight of the logits over image codes."""
        return self.lm_head.weight[self.vocabulary.offset :]

    def text_logits(self, hidden: Tensor) -> Tensor:
        """(…, H) -> (…, offset) over text and specials."""
        return nn.functional.linear(hidden, self.text_head)

    def image_logits(self, hidden: Tensor) -> Tensor:
        """(…, H) -> (…, K) over image codes."""
        return nn.functional.linear(hidden, self.image_head)

    def image_embedding(self, hidden: Tensor) -> Tensor:
        """(B, H) at ``<emb_img>`` -> (B, E), unit norm."""
        return normalize(self.image_projection(hidden).float(), dim=-1)

    def text_embedding(self, hidden: Tensor) -> Tensor:
        """(B, H) at ``<emb_txt>`` -> (B, E), unit norm."""
        return normalize(self.text_projection(hidden).float(), dim=-1)

    # Passes through the decoder -------------------------------------------------------------------------

    def run_decoder(
        self,
        embedded: Tensor,
        mask: Tensor | BlockMask | None = None,
        position_ids: Tensor | None = None,
        kv: Sequence[KV] | None = None,
        routing: Routing | None = None,
    ) -> Tensor:
        """Run the decoder's layers, without host reads: (B, L, H) embedded ids -> (B, L, H) hidden states.

        Args:
            embedded: (B, L, H).
            mask: as for :func:`medunifier.stage2_unified.model.attention.attention`; None = causal.
            position_ids: (B, L); None = 0, 1, ….
            kv: keys and values by layer that the pass records, continues or writes.
            routing: kinds of the ids (:meth:`route`); needed by a model with experts.

        Raises:
            UserError: if the model was loaded with another attention implementation than "sdpa".
        """
        if self.model.config._attn_implementation != ATTENTION:
            raise UserError(
                f"attn_implementation={self.model.config._attn_implementation!r} can only write reports: load the "
                "model with attn_implementation='sdpa'"
            )
        hidden: Tensor = self.run_routed(
            embedded, routing, attention_mask=mask, position_ids=position_ids, use_cache=False, kv=kv
        ).last_hidden_state
        return hidden

    def run_routed(self, embedded: Tensor, routing: Routing | None, **arguments: Any) -> BaseModelOutputWithPast:
        """Run the stock decoder on (B, L, H) embedded ids, sorted by kind if the layers have experts.

        Raises:
            ValueError: if a model with experts gets no routing.
        """
        if not self.has_experts:
            output: BaseModelOutputWithPast = self.model(inputs_embeds=embedded, **arguments)
            return output
        if routing is None:
            raise ValueError(
                f"a model with experts ({self.config.experts}) needs the kind of each id: pass a routing"
            )
        output = self.model(inputs_embeds=routing.sort(embedded), routing=routing, **arguments)
        output.last_hidden_state = routing.unsort(output.last_hidden_state)
        return output

    def route(self, ids: Tensor, *codes: tuple[int, int]) -> Routing | None:
        """Return the routing of a pass, without host reads; None without experts.

        Args:
            ids: (R, L) whole sequences, padded.
            codes: :attr:`Sequences.codes` of each group of sequences; all groups have as many.
        """
        if not self.has_experts:
            return None
        rows = len(ids) // max(len(codes), 1)
        return Routing.fixed(ids, self.vocabulary, *(rows * sum(count) for count in zip(*codes, strict=True)))

    def route_prompt(self, ids: Tensor) -> Routing | None:
        """Return the routing of (R, L) ids from the beginning of their sequences on; the host reads counts."""
        return Routing.counted(token_kinds(ids, self.vocabulary)[0]) if self.has_experts else None

    def route_all(self, kind: Kind) -> Routing | None:
        """Return the routing of a pass whose ids are of one kind; None without experts."""
        return Routing(kind) if self.has_experts else None

    def encode_images(self, images: ImageSpans) -> Prefix:
        """Run the image-first prefix ``<bos> images <emb_img>`` of B studies."""
        sequences = self.sequences.image_first(images)
        hidden, kv = self._record(sequences.ids, sequences.codes)
        return Prefix(at_positions(hidden, sequences.length - 1), kv, sequences)

    def encode_both_orders(
        self, prefix: Sequences, image_first: Sequences, text_first: Sequences
    ) -> tuple[Tensor, Tensor, Prefix]:
        """Run B image-first and B text-first sequences, of nearly one length, in one causal pass.

        Args:
            prefix: the beginning of the image-first sequences, to ``<emb_img>``.
            image_first: with their reports; of width L.
            text_first: of width L at most.

        Returns:
            (B, L, H) hidden states of each, and the image-first prefixes for branches to continue.
        """
        missing = image_first.ids.shape[1] - text_first.ids.shape[1]
        text_ids = pad(text_first.ids, (0, missing), value=self.sequences.pad)
        both = torch.cat([image_first.ids, text_ids])
        hidden, kv = self._record(both, image_first.codes, text_first.codes)  # (2 B, L, H)
        image_states, text_states = hidden.chunk(2)
        return image_states, text_states, Prefix(at_positions(image_states, prefix.length - 1), kv, prefix)

    def _record(self, ids: Tensor, *codes: tuple[int, int]) -> tuple[Tensor, list[RecordedKV]]:
        """(B, L) ids of sequences -> (B, L, H) hidden states, and the keys and values of all layers."""
        kv = [RecordedKV() for _ in self.model.layers]
        routing = self.route(ids, *codes)
        return self.run_decoder(self.embed_ids(ids), self._image_mask(ids), kv=kv, routing=routing), kv

    def _image_mask(self, ids: Tensor) -> Tensor | None:
        """Return the mask of (B, L) ids of sequences; None if all of them attend causally."""
        return bidirectional_image_mask(ids, self.vocabulary) if self.config.bidirectional_images else None

    def encode_text_first(self, ids: Tensor, codes: tuple[int, int] = (0, 0)) -> Tensor:
        """(B, L) ids of sequences that begin with a report, and their codes at most -> (B, L, H), causal."""
        return self.run_decoder(self.embed_ids(ids), routing=self.route(ids, codes))

    def continue_prefix(self, prefix: Prefix, report: Tensor, report_length: Tensor) -> Tensor:
        """Run n branches ``report <eos> <match>`` a study over the keys and values of its prefix.

        Args:
            prefix: of B studies.
            report: (B, n, T) ids padded on the right.
            report_length: (B, n).

        Returns:
            (B, n, T + 2, H) hidden states.
        """
        return self.run_branches(prefix, [self.match_branches(report, report_length)])[0]

    def match_branches(self, text: Tensor, length: Tensor) -> Branches:
        """Return the branches ``text <eos> <match>`` of (B, n, T) ids padded on the right, and (B, n) lengths."""
        ids = self.sequences.append_specials(text.flatten(0, 1), length.flatten(), EOS, MATCH)
        return Branches(ids.unflatten(0, length.shape), length + 2)

    def text_branches(self, text: Tensor, length: Tensor) -> Branches:
        """Return ``text <emb_txt>``, to continue ``<bos>`` alone; arguments as of :meth:`match_branches`.

        Its hidden states at ``<emb_txt>`` are those of :meth:`get_text_features`.
        """
        ids = self.sequences.append_specials(text.flatten(0, 1), length.flatten(), EMB_TXT)
        return Branches(ids.unflatten(0, length.shape), length + 1, after_images=False)

    def run_branches(self, prefix: Prefix, groups: Sequence[Branches]) -> list[Tensor]:
        """Run groups of branches in one pass over the keys and values of a prefix of B studies.

        Returns:
            (B, n, W, H) hidden states of each group.
        """
        columns, length = prefix.sequences.ids.shape[1], prefix.sequences.length
        studies, device = len(length), length.device
        layout = [BranchGroup(group.ids.shape[1], group.ids.shape[2], group.after_images) for group in groups]
        # The branches of a study are packed into one row.
        positions = torch.cat([
            (length if group.whole_prefix else torch.ones_like(length))[:, None]
            + torch.arange(group.width, device=device).repeat(group.branches)
            for group in layout
        ], dim=1)  # fmt: skip
        hidden = self.run_decoder(
            self.get_input_embeddings()(torch.cat([group.ids.flatten(1) for group in groups], dim=1)),
            branch_mask(length, columns, layout, structured=bool(self._compile) and length.is_cuda),
            positions,
            [ContinuedKV(recorded, studies, columns) for recorded in prefix.kv],
            self.route_all("text"),
        )
        parts = hidden.split([group.columns for group in layout], dim=1)
        return [part.unflatten(1, group[:2]) for part, group in zip(parts, layout, strict=True)]

    def _attention_mask(
        self, ids: Tensor | None, visible: Tensor | None, queries: int, cache: Cache | None
    ) -> Tensor | None:
        """Return the mask of :meth:`forward`: of (B, L) ids, None for embedded ones, and visible (B, C) columns."""
        past = cache.get_seq_length() if cache is not None else 0
        if self.config.bidirectional_images and ids is not None:
            if not past:
                mask = bidirectional_image_mask(ids, self.vocabulary, visible)
                return for_attention(mask, self.model, self.lm_head.weight.dtype)
            if (ids == self.vocabulary[EMB_IMG]).any():
                raise ValueError(
                    "with bidirectional_images a prefix is encoded in one pass, from its beginning to <emb_img>"
                )
        if self.model.config._attn_implementation != ATTENTION:
            return visible  # transformers makes the masks of its own implementations
        return causal_mask(visible, queries, past, self.lm_head.weight.device)

    # Retrieval and matching -----------------------------------------------------------------------------

    def get_image_features(self, images: ImageSpans) -> Tensor:
        """Return (B, E) unit-norm embeddings of B studies."""
        return self.image_embedding(self.encode_images(images).hidden)

    def get_text_features(self, report: Tensor, report_length: Tensor) -> Tensor:
        """(B, T) report ids padded on the right, (B,) lengths -> (B, E) unit-norm embeddings."""
        ids = self.sequences.prepend_bos(self.sequences.append_specials(report, report_length, EMB_TXT))
        return self.text_embedding(at_positions(self.encode_text_first(ids), report_length + 1))

    def match(self, images: ImageSpans, report: Tensor, report_length: Tensor) -> Tensor:
        """Return the (B,) probability in [0, 1] that each study and its report belong together.

        Args:
            images: of B studies.
            report: (B, T) report ids padded on the right.
            report_length: (B,).
        """
        prefix = self.encode_images(images)
        hidden = self.continue_prefix(prefix, report[:, None], report_length[:, None])[:, 0]
        return self.match_head(at_positions(hidden, report_length + 1), prefix.hidden).float().softmax(dim=-1)[:, 1]

    @torch.enable_grad()
    def attribute_similarity(
        self, images: ImageSpans, direction: Tensor, reference: Tensor, steps: int = 4
    ) -> Tensor:
        """Return (B, N), what each code adds to the similarity of its image's embedding with a direction.

        Integrated gradients (Sundararajan et al., 2017) from reference embeddings to those of the codes. The states
        at the codes say less: the decoder is causal, and only that at ``<emb_img>`` is trained as an embedding.

        Args:
            images: of B studies with one image and no prior.
            direction: (E,), such as the difference of two text embeddings.
            reference: (M, N) codes of other images, whose mean embedding at each position is the starting point.
            steps: gradients on the way; the sum over the codes approaches the change of the similarity.
        """
        sequences = self.sequences.image_first(images)
        ids, routing = sequences.ids, self.route(sequences.ids, sequences.codes)
        mask = self._image_mask(ids)
        embedded = self.embed_ids(ids).detach()
        codes = slice(SPAN_SPECIALS, SPAN_SPECIALS + reference.shape[1])  # after <bos> <view> <boi>
        change = torch.zeros_like(embedded)
        change[:, codes] = embedded[:, codes] - self.embed_codes(reference).mean(dim=0).detach()
        total = torch.zeros_like(embedded)
        for number in range(steps):
            point = (embedded - change * (1 - (number + 0.5) / steps)).requires_grad_()
            hidden = self.run_decoder(point, mask, routing=routing)
            similarity = self.image_embedding(hidden[:, -1]) @ direction  # (B,)
            total += torch.autograd.grad(similarity.sum(), point)[0]
        return (total * change)[:, codes].sum(dim=-1) / steps

    def match_all(self, images: ImageSpans, text: Tensor, length: Tensor) -> Tensor:
        """Return the (B, P) probability in [0, 1] that each study and each of P texts belong together.

        Args:
            images: of B studies.
            text: (P, T) ids padded on the right.
            length: (P,).
        """
        prefix, parts = self.encode_images(images), []
        for ids, lengths in zip(text.split(_TEXTS_A_PASS), length.split(_TEXTS_A_PASS), strict=True):
            branches = self.match_branches(ids.repeat(len(images), 1, 1), lengths.repeat(len(images), 1))
            states = at_last(self.run_branches(prefix, [branches])[0], branches)
            parts.append(self.match_head(states, prefix.hidden[:, None].expand_as(states)))
        return torch.cat(parts, dim=1).float().softmax(dim=-1)[..., 1]

    # Text generation by transformers --------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return text logits (B, L, offset) of sequences of ids.

        A model with experts needs ``input_ids``, from which the kinds of ids follow.

        The cache comes as ``cache`` or, from older versions of transformers, as ``past_key_values``.

        Raises:
            ValueError: without ``input_ids`` and ``inputs_embeds``.
        """
        cache = past_key_values if cache is None else cache
        routing, state = self._route_generated(input_ids, cache) if self.has_experts else (None, None)
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("input_ids or inputs_embeds is needed")
            inputs_embeds = self.embed_ids(input_ids)
        if attention_mask is None or attention_mask.dim() == 2:
            attention_mask = self._attention_mask(input_ids, attention_mask, inputs_embeds.shape[1], cache)
        output = self.run_routed(
            inputs_embeds,
            routing,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            **{_CACHE: cache},
        )
        if state is not None and output.get(_CACHE) is not None:
            vars(output[_CACHE])[_SEQUENCE_STATE] = state
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return CausalLMOutputWithPast(
            logits=self.text_logits(output.last_hidden_state[:, keep]), **{_CACHE: output.get(_CACHE)}
        )

    def _route_generated(self, ids: Tensor | None, cache: Cache | None) -> tuple[Routing, Tensor]:
        """Return the routing of (B, L) ids that continue those in the cache, and the state for the ids after them."""
        if ids is None:
            raise ValueError("a model with experts needs input_ids: the kind of a token follows from its id")
        continued = cache is not None and cache.get_seq_length() > 0
        kinds, state = token_kinds(ids, self.vocabulary, vars(cache).get(_SEQUENCE_STATE) if continued else None)
        return Routing.counted(kinds), state


def at_positions(hidden: Tensor, positions: Tensor) -> Tensor:
    """(B, L, H) at (B,) or (B, N) positions -> (B, H) or (B, N, H)."""
    studies, columns, _ = hidden.shape
    first = torch.arange(studies, device=hidden.device) * columns
    rows = positions + first.view(-1, *[1] * (positions.dim() - 1))
    return hidden.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, rows.shape)


def at_last(hidden: Tensor, branches: Branches) -> Tensor:
    """(B, n, W, H) hidden states of branches -> (B, n, H) at the last id of each."""
    last = at_positions(hidden.flatten(0, 1), branches.length.flatten() - 1)
    return last.unflatten(0, branches.length.shape)


AutoModel.register(MedUnifierConfig, MedUnifierForConditionalGeneration)
