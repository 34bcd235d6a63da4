"""Conversion of taming checkpoints: parity with the packaged fork, strict validation, lossless round trip."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from medunifier.shared.command import run_command
from medunifier.stage1_tokenizer import taming
from medunifier.stage1_tokenizer.cli.convert import main, to_taming
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer, export
from medunifier.stage1_tokenizer.model.vqgan import VQGAN
from tests.stage1_tokenizer.conftest import TINY

reference = pytest.importorskip("taming.modules.diffusionmodules.model", reason="the fork is in the extra `dev`")
from taming.modules.discriminator.model import NLayerDiscriminator  # noqa: E402
from taming.modules.vqvae.quantize import GumbelQuantize, VectorQuantizer2  # noqa: E402

SIZES = {
    "double_z": False, "z_channels": 16, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 2],
    "num_res_blocks": 1, "attn_resolutions": [16], "dropout": 0.0,
}  # fmt: skip
CASES = {
    "attention, three channels": {"embed_dim": 8, "n_embed": 64, "ddconfig": SIZES},
    "no level attention, one channel": {
        "embed_dim": 8, "n_embed": 96,
        "ddconfig": SIZES | {"attn_resolutions": [8], "in_channels": 1, "out_ch": 1, "ch_mult": [1, 1, 2]},
    },
    "gumbel_vq": {"embed_dim": 16, "n_embed": 64, "kl_weight": 1e-8, "ddconfig": SIZES,
               "temperature_scheduler_config": {"target": "taming.lr_scheduler.LambdaWarmUpCosineScheduler"}},
}  # fmt: skip


class Fork(torch.nn.Module):
    """Modules of taming's VQModel and GumbelVQ under their key names. These classes need an old Lightning."""

    def __init__(self, params, used=None, unknown_index="random", tmp=None):
        super().__init__()
        sizes, dimensions, codes = params["ddconfig"], params["embed_dim"], params["n_embed"]
        remap = None
        if used is not None:
            remap = str(tmp / "used.npy")
            np.save(remap, used)
        with contextlib.redirect_stdout(io.StringIO()):
            self.encoder, self.decoder = reference.Encoder(**sizes), reference.Decoder(**sizes)
            if "kl_weight" in params:
                self.quantize = GumbelQuantize(
                    sizes["z_channels"], dimensions, codes, remap=remap, unknown_index=unknown_index
                )
            else:
                self.quantize = VectorQuantizer2(codes, dimensions, 0.25, remap, unknown_index, sane_index_shape=True)
        self.quant_conv = torch.nn.Conv2d(sizes["z_channels"], dimensions, 1)
        self.post_quant_conv = torch.nn.Conv2d(dimensions, sizes["z_channels"], 1)
        self.eval()

    @torch.no_grad()
    def spread(self, images):
        """Move the entries close to the vectors, so that many codes occur."""
        if isinstance(self.quantize, GumbelQuantize):
            self.quantize.proj.weight.normal_()
            return
        vectors = self.quant_conv(self.encoder(images)).permute(0, 2, 3, 1).flatten(0, 2)
        codebook = self.quantize.embedding.weight
        chosen = vectors[torch.randint(len(vectors), (len(codebook),))]
        codebook.copy_(chosen + 0.3 * vectors.std(0) * torch.randn_like(chosen))

    @torch.no_grad()
    def codes_and_reconstructions(self, images, monkeypatch):
        # Without Gumbel noise: the argmax of the logits, remapped by the fork.
        without_noise = lambda logits, tau, dim, hard: torch.zeros_like(logits).scatter_(  # noqa: E731
            dim, logits.argmax(dim, keepdim=True), 1.0
        )
        monkeypatch.setattr(torch.nn.functional, "gumbel_softmax", without_noise)
        z_q, _, (_, _, codes) = self.quantize(self.quant_conv(self.encoder(images)))
        return codes, self.decoder(self.post_quant_conv(z_q))


def loss_tensors(channels, actnorm=False):
    params = {"disc_in_channels": channels, "disc_ndf": 8, "disc_num_layers": 2, "use_actnorm": actnorm}
    state = {name: torch.randn(shape) for name, shape in taming.loss_shapes(params).items()}
    discriminator = NLayerDiscriminator(channels, 8, 2, actnorm).state_dict()
    # The fork's discriminator is the reference for the keys.
    ours = {name: tuple(t.shape) for name, t in state.items() if ".discriminator." in name}
    assert ours == {f"loss.discriminator.{name}": tuple(t.shape) for name, t in discriminator.items()}
    lossconfig = {"target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator"}
    return state | {f"loss.discriminator.{n}": t for n, t in discriminator.items()}, lossconfig | {"params": params}


def write(folder, params, fork, loss=None, **further):
    params, state = copy.deepcopy(params), dict(fork.state_dict())
    if loss is not None:
        tensors, params["lossconfig"] = loss
        state |= tensors
    config = {"model": {"base_learning_rate": 4.5e-6, "params": params | further}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save({"state_dict": state, "global_step": 3}, folder / "last.ckpt")
    return state


def run(folder, *options):
    paths = ["--checkpoint", str(folder / "last.ckpt"), "--config", str(folder / "config.yaml")]
    return run_command(main, ["--from", "taming", *paths, "--out", str(folder / "tokenizer"), *options])


def images_of(params, count=4):
    sizes = params["ddconfig"]
    return torch.rand(count, sizes["in_channels"], sizes["resolution"], sizes["resolution"]) * 2 - 1


def assert_round_trip(folder, state, capsys):
    out = folder / "back.ckpt"
    assert run_command(main, ["--to", "taming", "--tokenizer", str(folder / "tokenizer"), "--out", str(out)]) == 0
    back = torch.load(out, weights_only=True)["state_dict"]
    assert list(back) == list(state)
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name
    assert yaml.safe_load((folder / "back.yaml").read_text()) == yaml.safe_load((folder / "config.yaml").read_text())
    capsys.readouterr()


@pytest.mark.parametrize("name", CASES)
def test_converted_tokenizer_equals_the_fork_and_converts_back(name, tmp_path, monkeypatch, capsys):
    params = CASES[name]
    fork, images = Fork(params), images_of(params)
    fork.spread(images)
    state = write(
        tmp_path, params, fork, loss_tensors(params["ddconfig"]["in_channels"], actnorm=name == "gumbel_vq")
    )
    assert run(tmp_path) == 0
    tokenizer = FrozenTokenizer.from_pretrained(tmp_path / "tokenizer")
    codes, reconstructions = fork.codes_and_reconstructions(images, monkeypatch)
    assert len(codes.unique()) > 16
    assert torch.equal(tokenizer.encode_indices(images), codes)
    torch.testing.assert_close(tokenizer.decode_indices(codes), reconstructions, atol=1e-4, rtol=1e-4)
    assert_round_trip(tmp_path, state, capsys)


@pytest.mark.parametrize("unknown", ["random", "extra", 3])
@pytest.mark.parametrize("name", ["attention, three channels", "gumbel_vq"])
def test_remapped_codes_equal_the_fork(name, unknown, tmp_path, monkeypatch, capsys):
    params, used = CASES[name], np.random.default_rng(0).permutation(64)[:24]
    fork, images = Fork(params, used, unknown, tmp_path), images_of(params)
    fork.spread(images)
    state = write(tmp_path, params, fork, remap="used.npy", unknown_index=unknown)
    assert run(tmp_path) == 0
    tokenizer = FrozenTokenizer.from_pretrained(tmp_path / "tokenizer")
    found, (codes, _) = tokenizer.encode_indices(images), fork.codes_and_reconstructions(images, monkeypatch)
    if unknown == "random" and name != "gumbel_vq":  # known entries only; for unknown ones the fork samples a code
        with torch.no_grad():
            z = fork.quant_conv(fork.encoder(images)).permute(0, 2, 3, 1).flatten(0, 2)
            entry = torch.cdist(z, fork.quantize.embedding.weight).argmin(1).reshape(codes.shape)
        known = torch.isin(entry, torch.from_numpy(used))
        assert 0 < known.sum() < known.numel()
        assert torch.equal(found[known], codes[known])
    else:
        assert torch.equal(found, codes)
    assert tokenizer.codebook_size == (25 if unknown == "extra" else 24)
    every = torch.arange(tokenizer.codebook_size).reshape(1, -1, 1)
    with torch.no_grad():
        entries = fork.quantize.get_codebook_entry(
            every.clone().flatten(), (1, tokenizer.codebook_size, 1, params["embed_dim"])
        )
    assert torch.equal(tokenizer.codebook, entries[0, :, :, 0].T)
    assert_round_trip(tmp_path, state, capsys)


def test_f16_1024_is_read_with_all_its_398_keys():
    sizes = {"double_z": False, "z_channels": 256, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
             "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [16], "dropout": 0.0}  # fmt: skip
    loss = {"disc_conditional": False, "disc_in_channels": 3, "disc_start": 250001, "disc_weight": 0.8}
    target = "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator"
    params = {"embed_dim": 256, "n_embed": 1024, "ddconfig": sizes, "lossconfig": {"target": target, "params": loss}}
    config = taming.parse_document({"model": {"params": params}}, "f16.yaml")
    shapes = taming.model_shapes(config.model) | taming.loss_shapes(config.loss)
    assert len(shapes) == 398
    with torch.device("meta"):
        fork = Fork(params).state_dict()
        fork |= {f"loss.discriminator.{n}": t for n, t in NLayerDiscriminator(3).state_dict().items()}
    assert all(shapes[name] == tuple(tensor.shape) for name, tensor in fork.items())
    assert shapes.keys() - fork.keys() == {name for name in shapes if name.startswith("loss.perceptual_loss.")}
    with torch.device("meta"):
        assert taming.differences({name: torch.empty(shape) for name, shape in shapes.items()}, config) == []


def test_all_differences_are_reported_and_nothing_is_written(tmp_path, capsys):
    params = CASES["attention, three channels"]
    state = write(tmp_path, params, Fork(params), loss_tensors(3))
    del state["encoder.conv_in.bias"], state["loss.discriminator.main.0.bias"]
    state["decoder.conv_out.weight"] = torch.zeros(1, 32, 3, 3)
    state["encoder.extra"] = torch.zeros(2)
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    assert run(tmp_path) == 1
    error = capsys.readouterr().err
    for part in (
        "4 difference(s)", "missing encoder.conv_in.bias (32,)", "missing loss.discriminator.main.0.bias",
        "unexpected encoder.extra (2,)", "decoder.conv_out.weight: found (1, 32, 3, 3), expected (3, 32, 3, 3)",
    ):  # fmt: skip
        assert part in error
    assert error.count("\n") == 1 and not (tmp_path / "tokenizer").exists()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"ddconfig": SIZES | {"chanels": 3}}, "model.params.ddconfig: chanels"),
        ({"n_embeds": 3}, "model.params: n_embeds"),
        ({"ddconfig": SIZES | {"double_z": True}}, "double_z"),
        ({"ddconfig": SIZES | {"resamp_with_conv": False}}, "resamp_with_conv"),
        ({"colorize_nlabels": 4}, "colorize_nlabels"),
        ({"lossconfig": {"target": "a.VQLPIPSWithDiscriminator", "params": {"disc_begin": 3}}}, "disc_begin"),
        ({"lossconfig": {"target": "a.Other"}}, "Other"),
        ({"ddconfig": {"ch": 32}}, "ddconfig.resolution"),
        ({"ddconfig": SIZES | {"ch": 33}}, "norm_groups"),
        ({"remap": "used.npy"}, "quantize.used"),
    ],
)
def test_settings_that_taming_would_ignore_are_refused_by_name(change, part, tmp_path, capsys):
    params = CASES["attention, three channels"]
    write(tmp_path, params, Fork(params), **change)
    assert run(tmp_path) == 1
    error = capsys.readouterr().err
    assert part in error and error.count("\n") == 1


class Callback:
    """An object as Lightning pickles it beside the tensors; unpickling it would be recorded in ``loaded``."""

    loaded = []

    def __setstate__(self, state):
        Callback.loaded.append(state)


def test_pickled_lightning_classes_are_not_executed(tmp_path, capsys):
    params = CASES["no level attention, one channel"]
    state = write(tmp_path, params, Fork(params))
    callback = Callback()
    callback.best = 1.0
    torch.save({"state_dict": state, "callbacks": {Callback: {"best": 1}, "other": callback}}, tmp_path / "last.ckpt")
    assert run(tmp_path) == 0
    assert Callback.loaded == []
    assert_round_trip(tmp_path, state, capsys)


def test_invalid_checkpoints_are_refused_in_one_line(tmp_path, capsys):
    params = CASES["no level attention, one channel"]
    state = write(tmp_path, params, Fork(params))
    (tmp_path / "text.ckpt").write_text("hello")
    torch.save(state, tmp_path / "bare.ckpt")
    for options, code, part in (
        (["--checkpoint", "/nowhere.ckpt"], 1, "/nowhere.ckpt not found"),
        (["--checkpoint", str(tmp_path / "text.ckpt")], 1, "cannot be read as a checkpoint"),
        (["--checkpoint", str(tmp_path / "bare.ckpt")], 1, "no `state_dict`"),
        (["--config", str(tmp_path / "last.ckpt")], 1, "cannot be read as a taming configuration"),
        (["--to", "taming"], 2, "--from taming"),
        (["--colour", "red"], 2, "colour"),
    ):
        assert run(tmp_path, *options) == code
        error = capsys.readouterr().err
        assert part in error and error.count("\n") == 1, error
    assert run_command(main, ["--from", "taming"]) == 2
    assert "--checkpoint, --config, --out" in capsys.readouterr().err


def test_record_of_another_tokenizer_is_refused(tmp_path, capsys):
    params = CASES["no level attention, one channel"]
    write(tmp_path, params, Fork(params))
    assert run(tmp_path) == 0
    origin = tmp_path / "tokenizer" / "taming.json"
    origin.write_text(json.dumps(json.loads(origin.read_text()) | {"fingerprint": "0"}))
    back = ["--to", "taming", "--tokenizer", str(tmp_path / "tokenizer"), "--out", str(tmp_path / "x.ckpt")]
    assert run_command(main, back) == 1
    assert "another tokenizer" in capsys.readouterr().err and not (tmp_path / "x.ckpt").exists()


@pytest.mark.parametrize("kind", ["cosine_vq", "ema_vq", "vq"])
def test_exported_checkpoint_gives_the_same_codes_in_the_fork(kind, tmp_path):
    """A small `cxr_*` tokenizer: Haar front end, low-dimensional codes."""
    config = TINY | {"ch": 32, "norm_groups": 32, "n_embed": 256, "embed_dim": 8, "quantizer": {"kind": kind}}
    model = VQGAN(config).eval()
    images = torch.rand(16, 1, 32, 32) * 2 - 1
    with torch.no_grad():
        vectors = model.encode(images).permute(0, 2, 3, 1).flatten(0, 2)
        model.quantize.embedding.weight.copy_(
            vectors[torch.randperm(len(vectors))[:256]] * (0.5 + torch.rand(256, 1))
        )
    export(model, tmp_path / "tokenizer")
    notes = to_taming(tmp_path / "tokenizer", tmp_path / "model.ckpt")
    assert any("Haar" in note for note in notes)
    state = torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"]
    quantizer = VectorQuantizer2(256, 8, 0.25, sane_index_shape=True)
    quantizer.load_state_dict({"embedding.weight": state["quantize.embedding.weight"]})
    params = yaml.safe_load((tmp_path / "model.yaml").read_text())["model"]["params"]
    fork = Fork(params)
    fork.load_state_dict(state, strict=True)
    frozen = FrozenTokenizer.from_pretrained(tmp_path / "tokenizer")
    with torch.no_grad():
        codes = quantizer(model.encode(images))[2][2]
        bands = model.front_end(images)
        fork_codes = fork.quantize(fork.quant_conv(fork.encoder(bands)))[2][2]
    assert torch.equal(codes, frozen.encode_indices(images)) and len(codes.unique()) > 64
    assert torch.equal(fork_codes, codes)
    # Round trip: the front end is in the YAML, where taming ignores it.
    back = [
        "--from",
        "taming",
        "--checkpoint",
        str(tmp_path / "model.ckpt"),
        "--config",
        str(tmp_path / "model.yaml"),
    ]
    assert run_command(main, [*back, "--out", str(tmp_path / "again")]) == 0
    again = FrozenTokenizer.from_pretrained(tmp_path / "again")
    assert torch.equal(again.encode_indices(images), codes)
    assert torch.equal(again.decode_indices(codes), frozen.decode_indices(codes))


def test_gumbel_tokenizer_is_exported_as_taming_gumbel_model(tmp_path):
    config = {"resolution": 32, "ch": 32, "ch_mult": [1], "num_res_blocks": 1, "attn_resolutions": [], "n_embed": 64,
              "z_channels": 8, "embed_dim": 8, "quantizer": {"kind": "gumbel_vq", "kl_weight": 5e-4}}  # fmt: skip
    model = VQGAN(config).eval()
    export(model, tmp_path / "tokenizer")
    to_taming(tmp_path / "tokenizer", tmp_path / "model.ckpt")
    params = yaml.safe_load((tmp_path / "model.yaml").read_text())["model"]["params"]
    assert params["kl_weight"] == 5e-4
    fork = Fork(params)
    fork.load_state_dict(torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"], strict=True)
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        logits = fork.quantize(fork.quant_conv(fork.encoder(images)), return_logits=True)[3]
        assert torch.equal(model.encode_indices(images), logits.argmax(1))


def test_group_count_that_taming_does_not_support_is_refused(tmp_path):
    export(VQGAN(TINY), tmp_path / "tokenizer")
    out = ["--to", "taming", "--tokenizer", str(tmp_path / "tokenizer"), "--out", str(tmp_path / "x.ckpt")]
    assert run_command(main, out) == 1 and not (tmp_path / "x.ckpt").exists()


def test_converted_tokenizer_keeps_loss_tensors_and_encodes_grey_images(tmp_path):
    params = CASES["attention, three channels"]
    write(tmp_path, params, Fork(params), loss_tensors(3))
    assert run(tmp_path) == 0
    rest = load_file(tmp_path / "tokenizer" / "taming.safetensors")
    assert rest and all(name.startswith("loss.") for name in rest)
    grey = torch.rand(2, 1, 32, 32) * 2 - 1
    tokenizer = FrozenTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert torch.equal(tokenizer.encode_indices(grey), tokenizer.encode_indices(grey.repeat(1, 3, 1, 1)))
