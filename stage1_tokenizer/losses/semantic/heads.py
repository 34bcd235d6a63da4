"""Heads on the quantized features. They are trained beside the tokenizer and are not part of it.

The features of a code are few (D = 8 in the `cxr_*` presets) and local, so a head first widens them and mixes each
code with its neighbours; a learned position tells it where in the chest a code lies.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, normalize, silu

from medunifier.stage1_tokenizer.config import SemanticConfig

WIDTH = 96
"""Channels of a head."""
EMBEDDING = 128
"""Dimension of the embeddings of image and report."""
BUCKETS = 8192
"""Rows of the table that words and pairs of words are hashed to."""
LOG_SCALE = math.log(1 / 0.07)
"""Logarithm of the contrast's initial inverse temperature, as in CLIP."""


class CodeFeatures(nn.Module):
    """(B, D, h, w) quantized features -> (B, WIDTH, h, w), of each code and its 24 nearest neighbours.

    Args:
        dim: D.
        grid: (h, w).
    """

    def __init__(self, dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.embed = nn.Conv2d(dim, WIDTH, 1)
        self.position = nn.Parameter(torch.zeros(1, WIDTH, *grid))
        self.mix = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2))

    def forward(self, z_q: Tensor) -> Tensor:
        x: Tensor = self.embed(z_q) + self.position
        for mix in self.mix:
            x = x + mix(silu(x))
        return silu(x)


class LabelHead(nn.Module):
    """(B, WIDTH, h, w) features -> (B, F) logits: a finding of one code counts as much as one of the whole chest.

    The logit is the log of the mean over the codes of exp(logit of the code) (log-sum-exp pooling: Pinheiro and
    Collobert, "From image-level to pixel-level labeling", 2015), close to the maximum where few codes stand out, plus
    a linear function of the mean features, for findings that no single code shows, such as the size of the heart.
    """

    def __init__(self, findings: int) -> None:
        super().__init__()
        self.local = nn.Conv2d(WIDTH, findings, 1)
        self.whole = nn.Linear(WIDTH, findings)

    def forward(self, features: Tensor) -> Tensor:
        codes: Tensor = self.local(features).float().flatten(2)  # (B, F, N)
        whole: Tensor = self.whole(features.mean(dim=(2, 3)))
        return codes.logsumexp(dim=2) - math.log(codes.shape[2]) + whole.float()


class ImageLabelHead(nn.Module):
    """(B, 1 or 3, S, S) images in [-1, 1] -> (B, F) logits: a small convolutional net at 1/16 of the resolution.

    Args:
        size: S.
        findings: F.
    """

    CHANNELS = (24, 48, 96, 96)

    def __init__(self, size: int, findings: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        width = 1
        for channels, kernel in zip(self.CHANNELS, (5, 3, 3, 3), strict=True):
            convolution = nn.Conv2d(width, channels, kernel, 2, kernel // 2)
            self.layers.append(nn.Sequential(convolution, nn.GroupNorm(8, channels), nn.SiLU()))
            width, size = channels, (size + 1) // 2
        self.mixed, self.labels = CodeFeatures(width, (size, size)), LabelHead(findings)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.labels(self.features(images)[-1])
        return logits

    def features(self, images: Tensor) -> list[Tensor]:
        """Return features (B, C, h, w) at 1/2, 1/4, 1/8 and twice at 1/16 of the resolution, fine to coarse."""
        x = images.mean(dim=1, keepdim=True)
        found: list[Tensor] = []
        for layer in self.layers:
            x = layer(x)
            found.append(x)
        return [*found, self.mixed(x)]


class ImageEmbedding(nn.Module):
    """(B, WIDTH, h, w) features -> (B, EMBEDDING) unit-norm embeddings, pooled by attention with four queries."""

    QUERIES = 4

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Conv2d(WIDTH, self.QUERIES, 1)
        self.project = nn.Linear(self.QUERIES * WIDTH, EMBEDDING)

    def forward(self, features: Tensor) -> Tensor:
        attention = self.scores(features).float().flatten(2).softmax(dim=2)  # (B, Q, N)
        pooled = attention.to(features.dtype) @ features.flatten(2).transpose(1, 2)  # (B, Q, WIDTH)
        return normalize(self.project(pooled.flatten(1)).float(), dim=1)


class ReportEmbedding(nn.Module):
    """(B, T) word hashes, 0 = padding -> (B, EMBEDDING) unit-norm embeddings of a bag of words and pairs of words.

    A pair ("no effusion") holds the negation that a bag of words would lose.
    """

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(BUCKETS, WIDTH) * WIDTH**-0.5)
        self.hidden, self.project = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, EMBEDDING)

    def forward(self, words: Tensor) -> Tensor:
        pairs = torch.where(words[:, 1:] > 0, words[:, :-1] * 8191 + words[:, 1:], 0)
        hashes = torch.cat([words, pairs], dim=1)  # (B, 2T - 1)
        present = (hashes > 0).unsqueeze(2)
        vectors = embedding(hashes.remainder(BUCKETS), self.table)
        mean = (vectors * present).sum(dim=1) / present.sum(dim=1).clamp(min=1).sqrt()
        return normalize(self.project(silu(self.hidden(mean))).float(), dim=1)


class SemanticHeads(nn.Module):
    """The heads of the terms with a weight above 0, as one module: one optimizer, one set of gradients to reduce.

    Args:
        config: weights of the terms.
        dim: dimension of a quantized feature, D.
        grid: codes of an image, (h, w).
        size: side of an image in pixels.
        findings: number of findings, F.
        teacher_dim: channels of the teacher's features.
    """

    def __init__(
        self,
        config: SemanticConfig,
        dim: int,
        grid: tuple[int, int],
        size: int,
        findings: int,
        teacher_dim: int = 0,
    ) -> None:
        super().__init__()
        self.features = CodeFeatures(dim, grid) if config.labels.weight or config.report.weight else None
        self.labels = LabelHead(findings) if config.labels.weight else None
        self.image_labels = ImageLabelHead(size, findings) if config.labels.reconstruction_weight else None
        self.image = ImageEmbedding() if config.report.weight else None
        self.report = ReportEmbedding() if config.report.weight else None
        self.log_scale = nn.Parameter(torch.tensor(LOG_SCALE)) if config.report.weight else None
        self.teacher: nn.Module | None = None
        if config.teacher.weight:
            # By code, without neighbours: the features of a code itself are to resemble the teacher's.
            self.teacher = nn.Sequential(
                nn.Conv2d(dim, 4 * WIDTH, 1), nn.SiLU(), nn.Conv2d(4 * WIDTH, teacher_dim, 1)
            )

    def forward(self, z_q: Tensor, images: Tensor, words: Tensor | None = None) -> dict[str, Tensor]:
        """Return the outputs of the heads by name.

        Args:
            z_q: (B, D, h, w) quantized features.
            images: (B, 1 or 3, S, S) originals.
            words: (B, T) word hashes of the reports, for the contrast.

        Returns:
            ``labels`` and ``image_labels`` (B, F) logits from the quantized features and from the images; ``image``
            and ``report`` (B, EMBEDDING) and ``scale``, the inverse temperature; ``teacher`` (B, C, h, w) projected
            features. Those without a weight are absent.
        """
        outputs: dict[str, Tensor] = {}
        features = self.features(z_q) if self.features is not None else z_q
        if self.labels is not None:
            outputs["labels"] = self.labels(features)
        if self.image_labels is not None:
            outputs["image_labels"] = self.image_labels(images)
        if self.image is not None and self.report is not None and self.log_scale is not None and words is not None:
            outputs["image"], outputs["report"] = self.image(features), self.report(words)
            outputs["scale"] = self.log_scale.clamp(max=math.log(100)).exp()  # as in CLIP
        if self.teacher is not None:
            outputs["teacher"] = self.teacher(z_q).float()
        return outputs
