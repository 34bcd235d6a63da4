"""A streamed report ends as the complete one, and closing the stream stops the generation."""

import threading

import numpy as np
import pytest

from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline


@pytest.fixture(scope="module")
def pipeline(model_folder):
    return MedUnifierPipeline.from_pretrained(model_folder, "cpu")


@pytest.fixture
def codes(pipeline):
    return np.random.default_rng(0).integers(0, pipeline.tokenizer.codebook_size, pipeline.tokenizer.grid)


def test_the_stream_ends_with_the_complete_report(pipeline, codes):
    steps = list(pipeline.stream_report(codes, "PA"))
    assert steps[-1] == pipeline.write_reports(codes[None], ["PA"])[0]
    assert len(steps) > 3 and len(str(steps[0])) <= len(str(steps[-1]))


def test_closing_the_stream_stops_the_generation(pipeline, codes):
    before, passes = threading.active_count(), []
    hook = pipeline.model.model.register_forward_hook(lambda *_: passes.append(1))
    stream = pipeline.stream_report(codes, "PA", max_new_tokens=400, min_new_tokens=400)
    next(stream)
    stream.close()
    hook.remove()
    assert threading.active_count() == before
    assert 0 < len(passes) < 400


def test_an_error_in_the_generating_thread_is_raised(pipeline, codes):
    with pytest.raises(ValueError):
        list(pipeline.stream_report(codes, "PA", num_beams=4))
