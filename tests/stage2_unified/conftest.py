"""A tiny model of the full architecture, and batches of studies for it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from medunifier.data.phantom import Phantom
from medunifier.stage1_tokenizer.config import model_config
from medunifier.stage1_tokenizer.frozen import export
from medunifier.stage1_tokenizer.model.vqgan import VQGAN
from medunifier.stage2_unified.model.configuration import MedUnifierConfig
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration
from medunifier.stage2_unified.model.processing.processor import MedUnifierProcessor
from medunifier.stage2_unified.model.processing.text_tokenizer import train_text_tokenizer
from medunifier.stage2_unified.model.sequences import ImageSpans
from medunifier.stage2_unified.training.collator import StatementBatch, StudyBatch
from medunifier.stage2_unified.training.config import LossWeights
from medunifier.stage2_unified.training.four_objectives import FourObjectives
from tests.stage1_tokenizer.conftest import TINY_TOKENIZER

GRID = (2, 3)
CODES = 16


BACKBONE = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
}


def make_config(**changes):
    values = {
        "text_size": 40,
        "codebook_size": CODES,
        "code_dim": 4,
        "grid": GRID,
        "embedding_dim": 16,
        "max_report_tokens": 12,
    }
    return MedUnifierConfig(**{"text_config": BACKBONE} | values | changes)


def make_model(**changes):
    torch.manual_seed(0)
    model = MedUnifierForConditionalGeneration(make_config(**changes))
    model.set_codebook(torch.nn.functional.normalize(torch.randn(CODES, 4), dim=-1))
    # Larger weights than at initialisation: differences would otherwise stay below the tolerances.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0 if "embed" in name or "head" in name else 2.0)
    return model


def losses_of(model, batch, **weights):
    """Return the losses of a batch that is the whole step."""
    return FourObjectives(model, LossWeights(**weights))(batch)


def make_statements(studies, count, generator, width=7, findings=5):
    """Return random statements of random labels; those of the last study have none, and it has no report."""
    pad, lengths = (
        make_config().vocabulary["<pad>"],
        torch.from_numpy(generator.integers(1, width + 1, (studies, count))),
    )
    ids = torch.from_numpy(generator.integers(0, 40, (studies, count, width)))
    stated = torch.from_numpy(generator.choice([-1, -1, 0, 1], (studies, count, findings))).to(torch.int8)
    stated[:, :, 0] = torch.from_numpy(generator.choice([0, 1], (studies, count)))
    stated[-1] = -1
    return StatementBatch(
        labels=torch.from_numpy(generator.choice([-1, 0, 1], (studies, findings))).to(torch.int8),
        ids=ids.masked_fill(torch.arange(width) >= lengths[..., None], pad),
        length=lengths,
        stated=stated,
        general=torch.from_numpy(generator.random((studies, count)) < 0.7),
        has_report=torch.arange(studies) < studies - 1,
    )


def make_batch(studies=6, dropped=(), seed=0, images=None, priors=None, statements=0):
    generator = np.random.default_rng(seed)
    vocabulary = make_config().vocabulary
    lengths = generator.integers(1, 9, studies)
    report = torch.full((studies, int(lengths.max())), vocabulary["<pad>"])
    for study, length in enumerate(lengths):
        report[study, :length] = torch.from_numpy(generator.integers(0, 40, length))
    drop = torch.zeros(studies, dtype=torch.bool)
    drop[list(dropped)] = True
    batch = StudyBatch(
        images=ImageSpans.of(
            torch.from_numpy(generator.integers(0, CODES, (studies, GRID[0] * GRID[1]))),
            torch.tensor([vocabulary.view(name) for name in generator.choice(["PA", "AP"], studies)]),
        ),
        report=report,
        report_length=torch.from_numpy(lengths),
        report_key=torch.arange(studies) // (2 if studies > 4 else 1) * 7,
        patient_key=torch.arange(studies) * 3,
        drop_text=drop,
        negative_seed=5,
        statements=make_statements(studies, statements, np.random.default_rng(seed + 100)) if statements else None,
    )
    return batch if images is None else with_images(batch, images, priors or [0] * studies, generator)


def with_images(batch, images, priors, generator):
    """Return the same studies with these numbers of images and of images of the prior study."""
    pad, tokens = make_config().vocabulary["<pad>"], batch.images.codes.shape[-1]
    pa = int(batch.images.view.min())

    def spans(counts):
        codes = torch.from_numpy(generator.integers(0, CODES, (len(batch), max(counts), tokens)))
        view = torch.from_numpy(generator.choice([pa + 1, pa], codes.shape[:2]))
        return codes, view.masked_fill(torch.arange(max(counts)) >= torch.tensor(counts)[:, None], pad)

    codes, view = spans(images)
    prior_codes, prior_view = spans(priors) if any(priors) else (None, None)
    return replace(batch, images=ImageSpans.of(codes, view, prior_codes, prior_view))


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def batch():
    return make_batch()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """Folder of an untrained model, as exported by a training."""
    return make_model_folder(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def other_model_folder(tmp_path_factory):
    """Folder of another model, with another image tokenizer."""
    return make_model_folder(tmp_path_factory.mktemp("other"), seed=1)


def make_model_folder(root, seed=0, **changes):
    """Write an untrained model of 32 x 32 pixels into root/model."""
    torch.manual_seed(seed)
    frozen = export(VQGAN(model_config(TINY_TOKENIZER)), root / "tokenizer")
    text_tokenizer = train_text_tokenizer(["The lungs are clear.", "No effusion.", "The heart is enlarged."] * 3, 300)
    codes, dim = frozen.codebook.shape
    config = make_config(
        text_config=BACKBONE | {"max_position_embeddings": 512},
        text_size=len(text_tokenizer),
        codebook_size=codes,
        code_dim=dim,
        grid=frozen.grid,
        tokenizer_fingerprint=frozen.fingerprint,
        **changes,
    )
    model = MedUnifierForConditionalGeneration(config)
    model.set_codebook(frozen.codebook)
    model.save_pretrained(root / "model")
    MedUnifierProcessor(text_tokenizer, frozen, config).save_pretrained(root / "model")
    return root / "model"


@pytest.fixture(scope="session")
def phantom_shards(tmp_path_factory):
    """Image shards of 40 phantoms of 32 x 32 pixels."""
    from tests.stage2_unified.evaluate.phantom_oracle import phantom_studies, write_shards

    return write_shards(tmp_path_factory.mktemp("phantoms"), phantom_studies(40))


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """Folder of five radiographs as PNG, in two folders, and of a broken file."""
    root = tmp_path_factory.mktemp("radiographs")
    (root / "deeper").mkdir()
    for number in range(5):
        pixels = (Phantom(48, 7).study(number).images[0] * 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / ("deeper" if number > 2 else ".") / f"image{number}.png")
    (root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"nothing" * 20)
    return root
