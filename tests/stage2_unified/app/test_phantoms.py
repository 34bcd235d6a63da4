"""Examples differ and match their reports; the index finds a phantom by its own image."""

import numpy as np
import pytest
from PIL import Image

from medunifier.data.reports.labeler import label_report
from medunifier.data.reports.observations import FINDINGS
from medunifier.stage2_unified.app.phantoms import phantom_index, write_examples
from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline


def test_examples_have_distinct_findings(tmp_path):
    examples = write_examples(tmp_path / "examples", 32, count=5)
    stated = [frozenset(name for name, value in label_report(e.truth).items() if value == 1) for e in examples]
    assert len(set(stated)) == 5
    for example in examples:
        assert Image.open(example.path).size == (64, 64) and example.view in ("PA", "AP")
        assert example.truth.startswith("FINDINGS: ") and "\n\nIMPRESSION: " in example.truth


@pytest.fixture(scope="module")
def pipeline(model_folder):
    return MedUnifierPipeline.from_pretrained(model_folder, "cpu")


def test_a_phantom_is_found_by_its_own_image(pipeline):
    index, thumbnails = phantom_index(pipeline, 12)
    assert len(index.studies) == 12 and set(thumbnails) == {row["study_id"] for row in index.studies}
    assert {"Pleural Effusion", "Cardiomegaly"} <= set(index.about["findings"]) < set(FINDINGS)
    image = thumbnails[index.studies[7]["study_id"]]
    assert image.shape == (32, 32) and image.dtype == np.uint8
    embedded = pipeline.embed_images(pipeline.encode(image[None] / 255), [index.studies[7]["view"]])
    similarity, rows = index.nearest(embedded, 3)
    assert rows[0, 0] == 7 and similarity[0, 0] > 0.99, "up to rounding to 8 bits"
