"""Parity with the packaged fork of taming: the same weights give the same outputs."""

import contextlib
import io

import pytest
import torch

from medunifier.stage1_tokenizer.config import PerceptualConfig, QuantizerConfig
from medunifier.stage1_tokenizer.losses.perceptual import Lpips
from medunifier.stage1_tokenizer.model.discriminator import PatchDiscriminator
from medunifier.stage1_tokenizer.model.quantizers import VectorQuantizer
from medunifier.stage1_tokenizer.model.vqgan import VQGAN

reference = pytest.importorskip("taming.modules.diffusionmodules.model", reason="the fork is in the extra `dev`")
from taming.modules.discriminator.model import NLayerDiscriminator, weights_init  # noqa: E402
from taming.modules.vqvae.quantize import VectorQuantizer2  # noqa: E402

CONFIGS = {
    "attention at two levels, three channels": {
        "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": (1, 2, 2), "num_res_blocks": 2,
        "attn_resolutions": (8, 16), "z_channels": 16, "n_embed": 64, "embed_dim": 16,
    },
    "no level attention, one channel": {
        "resolution": 64, "in_channels": 1, "out_ch": 1, "ch": 32, "ch_mult": (1, 1, 2, 4), "num_res_blocks": 1,
        "attn_resolutions": (16 * 64,), "z_channels": 32, "n_embed": 128, "embed_dim": 8,
    },
    "one level, widths that change inside, large codebook": {
        "resolution": 16, "in_channels": 1, "out_ch": 1, "ch": 32, "ch_mult": (2,), "num_res_blocks": 3,
        "attn_resolutions": (16,), "z_channels": 8, "n_embed": 1024, "embed_dim": 4,
    },
}  # fmt: skip


def fork(config):
    names = (
        "resolution",
        "in_channels",
        "out_ch",
        "ch",
        "ch_mult",
        "num_res_blocks",
        "attn_resolutions",
        "z_channels",
    )
    sizes = {name: config[name] for name in names} | {"double_z": False, "dropout": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):
        return reference.Encoder(**sizes).eval(), reference.Decoder(**sizes).eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_encoder_codes_and_decoder_equal_the_fork(name):
    config = CONFIGS[name]
    torch.manual_seed(1)
    model = VQGAN({**config, "quantizer": "vq"}).eval()
    encoder, decoder = fork(config)
    # Strict: a missing or additional key fails here.
    model.encoder.load_state_dict(encoder.state_dict(), strict=True)
    model.decoder.load_state_dict(decoder.state_dict(), strict=True)
    quantizer = VectorQuantizer2(config["n_embed"], config["embed_dim"], beta=0.25, sane_index_shape=True)
    images = torch.rand(3, config["in_channels"], config["resolution"], config["resolution"]) * 2 - 1
    with torch.no_grad():
        h = encoder(images)
        torch.testing.assert_close(model.encoder(images), h, atol=1e-4, rtol=1e-4)
        z = model.quant_conv(h)
        # An untrained encoder's vectors are close together: sample the entries near them, so that many codes occur.
        vectors = z.permute(0, 2, 3, 1).reshape(-1, config["embed_dim"])
        chosen = vectors[torch.randint(len(vectors), (config["n_embed"],))]
        quantizer.embedding.weight.copy_(chosen + 0.3 * vectors.std(0) * torch.randn_like(chosen))
        model.quantize.load_state_dict(quantizer.state_dict(), strict=True)
        z_q, _, (_, _, expected) = quantizer(z)
        assert torch.equal(model.quantize.lookup(z), expected)
        assert len(expected.unique()) > 16
        decoded = decoder(model.post_quant_conv(z_q))
        torch.testing.assert_close(model.decode_indices(expected), decoded, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model(images).reconstruction, decoded, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("legacy", [True, False])
def test_loss_weights_reproduce_both_of_tamings_losses(legacy):
    """`legacy` applies beta to the codebook loss, the paper to the commitment loss (taming#46, #57)."""
    torch.manual_seed(2)
    theirs = VectorQuantizer2(32, 4, beta=0.25, legacy=legacy)
    weights = (0.25, 1.0) if legacy else (1.0, 0.25)
    ours = VectorQuantizer(32, 4, QuantizerConfig("vq", codebook_weight=weights[0], commitment_weight=weights[1]))
    ours.load_state_dict(theirs.state_dict())
    z = torch.randn(2, 4, 3, 3, requires_grad=True)
    output, expected, _ = theirs(z)
    (expected + output.sum()).backward()
    gradients = z.grad.clone(), theirs.embedding.weight.grad
    z.grad = None
    result = ours(z)
    (sum(result.losses.values()) + result.z_q.sum()).backward()
    torch.testing.assert_close(sum(result.losses.values()), expected)
    torch.testing.assert_close(z.grad, gradients[0])
    torch.testing.assert_close(ours.embedding.weight.grad, gradients[1])


def test_discriminator_equals_the_fork():
    torch.manual_seed(3)
    theirs = NLayerDiscriminator(input_nc=1, ndf=16, n_layers=3).apply(weights_init)
    ours = PatchDiscriminator(1, 16, 3, "batch")
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images))
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


def test_f16_1024_has_tamings_398_keys_and_its_shapes():
    model = VQGAN({"in_channels": 3, "out_ch": 3, "n_embed": 1024, "embed_dim": 256, "quantizer": "vq"})
    keys = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    loss = {
        "loss.perceptual_loss.": Lpips(PerceptualConfig("vgg", "random")),
        "loss.discriminator.": PatchDiscriminator(3, 64, 3, "batch"),
    }
    for prefix, module in loss.items():
        keys |= {prefix + name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    parts = [sum(name.startswith(part) for name in keys) for part in ("encoder.", "decoder.", "loss.")]
    assert (len(keys), parts) == (398, [144, 194, 55])
    # Anchors of the published checkpoint.
    assert keys["encoder.conv_in.weight"] == (128, 3, 3, 3)
    assert keys["encoder.down.2.block.0.nin_shortcut.weight"] == (256, 128, 1, 1)
    assert keys["encoder.down.4.attn.1.proj_out.weight"] == (512, 512, 1, 1)
    assert "encoder.down.4.downsample.conv.weight" not in keys
    assert keys["decoder.up.1.upsample.conv.weight"] == (128, 128, 3, 3)
    assert "decoder.up.0.upsample.conv.weight" not in keys
    assert keys["decoder.up.4.block.2.conv2.weight"] == (512, 512, 3, 3)
    assert keys["decoder.conv_out.weight"] == (3, 128, 3, 3)
    assert keys["quantize.embedding.weight"] == (1024, 256)
    assert keys["post_quant_conv.weight"] == (256, 256, 1, 1)
    assert keys["loss.perceptual_loss.net.slice5.28.weight"] == (512, 512, 3, 3)
    assert keys["loss.perceptual_loss.lin4.model.1.weight"] == (1, 512, 1, 1)
    assert keys["loss.discriminator.main.11.weight"] == (1, 512, 4, 4)
    counts = [sum(p.numel() for p in module.parameters()) for module in (model.encoder, model.decoder)]
    assert counts == [29_298_176, 42_449_795]
    assert sum(p.numel() for p in PatchDiscriminator(3, 64, 3, "batch").parameters()) == 2_765_633


def test_no_level_has_attention_if_none_has_that_resolution():
    """Chameleon's tokenizer: 512 pixels, attention at 16, but the coarsest level has a height of 32."""
    with torch.device("meta"):
        model = VQGAN({"resolution": 512, "ch": 32, "attn_resolutions": (16,), "quantizer": "vq"})
    assert not [name for name in model.state_dict() if ".attn." in name]


def test_normalized_codebook_gives_the_same_codes_in_the_fork():
    torch.manual_seed(4)
    model = VQGAN({"resolution": 16, "ch": 32, "ch_mult": (1,), "n_embed": 256, "embed_dim": 8, "z_channels": 8,
                   "attn_resolutions": (), "quantizer": "cosine_vq"})  # fmt: skip
    theirs = VectorQuantizer2(256, 8, beta=0.25, sane_index_shape=True)
    with torch.no_grad():
        model.quantize.embedding.weight.mul_(torch.rand(256, 1) + 0.5)  # the parameter's norm must not matter
        theirs.embedding.weight.copy_(model.quantize.codebook())
        z = torch.randn(8, 8, 16, 16)
        assert torch.equal(theirs(z)[2][2], model.quantize.lookup(z))
