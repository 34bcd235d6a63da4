"""Semantic terms in training: labels and reports of a batch, gradients, resume, batches, host reads, compilation."""

import pytest
import torch
import yaml
from safetensors.torch import load_file

from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.data.shards.dataset import ShardDataset
from medunifier.shared.artifacts import sha256_file
from medunifier.shared.command import run_command
from medunifier.shared.errors import UserError
from medunifier.stage1_tokenizer import config as stage1
from medunifier.stage1_tokenizer import train
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer
from medunifier.stage1_tokenizer.losses.semantic.objectives import LabelBalance
from medunifier.stage1_tokenizer.model.vqgan import VQGAN
from medunifier.stage1_tokenizer.training import run as training_run
from medunifier.stage1_tokenizer.training.studies import StudyImages, collate_studies, label_balance, label_row
from tests.stage1_tokenizer.conftest import TINY, batch_of_blobs, tiny_task
from tests.stage1_tokenizer.losses.test_teacher import save_dinov2
from tests.stage1_tokenizer.training.test_host_reads import HostReads
from tests.stage1_tokenizer.training.test_train import losses, write_config

HEART, FRACTURE = OBSERVATIONS.index("Cardiomegaly"), OBSERVATIONS.index("Fracture")
DEVICES = OBSERVATIONS.index("Support Devices")
BALANCE = LabelBalance(torch.ones(14), torch.ones(14))
LABELS = {"labels": {"weight": 0.5, "reconstruction_weight": 0.5}}
LABELS_AND_REPORT = LABELS | {"report": {"weight": 0.5}}


def semantic(**teacher):
    return stage1.SemanticConfig(
        stage1.SemanticLabelsConfig(0.5, 0.5),
        stage1.SemanticReportConfig(0.5),
        stage1.SemanticTeacherConfig(**teacher) if teacher else stage1.SemanticTeacherConfig(),
    )


def studies(count, start=0):
    """Return a batch of blobs whose labels, reports and patients alternate."""
    numbers = torch.arange(start, start + count)
    images = batch_of_blobs(start + count)[start:]
    labels = (numbers[:, None] + torch.arange(14)).remainder(3).float()
    words = torch.stack([numbers % 3 + 1, torch.full((count,), 9)], dim=1)
    return StudyImages(images, torch.where(labels == 2, float("nan"), labels), words, numbers % 3, numbers)


def config_with(folder, shards, terms, **loop):
    path = write_config(folder, shards, folder / "run", **loop)
    values = yaml.safe_load(path.read_text())
    values["loss"]["semantic"] = terms
    path.write_text(yaml.safe_dump(values))
    return path


def test_labels_of_a_study_come_from_its_table_or_its_report_and_unmentioned_ones_may_be_unknown():
    own = {"labels": {"Cardiomegaly": 1, "Fracture": -1}, "report": {"text": "No cardiomegaly."}}
    absent, unknown = (label_row(own, rule) for rule in ("absent", "unknown"))
    assert absent[HEART] == unknown[HEART] == 1
    assert absent[FRACTURE] != absent[FRACTURE] and absent[DEVICES] == 0
    assert sum(value == value for value in unknown) == 1
    written = label_row({"labels": {}, "report": {"text": "The heart is enlarged. No pneumothorax."}}, "unknown")
    assert written[HEART] == 1 and written[OBSERVATIONS.index("Pneumothorax")] == 0
    # A normal study shows none of the others; it may have a device, which is no finding.
    normal = label_row({"labels": {"No Finding": 1}}, "unknown")
    assert normal[HEART] == 0 and normal[DEVICES] != normal[DEVICES]
    assert all(value != value for value in label_row({"labels": {}, "report": {}}, "absent"))


def test_balance_counts_the_training_labels_and_needs_both_classes(labelled_shards, image_shards):
    found = label_balance(ShardDataset(labelled_shards, "train"), semantic(), seed=0)
    assert found.present[HEART] == found.absent[HEART] == pytest.approx(1.0)  # 12 of 24
    assert (found.present > 0).sum() == 1
    with pytest.raises(UserError, match="labels"):
        label_balance(ShardDataset(image_shards, "train"), semantic(), seed=0)


def test_a_batch_has_the_fields_of_the_terms_in_use(labelled_shards):
    dataset = ShardDataset(labelled_shards, "train")
    samples = [(i, dataset[i]) for i in (0, 10, 1, 5)]  # reports of 0 and 10, 1 and 11, … are equal
    batch = collate_studies(samples, 32, 0, semantic())
    assert batch.labels[:, HEART].tolist() == [0, 0, 1, 1]
    key = batch.report_key.tolist()
    assert key[0] == key[1] and len(set(key)) == 3 and len(set(batch.patient_key.tolist())) == 4
    assert batch.words.shape == (4, 128) and (batch.words >= 0).all() and (batch.words[0] > 0).sum() == 4
    bare = collate_studies(samples, 32, 0, stage1.SemanticConfig(teacher=stage1.SemanticTeacherConfig(1, path="x")))
    assert bare[1:] == (None,) * 4


def test_without_terms_the_loader_gives_images_alone_and_nothing_is_labeled(labelled_shards, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(training_run, "train", lambda task, a, r, stream, loop: seen.append((task, next(stream(0)))))
    monkeypatch.setattr(training_run, "label_balance", None)
    monkeypatch.setattr(training_run, "_export", lambda *_: None)
    assert run_command(train.main, ["--config", str(write_config(tmp_path, labelled_shards, tmp_path / "run"))]) == 0
    task, batch = seen[0]
    assert isinstance(batch, torch.Tensor) and task._semantic is None


def test_terms_reach_the_encoder_and_leave_the_pixel_losses_adaptive_weight_and_keys_alone():
    """The first step starts from the same weights; after it the encoder differs by the terms' gradient."""
    batches = [studies(2), studies(2, 2)]
    tasks = [tiny_task(), tiny_task(semantic=semantic(), balance=BALANCE)]
    assert tasks[0]._generator.state_dict().keys() == tasks[1]._generator.state_dict().keys()
    figures = [
        [{name: float(value) for name, value in task.step(batches, step).items()} for step in range(2)]
        for task in tasks
    ]
    for name, value in figures[0][0].items():
        if name != "gradient_norm":
            assert figures[1][0][name] == pytest.approx(value, rel=1e-6)
    # At this learning rate (1e-7) the weights of step 1 are still those of step 0, nearly.
    assert figures[1][1]["adaptive_weight"] == pytest.approx(figures[0][1]["adaptive_weight"], rel=1e-2)
    assert {"semantic_labels", "semantic_report", "semantic_reconstruction"} < figures[1][0].keys()
    weights = [task._generator.encoder.conv_in.weight for task in tasks]
    assert not torch.equal(*weights)
    assert figures[1][0]["gradient_norm"] != pytest.approx(figures[0][0]["gradient_norm"], rel=1e-3)


def test_image_head_is_not_trained_on_reconstructions():
    """Otherwise head and decoder could agree on features that no reader of images needs."""
    gradients = []
    for weight in (1e-9, 0.5):
        config = stage1.SemanticConfig(stage1.SemanticLabelsConfig(reconstruction_weight=weight))
        task = tiny_task(semantic=config, balance=BALANCE)
        head = task._semantic.heads.image_labels
        seen: list[torch.Tensor] = []
        for parameter in head.parameters():
            parameter.register_hook(seen.append)
        task.step([studies(2), studies(2, 2)], 0)
        gradients.append(seen)
    assert len(gradients[0]) == 2 * len(list(head.parameters())) and any(g.any() for g in gradients[0])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


@pytest.fixture(scope="module")
def one_batch(labelled_shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    config = config_with(folder, labelled_shards, LABELS, steps=3, batch_size=8, checkpoint_every=3)
    assert run_command(train.main, ["--config", str(config), "--loss.discriminator.start", "100"]) == 0
    return folder / "run"


def test_validation_reports_findings_and_the_export_is_a_plain_tokenizer(one_batch):
    lines = [line for line in losses(one_batch) if "validation/psnr" in line]
    for name in ("label_auroc", "image_label_auroc", "reconstruction_label_auroc"):
        assert all(0 <= line[f"validation/{name}"] <= 1 for line in lines)
    tokenizer = FrozenTokenizer.from_pretrained(one_batch / "tokenizer")
    stored = load_file(one_batch / "tokenizer" / "model.safetensors").keys()
    assert stored and stored < VQGAN(TINY).state_dict().keys() and tokenizer.grid == (8, 8)


@pytest.mark.slow
def test_micro_batches_equal_one_batch(one_batch, labelled_shards, tmp_path):
    config = config_with(tmp_path, labelled_shards, LABELS, steps=3, batch_size=2, accumulation=4, checkpoint_every=3)
    assert run_command(train.main, ["--config", str(config), "--loss.discriminator.start", "100"]) == 0
    names = ("l1", "codebook", "semantic_labels", "semantic_image_labels", "semantic_reconstruction", "gradient_norm")
    for ours, theirs in zip(losses(tmp_path / "run"), losses(one_batch), strict=True):
        for name in ours.keys() & set(names):
            assert ours[name] == pytest.approx(theirs[name], rel=3e-3), (ours["step"], name)


@pytest.mark.slow
def test_resumed_run_restores_heads_optimizer_and_ema_bitwise(labelled_shards, tmp_path):
    runs = []
    for name, stops in (("whole", [3]), ("resumed", [2, 3])):
        folder = tmp_path / name
        folder.mkdir()
        config = config_with(folder, labelled_shards, LABELS_AND_REPORT, validate_every=100, checkpoint_every=1)
        for steps in stops:
            options = ["--optim.schedule", "constant", "--loop.steps", str(steps)]
            assert run_command(train.main, ["--config", str(config), *options]) == 0
        runs.append(folder / "run")
    training = [[line for line in losses(run) if "l1" in line] for run in runs]
    assert training[0] == training[1] and "semantic_report" in training[0][0]
    checkpoints = [run / "checkpoints" / "step-3" for run in runs]
    files = sorted(path.name for path in checkpoints[0].iterdir())
    assert sum("model" in name for name in files) == sum("optimizer" in name for name in files) == 3
    for name in files:
        if name.endswith(".safetensors"):
            states = [load_file(folder / name) for folder in checkpoints]
        elif name.startswith(("optimizer", "custom_checkpoint")):
            states = [torch.load(folder / name, weights_only=True) for folder in checkpoints]
        else:
            continue
        assert flat(states[0]) == flat(states[1]), name


def flat(state):
    """Return a comparable form of nested containers of tensors."""
    if isinstance(state, torch.Tensor):
        return state.tolist()
    if isinstance(state, dict):
        return {key: flat(value) for key, value in state.items()}
    return [flat(value) for value in state] if isinstance(state, list | tuple) else state


@pytest.fixture(scope="module")
def teacher_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    save_dinov2(folder)
    return {"weight": 0.5, "path": str(folder), "sha256": sha256_file(folder / "model.safetensors")}


def test_a_step_with_all_terms_reads_nothing_from_the_device(teacher_files):
    task = tiny_task(semantic=semantic(**teacher_files), balance=BALANCE)
    for step in range(3):
        with HostReads() as reads:
            figures = task.step([studies(2), studies(2, 2)], step)
        assert reads.found == [], step
    assert {"semantic_labels", "semantic_report", "semantic_teacher"} < figures.keys()


def test_heads_compile_as_one_graph(teacher_files):
    torch._dynamo.reset()
    task = tiny_task(semantic=semantic(**teacher_files), balance=BALANCE)
    batch, z_q = studies(2), torch.randn(2, 4, 8, 8)
    whole = torch.compile(task._semantic.heads, fullgraph=True, dynamic=False, backend="aot_eager")
    expected, found = (call(z_q, batch.images, batch.words) for call in (task._semantic.heads, whole))
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_teacher_term_pulls_the_projected_codes_towards_the_teacher(teacher_files):
    config = stage1.SemanticConfig(teacher=stage1.SemanticTeacherConfig(**teacher_files))
    task = tiny_task(semantic=config)
    object.__setattr__(task.config.optim, "lr", 1e-2)
    figures = [float(task.step(2 * [StudyImages(batch_of_blobs(2))], 0)["semantic_teacher"]) for _ in range(8)]
    assert figures[-1] < figures[0] - 0.2
