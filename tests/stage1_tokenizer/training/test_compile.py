"""torch.compile: networks compile as one graph each, and compiled training equals plain training."""

import pytest
import torch

from medunifier.shared.training.config import use_compile
from medunifier.stage1_tokenizer.config import PerceptualConfig
from medunifier.stage1_tokenizer.losses.perceptual import build_perceptual
from medunifier.stage1_tokenizer.model.compiling import compile_method
from medunifier.stage1_tokenizer.model.discriminator import PatchDiscriminator
from medunifier.stage1_tokenizer.model.vqgan import VQGAN
from tests.stage1_tokenizer.conftest import TINY, batch_of_blobs, tiny_task

COMPILE = torch.compile


@pytest.fixture
def no_code_generation(monkeypatch):
    """Everything but the code generation, which needs a C++ compiler and takes minutes."""
    torch._dynamo.reset()
    monkeypatch.setattr(
        torch, "compile", lambda f, **settings: COMPILE(f, **settings | {"backend": "aot_eager", "options": None})
    )


def loss_and_gradients(network, loss):
    network.zero_grad()
    value = loss()
    value.backward()
    return value.detach(), {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def assert_one_graph_with_equal_gradients(network, loss):
    """``loss(call)`` is a scalar that ``call``, the network compiled or not, was used for."""
    expected = loss_and_gradients(network, lambda: loss(network))
    whole = COMPILE(network, fullgraph=True, dynamic=False, backend="aot_eager")
    found = loss_and_gradients(network, lambda: loss(whole))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def vqgan_loss(call):
    output = call(batch_of_blobs())
    return (output.reconstruction - batch_of_blobs()).abs().mean() + sum(output.losses.values())


def test_vqgan_is_one_graph():
    torch._dynamo.reset()
    assert_one_graph_with_equal_gradients(VQGAN(TINY), vqgan_loss)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vq", "ema_vq", "gumbel_vq"])
def test_vqgan_of_every_quantizer_is_one_graph_with_checkpointing(kind):
    torch._dynamo.reset()
    model = VQGAN({**TINY, "quantizer": {"kind": kind}})
    model.gradient_checkpointing()
    if kind == "gumbel_vq":  # each pass has its own noise
        model.quantize.register_forward_hook(lambda module, *_: setattr(module, "_passes", 0))
    assert_one_graph_with_equal_gradients(model, vqgan_loss)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_discriminator_is_one_graph(norm):
    torch._dynamo.reset()
    assert_one_graph_with_equal_gradients(
        PatchDiscriminator(1, 8, 1, norm), lambda call: call(batch_of_blobs()).square().mean()
    )


@pytest.mark.parametrize("net", ["squeeze", *(pytest.param(net, marks=pytest.mark.slow) for net in ("vgg", "xrv"))])
def test_perceptual_net_is_one_graph(net):
    torch._dynamo.reset()
    perceptual = build_perceptual(PerceptualConfig(net, "random"))
    results = []
    for call in (perceptual.loss, COMPILE(perceptual.loss, fullgraph=True, dynamic=False, backend="aot_eager")):
        image = batch_of_blobs(2, 64).flip(0).requires_grad_()
        loss = call(batch_of_blobs(2, 64), image)
        results.append((loss.detach(), torch.autograd.grad(loss, image)[0]))
    torch.testing.assert_close(results[1], results[0], atol=1e-6, rtol=1e-5)
    assert results[0][1].abs().max() > 1e-5


def task_figures(**settings) -> list[dict[str, float]]:
    """Figures of three training steps of two micro-batches."""
    task = tiny_task(**settings)
    batches = [batch_of_blobs(2), batch_of_blobs(4)[2:]]
    return [{name: float(value) for name, value in task.step(batches, step).items()} for step in range(3)]


def assert_same_figures(found, expected):
    assert "adaptive_weight" in expected[-1]
    for step, (line, wanted) in enumerate(zip(found, expected, strict=True)):
        assert line.keys() == wanted.keys()
        for name, value in wanted.items():
            # A ratio of norms, of which the small one sums gradients of both signs.
            tolerance = 1e-3 if name == "adaptive_weight" else 1e-5
            assert line[name] == pytest.approx(value, rel=tolerance, abs=1e-5), (step, name)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_training_equals_plain_training(checkpointing, no_code_generation):
    compiled = task_figures(compile=True, gradient_checkpointing=checkpointing)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert_same_figures(compiled, task_figures(compile=False))


@pytest.mark.slow
def test_generated_code_gives_equal_losses_and_gradients():
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = VQGAN({**TINY, "ch_mult": [1]}).to(memory_format=torch.channels_last)
    expected = loss_and_gradients(model, lambda: vqgan_loss(model))
    model.compile_graphs()
    found = loss_and_gradients(model, lambda: vqgan_loss(model))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_many_shapes_are_compiled(monkeypatch):
    """PyTorch compiles eight graphs of a function by default, of all instances together; more are an error."""
    compiler = {"backend": "eager", "options": None}
    monkeypatch.setattr(torch, "compile", lambda f, **settings: COMPILE(f, **settings | compiler))
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=8):
        network = PatchDiscriminator(1, 8, 1)
        compile_method(network, "forward")
        for count in range(1, 11):
            assert len(network(batch_of_blobs(count))) == count


def test_auto_compiles_on_a_gpu_only():
    cpu, gpu = torch.device("cpu"), torch.device("cuda:0")
    assert use_compile("auto", gpu) and not use_compile("auto", cpu)
    assert use_compile(True, cpu) and not use_compile(False, gpu)


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="compiled GPU kernels need a GPU")


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
def test_compiled_channels_last_bfloat16_gradients_equal_the_plain_ones(device, request):
    """pytorch#140913: compiled GroupNorm of four channels per group at 64 x 64 had silently wrong gradients."""
    torch._dynamo.reset()
    if device == "cpu":
        request.getfixturevalue("no_code_generation")
    torch.manual_seed(0)
    side, width = (256, 128) if device == "cuda" else (64, 32)
    model = VQGAN({"resolution": side, "ch": width, "norm_groups": width // 4, "ch_mult": [1, 2], "num_res_blocks": 1,
                   "attn_resolutions": [], "n_embed": 64, "embed_dim": 8, "z_channels": 32,
                   "front_end": "haar", "front_end_levels": 2}).to(device)  # fmt: skip
    batch = torch.rand(2, 1, side, side, device=device) * 2 - 1

    def gradients(fast):
        model.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=fast):
            z = model.encode(batch)
            output = model.decode(z)  # without the lookup, whose codes may change by rounding
        (output.float() - batch).square().mean().backward()
        return {name: p.grad.flatten().double() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients(fast=False)
    model.to(memory_format=torch.channels_last).compile_graphs()
    batch = batch.contiguous(memory_format=torch.channels_last)
    found = gradients(fast=True)
    assert found.keys() == plain.keys() and len(plain) > 50
    for name, expected in plain.items():
        if expected.norm() > 1e-3 * max(g.norm() for g in plain.values()):  # a bias before a norm has no gradient
            cosine = float(torch.nn.functional.cosine_similarity(found[name], expected, dim=0))
            ratio = float(found[name].norm() / expected.norm())
            assert cosine > 0.98 and abs(ratio - 1) < 0.1, (name, cosine, ratio)
