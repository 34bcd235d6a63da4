"""The smallest model that is still the real one, and batches of studies for it."""

import numpy as np
import pytest
import torch

from stage2_unified.configuration import MedUnifierConfig
from stage2_unified.model import MedUnifierForConditionalGeneration
from stage2_unified.sequences import StudyBatch

GRID = (2, 3)
CODES = 16


def make_config(**changes):
    backbone = {
        "model_type": "qwen3",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
    }
    values = {
        "text_size": 40,
        "codes": CODES,
        "code_dim": 4,
        "grid": GRID,
        "embedding_dim": 16,
        "max_report_tokens": 12,
    }
    return MedUnifierConfig(text_config=backbone, **values | changes)


def make_model(**changes):
    torch.manual_seed(0)
    model = MedUnifierForConditionalGeneration(make_config(**changes))
    model.set_codebook(torch.nn.functional.normalize(torch.randn(CODES, 4), dim=-1))
    # Larger weights than at the start of a training: differences would otherwise hide below the tolerance.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0 if "embed" in name or "head" in name else 2.0)
    return model


def make_batch(rows=6, dropped=(), seed=0):
    draw = np.random.default_rng(seed)
    vocabulary = make_config().vocabulary
    lengths = draw.integers(1, 9, rows)
    report = torch.full((rows, int(lengths.max())), vocabulary["<pad>"])
    for row, length in enumerate(lengths):
        report[row, :length] = torch.from_numpy(draw.integers(0, 40, length))
    drop = torch.zeros(rows, dtype=torch.bool)
    drop[list(dropped)] = True
    return StudyBatch(
        codes=torch.from_numpy(draw.integers(0, CODES, (rows, GRID[0] * GRID[1]))),
        view=torch.tensor([vocabulary.view(name) for name in draw.choice(["PA", "AP"], rows)]),
        report=report,
        report_length=torch.from_numpy(lengths),
        report_key=torch.arange(rows) // (2 if rows > 4 else 1) * 7,
        patient_key=torch.arange(rows) * 3,
        drop_text=drop,
        draw_seed=5,
    )


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def batch():
    return make_batch()
