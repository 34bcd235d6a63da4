"""A training step of the four objectives with a shared prefix, against one pass per objective and a stock model.

The first peer has the same backbone, heads, batch and number of negatives; as in public code, it encodes the image,
the text, the three image-report pairs for matching, the report and the generated image in separate sequences. The
second is ``Qwen3ForCausalLM`` of ``transformers`` with its own loss on as many tokens as ours computes, in sequences
of their mean length: the difference of its ratio from 1 is the overhead of the four objectives over the decoder.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from medunifier.bench import BenchConfig, Row, paired
from medunifier.shared.training.hardware import peak_flops
from medunifier.stage2_unified.export.causal_lm import to_causal_lm
from medunifier.stage2_unified.model.configuration import MedUnifierConfig
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration
from medunifier.stage2_unified.model.sequences import ImageSpans, append
from medunifier.stage2_unified.model.vocabulary import PAD
from medunifier.stage2_unified.objectives.contrast import contrastive_loss
from medunifier.stage2_unified.training.collator import StudyBatch
from medunifier.stage2_unified.training.config import LossWeights
from medunifier.stage2_unified.training.four_objectives import FourObjectives


@dataclass(frozen=True)
class Shape:
    """A batch of studies with a ``grid`` of codes and reports of ``shortest`` to ``longest`` ids."""

    name: str
    studies: int
    grid: tuple[int, int]
    shortest: int
    longest: int


BACKBONE = {
    "model_type": "qwen3",
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "intermediate_size": 768,
}
PHANTOMS = Shape("64 codes, reports of 40 ids", 16, (8, 8), 40, 40)
RADIOGRAPHS = Shape("256 codes, reports of 30 to 110 ids", 8, (16, 16), 30, 110)
TARGET, OVERHEAD_TARGET = 2.2, 1 / 1.1


def rows(config: BenchConfig) -> list[Row]:
    """Measure steps/s, forward and backward, in float32."""
    torch.manual_seed(0)
    table = []
    for shape in (PHANTOMS, RADIOGRAPHS):
        model = _model(shape)
        objectives, batch = FourObjectives(model, LossWeights()), _batch(model, shape)
        table.append(
            paired(
                f"four objectives against one pass each, {shape.studies} studies of {shape.name}, steps/s",
                partial(_step_together, objectives, batch),
                partial(_step_separate, objectives, batch),
                config,
                TARGET,
            )
        )
    model = _model(PHANTOMS)
    objectives, batch = FourObjectives(model, LossWeights()), _batch(model, PHANTOMS)
    stock, ids = to_causal_lm(model), _as_many_tokens(objectives, batch)
    table.append(
        paired(
            f"four objectives against {type(stock).__name__} on as many tokens ({ids.numel()}), steps/s",
            partial(_step_together, objectives, batch),
            lambda: _step(stock, stock(input_ids=ids, labels=ids, use_cache=False).loss),
            config,
            OVERHEAD_TARGET,
        )
    )
    weights = sum(p.numel() for p in model.model.layers.parameters() if p.dim() == 2)
    rate = 6 * weights * ids.numel() * table[-1].ours  # FLOP/s: a product and its two gradients, 2 FLOP per entry
    mfu = rate / peak_flops("no")
    print(f"ours: {rate / 1e9:.1f} GFLOP/s in the matrix products of the layers, MFU {mfu:.0%}")
    return table


def _step_together(objectives: FourObjectives, batch: StudyBatch) -> None:
    _step(objectives, objectives(batch)["loss"])


def _step_separate(objectives: FourObjectives, batch: StudyBatch) -> None:
    _step(objectives, one_pass_an_objective(objectives, batch))


def _step(model: torch.nn.Module, loss: Tensor) -> None:
    model.zero_grad()
    loss.backward()


def _model(shape: Shape) -> MedUnifierForConditionalGeneration:
    return MedUnifierForConditionalGeneration(
        MedUnifierConfig(text_config=BACKBONE, text_size=1024, grid=shape.grid)
    ).train()


def _batch(model: MedUnifierForConditionalGeneration, shape: Shape) -> StudyBatch:
    v, studies = model.vocabulary, shape.studies
    length = torch.linspace(shape.shortest, shape.longest, studies).long()
    return StudyBatch(
        images=ImageSpans.of(
            torch.randint(0, v.codebook_size, (studies, model.config.image_tokens)),
            torch.full((studies,), v.view("PA")),
        ),
        report=torch.randint(0, v.text_size, (studies, shape.longest)),
        report_length=length[torch.randperm(studies)],
        report_key=torch.arange(studies),
        patient_key=torch.arange(studies),
        drop_text=torch.zeros(studies, dtype=torch.bool),
    )


def _as_many_tokens(objectives: FourObjectives, batch: StudyBatch) -> Tensor:
    """Return (5 B, L) ids, as many as ours computes: a prefix, three branches and a text-first sequence per study."""
    computed, model = [], objectives.model
    hook = model.model.layers[0].register_forward_pre_hook(lambda _, inputs: computed.append(inputs[0].shape[:2]))
    with torch.no_grad():
        objectives(batch)
    hook.remove()
    tokens = sum(sequences * length for sequences, length in computed)
    length = tokens // (5 * len(batch))
    return torch.randint(0, model.vocabulary.offset, (tokens // length, length))


def one_pass_an_objective(objectives: FourObjectives, batch: StudyBatch) -> Tensor:
    """Return the same weighted sum of losses, with separate padded sequences for every objective."""
    model, weights = objectives.model, objectives.weights
    v, n = model.vocabulary, len(batch)
    studies = torch.arange(n)

    def run(ids: Tensor) -> Tensor:
        hidden: Tensor = model.model(inputs_embeds=model.embed_ids(ids), use_cache=False).last_hidden_state
        return hidden

    def special(name: str, count: int = n) -> Tensor:
        return torch.full((count, 1), v[name])

    prefix = model.sequences.image_first(batch.images).ids
    emb_img, length = prefix.shape[1] - 1, batch.report_length
    image = model.image_embedding(run(prefix)[:, -1])
    text = model.get_text_features(batch.report, length)
    similarity = model.logit_scale.exp() * image @ text.T
    contrast = contrastive_loss(similarity, batch.report_key, batch.patient_key, ~batch.drop_text)

    chosen = torch.stack([studies, studies.roll(1), studies.roll(2)], dim=1).flatten()
    tail = torch.cat([special("<eos>", 3 * n), special("<match>", 3 * n)], dim=1)
    branch = append(batch.report[chosen], length[chosen], tail, v[PAD])
    hidden = run(torch.cat([prefix.repeat_interleave(3, 0), branch], 1))
    at_match = hidden[torch.arange(3 * n), emb_img + length[chosen] + 2]
    matching = cross_entropy(model.match_head(at_match, hidden[:, emb_img]), torch.tensor([1, 0, 0]).repeat(n))

    target = append(batch.report, length, special("<eos>"), v[PAD])
    real = torch.arange(target.shape[1]) <= length[:, None]
    report = model.text_logits(run(torch.cat([prefix, target], 1))[:, emb_img:-1][real])

    codes = batch.images.codes[:, 0]
    text_first = model.sequences.text_first(batch.report, length, batch.images)[0].ids
    positions = (length + 3)[:, None] + torch.arange(codes.shape[1])
    image_logits = model.image_logits(run(text_first)[studies[:, None], positions]).flatten(0, 1)
    losses = {
        "contrast": contrast,
        "matching": matching,
        "report": cross_entropy(report, target[real]),
        "image": cross_entropy(image_logits, codes.flatten()),
        "z": report.logsumexp(-1).square().mean() + image_logits.logsumexp(-1).square().mean(),
    }
    total: Tensor = sum((weights[name] * loss for name, loss in losses.items()), start=torch.zeros(()))
    return total
