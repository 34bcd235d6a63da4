"""The small model, shards and images of stage 2's tests."""

from tests.stage2_unified.conftest import films_folder, model_folder, phantom_shards

__all__ = ["films_folder", "model_folder", "phantom_shards"]
