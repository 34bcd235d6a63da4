"""Reconstruction fidelity after equal training: ``cxr_f16`` against the fork's f16 model, on held-out patients.

Both are trained by the same loop: the same images in the same order, number of steps, optimizer and learning-rate
schedule. The fork contributes its modules and its loss class; ours is the Haar front end, the cosine VQ codebook with
dead-code replacement, our losses, and the EMA weights, which are exported. Both have a downsampling factor of 16, the
same number of codes and the same width `ch` (ours has two levels less, which the front end replaces).
A narrow model cannot have taming's 32 groups. Both have as many channels per group as at full width; with fewer, the
fork's GroupNorm would subtract the mean of every channel. The fork's discriminator receives the reconstructions of
the same forward pass, as ours does; Lightning would compute them again.

LPIPS uses an untrained net that neither side was trained with: its pretrained weights are not part of this project.
Finished parts are kept beside the result and reused; an interrupted training is resumed.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from torch import Tensor

from medunifier.bench import Row, load_benchmark, machine
from medunifier.data.ingest.command import IngestConfig, ingest
from medunifier.data.phantom.command import PhantomConfig, write_archive
from medunifier.data.shards.dataset import MANIFEST, ShardDataset, read_manifest
from medunifier.data.shards.loader import batches_once, training_stream
from medunifier.shared.artifacts import atomic_file, read_json, write_json
from medunifier.shared.report_page.plots import labelled_rows
from medunifier.shared.training.config import MAY_CHANGE, LoopConfig, OptimConfig
from medunifier.shared.training.loop import train
from medunifier.shared.training.optimizer_step import set_rate
from medunifier.shared.training.run_folder import RunFolder, read_metrics
from medunifier.stage1_tokenizer.config import (
    DataConfig,
    DiscriminatorConfig,
    LossConfig,
    ModelConfig,
    PerceptualConfig,
    Stage1Config,
)
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer
from medunifier.stage1_tokenizer.losses.perceptual import Lpips
from medunifier.stage1_tokenizer.pixel_range import collate_images, stack_images, to_unit
from medunifier.stage1_tokenizer.training.fidelity import Fidelity
from medunifier.stage1_tokenizer.training.task import TokenizerTask

SIDES = {"ours": "cxr_f16", "fork": "taming f16"}
LPIPS_NET = PerceptualConfig("alex", "random")
EXAMPLES = 8
KEY = "00" * 32
"""Pseudonym key. It determines the split, which is therefore the same on every machine."""
MAY_DIFFER = (*MAY_CHANGE, "data.shards")
METRICS = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "codebook_usage": "codebook usage (fraction of the entries)",
}


@dataclass(frozen=True)
class Config:
    """Train the architecture of cxr_f16 and the fork's f16 model equally, and compare them on held-out patients."""

    out: str
    """Output file of the table, NAME.json; NAME.md and the phantom examples NAME.png are written beside it."""
    runs: str
    """Folder of the data and of the training runs; finished parts in it are reused. Example images of real patients
    are written here, not beside the table."""
    radiographs: str = ""
    """Folder of real radiographs with a manifest.csv, as for `ingest --source csv`; empty = phantoms only."""
    only: str = ""
    """Train only this run, such as phantom-ours or real-fork; empty = all missing runs."""
    studies: int = 1000
    """Number of phantom studies; a tenth of them are the test split."""
    size: int = 128
    """Height and width of the images in pixels."""
    width: int = 16
    """`ch` of both models; 128 in the presets."""
    codes: int = 256
    """Number of entries of both codebooks."""
    steps: int = 400
    """Steps of each training."""
    batch_size: int = 8
    """Images per step."""
    lr: float = 1e-3
    """Peak learning rate of both sides."""
    threads: int = 1
    """CPU threads; 0 = all cores."""

    def __post_init__(self) -> None:
        if not self.out.endswith(".json"):
            raise ValueError(f"out must be a file NAME.json, got {self.out}")
        if self.only and self.only not in [f"{data}-{side}" for data in ("phantom", "real") for side in SIDES]:
            raise ValueError(f"only must be {{phantom,real}}-{{ours,fork}}, got {self.only}")
        if self.only.startswith("real") and not self.radiographs:
            raise ValueError("radiographs must be the folder of the real images to train on")
        if self.steps < 20:
            raise ValueError(f"steps must be at least 20, got {self.steps}")
        if self.width % 8 or self.size % 16:
            raise ValueError(f"width must be a multiple of 8 and size of 16, got {self.width} and {self.size}")


@dataclass(frozen=True)
class ForkConfig:
    """Settings of a run of the fork, recorded in its run folder."""

    size: int
    width: int
    codes: int
    optim: OptimConfig
    loop: LoopConfig
    disc_start: int
    run_dir: str
    disc_ndf: int = 16
    disc_weight: float = 0.8
    """As in the published f16 models; the other weights are the defaults of the class."""
    fork: str = field(default="taming-transformers-rom1504 0.0.6")


class ForkTask:
    """Train the fork's model in our loop: one step of both networks, in Lightning's order."""

    def __init__(self, config: ForkConfig, accelerator: Accelerator, validation: ShardDataset) -> None:
        self.config, self._validation = config, validation
        # Attention at the coarsest level, as in the published model at 256 pixels.
        self.fork = load_benchmark("stage1").Fork(
            config.size,
            config.width,
            config.codes,
            dimensions=2 * config.width,
            attention=(config.size // 16,),
            groups=config.width // 4,
            disc_start=config.disc_start,
            disc_ndf=config.disc_ndf,
            disc_weight=config.disc_weight,
        )
        accelerator.prepare(self.fork)
        self._optimizers: list[Any] = [accelerator.prepare(optimizer) for optimizer in self.fork.optimizers()]

    def step(self, micro_batches: list[Tensor], step: int) -> Mapping[str, Tensor | float]:
        """Update the generator, then the discriminator, from one forward pass."""
        rate = self.config.optim.rate(step, self.config.loop.steps)
        (images,) = micro_batches
        self.fork.train()
        output = self.fork(images)
        figures = {"l1": (output[0].detach() - images).abs().mean()}
        for side, name in enumerate(("generator", "discriminator")):
            loss = self.fork.losses(images, output, side, step)
            figures[name] = loss.detach()
            set_rate(self._optimizers[side], rate)
            self._optimizers[side].zero_grad()
            loss.backward()
            parameters = [p for group in self._optimizers[side].param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self.config.optim.max_grad_norm)
            self._optimizers[side].step()
        return {**figures, "lr": rate}

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, H, W) in [-1, 1] -> reconstruction (B, 1, H, W) and codes (B, h, w)."""
        reconstruction, _, codes = self.fork.eval()(images)
        return reconstruction, codes

    def validate(self, step: int) -> Mapping[str, float]:
        """Return PSNR, SSIM and codebook usage over the validation set."""
        return _evaluate(self.reconstruct, self._validation, self.config.size, self.config.codes, None)[0]


def rows(config: Config) -> list[Row]:
    """Return four metrics and the codebook usage against its target, for each data set with two finished runs."""
    runs = Path(config.runs)
    table: list[Row] = []
    sections: list[str] = []
    for data in ("phantom", "real") if config.radiographs else ("phantom",):
        shards = runs / f"{data}-images"
        for side in SIDES:
            name = f"{data}-{side}"
            if config.only in ("", name) and not (runs / name / "evaluation.json").is_file():
                _make_shards(config, data, shards)
                _train(config, name, side, shards)
        results = {f"{data}-{side}": runs / f"{data}-{side}" / "evaluation.json" for side in SIDES}
        missing = [name for name, path in results.items() if not path.is_file()]
        if missing:
            print(f"{data}: still to be trained: {', '.join(missing)}")
            continue
        ours, fork = (read_json(path, "a run of this benchmark") for path in results.values())
        table += _compare(data, ours, fork)
        sections.append(_section(config, data, ours, fork, shards))
        _write_example_images(config, data)
    if sections:
        with atomic_file(Path(config.out).with_suffix(".md")) as partial_file:
            partial_file.write_text(_page(config, sections), encoding="utf-8")
    return table


def _make_shards(config: Config, data: str, shards: Path) -> None:
    if (shards / MANIFEST).is_file():
        return
    key = shards.parent / "pseudonym.key"
    key.parent.mkdir(parents=True, exist_ok=True)
    key.write_text(KEY, encoding="ascii")
    source, root = "csv", config.radiographs
    if data == "phantom":
        source, root = "phantom", str(shards.parent / "phantom-archive")
        write_archive(PhantomConfig(Path(root), config.studies, size=config.size))
    ingest(IngestConfig(source, root, str(shards), size=config.size, workers=1, key_file=str(key)))


def _train(config: Config, name: str, side: str, shards: Path) -> None:
    training, validation = (ShardDataset(shards, split) for split in ("train", "validate"))
    run_dir = Path(config.runs) / name
    start = config.steps * 3 // 4  # first step of the adversarial loss, on both sides
    optim = OptimConfig(config.lr, betas=(0.5, 0.9), warmup_steps=config.steps // 16, min_lr_ratio=0.05)
    loop = LoopConfig(
        config.steps,
        config.batch_size,
        workers=0,
        threads=config.threads,
        log_every=10,
        validate_every=start,  # just before the adversarial loss starts, and at the last step
        checkpoint_every=50,
        keep_checkpoints=1,
    )
    accelerator = Accelerator(cpu=True)
    set_seed(loop.seed)
    task: TokenizerTask | ForkTask
    if side == "ours":
        settings = _stage1_config(config, optim, loop, start, str(shards), str(run_dir))
        run = RunFolder(run_dir, settings, MAY_DIFFER)
        task = TokenizerTask(settings, accelerator, run, validation)
    else:
        fork_settings = ForkConfig(config.size, config.width, config.codes, optim, loop, start, str(run_dir))
        run = RunFolder(run_dir, fork_settings, MAY_DIFFER)
        task = ForkTask(fork_settings, accelerator, validation)
    collate = partial(collate_images, size=config.size, seed=loop.seed)
    train(task, accelerator, run, training_stream(training, collate, loop), loop)
    network: torch.nn.Module
    if isinstance(task, TokenizerTask):
        frozen = FrozenTokenizer(task.average.module)
        network = task.average.module

        def reconstruct(images: Tensor) -> tuple[Tensor, Tensor]:
            codes = frozen.encode_indices(images)
            return frozen.decode_indices(codes), codes
    else:
        network, reconstruct = task.fork, task.reconstruct
    metrics, examples = _evaluate(
        reconstruct, ShardDataset(shards, "test"), config.size, config.codes, Lpips(LPIPS_NET)
    )
    inference = [p for n, p in network.named_parameters() if not n.startswith("loss.")]
    rates = [line["samples_per_s"] for line in read_metrics(run_dir) if "samples_per_s" in line]
    arrays: dict[str, Any] = dict(examples)  # typed Any, since numpy's options are keyword arguments too
    np.savez_compressed(run_dir / "pictures.npz", **arrays)
    write_json(
        run_dir / "evaluation.json",
        {
            "figures": metrics,
            "parameters": sum(p.numel() for p in inference),
            "images_per_s": float(np.median(rates)),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
        },
    )


def _stage1_config(
    config: Config, optim: OptimConfig, loop: LoopConfig, start: int, shards: str, run_dir: str
) -> Stage1Config:
    """Return ``configs/stage1/cxr_f16.yaml`` at this width and size."""
    model = ModelConfig(
        config.size,
        ch=config.width,
        ch_mult=(1, 2, 4),
        attn_resolutions=(),
        z_channels=2 * config.width,
        n_embed=config.codes,
        embed_dim=8,
        norm_groups=config.width // 4,
        front_end="haar",
        front_end_levels=2,
    )
    adversary = DiscriminatorConfig(
        width=16,
        train_from=start - config.steps // 20,
        start=start,
        ramp=config.steps // 8,
        lecam_weight=0.001,
    )
    perceptual = load_benchmark("stage1").PERCEPTUAL
    loss = LossConfig(perceptual=perceptual, gan_weight=0.5, discriminator=adversary)
    return Stage1Config(DataConfig(shards), run_dir, model, loss, optim, loop, ema_decay=0.99)


def _evaluate(
    reconstruct: Any, dataset: ShardDataset, size: int, codes: int, lpips: Lpips | None
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return metrics over all images of a split, and example originals and reconstructions (N, H, W) in [0, 1]."""
    fidelity = Fidelity(codes, size, lpips)
    examples: dict[str, list[np.ndarray]] = {"originals": [], "reconstructions": []}
    count = 0
    for images in batches_once(dataset, lambda samples: stack_images(samples, size), batch_size=16):
        reconstruction, image_codes = reconstruct(images)
        fidelity.add(images, reconstruction, image_codes)
        count += len(images)
        for name, batch in (("originals", images), ("reconstructions", reconstruction)):
            examples[name].append(to_unit(batch)[:, 0].cpu().numpy())
    return fidelity.figures() | {"images": float(count)}, {
        name: np.concatenate(batches)[:: max(1, count // EXAMPLES)][:EXAMPLES] for name, batches in examples.items()
    }


def _compare(data: str, ours: Mapping[str, Any], fork: Mapping[str, Any]) -> list[Row]:
    our_metrics, fork_metrics = ours["figures"], fork["figures"]
    table = []
    for name, what in METRICS.items():
        ratio = our_metrics[name] / fork_metrics[name]
        if name == "lpips":
            what, ratio = f"LPIPS ({LPIPS_NET.net}, random weights; lower is better)", 1 / ratio
        # The target of codebook usage is a fixed fraction, not the usage of the peer.
        target = None if name == "codebook_usage" else 1.0
        table.append(Row(f"{data}: {what}", our_metrics[name], fork_metrics[name], ratio, target))
    usage = our_metrics["codebook_usage"]
    table.append(Row(f"{data}: codebook usage against the target of 0.95", usage, 0.95, usage / 0.95, 1.0))
    return table


def _section(config: Config, data: str, ours: Mapping[str, Any], fork: Mapping[str, Any], shards: Path) -> str:
    splits = read_manifest(shards)["splits"]
    counts = {split: sum(row["samples"] for row in splits[split].values()) for split in splits}
    label = "phantoms" if data == "phantom" else "real radiographs"
    lines = [
        f"## {label.capitalize()}",
        "",
        f"Studies, split by patient: {', '.join(f'{split} {count}' for split, count in counts.items())}; evaluated "
        f"on the {ours['figures']['images']:.0f} test images.",
        "",
        f"| {label} | {SIDES['ours']} | {SIDES['fork']} |",
        "|---|---|---|",
    ]
    for name, what in (METRICS | {"perplexity": "perplexity of the codes"}).items():
        what = f"LPIPS ({LPIPS_NET.net}, random weights)" if name == "lpips" else what
        lines.append(f"| {what} | {ours['figures'][name]:.4g} | {fork['figures'][name]:.4g} |")
    before = [_before_adversarial_loss(Path(config.runs) / f"{data}-{side}") for side in SIDES]
    for name in ("psnr", "ssim"):
        values = " | ".join("–" if line is None else f"{line[f'validation/{name}']:.4g}" for line in before)
        lines.append(f"| {METRICS[name]}, validation set, just before the adversarial loss starts | {values} |")
    lines.append(f"| parameters | {ours['parameters']:,} | {fork['parameters']:,} |")
    lines.append(f"| images/s in training | {ours['images_per_s']:.3g} | {fork['images_per_s']:.3g} |")
    lines += ["", f"Trained on {' and '.join(sorted({ours['date'], fork['date']}))}."]
    if data == "phantom":
        lines += ["", f"![originals, {SIDES['ours']}, {SIDES['fork']}]({_example_path(config, data).name})"]
    return "\n".join(lines)


def _before_adversarial_loss(run: Path) -> Mapping[str, float] | None:
    """Return the first validation of a run, or None if it was the last."""
    lines = [line for line in read_metrics(run) if "validation/psnr" in line]
    return lines[0] if len(lines) > 1 else None


def _page(config: Config, sections: list[str]) -> str:
    hardware = machine()
    settings = ", ".join(
        f"{name} {value}"
        for name, value in asdict(config).items()
        if name not in ("out", "runs", "radiographs", "only", "threads")
    )
    return "\n".join(
        [
            "# Reconstruction fidelity after equal training",
            "",
            "The architecture of `cxr_f16` and the f16 model of taming-transformers (the modules and the loss class "
            "of the packaged fork), both at the same reduced width, trained for the same number of steps on the same "
            "images in the same order; `medunifier bench fidelity --help` lists the settings. The values are those "
            "of small models after short training: they compare architectures and are below those of the presets.",
            "",
            f"Command: `medunifier bench fidelity{_changed_options(config)}`. Settings: {settings}. Machine: "
            f"{hardware['cpu']}, {config.threads} thread(s), torch {hardware['torch']}.",
            "",
            "\n\n".join(sections),
            "",
        ]
    )


def _changed_options(config: Config) -> str:
    """Return the options that differ from their defaults, with placeholders for paths."""
    changed = {f.name: getattr(config, f.name) for f in fields(config) if getattr(config, f.name) != f.default}
    folders = {"out": "FILE.json", "runs": "DIR", "radiographs": "DIR"}
    return "".join(f" --{name} {folders.get(name, value)}" for name, value in changed.items())


def _example_path(config: Config, data: str) -> Path:
    return Path(config.out).with_suffix(".png") if data == "phantom" else Path(config.runs) / "real.png"


def _write_example_images(config: Config, data: str) -> None:
    files = {side: np.load(Path(config.runs) / f"{data}-{side}" / "pictures.npz") for side in SIDES}
    image_rows = [("originals", files["ours"]["originals"])]
    image_rows += [(SIDES[side], files[side]["reconstructions"]) for side in SIDES]
    with atomic_file(_example_path(config, data)) as partial_file:
        Image.fromarray(labelled_rows(image_rows)).save(partial_file, format="PNG")
