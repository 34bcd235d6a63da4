"""The frozen tokenizer, judged by stage 1's own figures over the whole split."""

from typing import Any

import numpy as np
import torch

from data.shards import ShardDataset
from shared.errors import UserError
from stage1_tokenizer.evaluate import evaluate_tokenizer
from stage1_tokenizer.frozen import FrozenTokenizer
from stage1_tokenizer.images import to_unit
from stage2_unified.evaluate.result import TaskResult
from stage2_unified.evaluate.studies import JudgedData

FIGURES = ("psnr", "ssim", "ms_ssim", "codebook_usage", "perplexity")
EXAMPLES = 6


def judge_tokenizer(tokenizer: FrozenTokenizer, data: JudgedData, split: str, limit: int = 0) -> TaskResult:
    """PSNR, SSIM and use of the codebook over every image of a split (or of its first ``limit`` studies).

    Usage grows with the number of images, so it is counted over all. Baselines: the mean training image in
    place of every reconstruction, and a single code.

    Raises:
        UserError: for token shards: there is nothing to compare a reconstruction with.
    """
    if not data.has_images:
        raise UserError(f"{data.path} holds codes: the tokenizer is judged on images, give the image shards")
    dataset: ShardDataset = data.dataset(split)
    found: dict[str, Any] = evaluate_tokenizer(tokenizer, dataset, limit=limit or None)
    metrics = {f"tokenizer.{name}": float(found[name]) for name in FIGURES if name in found}
    metrics["tokenizer.psnr.baseline"] = found["psnr_baseline"]
    metrics["tokenizer.codebook_usage.baseline"] = found["codebook_usage_baseline"]
    details: dict[str, Any] = {
        "images": found["images"],
        "studies": found["studies"],
        "baseline": "the mean training image; a single code",
        "examples": [],
    }
    pictures: dict[str, np.ndarray] = {}
    first = [dataset[number].images[0] for number in range(min(EXAMPLES, len(dataset)))]
    codes = torch.from_numpy(tokenizer.encode_images(first)).to(tokenizer.codebook.device)
    restored = to_unit(tokenizer.decode_indices(codes))[:, 0].cpu().numpy()
    rows = [("first", f"study {i}", image / np.iinfo(image.dtype).max, restored[i]) for i, image in enumerate(first)]
    rows += [("worst", f"{case.psnr:.1f} dB", case.original, case.reconstruction) for case in found["worst"]]
    for i, (kind, label, original, reconstruction) in enumerate(rows):
        names = f"tokenizer-original-{i}", f"tokenizer-reconstruction-{i}"
        pictures |= {names[0]: original, names[1]: reconstruction}
        details["examples"].append({"kind": kind, "label": label, "original": names[0], "reconstruction": names[1]})
    return TaskResult(metrics, details, pictures)
