"""The model: shared computation equals separate passes; padding and other studies of the batch have no effect."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy, normalize, pad
from transformers import AutoConfig, AutoModel

from medunifier.shared.errors import UserError
from medunifier.stage2_unified.model.attention import bidirectional_image_mask
from medunifier.stage2_unified.model.configuration import MedUnifierConfig
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration, at_last
from medunifier.stage2_unified.model.sequences import ImageSpans
from medunifier.stage2_unified.objectives.contrast import contrastive_loss
from medunifier.stage2_unified.objectives.matching import sample_negatives
from medunifier.stage2_unified.objectives.statements import sample_contradicting
from medunifier.stage2_unified.training.config import OBJECTIVES, STATEMENT_LOSSES, BackboneConfig, LossWeights
from medunifier.stage2_unified.training.four_objectives import FourObjectives
from tests.stage2_unified.conftest import GRID, losses_of, make_batch, make_model


def hidden_of(model, ids):
    """Return the hidden states of one sequence from a plain pass, without sharing or padding."""
    mask = bidirectional_image_mask(ids[None], model.vocabulary) if model.config.bidirectional_images else None
    return model.model(
        inputs_embeds=model.embed_ids(ids[None]), attention_mask=mask, use_cache=False
    ).last_hidden_state[0]


def image_spans(v, codes, view, studies):
    """Return the spans ``<view> <boi> c1 … cN <eoi>`` of each study's images."""
    if view is None:
        return [[] for _ in range(studies)]
    boi, eoi = torch.tensor([v["<boi>"]]), torch.tensor([v["<eoi>"]])
    codes, view = codes.view(studies, -1, codes.shape[-1]), view.view(studies, -1)
    return [
        [torch.cat([view[i, s : s + 1], boi, codes[i, s] + v.offset, eoi]) for s in range(view.shape[1])
         if view[i, s] != v["<pad>"]]
        for i in range(studies)
    ]  # fmt: skip


def relation_of(labels, stated, general):
    """Return 1, -1 or 0: a study, not the statement's own, agrees, contradicts, or is not known to do either."""
    pairs = [(a, b) for a, b in zip(labels.tolist(), stated.tolist(), strict=True) if b >= 0]
    if any(a >= 0 and a != b for a, b in pairs):
        return -1
    return int(bool(pairs) and bool(general) and all(a == b for a, b in pairs))


def direction(similarity, relation):
    """Return the mean loss of the rows that have a positive and a negative, by the formula."""
    rows = []
    for logits, kinds in zip(similarity, relation, strict=True):
        negatives = logits[kinds < 0].exp().sum()
        if (kinds > 0).any() and (kinds < 0).any():
            rows.append(torch.stack([-(p.exp() / (p.exp() + negatives)).log() for p in logits[kinds > 0]]).mean())
    return torch.stack(rows).mean()


def statement_losses(model, batch, prefixes, image, report, has_text):
    """Return the losses of the statements, one statement at a time."""
    own = batch.statements
    if own is None:
        return {}
    v, (studies, count) = model.vocabulary, own.length.shape
    special = lambda name: torch.tensor([v[name]])  # noqa: E731
    texts = [own.ids[i, k, : own.length[i, k]] for i in range(studies) for k in range(count)]
    embedded = torch.stack(
        [hidden_of(model, torch.cat([special("<bos>"), t, special("<emb_txt>")]))[-1] for t in texts]
    )
    embedded = normalize(embedded @ model.text_projection.weight.T, dim=-1)
    stated, general = own.stated.flatten(0, 1), own.general.flatten()
    relation = torch.tensor([
        [int((stated[s] >= 0).any()) if s // count == i else relation_of(own.labels[i], stated[s], general[s])
         for s in range(len(texts))]
        for i in range(studies)
    ])  # fmt: skip
    similarity, of_reports = (model.logit_scale.exp() * one @ embedded.T for one in (image, report))
    known = relation * has_text[:, None]
    chosen, usable = sample_contradicting(relation, batch.negative_seed)
    matching = []
    for i in range(studies):
        pairs = [(texts[i * count], 1)] if (own.stated[i, 0] >= 0).any() else []
        pairs += [(texts[chosen[i]], 0)] if usable[i] else []
        for text, belongs in pairs:
            hidden = hidden_of(model, torch.cat([prefixes[i], text, special("<eos>"), special("<match>")]))
            logits = model.match_head(hidden[-1], hidden[len(prefixes[i]) - 1])
            matching.append(cross_entropy(logits[None], torch.tensor([belongs])))
    return {
        "statement_contrast": (direction(similarity, relation) + direction(similarity.T, relation.T)) / 2,
        "statement_report": (direction(of_reports, known) + direction(of_reports.T, known.T)) / 2,
        "statement_matching": torch.stack(matching).mean(),
    }


def one_pass_an_objective(model, batch):
    """Return the losses without shared computation, one sequence at a time, from the layouts in docs/model.md."""
    v, n = model.vocabulary, len(batch)
    special = lambda name: torch.tensor([v[name]])  # noqa: E731
    reports = [batch.report[i, : batch.report_length[i]] for i in range(n)]
    priors = [[torch.cat([special("<prior>"), span]) for span in spans] for spans in
               image_spans(v, batch.images.prior_codes, batch.images.prior_view, n)]  # fmt: skip
    images = image_spans(v, batch.images.codes, batch.images.view, n)
    prefixes = [torch.cat([special("<bos>"), *priors[i], *images[i], special("<emb_img>")]) for i in range(n)]
    texts = [special("<uncond>") if batch.drop_text[i] else reports[i] for i in range(n)]
    image = torch.stack([hidden_of(model, prefix)[-1] for prefix in prefixes])
    text = torch.stack([hidden_of(model, torch.cat([special("<bos>"), t, special("<emb_txt>")]))[-1] for t in texts])
    image = normalize(image @ model.image_projection.weight.T, dim=-1)
    text = normalize(text @ model.text_projection.weight.T, dim=-1)
    similarity = model.logit_scale.exp() * image @ text.T
    has_text = ~batch.drop_text & batch.has_report
    contrast = contrastive_loss(similarity, batch.report_key, batch.patient_key, has_text)

    allowed = (batch.report_key[:, None] != batch.report_key[None]) & (
        batch.patient_key[:, None] != batch.patient_key[None]
    )
    allowed = allowed & has_text[None] & batch.has_report[:, None]
    columns, _ = sample_negatives(similarity, allowed, batch.negative_seed)
    matching, report_losses, image_losses, z = [], [], [], []
    for i in range(n):
        for j, belongs in [(i, 1), (int(columns[i, 0]), 0), (int(columns[i, 1]), 0)] if batch.has_report[i] else []:
            sequence = torch.cat([prefixes[i], reports[j], special("<eos>"), special("<match>")])
            hidden = hidden_of(model, sequence)
            logits = model.match_head(hidden[-1], hidden[len(prefixes[i]) - 1])
            matching.append(cross_entropy(logits[None], torch.tensor([belongs])))
        sequence = torch.cat([prefixes[i], reports[i], special("<eos>")])
        logits = hidden_of(model, sequence)[len(prefixes[i]) - 1 : -1] @ model.lm_head.weight[: v.offset].T
        if batch.has_report[i]:
            report_losses.append(cross_entropy(logits, sequence[len(prefixes[i]) :], reduction="none"))
        report_z = logits.logsumexp(-1).square()[: None if batch.has_report[i] else 0]
        image_z = []
        for number, span in enumerate(images[i]):
            sequence = torch.cat(
                [special("<bos>"), texts[i], special("<emb_txt>"), *priors[i], *images[i][: number + 1]]
            )
            target = span[2:-1]
            start = len(sequence) - len(target) - 2
            logits = hidden_of(model, sequence)[start : start + len(target)] @ model.lm_head.weight[v.offset :].T
            image_losses.append(cross_entropy(logits, target - v.offset, reduction="none"))
            image_z.append(logits.logsumexp(-1).square())
        z.append((report_z, torch.cat(image_z)))
    return statement_losses(model, batch, prefixes, image, text, has_text) | {
        "contrast": contrast,
        "matching": torch.stack(matching).mean(),
        "report": torch.cat(report_losses).mean(),
        "image": torch.cat(image_losses).mean(),
        "z": torch.cat([a for a, _ in z]).mean() + torch.cat([b for _, b in z]).mean(),
    }


RAGGED = {"images": [1, 2, 3, 1, 2, 2], "priors": [0, 1, 0, 2, 0, 1]}
"""Studies with different numbers of images and of prior images."""


@pytest.mark.parametrize(
    ("dropped", "equal_lengths", "images"),
    [
        ((), False, {}),
        ((1, 4), False, {}),
        ((), True, {}),
        ((1, 4), False, RAGGED),
        ((), True, RAGGED),
        ((2,), False, {"images": [2] * 6, "priors": [1] * 6}),
        ((), False, {"images": [1] * 6, "priors": [0, 1, 1, 0, 0, 1]}),
        ((1, 4), False, {"statements": 3}),
        ((1,), False, RAGGED | {"statements": 2}),
    ],
)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_loss_and_gradient_equals_those_of_separate_passes(dropped, equal_lengths, images, bidirectional):
    model = make_model(bidirectional_images=bidirectional)
    batch = make_batch(dropped=dropped, **images)
    if equal_lengths:
        batch = replace(batch, report=batch.report[:, :1], report_length=torch.ones_like(batch.report_length))
    ours, separate = losses_of(model, batch), one_pass_an_objective(model, batch)
    for name, value in separate.items():
        assert ours[name].item() == pytest.approx(value.item(), rel=1e-5), name
    weights = FourObjectives(model, LossWeights()).weights
    ours["loss"].backward()
    shared = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    sum(weights[name] * value for name, value in separate.items()).backward()
    for name, parameter in model.named_parameters():
        largest = parameter.grad.abs().max()
        assert largest > 0, f"{name} gets no gradient"
        assert (shared[name] - parameter.grad).abs().max() <= 2e-5 * largest, name


def test_padding_has_no_effect(model, batch):
    wider = replace(batch, report=pad(batch.report, (0, 5), value=model.vocabulary["<pad>"]))
    plain, padded = losses_of(model, batch), losses_of(model, wider)
    assert 0 < plain.pop("padding_fraction") < padded.pop("padding_fraction")
    assert padded.pop("tokens") > plain.pop("tokens")
    for name, value in plain.items():
        assert padded[name].item() == pytest.approx(value.item(), rel=1e-5), name


def test_a_step_is_two_passes_of_static_shapes_and_the_padding_fraction_is_exact(model, batch):
    """Shapes follow from the widths of reports and images, not from the negatives or from how many are real."""
    shapes = []
    model.model.layers[0].register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape[:2])))
    studies, width = batch.report.shape
    longest = GRID[0] * GRID[1] + 3 + width + 4  # <bos> <emb_img> <eos> <match> beside the image and the report
    equal = replace(batch, report=batch.report % 40, report_length=torch.full_like(batch.report_length, width))
    fraction = losses_of(model, equal)["padding_fraction"].item()
    assert shapes == [(2 * studies, longest), (studies, 2 * (width + 2))]
    computed = sum(sequences * length for sequences, length in shapes)
    assert fraction == pytest.approx(2 * studies / computed)  # a text-first sequence is two ids shorter
    losses = losses_of(model, batch)
    assert losses["tokens"] == computed and shapes[2:] == shapes[:2]
    first = int((2 * (batch.report_length + longest - width) - 2).sum())
    assert 1 - (first + 2 * studies * (width + 2)) / computed < losses["padding_fraction"] < 1 - first / computed


def test_the_content_of_the_padding_has_no_effect(model, batch):
    noisy = batch.report.clone()
    real = torch.arange(noisy.shape[1]) < batch.report_length[:, None]
    noisy[~real] = 3
    for name, value in losses_of(model, batch).items():
        assert losses_of(model, replace(batch, report=noisy))[name].item() == pytest.approx(value.item(), rel=1e-6), (
            name
        )


@torch.no_grad()
def test_the_text_of_a_negative_changes_only_its_branch(model, batch):
    prefix = model.encode_images(batch.images)
    reports = batch.report[:, None].repeat(1, 3, 1)
    lengths = batch.report_length[:, None].repeat(1, 3)
    before = model.continue_prefix(prefix, reports, lengths)
    changed = reports.clone()
    changed[:, 1, 0] = (changed[:, 1, 0] + 1) % 40  # the first negative of every image
    after = model.continue_prefix(prefix, changed, lengths)
    assert torch.equal(after[:, 0], before[:, 0]) and torch.equal(after[:, 2], before[:, 2])
    for study, length in enumerate(batch.report_length):
        assert not torch.equal(after[study, 1, :length], before[study, 1, :length])


def test_a_batch_of_equal_reports_has_no_negatives(model):
    batch = make_batch(studies=4)
    batch = replace(batch, report_key=torch.zeros(4, dtype=torch.long))
    losses = losses_of(model, batch)
    assert losses["matching"].isfinite() and losses["loss"].isfinite()
    belongs = model.match(batch.images, batch.report, batch.report_length)
    assert losses["matching"].item() == pytest.approx(-belongs.log().mean().item(), rel=1e-4)


def test_features_and_matching_equal_those_of_training(model, batch):
    with torch.no_grad():
        image = model.get_image_features(batch.images)
        text = model.get_text_features(batch.report, batch.report_length)
        loss = contrastive_loss(
            model.logit_scale.exp() * image @ text.T, batch.report_key, batch.patient_key, ~batch.drop_text
        )
        assert loss.item() == pytest.approx(losses_of(model, batch)["contrast"].item(), rel=1e-5)
        assert torch.allclose(image.norm(dim=-1), torch.ones(len(batch)))
        alone = []
        for i in range(len(batch)):
            image = ImageSpans(batch.images.codes[i : i + 1], batch.images.view[i : i + 1])
            alone.append(model.match(image, batch.report[i : i + 1], batch.report_length[i : i + 1]))
        together = model.match(batch.images, batch.report, batch.report_length)
    assert torch.allclose(torch.cat(alone), together, rtol=1e-4)


def test_weights_scale_the_losses(model, batch):
    losses = losses_of(model, batch, contrast=0.0, matching=0.0, report=0.5, image=0.0, z=0.0)
    assert losses["loss"].item() == pytest.approx(0.5 * losses["report"].item())


def test_the_codebook_is_frozen_and_must_fit(model):
    assert "codebook" not in dict(model.named_parameters())
    with pytest.raises(ValueError, match="codebook"):
        model.set_codebook(torch.zeros(3, 4))


def test_a_saved_model_loads_with_the_same_losses_also_by_auto_classes(model, batch, tmp_path):
    model.eval()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    for loaded in (MedUnifierForConditionalGeneration.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert AutoConfig.from_pretrained(tmp_path).vocabulary == model.vocabulary
        for name, value in losses_of(model, batch).items():
            assert torch.equal(losses_of(loaded, batch)[name], value), name


def test_a_folder_with_the_configuration_of_an_older_version_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"codebook_size"', '"codes"'))
    for load in (AutoConfig.from_pretrained, MedUnifierForConditionalGeneration.from_pretrained):
        with pytest.raises(UserError, match="older version.*codes.*codebook_size"):
            load(tmp_path)


def test_a_folder_with_the_weights_of_an_older_version_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["log_scale"] = weights.pop("logit_scale")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    for load in (AutoModel.from_pretrained, MedUnifierForConditionalGeneration.from_pretrained):
        with pytest.raises(UserError, match="logit_scale.*log_scale.*older version"):
            load(tmp_path)


@torch.no_grad()
def test_a_model_without_statements_has_the_losses_it_had_with_them_beside(model):
    batch = make_batch(statements=2)
    batch.statements.has_report[:] = True
    beside, alone = losses_of(model, batch), losses_of(model, replace(batch, statements=None))
    assert not any("statement" in name for name in alone)
    for name in (*OBJECTIVES, "z"):
        assert alone[name].item() == pytest.approx(beside[name].item(), rel=1e-6), name


@torch.no_grad()
def test_all_texts_are_matched_with_all_studies_as_one_by_one(model, batch):
    text, length = batch.report.repeat(2, 1), batch.report_length.repeat(2)  # more than one pass
    together = model.match_all(batch.images, text, length)
    assert together.shape == (len(batch), 2 * len(batch))
    for column in (0, 3, 11):
        one = text[column].repeat(len(batch), 1), length[column].repeat(len(batch))
        assert torch.allclose(together[:, column], model.match(batch.images, *one), rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("bidirectional", [False, True])
def test_attributions_of_the_codes_add_up_to_the_change_of_the_similarity(bidirectional, batch):
    model = make_model(bidirectional_images=bidirectional)
    direction, reference = torch.linspace(-1, 1, model.config.embedding_dim), batch.images.codes[:1, 0].clone()
    batch.images.codes[2, 0, 3:5] = reference[0, 3:5]
    parts = model.attribute_similarity(batch.images, direction, reference, steps=60)
    assert parts.shape == (len(batch), GRID[0] * GRID[1])
    starts = replace(batch.images, codes=reference.expand(len(batch), 1, -1))
    change = (model.get_image_features(batch.images) - model.get_image_features(starts)) @ direction
    assert torch.allclose(parts.sum(dim=1), change, atol=0.02) and change.abs().max() > 0.1
    equal = batch.images.codes[:, 0] == reference
    rounding = 1e-6
    assert equal[2, 3:5].all() and (parts[equal].abs() < rounding).all() and (parts[~equal].abs() > rounding).any()


@torch.no_grad()
def test_statements_of_the_step_are_embedded_as_texts(model):
    batch = make_batch(statements=2)
    own = batch.statements
    prefix = model.encode_images(batch.images)
    groups = [model.match_branches(own.ids, own.length), model.text_branches(own.ids, own.length)]
    matched, embedded = model.run_branches(prefix, groups)
    features = model.get_text_features(own.ids.flatten(0, 1), own.length.flatten())
    assert torch.allclose(model.text_embedding(at_last(embedded, groups[1])).flatten(0, 1), features, atol=1e-5)
    logits = model.match_head(at_last(matched, groups[0])[:, 1], prefix.hidden)
    expected = model.match(batch.images, own.ids[:, 1], own.length[:, 1])
    assert torch.allclose(logits.softmax(-1)[:, 1], expected, atol=1e-5)


@pytest.mark.parametrize("objective", [*OBJECTIVES, *STATEMENT_LOSSES])
def test_each_objective_alone_overfits_one_batch(objective):
    weights = dict.fromkeys([*OBJECTIVES, *STATEMENT_LOSSES, "z"], 0.0) | {objective: 1.0}
    model, batch = make_model(), make_batch(studies=4, statements=2 * ("statement" in objective))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        losses = losses_of(model, batch, **weights)
        if losses[objective] < 0.05:
            return
        losses["loss"].backward()
        optimizer.step()
    pytest.fail(f"{objective} is {losses[objective]:.3f} after 100 steps on one batch")


def test_gradient_checkpointing_gives_the_same_gradients(model, batch):
    def gradients():
        model.zero_grad()
        losses_of(model, batch)["loss"].backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    plain, passes = gradients(), []
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    gradients()
    without_checkpointing = len(passes)
    passes.clear()
    model.gradient_checkpointing_enable()
    again = gradients()
    assert len(passes) == 2 * without_checkpointing > 0
    for name, gradient in plain.items():
        assert torch.equal(again[name], gradient), name
    model.gradient_checkpointing_disable()
    passes.clear()
    gradients()
    assert len(passes) == without_checkpointing


def test_rope_theta_reaches_the_backbone():
    def frequencies(base):
        backbone = BackboneConfig(
            hidden_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, rope_theta=base
        )
        config = MedUnifierConfig(text_config=backbone.to_transformers(100))
        return MedUnifierForConditionalGeneration(config).model.rotary_emb.inv_freq

    assert torch.allclose(frequencies(100.0), 100.0 ** -(torch.arange(4) / 4))
    with pytest.raises(ValueError, match="rope_theta"):
        BackboneConfig(rope_theta=0.5)
