"""Phantom shards shared by the evaluation tests."""

import numpy as np
import pytest
import torch

from medunifier.data.shards.dataset import ShardDataset
from medunifier.stage2_unified.evaluate.subsets.studies import EvaluationData
from tests.stage2_unified.evaluate.phantom_oracle import FakeTokenizer, code_of, phantom_studies, write_shards


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def studies():
    return phantom_studies(600)


@pytest.fixture(scope="session")
def image_shards(studies, tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("images"), studies)


@pytest.fixture(scope="session")
def token_shards(studies, tmp_path_factory):
    codes = [code_of(pixels).astype(np.uint16) for pixels, _ in studies]
    return write_shards(tmp_path_factory.mktemp("codes"), studies, codes)


@pytest.fixture
def image_data(image_shards):
    return EvaluationData(str(image_shards), FakeTokenizer())


@pytest.fixture
def first_test_study(image_shards):
    return ShardDataset(image_shards, "test")[0]
