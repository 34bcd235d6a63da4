"""The small model, shards and images of stage 2's tests."""

from tests.stage2_unified.conftest import image_folder, model_folder, phantom_shards

__all__ = ["image_folder", "model_folder", "phantom_shards"]
