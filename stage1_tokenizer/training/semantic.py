"""The semantic terms of a step: heads, their optimizer and their EMA, the teacher, and validation metrics."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.shared.metrics.auroc import macro_auroc
from medunifier.shared.training.distributed import all_reduce_sum, gather_objects
from medunifier.shared.training.ema import AveragedModule
from medunifier.shared.training.optimizer_step import OptimizerStep
from medunifier.stage1_tokenizer.config import Stage1Config
from medunifier.stage1_tokenizer.losses.semantic.heads import SemanticHeads
from medunifier.stage1_tokenizer.losses.semantic.objectives import (
    LabelBalance,
    alignment_loss,
    feature_distance,
    label_loss,
    report_contrast,
)
from medunifier.stage1_tokenizer.losses.semantic.teacher import Teacher
from medunifier.stage1_tokenizer.model.compiling import compile_method
from medunifier.stage1_tokenizer.training.studies import StudyImages

if TYPE_CHECKING:
    from accelerate import Accelerator

Prepare = Callable[[nn.Module], tuple[Any, OptimizerStep]]


class SemanticTerm:
    """Train heads on the quantized features, and return the gradient that they pass to the tokenizer.

    The heads are a network of their own: the tokenizer's parameters, its gradient norm and its export do not depend
    on them, and with all weights 0 nothing is built.

    Args:
        config: of the run; a weight of ``loss.semantic`` is above 0.
        accelerator: saves the EMA of the heads with each checkpoint.
        prepare: returns a network as prepared by the Accelerator, and its optimizer step.
        balance: weights of the labels; required for the label term.
        compiled: whether to compile the heads.
    """

    def __init__(
        self,
        config: Stage1Config,
        accelerator: "Accelerator",
        prepare: Prepare,
        balance: LabelBalance | None,
        compiled: bool,
    ) -> None:
        self.config, self._accelerator, device = config.loss.semantic, accelerator, accelerator.device
        self._teacher: Teacher | None = None
        if self.config.teacher.weight:
            # Not compiled: foreign code need not be one graph.
            self._teacher = Teacher(self.config.teacher, config.model.grid).to(device)
        self._balance: LabelBalance | None = None
        if self.config.labels:
            assert balance is not None, "the label term needs a balance"  # noqa: S101 - narrows a type
            self._balance = LabelBalance(balance.present.to(device), balance.absent.to(device))
        dim = self._teacher.dim if self._teacher is not None else 0
        model, findings = config.model, len(OBSERVATIONS)
        heads = SemanticHeads(self.config, model.embed_dim, model.grid, model.resolution, findings, dim).to(device)
        self.average = AveragedModule(heads, config.ema_decay)
        if compiled:
            compile_method(heads, "forward")
        self.heads, self._update = prepare(heads)
        accelerator.register_for_checkpointing(self.average)

    def step(self, z_q: Tensor, batch: StudyImages, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """Update the heads from one micro-batch, within the Accelerator's accumulation.

        Args:
            z_q: (B, D, h, w) quantized features.
            batch: on the device, with the fields that the terms need.
            step: of the training.

        Returns:
            The losses by name, without their weights, and the gradient of their weighted sum by ``z_q``.
        """
        # On a leaf: one backward pass yields the gradients of the heads and that of the features, and the heads'
        # update does not wait for the tokenizer's.
        leaf = z_q.detach().requires_grad_()
        losses = self._losses(self.heads(leaf, batch.images, batch.words), batch)
        weights = {
            "labels": self.config.labels.weight,
            "image_labels": 1.0,  # of this head's parameters alone, whose optimizer does not depend on it
            "report": self.config.report.weight,
            "teacher": self.config.teacher.weight,
        }
        self._update(torch.stack([weights[name] * loss for name, loss in losses.items()]).sum(), step)
        gradient = torch.zeros_like(z_q) if leaf.grad is None else leaf.grad  # None: a head on images is the only one
        # Accelerate divides a loss by the number of micro-batches; the tokenizer's loss will be divided as well.
        gradient = gradient * self._accelerator.gradient_accumulation_steps
        return {f"semantic_{name}": loss.detach() for name, loss in losses.items()}, gradient

    def of_reconstruction(self, reconstruction: Tensor, batch: StudyImages) -> tuple[Tensor, Tensor] | None:
        """Return the feature distance of reconstructions, without its weight, and its weighted gradient by them.

        The features are those of a head that learns the labels from the originals. Its gradient does not change the
        head: head and decoder would agree on features that no reader of images needs.

        Args:
            reconstruction: (B, 1 or 3, S, S), a leaf that requires a gradient.
            batch: on the device.

        Returns:
            None without this term.
        """
        head = self._accelerator.unwrap_model(self.heads).image_labels
        if head is None:
            return None
        head.requires_grad_(False)
        with self._accelerator.autocast():
            originals = head.features(batch.images)
            loss = feature_distance(originals, head.features(reconstruction))
        head.requires_grad_(True)
        (gradient,) = torch.autograd.grad(self.config.labels.reconstruction_weight * loss, reconstruction)
        return loss.detach(), gradient

    def end_step(self) -> None:
        """Update the EMA of the heads; call it after each optimizer step."""
        self.average.update(self._accelerator.unwrap_model(self.heads))

    def _losses(self, outputs: Mapping[str, Tensor], batch: StudyImages) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        if self._balance is not None and batch.labels is not None:
            for name in ("labels", "image_labels"):
                if name in outputs:
                    losses[name] = label_loss(outputs[name], batch.labels, self._balance)
        if "image" in outputs and batch.words is not None:
            assert batch.report_key is not None and batch.patient_key is not None  # noqa: S101 - narrows types
            losses["report"] = report_contrast(
                outputs["image"],
                outputs["report"],
                outputs["scale"],
                batch.report_key,
                batch.patient_key,
                (batch.words > 0).any(dim=1),
            )
        if self._teacher is not None:
            with self._accelerator.autocast():
                features = self._teacher(batch.images)
            losses["teacher"] = alignment_loss(outputs["teacher"], features)
        return losses

    def validation(self) -> "SemanticValidation":
        """Return an empty accumulator of validation metrics of the EMA heads."""
        return SemanticValidation(self.average.module, self._balance, self._teacher)


class SemanticValidation:
    """Metrics of the heads over a validation set and all processes: label AUROC through the codes, teacher cosine.

    Args:
        heads: EMA of the heads.
        balance: its findings with a weight are evaluated.
        teacher: None without the term.
    """

    def __init__(self, heads: SemanticHeads, balance: LabelBalance | None, teacher: Teacher | None) -> None:
        self._heads, self._teacher = heads, teacher
        self._learned = None if balance is None else (balance.present > 0).cpu().numpy()
        self._logits: dict[str, list[np.ndarray]] = {}
        self._truth: list[np.ndarray] = []
        self._cosine: list[Tensor] = []
        self._images = 0

    @torch.no_grad()
    def add(self, z_q: Tensor, reconstruction: Tensor, batch: StudyImages) -> None:
        """Add a batch: (B, D, h, w) quantized features and reconstructions of the EMA tokenizer, and the studies."""
        outputs = self._heads(z_q, batch.images)
        if batch.labels is not None:
            found = {}
            if "labels" in outputs:
                found["label_auroc"] = outputs["labels"]
            if self._heads.image_labels is not None:
                found["image_label_auroc"] = outputs["image_labels"]
                found["reconstruction_label_auroc"] = self._heads.image_labels(reconstruction)
            for name, logits in found.items():
                self._logits.setdefault(name, []).append(logits.float().cpu().numpy())
            self._truth.append(batch.labels.cpu().numpy())
        if self._teacher is not None:
            cosine = 1 - alignment_loss(outputs["teacher"], self._teacher(batch.images))
            self._cosine.append(cosine.double() * len(z_q))
        self._images += len(z_q)

    def figures(self) -> dict[str, float]:
        """Return macro AUROCs over the findings with both classes, and ``teacher_cosine``; those of the terms in use.

        ``label_auroc``: of the head on the codes. ``image_label_auroc`` and ``reconstruction_label_auroc``: of the
        head on images, on originals and on reconstructions.
        """
        figures: dict[str, float] = {}
        if self._learned is not None:
            # Objects: a process may have no image. Names are then those of another process.
            parts = [part for part in gather_objects((self._truth, self._logits)) if part[0]]
            truth = np.concatenate([rows for part, _ in parts for rows in part])[:, self._learned]
            for name in parts[0][1]:
                logits = np.concatenate([rows for _, part in parts for rows in part[name]])[:, self._learned]
                figures[name] = macro_auroc(truth, logits)
        if self._teacher is not None:
            device = self._teacher.mean.device
            total = sum(self._cosine, torch.zeros((), dtype=torch.float64, device=device))
            sums = all_reduce_sum(torch.stack([total, torch.tensor(float(self._images), device=device).double()]))
            figures["teacher_cosine"] = float(sums[0] / sums[1])
        return figures
