"""A training step of the four objectives: each token computed once, against one pass an objective.

The peer has the same backbone, heads, batch and drawn negatives; it runs, as public code does, the image row,
the text row, the three matching rows, the report row and the image-generation row each for itself.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from shared.bench import BenchConfig, Row, paired
from stage2_unified.configuration import MedUnifierConfig
from stage2_unified.model import MedUnifierForConditionalGeneration
from stage2_unified.objectives.contrast import contrastive_loss
from stage2_unified.sequences import StudyBatch

STUDIES, CODES, WORDS = 16, 64, 40
TARGET = 2.2


def rows(config: BenchConfig) -> list[Row]:
    """One row: steps a second, forward and backward, float32."""
    torch.manual_seed(0)
    model = _model()
    batch = _batch(model)
    return [
        paired(
            f"four objectives, {STUDIES} studies of {CODES} codes and {WORDS} words, steps/s",
            lambda: _step(model, model(batch=batch)["loss"]),
            lambda: _step(model, one_pass_an_objective(model, batch)),
            config,
            TARGET,
        )
    ]


def _step(model: MedUnifierForConditionalGeneration, loss: Tensor) -> None:
    model.zero_grad()
    loss.backward()


def _model() -> MedUnifierForConditionalGeneration:
    backbone = {
        "model_type": "qwen3",
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "intermediate_size": 768,
    }
    return MedUnifierForConditionalGeneration(MedUnifierConfig(text_config=backbone, text_size=1024))


def _batch(model: MedUnifierForConditionalGeneration) -> StudyBatch:
    v = model.vocabulary
    return StudyBatch(
        codes=torch.randint(0, v.codes, (STUDIES, CODES)),
        view=torch.full((STUDIES,), v.view("PA")),
        report=torch.randint(0, v.text_size, (STUDIES, WORDS)),
        report_length=torch.full((STUDIES,), WORDS),
        report_key=torch.arange(STUDIES),
        patient_key=torch.arange(STUDIES),
        drop_text=torch.zeros(STUDIES, dtype=torch.bool),
    )


def one_pass_an_objective(model: MedUnifierForConditionalGeneration, batch: StudyBatch) -> Tensor:
    """The same weighted sum of losses, every objective with rows of its own."""
    v, n = model.vocabulary, len(batch)
    offset, weights = v.offset, model.config.loss_weights

    def run(ids: Tensor) -> Tensor:
        hidden: Tensor = model.model(inputs_embeds=model.embed_ids(ids), use_cache=False).last_hidden_state
        return hidden

    def special(name: str, count: int = n) -> Tensor:
        return torch.full((count, 1), v[name])

    prefix = model.image_prefix_ids(batch.codes, batch.view)
    text_row = model.text_row_ids(batch.report, batch.report_length, batch.view, batch.codes)
    image = model._image_embedding(run(prefix)[:, -1])
    text = model._text_embedding(run(torch.cat([special("<bos>"), batch.report, special("<emb_txt>")], 1))[:, -1])
    similarity = model.scale * image @ text.T
    contrast = contrastive_loss(similarity, batch.report_key, batch.patient_key, ~batch.drop_text)

    negatives = torch.stack([torch.roll(batch.report, shift, dims=0) for shift in (1, 2)], dim=1)
    reports = torch.cat([batch.report[:, None], negatives], dim=1).flatten(0, 1)
    tail = [special("<eos>", 3 * n), special("<match>", 3 * n)]
    hidden = run(torch.cat([prefix.repeat_interleave(3, 0), reports, *tail], 1))
    logits = model.match_head(hidden[:, -1], hidden[:, prefix.shape[1] - 1])
    matching = cross_entropy(logits, torch.tensor([1, 0, 0]).repeat(n))

    row = torch.cat([prefix, batch.report, special("<eos>")], 1)
    begin = prefix.shape[1] - 1
    report = model.text_logits(run(row)[:, begin:-1]).flatten(0, 1)
    drawn = model.image_logits(run(text_row)[:, -CODES - 2 : -2]).flatten(0, 1)
    losses = {
        "contrast": contrast,
        "matching": matching,
        "report": cross_entropy(report, row[:, begin + 1 :].flatten()),
        "image": cross_entropy(drawn, text_row[:, -CODES - 1 : -1].flatten() - offset),
        "z": report.logsumexp(-1).square().mean() + drawn.logsumexp(-1).square().mean(),
    }
    total: Tensor = sum((weights[name] * loss for name, loss in losses.items()), start=torch.zeros(()))
    return total
