"""``medunifier calibrate``: measure the likelihood of validation images, to recognize images unlike them."""

from collections.abc import Sequence
from dataclasses import dataclass

from medunifier.shared.config import parse_config


@dataclass(frozen=True)
class CalibrateConfig:
    """Measure the likelihood of validation images under a model, and write likelihood.json into its folder.

    `report`, `classify` and the web page then state when an image lies outside the training data. A training writes
    the file itself.
    """

    model: str
    """Model folder (run_dir/model)."""
    data: str
    """Folder or URL of image or token shards, of the data that the model was trained on."""
    split: str = "validate"
    """Split, not trained on."""
    device: str | None = None
    """Device of the model; default: CUDA if available, else the CPU."""


def main(argv: Sequence[str] | None = None) -> None:
    """Write the file and print where the limits are.

    Raises:
        UserError: if there is no model, the split has too few images, or the codes are those of another tokenizer.
    """
    config = parse_config(CalibrateConfig, argv, prog="medunifier calibrate")
    # Imported here so that --help does not wait for torch and transformers.
    from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline

    pipeline = MedUnifierPipeline.from_pretrained(config.model, config.device)
    reference = pipeline.measure_likelihood(config.data, config.split)
    reference.save(config.model)
    print(reference.summary(config.model))
