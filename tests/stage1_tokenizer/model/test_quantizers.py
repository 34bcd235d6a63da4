"""Quantizers: lookup, gradients, EMA codebook, dead-code replacement, and Gumbel sampling."""

import contextlib
import copy
import io
import math

import pytest
import torch

from medunifier.stage1_tokenizer.config import QuantizerConfig
from medunifier.stage1_tokenizer.model.quantizers import (
    CosineQuantizer,
    EMAQuantizer,
    GumbelQuantizer,
    VectorQuantizer,
    base,
    nearest_entry,
)
from medunifier.stage1_tokenizer.model.quantizers.gumbel_vq import gumbel_noise

KINDS = {"vq": VectorQuantizer, "cosine_vq": CosineQuantizer, "ema_vq": EMAQuantizer}
WITH_REPLACEMENT = [CosineQuantizer, EMAQuantizer]


def test_lookup_equals_float64_under_autocast_and_in_chunks(monkeypatch):
    torch.manual_seed(0)
    z, codebook = torch.randn(999, 8), torch.randn(512, 8)
    exact = torch.cdist(z.double(), codebook.double()).argmin(dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_entry(z, codebook), exact)
        # Why the lookup is in float32: the same products in bf16 give other codes.
        coarse = (codebook.square().sum(1) - 2 * (z @ codebook.T).float()).argmin(dim=1)
        assert (coarse != exact).float().mean() > 0.005
    monkeypatch.setattr(base, "CHUNK_ELEMENTS", 512 * 10)
    assert torch.equal(nearest_entry(z, codebook), exact)


@pytest.mark.parametrize("kind", [*KINDS, "gumbel_vq"])
def test_codes_entries_and_losses_are_float32_under_autocast(kind):
    quantizer = (KINDS | {"gumbel_vq": GumbelQuantizer})[kind](512, 8, QuantizerConfig(kind)).eval()
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.normal_()
    z = torch.randn(4, 8, 8, 8).bfloat16()  # as returned by an encoder under autocast
    expected = quantizer(z.float())
    with torch.autocast("cpu", torch.bfloat16):
        result, looked_up = quantizer(z), quantizer.lookup(z)
    assert torch.equal(result.codes, expected.codes) and torch.equal(looked_up, expected.codes)
    assert result.z_q.dtype == torch.float32 and torch.equal(result.z_q, expected.z_q)
    for name, loss in result.losses.items():
        assert loss.dtype == torch.float32 and torch.equal(loss, expected.losses[name])


@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_entries_are_those_of_the_exported_codebook(kind):
    torch.manual_seed(1)
    quantizer = KINDS[kind](64, 4, QuantizerConfig(kind))
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.randn(64, 4))
    z = torch.randn(3, 4, 5, 5)
    result = quantizer(z)
    vectors = z.permute(0, 2, 3, 1).reshape(-1, 4)
    assert torch.equal(nearest_entry(vectors, quantizer.codebook()), result.codes.flatten())
    assert torch.equal(quantizer.lookup(z), result.codes)
    torch.testing.assert_close(result.z_q, quantizer.entries(result.codes), atol=1e-6, rtol=0)


def test_cosine_lookup_ignores_the_norm():
    quantizer = CosineQuantizer(64, 4, QuantizerConfig())
    z = torch.randn(2, 4, 5, 5)
    assert torch.equal(quantizer.lookup(z), quantizer.lookup(7 * z))
    torch.testing.assert_close(quantizer.codebook().norm(dim=1), torch.ones(64))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_straight_through(kind):
    quantizer = KINDS[kind](16, 4, QuantizerConfig(kind))
    z = torch.nn.functional.normalize(torch.randn(1, 4, 3, 3), dim=1).requires_grad_()
    weight = torch.randn(1, 4, 3, 3)
    (quantizer(z).z_q * weight).sum().backward()
    if kind != "cosine_vq":
        torch.testing.assert_close(z.grad, weight)
    else:  # normalization removes the component along z
        along = (weight * z).sum(dim=1, keepdim=True) * z
        torch.testing.assert_close(z.grad, (weight - along).detach(), atol=1e-5, rtol=1e-5)


def train_on_a_narrow_cone(quantizer, steps, seed=0):
    """Run training steps on vectors in a narrow cone, and return the codes of the last ones."""
    generator = torch.Generator().manual_seed(seed)
    quantizer.train()
    for _ in range(steps):
        z = torch.nn.functional.normalize(torch.randn(8, 8, 4, 4, generator=generator), dim=1) * 0.3
        z[:, 0] += 1
        quantizer(z)
        quantizer.end_step()
    return quantizer.lookup(z)


@pytest.mark.parametrize("quantizer", WITH_REPLACEMENT)
def test_dead_entries_are_replaced_and_used_ones_kept(quantizer):
    torch.manual_seed(2)
    start = quantizer(64, 8, QuantizerConfig(dead_code_interval=10))
    with torch.no_grad():  # a few entries near the vectors, most far away
        start.embedding.weight.normal_()
        if quantizer is EMAQuantizer:
            start.total.copy_(start.embedding.weight)
    never = copy.deepcopy(start)
    never.config = QuantizerConfig(dead_code_interval=0)
    unmoved = never.embedding.weight.detach().clone()
    before = len(train_on_a_narrow_cone(never, 200).unique())
    after = len(train_on_a_narrow_cone(start, 200).unique())
    assert before <= 32 and after >= 44 and after > before + 16
    if quantizer is CosineQuantizer:  # its entries are otherwise learned by gradient only
        assert torch.equal(never.embedding.weight, unmoved)


@pytest.mark.parametrize("quantizer", WITH_REPLACEMENT)
def test_resumed_dead_code_replacement_is_bitwise_equal(quantizer):
    torch.manual_seed(3)
    config = QuantizerConfig(dead_code_interval=4, dead_code_threshold=0.9)
    uninterrupted = quantizer(64, 8, config)
    stopped, never = copy.deepcopy(uninterrupted), copy.deepcopy(uninterrupted)
    never.config = QuantizerConfig(dead_code_interval=0)
    for seed in range(6):
        train_on_a_narrow_cone(uninterrupted, 2, seed)
        train_on_a_narrow_cone(never, 2, seed)
    for seed in range(3):
        train_on_a_narrow_cone(stopped, 2, seed)
    resumed = quantizer(64, 8, config)
    resumed.load_state_dict(stopped.state_dict())
    before = resumed.embedding.weight.detach().clone()
    for seed in range(3, 6):
        train_on_a_narrow_cone(resumed, 2, seed)
    # The second replacement, in step 8, happens after the resume and moves many entries.
    assert (resumed.embedding.weight != before).any(1).sum() > 8
    assert not torch.equal(uninterrupted.embedding.weight, never.embedding.weight)
    for name, tensor in uninterrupted.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_validation_does_not_change_the_usage_statistics():
    quantizer = CosineQuantizer(16, 4, QuantizerConfig(dead_code_interval=1)).eval()
    state = copy.deepcopy(quantizer.state_dict())
    quantizer(torch.randn(2, 4, 3, 3))
    quantizer.end_step()
    assert all(torch.equal(state[name], tensor) for name, tensor in quantizer.state_dict().items())


def test_ema_entries_are_weighted_means_of_their_vectors():
    decay = 0.8
    quantizer = EMAQuantizer(4, 2, QuantizerConfig(decay=decay, dead_code_interval=0)).train()
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [-1, 0], [50, 50]]))
        quantizer.total.copy_(quantizer.embedding.weight)
    count, total = torch.ones(4), quantizer.total.clone()
    far = quantizer.embedding.weight[3].clone()
    for _ in range(5):
        codebook = quantizer.codebook().clone()
        micro_batches = [torch.randn(2, 2, 3, 3) for _ in range(2)]  # of one step
        for z in micro_batches:
            quantizer(z)
        assert torch.equal(quantizer.codebook(), codebook)
        quantizer.end_step()
        vectors = torch.cat([z.permute(0, 2, 3, 1).reshape(-1, 2) for z in micro_batches])
        choice = torch.nn.functional.one_hot(torch.cdist(vectors, codebook).argmin(1), 4).float()
        count = decay * count + (1 - decay) * choice.sum(0)
        total = decay * total + (1 - decay) * choice.T @ vectors
        torch.testing.assert_close(quantizer.codebook(), total / count[:, None])
    torch.testing.assert_close(quantizer.embedding.weight[3], far)  # unused entries do not move


def test_ema_codebook_has_no_gradient_and_no_codebook_loss():
    quantizer = EMAQuantizer(16, 4, QuantizerConfig("ema_vq"))
    result = quantizer(torch.randn(1, 4, 3, 3, requires_grad=True))
    assert result.losses.keys() == {"commitment"} and not quantizer.embedding.weight.requires_grad
    sum(result.losses.values()).backward()


def test_gumbel_codes_are_the_largest_logits_and_the_divergence_is_tamings():
    fork = pytest.importorskip("taming.modules.vqvae.quantize", reason="the fork is in the extra `dev`")
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = fork.GumbelQuantize(8, 8, 32, kl_weight=0.3)
    ours = GumbelQuantizer(32, 8, QuantizerConfig("gumbel_vq", kl_weight=0.3))
    ours.load_state_dict(theirs.state_dict(), strict=False)
    z = torch.randn(2, 8, 5, 5)
    _, expected, _, logits = theirs(z, return_logits=True)
    result = ours.eval()(z)
    torch.testing.assert_close(result.losses["divergence"], expected)
    assert torch.equal(result.codes, logits.argmax(1)) and torch.equal(ours.lookup(z), result.codes)
    assert torch.equal(result.z_q, ours.entries(result.codes))


def test_gumbel_samples_only_in_training_and_anneals_its_temperature():
    config = QuantizerConfig("gumbel_vq", temperature_start=2.0, temperature_end=0.5, temperature_steps=10)
    quantizer = GumbelQuantizer(32, 8, config).train()
    z = torch.randn(2, 8, 5, 5, requires_grad=True)
    first, second = quantizer(z), quantizer(z)
    assert not torch.equal(first.codes, second.codes)
    assert torch.equal(first.z_q, quantizer.entries(first.codes))
    (first.z_q * torch.randn_like(z)).sum().backward()
    assert z.grad.abs().sum() > 0 and quantizer.proj.weight.grad.abs().sum() > 0
    used = quantizer.embed.weight.grad.abs().sum(1) > 0
    assert torch.equal(used.nonzero().flatten(), first.codes.unique())
    temperatures = []
    for _ in range(12):
        temperatures.append(quantizer.temperature)
        quantizer.end_step()
    assert temperatures == sorted(temperatures, reverse=True)
    assert (temperatures[0], temperatures[5], temperatures[10], temperatures[11]) == pytest.approx(
        (2, 1.25, 0.5, 0.5)
    )
    quantizer.eval()
    assert torch.equal(quantizer(z).codes, quantizer(z).codes)


def test_gumbel_noise_is_a_function_of_step_and_position_with_the_right_distribution():
    like = torch.empty(512, 64)
    noise = gumbel_noise(torch.tensor(7), torch.tensor(0), like)
    assert torch.equal(gumbel_noise(torch.tensor(7), torch.tensor(500), like[:12]), noise[500:])
    assert not (gumbel_noise(torch.tensor(8), torch.tensor(0), like) == noise).any(dim=0).any()
    for quantile in (0.01, 0.25, 0.5, 0.75, 0.99):  # of exp(-exp(-x)); 32,768 values
        below = (noise < -math.log(-math.log(quantile))).double().mean()
        assert abs(float(below) - quantile) < 4 * (quantile * (1 - quantile) / noise.numel()) ** 0.5
    centred = noise - noise.mean()
    for shifted in (centred.roll(1, 0), centred.roll(1, 1)):  # neighbours are not correlated
        assert abs(float((centred * shifted).mean() / centred.var())) < 0.03


def test_compiled_lookup_finds_the_same_codes():
    torch._dynamo.reset()
    z, codebook = torch.randn(300, 8), torch.randn(64, 8)
    compiled = torch.compile(nearest_entry, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(z, codebook), nearest_entry(z, codebook))
