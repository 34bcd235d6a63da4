"""Encoding of images to codes against the packaged fork of taming-transformers, on a CPU.

First with the same weights (taming's f16 model, 1,024 codes) in float32 on the same images; then the ``cxr_f16``
preset against that model, in bfloat16 if this CPU has instructions for it; the row names the precision. MFU is
relative to a large float32 matrix product in the same run, so it can exceed 1 in bfloat16.
"""

import contextlib
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medunifier.bench import BenchConfig, Row, paired
from medunifier.shared.config import parse_config
from medunifier.shared.metrics.images.fidelity import psnr
from medunifier.shared.training.precision import resolve_precision
from medunifier.stage1_tokenizer.config import Stage1Config
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer
from medunifier.stage1_tokenizer.model.vqgan import VQGAN
from medunifier.stage1_tokenizer.pixel_range import to_unit

PRESETS = Path(__file__).resolve().parents[2] / "configs" / "stage1"
BATCH = 4
SAME_WEIGHTS_TARGET, PRESET_TARGET = 2.5, 15.0


class Fork(nn.Module):
    """Encoder, quantizer and decoder of the fork, as in its ``VQModel`` (which needs a Lightning of 2021)."""

    def __init__(self, model: VQGAN) -> None:
        super().__init__()
        from taming.modules.diffusionmodules.model import Decoder, Encoder
        from taming.modules.vqvae.quantize import VectorQuantizer2

        config = model.config
        names = ("resolution", "in_channels", "out_ch", "ch", "ch_mult", "num_res_blocks", "attn_resolutions")
        sizes: dict[str, Any] = {name: getattr(config, name) for name in (*names, "z_channels")}
        with contextlib.redirect_stdout(io.StringIO()):
            self.encoder = Encoder(**sizes, double_z=False)
            self.decoder = Decoder(**sizes)
        self.quantize = VectorQuantizer2(config.n_embed, config.embed_dim, beta=0.25, sane_index_shape=True)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)
        self.load_state_dict(model.state_dict(), strict=True)
        self.eval()

    @torch.no_grad()
    def encode_indices(self, images: Tensor) -> Tensor:
        codes: Tensor = self.quantize(self.quant_conv(self.encoder(images)))[2][2]
        return codes

    @torch.no_grad()
    def decode_indices(self, codes: Tensor) -> Tensor:
        shape = (len(codes), *codes.shape[1:], self.quantize.e_dim)
        images: Tensor = self.decoder(self.post_quant_conv(self.quantize.get_codebook_entry(codes.flatten(), shape)))
        return images


def rows(config: BenchConfig) -> list[Row]:
    """Return speed, MFU, equality of codes and PSNR with the same weights, then speed and MFU of ``cxr_f16``."""
    torch.manual_seed(0)
    images = smooth_images(BATCH, 256)
    model = VQGAN(_preset("taming_f16_1024").model).eval()
    _spread(model, images)
    peer, ours, preset = Fork(model), FrozenTokenizer(model), FrozenTokenizer(VQGAN(_preset("cxr_f16").model))
    gflop = {
        "taming": _gflop(lambda: peer.encode_indices(images)),
        "cxr_f16": _gflop(lambda: preset.encode_indices(images)),
    }
    precision = resolve_precision("auto", "cpu")
    speed = paired(
        f"taming f16 encode, 256 px, same weights, float32, {gflop['taming'] / BATCH:.0f} GFLOP per image, images/s",
        lambda: ours.encode_indices(images),
        lambda: peer.encode_indices(images),
        config,
        SAME_WEIGHTS_TARGET,
        units=float(BATCH),
    )
    preset_speed = paired(
        f"cxr_f16 encode ({precision}, {gflop['cxr_f16'] / BATCH:.0f} GFLOP per image) "
        "against taming f16 (float32), 256 px, images/s",
        lambda: preset.encode_indices(images, precision),
        lambda: peer.encode_indices(images),
        config,
        PRESET_TARGET,
        units=float(BATCH),
    )
    peak = _matmul_gflops()
    mfu = [rate * gflop["taming"] / BATCH / peak for rate in (speed.ours, speed.peer)]
    preset_mfu = preset_speed.ours * gflop["cxr_f16"] / BATCH / peak
    sides: tuple[FrozenTokenizer | Fork, ...] = (ours, peer)
    codes = [side.encode_indices(images) for side in sides]
    our_psnr, peer_psnr = (
        float(psnr(to_unit(images), to_unit(side.decode_indices(code))).mean())
        for side, code in zip(sides, codes, strict=True)
    )
    equal = float((codes[0] == codes[1]).double().mean())
    basis = f"MFU (peak: a matrix product of 2,048, {peak:.0f} GFLOP/s)"
    return [
        speed,
        Row(f"taming f16 encode, {basis}", mfu[0], mfu[1], mfu[0] / mfu[1]),
        Row(f"fraction of {codes[0].numel()} codes equal to the fork's", equal, 1.0, equal),
        Row("PSNR with the same weights, dB (may differ by at most 0.05)", our_psnr, peer_psnr, our_psnr / peer_psnr),
        preset_speed,
        Row(f"cxr_f16 encode, {basis}; peer: taming f16", preset_mfu, mfu[1], preset_mfu / mfu[1]),
    ]  # fmt: skip


def smooth_images(count: int, size: int) -> Tensor:
    """Return (count, 1, size, size) in [-1, 1]: smooth noise of several scales, similar to a radiograph."""
    images = torch.zeros(count, 1, size, size)
    for scale in (4, 8, 16, 32, 64):
        noise = torch.randn(count, 1, scale, scale)
        images += nn.functional.interpolate(noise, size=(size, size), mode="bicubic") / scale**0.5
    return (images / images.abs().amax(dim=(2, 3), keepdim=True)).clamp(-1, 1)


def _preset(name: str) -> Stage1Config:
    return parse_config(
        Stage1Config, ["--config", str(PRESETS / f"{name}.yaml"), "--data.shards", "-", "--run_dir", "-"]
    )


@torch.no_grad()
def _spread(model: VQGAN, images: Tensor) -> None:
    """Move the entries close to the vectors; with an untrained codebook all vectors would have the same code."""
    vectors = model.encode(images).permute(0, 2, 3, 1).flatten(0, 2)
    codebook = model.quantize.get_parameter("embedding.weight")
    chosen = vectors[torch.randint(len(vectors), (len(codebook),))]
    codebook.copy_(chosen + 0.3 * vectors.std(0) * torch.randn_like(chosen))


def _gflop(call: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


def _best_seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _matmul_gflops(size: int = 2048) -> float:
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / _best_seconds(lambda: a @ b) / 1e9
