"""The unified model: a decoder over interleaved report words and image codes, and its four losses.

Each token is computed once though four losses use it. The image-first prefix gives the image embedding, and
its keys and values are what the report and two hard negatives continue from; the text-first row gives the
text embedding at its ``<emb_txt>`` and the image loss after it. See ``stage2_unified.rows`` for the rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, Cache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from shared.loop import TOKENS
from stage2_unified.caches import CACHE, PrefixCache
from stage2_unified.configuration import MedUnifierConfig
from stage2_unified.global_batch import Embeddings, GlobalBatch, gather_step
from stage2_unified.image_attention import read_both_ways
from stage2_unified.image_generation import generate_images
from stage2_unified.objectives.contrast import contrastive_loss, contrastive_similarity
from stage2_unified.objectives.generation import token_loss
from stage2_unified.objectives.matching import NEGATIVES, MatchHead, matching_accuracy, matching_loss
from stage2_unified.rows import RowBuilder, Spans
from stage2_unified.sequences import StudyBatch
from stage2_unified.vocabulary import EMB_IMG, EMB_TXT, EOS, MATCH, UNCOND

MAX_SCALE = 100.0  # CLIP's bound on the inverse temperature


@dataclass
class Prefix:
    """The image-first prefix after its pass.

    Attributes:
        hidden: (B, H) at ``<emb_img>``.
        cache: its keys and values.
        needed, computed: tokens of all rows, without and with the padding.
    """

    hidden: Tensor
    cache: PrefixCache
    needed: Tensor | int
    computed: int


class MedUnifierForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """One decoder that reads and draws chest radiographs.

    ``forward(batch=…)`` returns the named losses; ``forward(input_ids=…)`` the text logits that
    ``generate`` asks for. ``generate(generation_mode="image")`` draws codes.
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
        self.rows = RowBuilder(config.vocabulary)
        width = config.text_config.hidden_size
        self.model = AutoModel.from_config(config.text_config)
        # The codebook comes frozen from stage 1; what a code means to the decoder is learned.
        self.register_buffer("codebook", torch.zeros(config.codes, config.code_dim))
        self.code_projection = nn.Sequential(nn.Linear(config.code_dim, width), nn.GELU(), nn.Linear(width, width))
        self.lm_head = nn.Linear(width, len(self.vocabulary), bias=False)
        self.image_projection = nn.Linear(width, config.embedding_dim, bias=False)
        self.text_projection = nn.Linear(width, config.embedding_dim, bias=False)
        self.match_head = MatchHead(width, config.embedding_dim)
        self.log_scale = nn.Parameter(torch.tensor(config.initial_scale).log())
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            self.log_scale.fill_(torch.tensor(self.config.initial_scale).log())
            # Codes are unit-norm: at the usual 0.02 their images would vanish beside the words'.
            nn.init.normal_(self.code_projection[0].get_parameter("weight"), std=self.config.code_dim**-0.5)
            # Hidden states are of unit size after the last norm; so are these, and their product is a similarity.
            for projection in (self.match_head.image, self.match_head.pair):
                nn.init.normal_(projection.weight, std=projection.in_features**-0.5)

    def set_codebook(self, codebook: Tensor) -> None:
        """Take the frozen tokenizer's (K, D) table.

        Raises:
            ValueError: if its shape is not the configuration's.
        """
        if codebook.shape != self.codebook.shape:
            raise ValueError(f"codebook {tuple(codebook.shape)}, the model expects {tuple(self.codebook.shape)}")
        self.codebook.copy_(codebook)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Any] = checkpoint, **_: Any
    ) -> None:
        # transformers' own layers drop the cache when they are checkpointed, and with it the branches' prefix.
        for layer in self.model.layers:
            vars(layer).pop("forward", None)
            if enable:
                layer.forward = partial(gradient_checkpointing_func, layer.forward)

    def compile_layers(self) -> None:
        """torch.compile for what stands between a decoder layer's products: its norms and its feed-forward part.

        Whole layers would need a graph each, since each asks the cache for its own number; these share one, whatever
        the number of layers and the length of the rows, also where layers are computed again in the backward pass.
        """
        for module in self.model.layers.modules():
            if type(module).__name__.endswith(("MLP", "RMSNorm")):
                module.compile(dynamic=True)

    # Embeddings -----------------------------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of words and specials."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the table of words and specials."""
        self.model.set_input_embeddings(value)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """(…, N) codes in [0, K) -> (…, N, H)."""
        return self.code_projection(self.codebook[codes])

    def embed_ids(self, ids: Tensor) -> Tensor:
        """(…, L) ids of any kind -> (…, L, H)."""
        offset = self.vocabulary.offset
        is_code = ids >= offset
        embedded = self.get_input_embeddings()(ids.clamp(max=offset - 1))
        if is_code.any():
            codes = self.embed_codes((ids - offset).clamp(min=0)).to(embedded.dtype)
            embedded = torch.where(is_code[..., None], codes, embedded)
        return embedded

    # Logits, each modality's own ------------------------------------------------------------------------

    def text_logits(self, hidden: Tensor) -> Tensor:
        """(…, H) -> (…, offset) over words and specials."""
        return nn.functional.linear(hidden, self.lm_head.weight[: self.vocabulary.offset])

    def image_logits(self, hidden: Tensor) -> Tensor:
        """(…, H) -> (…, K) over image codes."""
        return nn.functional.linear(hidden, self.lm_head.weight[self.vocabulary.offset :])

    @property
    def scale(self) -> Tensor:
        """Inverse temperature of the contrast."""
        return self.log_scale.exp().clamp(max=MAX_SCALE)

    # The rows -------------------------------------------------------------------------------------------

    def image_prefix_ids(
        self, codes: Tensor, view: Tensor, prior_codes: Tensor | None = None, prior_view: Tensor | None = None
    ) -> Tensor:
        """(B, L) ids of the image-first prefix, ``<bos> spans <emb_img>``; arguments as :meth:`Spans.of` has them."""
        return self.rows.image_first(Spans.of(codes, view, prior_codes, prior_view)).ids

    def text_row_ids(
        self, report: Tensor, report_length: Tensor, view: Tensor, codes: Tensor | None = None
    ) -> Tensor:
        """(B, L) ids of the text-first row, ``<bos> report <emb_txt> spans``; without codes up to ``<boi>``.

        Args:
            report: (B, T) ids padded on the right.
            report_length: (B,).
            view: (B,) view ids, or (B, S) with codes.
            codes: (B, N) or (B, S, N), or None for a prompt.
        """
        if codes is None:
            none = Spans.none(len(report), self.config.image_tokens, report.device)
            return self.rows.text_first(report, report_length, none, view)[0].ids
        return self.rows.text_first(report, report_length, Spans.of(codes, view))[0].ids

    def read_images(self, spans: Spans) -> Prefix:
        """Run the image-first prefix."""
        row = self.rows.image_first(spans)
        cache = PrefixCache(self.config.text_config.num_hidden_layers, row.length)
        told = {CACHE: cache, "attention_mask": self._image_attention(row.ids)}
        hidden = self.model(inputs_embeds=self.embed_ids(row.ids), use_cache=True, **told).last_hidden_state
        computed = row.ids.numel()
        if row.length is None:
            return Prefix(hidden[:, -1], cache, computed, computed)
        return Prefix(_at(hidden, row.length - 1), cache, row.length.sum(), computed)

    def _image_attention(
        self, ids: Tensor, visible: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor | None:
        """What the decoder is told of who sees whom: ``visible``, unless images are read in both directions."""
        if not self.config.bidirectional_images:
            return visible
        if cache is not None and cache.get_seq_length():
            if (ids == self.vocabulary[EMB_IMG]).any():
                raise ValueError(
                    "with bidirectional_images a row is read in one pass, from its beginning to <emb_img>"
                )
            return visible
        mask = read_both_ways(ids, self.vocabulary, visible)
        if mask is not None and self.model.config._attn_implementation != "sdpa":
            raise ValueError("a model with bidirectional_images must be loaded with attn_implementation='sdpa'")
        return visible if mask is None else mask

    def continue_prefix(self, cache: PrefixCache, report: Tensor, report_length: Tensor, prefixes: Tensor) -> Tensor:
        """Run branches ``report <eos> <match>`` over their prefixes' keys and values.

        Args:
            cache: of the prefixes.
            report: (b, T) ids.
            report_length: (b,).
            prefixes: (b,) number of the prefix that each branch continues.

        Returns:
            (b, T + 2, H) hidden states.
        """
        ids = self.rows.ended(report, report_length, EOS, MATCH)
        told = {CACHE: cache.branches(prefixes), **cache.padding(prefixes, ids.shape[1])}
        return self.model(inputs_embeds=self.embed_ids(ids), use_cache=True, **told).last_hidden_state

    # What a user asks for -------------------------------------------------------------------------------

    def get_image_features(
        self, codes: Tensor, view: Tensor, prior_codes: Tensor | None = None, prior_view: Tensor | None = None
    ) -> Tensor:
        """(B, E) unit-norm embeddings of studies.

        Args:
            codes: (B, N), or (B, S, N) for several images a study.
            view: (B,) or (B, S) view ids; ``<pad>``, behind the others, where a study has fewer images.
            prior_codes, prior_view: images of the visit before, in the same form.
        """
        return self._image_embedding(self.read_images(Spans.of(codes, view, prior_codes, prior_view)).hidden)

    def get_text_features(self, report: Tensor, report_length: Tensor) -> Tensor:
        """(B, T) report ids padded on the right, (B,) lengths -> (B, E) unit-norm embeddings."""
        ids = self.rows.begun(self.rows.ended(report, report_length, EMB_TXT))
        hidden = self.model(inputs_embeds=self.embed_ids(ids), use_cache=False).last_hidden_state
        return self._text_embedding(_at(hidden, report_length + 1))

    def match(
        self,
        codes: Tensor,
        view: Tensor,
        report: Tensor,
        report_length: Tensor,
        prior_codes: Tensor | None = None,
        prior_view: Tensor | None = None,
    ) -> Tensor:
        """(B,) probability that each study and report belong together; images as :meth:`get_image_features`."""
        prefix = self.read_images(Spans.of(codes, view, prior_codes, prior_view))
        hidden = self.continue_prefix(
            prefix.cache, report, report_length, torch.arange(len(codes), device=codes.device)
        )
        return self.match_head(_at(hidden, report_length + 1), prefix.hidden).float().softmax(dim=-1)[:, 1]

    def _image_embedding(self, hidden: Tensor) -> Tensor:
        return normalize(self.image_projection(hidden).float(), dim=-1)

    def _text_embedding(self, hidden: Tensor) -> Tensor:
        return normalize(self.text_projection(hidden).float(), dim=-1)

    # Training -------------------------------------------------------------------------------------------

    def embeddings(self, batch: StudyBatch) -> Embeddings:
        """What the first pass of a step with several micro-batches leaves: the contrast's two sides."""
        text, length = self._seen_text(batch)
        image = self._image_embedding(self.read_images(batch.spans).hidden)
        return Embeddings(image, self.get_text_features(text, length), self.scale)

    def losses(self, batch: StudyBatch, step: GlobalBatch | None = None) -> dict[str, Tensor]:
        """All four losses, their weighted sum ``loss``, and what is worth watching.

        Means are over the whole step: each part's sums are divided so that the mean over micro-batches and
        processes (DDP's) is the global mean.

        Args:
            batch: a micro-batch.
            step: all studies of the optimizer step; None if this micro-batch (of every process) is all of it.

        Returns:
            ``loss`` to differentiate; ``contrast, matching, report, image, z`` in nats, unweighted;
            ``matching_accuracy`` (balanced), ``scale``, and ``padding_share`` of the ``tokens`` that were computed.
        """
        rows, spans = len(batch), batch.spans
        prefix = self.read_images(spans)
        image_embedding = self._image_embedding(prefix.hidden)

        text, text_length = self._seen_text(batch)
        row, begin = self.rows.text_first(text, text_length, spans)
        # The last code and <eoi> behind it predict nothing.
        text_first = self.model(inputs_embeds=self.embed_ids(row.ids[:, :-2]), use_cache=False).last_hidden_state
        text_embedding = self._text_embedding(_at(text_first, text_length + 1))
        image_sum, image_z = self._image_loss(text_first, begin, spans)

        if step is None:
            own = Embeddings(image_embedding, text_embedding, self.scale)
            step = gather_step([batch], [own], self.config.negative_hardness, self.rows.pad)
        similarity = contrastive_similarity(
            step.with_own(step.image, image_embedding), step.with_own(step.text, text_embedding), self.scale
        )
        contrast = contrastive_loss(similarity, step.report_key, step.patient_key, step.has_text)

        reports, lengths = self._branches(step)
        groups = step.groups(lengths)
        hidden = [
            self.continue_prefix(
                prefix.cache, reports[some][:, : int(lengths[some].max())], lengths[some], some // (1 + NEGATIVES)
            )
            for some in groups
        ]
        at_match = torch.cat([_at(part, lengths[some] + 1) for part, some in zip(hidden, groups, strict=True)])
        at_match = at_match[torch.cat(groups).argsort()].view(rows, 1 + NEGATIVES, -1)
        match_logits = self.match_head(at_match, prefix.hidden[:, None].expand_as(at_match))
        usable = step.usable[step.own]
        report_sum, report_z = self._report_loss(prefix.hidden, hidden, groups, batch)
        image_tokens = step.images * spans.codes.shape[-1]

        losses = {
            "contrast": contrast,
            "matching": matching_loss(match_logits, usable) / step.matching_pairs,
            "report": report_sum / step.report_tokens,
            "image": image_sum / image_tokens,
            "z": report_z / step.report_tokens + image_z / image_tokens,
        }
        loss = sum(self.config.loss_weights[name] * value for name, value in losses.items())
        computed = prefix.computed + sum(part[..., 0].numel() for part in (text_first, *hidden))
        assert row.length is not None  # text-first rows have always theirs
        needed = prefix.needed + (row.length - 2).sum() + (lengths + 2).sum()
        watched = {
            "matching_accuracy": matching_accuracy(match_logits.detach(), usable),
            "scale": self.scale.detach(),
            "padding_share": 1 - needed / computed,
            TOKENS: torch.tensor(float(computed)),
        }
        return {"loss": loss, **losses, **watched}

    def _seen_text(self, batch: StudyBatch) -> tuple[Tensor, Tensor]:
        """(B, T) reports, ``<uncond>`` alone where the text is dropped; (B,) lengths."""
        dropped = torch.full_like(batch.report, self.rows.pad)
        dropped[:, 0] = self.vocabulary[UNCOND]
        text = torch.where(batch.drop_text[:, None], dropped, batch.report)
        return text, torch.where(batch.drop_text, 1, batch.report_length)

    def _branches(self, step: GlobalBatch) -> tuple[Tensor, Tensor]:
        """(3B, T) reports of this part's images, own first then the negatives; (3B,) lengths."""
        own = torch.arange(step.own.start, step.own.stop, device=step.negatives.device)
        chosen = torch.cat([own[:, None], step.negatives[step.own]], dim=1).flatten()
        return step.report[chosen], step.report_length[chosen]

    def _image_loss(self, hidden: Tensor, begin: Tensor, spans: Spans) -> tuple[Tensor, Tensor]:
        """Sums over the codes of the studies' own images; an earlier visit's are given, and learned from no more.

        Args:
            hidden: (B, L, H) of the text-first rows.
            begin: (B, S) places of ``<boi>``: it predicts c1, c1 predicts c2, ….
            spans: the images.
        """
        tokens, target = spans.codes.shape[-1], spans.codes
        places = begin[..., None] + torch.arange(tokens, device=begin.device)
        real = self.rows.real(spans)
        if real is None:
            states = _at(hidden, places.flatten(1)).flatten(0, 1)
        else:
            target = target[real]
            states = hidden[real.nonzero()[:, :1], places[real]].flatten(0, 1)
        return token_loss(self.image_logits(states), target.flatten())

    def _report_loss(
        self, prefix: Tensor, hidden: list[Tensor], groups: list[Tensor], batch: StudyBatch
    ) -> tuple[Tensor, Tensor]:
        """Sums over the report and its ``<eos>``: ``<emb_img>`` predicts the first id, the last id ``<eos>``."""
        target = self.rows.ended(batch.report, batch.report_length, EOS)
        states, targets = [prefix], [target[:, 0]]
        for part, some in zip(hidden, groups, strict=True):
            own = some % (1 + NEGATIVES) == 0
            study = some[own] // (1 + NEGATIVES)
            width = min(part.shape[1] - 2, batch.report.shape[1])  # negatives of other processes may be longer
            real = torch.arange(width, device=some.device) < batch.report_length[study][:, None]
            states.append(part[own, :width][real])
            targets.append(target[study, 1 : width + 1][real])
        return token_loss(self.text_logits(torch.cat(states)), torch.cat(targets))

    # The two uses of forward ----------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        batch: StudyBatch | None = None,
        step: GlobalBatch | None = None,
        embed_only: bool = False,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> dict[str, Tensor] | Embeddings | CausalLMOutputWithPast:
        """Losses (or embeddings) of a training batch, or text logits (B, L, offset) of a row of ids.

        Everything of a training step happens in this one call, so that DDP and FSDP see one forward. The cache
        comes as ``cache`` or, from older versions of transformers, as ``past_key_values``.
        """
        if batch is not None:
            return self.embeddings(batch) if embed_only else self.losses(batch, step)
        cache = past_key_values if cache is None else cache
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("give a batch to train on, or input_ids to continue")
            inputs_embeds = self.embed_ids(input_ids)
            attention_mask = self._image_attention(input_ids, attention_mask, cache)
        output = self.model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            **{CACHE: cache},
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return CausalLMOutputWithPast(
            logits=self.text_logits(output.last_hidden_state[:, keep]), **{CACHE: output.get(CACHE)}
        )

    def generate(self, *args: Any, generation_mode: str = "text", **kwargs: Any) -> Tensor:
        """Text with ``transformers``' usual arguments, or images.

        Args:
            generation_mode: ``"text"`` continues ``input_ids``; ``"image"`` draws codes, with the arguments
                of :func:`stage2_unified.image_generation.generate_images`.

        Returns:
            Ids (B, L), or codes (B, N).
        """
        if generation_mode == "image":
            return generate_images(self, *args, **kwargs)
        if generation_mode != "text":
            raise ValueError(f"generation_mode must be text or image, got {generation_mode!r}")
        generated: Tensor = super().generate(*args, **kwargs)
        return generated


def _at(hidden: Tensor, places: Tensor) -> Tensor:
    """(B, L, H) at (B,) or (B, N) places -> (B, H) or (B, N, H)."""
    rows = torch.arange(len(hidden), device=hidden.device)
    return hidden[rows, places] if places.dim() == 1 else hidden[rows[:, None], places]


AutoModel.register(MedUnifierConfig, MedUnifierForConditionalGeneration)
