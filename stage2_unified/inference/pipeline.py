"""Inference with a trained model: embeddings, matching, reports, images. NumPy in and out, batched internally."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from medunifier.data.shards.dataset import read_manifest
from medunifier.shared.artifacts import fingerprint
from medunifier.shared.files.model_folder import checked_model_folder
from medunifier.shared.training.hardware import has_bf16
from medunifier.shared.training.precision import Precision, autocast
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer
from medunifier.stage2_unified.generation.batch_size import automatic_batch_size
from medunifier.stage2_unified.generation.bfloat16 import bfloat16_copy
from medunifier.stage2_unified.generation.decoding import compile_step
from medunifier.stage2_unified.generation.images import generate_images
from medunifier.stage2_unified.generation.likelihood import LikelihoodReference, candidate_views, image_nll
from medunifier.stage2_unified.generation.reports import generate_reports
from medunifier.stage2_unified.inference.image_backbone import ImageBackbone
from medunifier.stage2_unified.inference.streaming import stream_report
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration
from medunifier.stage2_unified.model.processing.processor import Codes, MedUnifierProcessor, Prior
from medunifier.stage2_unified.model.sequences import ImageSpans

Report = Mapping[str, str]
Views = Sequence[str] | Sequence[Sequence[str]]
COMPILE_FROM = 4000
"""Studies from which on compiling the decoding step pays: 17 s on an H100, which then saves 4.5 ms an image."""
MOST_REFERENCE_STUDIES = 5000
"""Studies whose likelihood is measured, at most."""


def model_fingerprint(model: MedUnifierForConditionalGeneration) -> str:
    """Return the SHA-256 of the model type and the weights."""
    return fingerprint({"model_type": model.config.model_type}, model.state_dict())


class MedUnifierPipeline:
    """A trained model with its processor.

    Args:
        model, processor: loaded from the same folder.
        device: default: CUDA if available, else the CPU.
        batch_size: studies per forward pass; None = as many as the free memory of a GPU allows, 32 on a CPU. Results
            do not depend on it.
        precision: of generation. ``auto`` is bfloat16 on GPUs that have it, otherwise float32. In bfloat16 a copy of
            the weights generates, made once; embeddings and matching keep the precision of ``model``.
    """

    def __init__(
        self,
        model: MedUnifierForConditionalGeneration,
        processor: MedUnifierProcessor,
        device: str | torch.device | None = None,
        batch_size: int | None = None,
        precision: Precision = "auto",
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device).eval()
        self.processor, self.precision, self._compiled = processor, precision, False
        self.batch_size = batch_size or automatic_batch_size(self.model, self.device)
        self.processor.image_tokenizer.to(self.device)
        self._folder: Path | None = None

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str | None = None,
        batch_size: int | None = None,
        precision: Precision = "auto",
    ) -> "MedUnifierPipeline":
        """Load a model folder.

        Raises:
            UserError: if the folder is not a model folder, or lacks weights.
        """
        processor = MedUnifierProcessor.from_pretrained(folder)  # first: its error messages are clearer
        logging.disable_progress_bar()  # a progress bar for two dozen tensors is noise
        with checked_model_folder(folder, "a model"):
            model = MedUnifierForConditionalGeneration.from_pretrained(folder, local_files_only=True)
        pipeline = cls(model, processor, device, batch_size, precision)
        pipeline._folder = Path(folder)
        return pipeline

    @property
    def tokenizer(self) -> FrozenTokenizer:
        """The frozen image tokenizer."""
        return self.processor.image_tokenizer

    @cached_property
    def decoder(self) -> MedUnifierForConditionalGeneration:
        """The model that generates: ``model``, or its copy in bfloat16."""
        auto_bf16 = self.precision == "auto" and self.device.type == "cuda" and has_bf16(self.device)
        return bfloat16_copy(self.model) if auto_bf16 or self.precision == "bf16" else self.model

    def expect(self, studies: int) -> None:
        """Compile the copy that generates if so many studies will be generated on a GPU that it pays."""
        if studies >= COMPILE_FROM and self.device.type == "cuda" and self.decoder is not self.model:
            if not self._compiled:
                compile_step(self.decoder)
            self._compiled = True

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the model's configuration and weights."""
        return model_fingerprint(self.model)

    @property
    def max_views(self) -> int:
        """Maximum images per study in the model's training."""
        return int(self.model.config.max_views)

    @property
    def prior(self) -> bool:
        """Whether the model was trained with prior studies."""
        return bool(self.model.config.prior)

    @property
    def statements(self) -> bool:
        """Whether the model was trained with statements, so that :meth:`match` applies to a single sentence."""
        return bool(self.model.config.statements)

    @property
    def sections(self) -> str:
        """Report sections that the model was trained on: ``findings+impression``, …"""
        return str(self.model.config.text_choice)

    def image_backbone(self, seed: int | None = None) -> ImageBackbone:
        """Return a copy to fine-tune; with a seed, the same architecture with newly initialised weights."""
        return ImageBackbone(self.model, seed)

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Encode (N, H, W) images in [0, 1] to (N, h, w) codes."""

        def run(begin: int, end: int) -> Tensor:
            batch = torch.from_numpy(np.ascontiguousarray(images[begin:end], dtype=np.float32))
            return self.tokenizer.encode_indices((batch[:, None] * 2 - 1).to(self.device), "auto")

        return self._batched(len(images), run)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Decode (N, h, w) codes to (N, H, W) float32 images in [0, 1]."""

        def run(begin: int, end: int) -> Tensor:
            batch = torch.from_numpy(codes[begin:end].astype(np.int64)).to(self.device)
            return self.processor.codes_to_images(batch)

        return self._batched(len(codes), run)

    def embed_images(self, codes: Codes, views: Views, priors: Sequence[Prior | None] | None = None) -> np.ndarray:
        """Return the (N, E) unit-norm embeddings of N studies.

        Args:
            codes: (N, h, w), or N arrays (S, h, w) where studies have several images.
            views: N view positions, or N lists of them.
            priors: for each study the codes (h, w) and view of an image of the prior study, or None.
        """

        def run(begin: int, end: int) -> Tensor:
            return self.model.get_image_features(self._images(begin, end, codes, views, priors))

        return self._batched(len(codes), run)

    def embed_texts(self, reports: Sequence[Report]) -> np.ndarray:
        """Return the (N, E) unit-norm embeddings of N reports ``{"findings", "impression"}``."""

        def run(begin: int, end: int) -> Tensor:
            return self.model.get_text_features(**self._inputs(reports=reports[begin:end]))

        return self._batched(len(reports), run)

    @cached_property
    def reference(self) -> LikelihoodReference | None:
        """Likelihood of validation images; None if the model folder lacks it, or the model came from no folder.

        Raises:
            UserError: if the file is damaged, or was computed with another model.
        """
        return LikelihoodReference.load(self._folder, self.fingerprint) if self._folder else None

    def image_nll(self, codes: np.ndarray, views: Sequence[str]) -> np.ndarray:
        """Return the (N,) mean negative log-likelihood of each image's codes without a report, in nats per code.

        Args:
            codes: (N, h, w).
            views: N view positions; of an unknown one ("") the most likely counts.
        """
        rows = [(image, candidate) for image, view in enumerate(views) for candidate in candidate_views(view)]

        def run(begin: int, end: int) -> Tensor:
            numbers, names = zip(*rows[begin:end], strict=True)
            with autocast(self.device):
                return image_nll(self.model, self._inputs(codes=codes[list(numbers)], views=names)["images"])

        least = np.full(len(codes), np.inf, np.float32)
        np.minimum.at(least, [image for image, _ in rows], self._batched(len(rows), run))
        return least

    def measure_likelihood(self, shards: str | Path, split: str) -> LikelihoodReference:
        """Return the likelihood of the images of a split that the model was not trained on.

        Raises:
            UserError: if the split has too few images, or the codes are those of another tokenizer.
        """
        # Imported here: it reads DICOM, for which a machine that only computes needs no package.
        from medunifier.stage2_unified.inference.inputs import ShardStudies, codes_of

        manifest = read_manifest(shards)
        studies = ShardStudies(str(shards), [split], self.tokenizer, max_views=sys.maxsize)
        numbers = range(0, len(studies.keys), -(-len(studies.keys) // MOST_REFERENCE_STUDIES))
        values: list[np.ndarray] = []
        for first in range(0, len(numbers), self.batch_size):
            batch = [studies.read(number) for number in numbers[first : first + self.batch_size]]
            images = [image for study in batch for image in (study, *study.others)]
            values.append(self.image_nll(codes_of(self, images), [image.view for image in images]))
        return LikelihoodReference.of(
            np.concatenate(values), self.fingerprint, str(manifest.get("source", "unknown")), split
        )

    def similarity_maps(
        self, codes: np.ndarray, views: Sequence[str], report: Report, against: Report, reference: np.ndarray
    ) -> np.ndarray:
        """Return (N, h, w) maps of what each code adds to the agreement with a text rather than with another one.

        Args:
            codes: (N, h, w), one image a study.
            views: N view positions.
            report: the text.
            against: a text that the first is compared with, such as its denial.
            reference: (M, h, w) codes of other images, for what is usual at each position.

        Returns:
            Parts of the difference of the cosine similarities (:meth:`attribute_similarity` of the model).
        """
        text, other = self.embed_texts([report, against])
        direction = torch.from_numpy(text - other).to(self.device)
        usual = torch.from_numpy(reference.astype(np.int64)).flatten(1).to(self.device)
        parts = [
            self.model.attribute_similarity(
                self._images(begin, begin + self.batch_size, codes, views, None), direction, usual
            )
            for begin in range(0, len(codes), self.batch_size)
        ]
        return torch.cat(parts).view(-1, *codes.shape[1:]).cpu().numpy()

    def match(
        self, codes: Codes, views: Views, reports: Sequence[Report], priors: Sequence[Prior | None] | None = None
    ) -> np.ndarray:
        """Return the (N,) probabilities that study i and report i match; images as in :meth:`embed_images`."""

        def run(begin: int, end: int) -> Tensor:
            images = self._images(begin, end, codes, views, priors)
            return self.model.match(images, **self._inputs(reports=reports[begin:end]))

        return self._batched(len(codes), run)

    def match_all(
        self, codes: Codes, views: Views, reports: Sequence[Report], priors: Sequence[Prior | None] | None = None
    ) -> np.ndarray:
        """Return the (N, P) probabilities that study i and text j match; images as in :meth:`embed_images`."""
        inputs = self._inputs(reports=reports)

        def run(begin: int, end: int) -> Tensor:
            images = self._images(begin, end, codes, views, priors)
            return self.model.match_all(images, inputs["report"], inputs["report_length"])

        return self._batched(len(codes), run)

    def write_reports(
        self, codes: Codes, views: Views, priors: Sequence[Prior | None] | None = None, **generate: Any
    ) -> list[dict[str, str]]:
        """Generate one report per study, as sections; images as in :meth:`embed_images`.

        ``generate`` as for :func:`generate_reports`.
        """
        self.expect(len(codes))
        reports: list[dict[str, str]] = []
        for begin in range(0, len(codes), self.batch_size):
            images = self._images(begin, begin + self.batch_size, codes, views, priors)
            reports += generate_reports(self.decoder, self.processor.codec, images, **generate)
        return reports

    def stream_report(self, codes: np.ndarray, view: str, **generate: Any) -> Iterator[dict[str, str]]:
        """Yield the report of one image, (h, w) codes and its view position, while it is generated.

        ``generate`` as for :func:`stream_report`.
        """
        images = self._inputs(codes=codes[None], views=[view])["images"]
        return stream_report(self.decoder, self.processor.codec, images, **generate)

    def draw(
        self,
        reports: Sequence[Report],
        views: Sequence[str],
        seed: int = 0,
        guidance: float = 2.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> np.ndarray:
        """Generate one radiograph per report; return (N, h, w) codes. Image i uses seed + i, for any batch size."""
        grids = self.generate_studies(
            reports, [[view] for view in views], None, seed=seed, guidance=guidance, temperature=temperature,
            top_k=top_k, top_p=top_p,
        )  # fmt: skip
        return np.concatenate(grids)

    def generate_studies(
        self,
        reports: Sequence[Report],
        views: Sequence[Sequence[str]],
        priors: Sequence[Prior | None] | None = None,
        seed: int = 0,
        **sampling: Any,
    ) -> list[np.ndarray]:
        """Generate the S views of each report, each conditioned on the previous ones; return (S, h, w) codes.

        Args:
            reports: N reports.
            views: N lists of view positions.
            priors: as in :meth:`embed_images`; with a prior, a follow-up is generated.
            seed: study i uses seed + i, for any batch size.
            sampling: guidance, temperature, top_k, top_p as for :meth:`draw`.
        """
        self.expect(len(reports))
        studies: list[np.ndarray] = []
        for begin in range(0, len(reports), self.batch_size):
            end = min(begin + self.batch_size, len(reports))
            inputs = self._inputs(
                reports=reports[begin:end], views=views[begin:end], priors=priors and priors[begin:end]
            )
            seeds = torch.arange(seed + begin, seed + end)
            with torch.inference_mode():
                codes = generate_images(self.decoder, seeds=seeds, **inputs, **sampling)
            grids = codes.view(*codes.shape[:2], *self.tokenizer.grid).cpu().numpy()
            studies += [grid[: len(positions)] for grid, positions in zip(grids, views[begin:end], strict=True)]
        return studies

    def _images(
        self, begin: int, end: int, codes: Codes, views: Views, priors: Sequence[Prior | None] | None
    ) -> ImageSpans:
        batch = slice(begin, end)
        inputs = self._inputs(codes=codes[batch], views=views[batch], priors=priors and priors[batch])
        images: ImageSpans = inputs["images"]
        return images

    def _inputs(self, **study: Any) -> dict[str, Any]:
        return {name: value.to(self.device) for name, value in self.processor(**study).items()}

    def _batched(self, count: int, run: Callable[[int, int], Tensor]) -> np.ndarray:
        with torch.inference_mode():
            parts = [
                run(begin, min(begin + self.batch_size, count)).cpu() for begin in range(0, count, self.batch_size)
            ]
        return torch.cat(parts).cpu().numpy()
