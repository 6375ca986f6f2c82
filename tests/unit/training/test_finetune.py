"""Fine-tuning: exact resumption, the official parameter groups, one use of the test images, and errors."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import functools
import itertools
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mae.checkpoints import load_checkpoint
from mae.checkpoints.classifiers import build_classifier, class_names
from mae.config import MAEConfig
from mae.data.eval_loader import EvalDataset
from mae.errors import CheckpointError, ConfigError, DataError, TrainingError
from mae.models.classifier import ImageClassifier
from mae.reporting.run_log import read_run
from mae.training.classifier_config import FinetuneConfig
from mae.training.engine import plan_task
from mae.training.events import Evaluating, Event, FinalTest, Started, Validated
from mae.training.finetune import FINETUNING, finetune
from mae.training.labelled import Part
from mae.training.position import Position
from mae.training.run_folder import RunFolder
from mae.training.step import TrainingStep
from mae.training.tasks.classification import ClassificationTask, Predictions, places
from mae.training.tasks.finetune import FinetuneTask, layer_groups
from mae.training.testing import read_test_result
from tests.unit.evaluation.small import SIZES, checkpoint, class_folders
from tests.unit.training.labelled import finetuning as finetuning
from tests.unit.training.small import logged, same, stop_after, weights


def test_resumed_equals_uninterrupted(finetuning: FinetuneConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(finetuning, drop_path=0.5)
    whole = finetune(config)
    for steps in (2, 7):
        parted = dataclasses.replace(config, out=tmp_path / f"parted{steps}")
        stopped = finetune(parted, *stop_after(steps))
        assert (stopped.stopped, stopped.steps, stopped.test) == (True, steps, None)
        resumed = finetune(dataclasses.replace(parted, resume=parted.out))
        assert same(weights(config.out), weights(parted.out))
        assert logged(config.out) == logged(parted.out)
        assert resumed.test == whole.test
        assert same(*(load_checkpoint(run / "classifier.pth").state for run in (config.out, parted.out)))
    again = finetune(dataclasses.replace(config, resume=config.out))
    assert again.was_finished
    assert again.test == whole.test
    moved = config.data[0].rename(tmp_path / "moved")
    assert finetune(dataclasses.replace(config, resume=config.out, data=(moved,))).was_finished
    class_folders(tmp_path / "other" / "train", 9)
    class_folders(tmp_path / "other" / "test", 4)
    with pytest.raises(ConfigError, match="would not be the same run") as refused:
        finetune(dataclasses.replace(config, resume=config.out, data=(tmp_path / "other",)))
    assert "number of images" in refused.value.details[1]


@pytest.mark.parametrize("epochs", [3, 4])
def test_weights_of_an_epoch_that_another_schedule_will_not_repeat_are_not_tested(
    finetuning: FinetuneConfig, epochs: int
) -> None:
    """As after ``kill -9`` between an epoch's weights and its state. Nothing is learnt, so no later epoch is better."""
    config = dataclasses.replace(finetuning, lr=1e-30, min_lr=0.0)
    finetune(config, *stop_after(4))
    path = config.out / "classifier.pth"
    with torch.serialization.safe_globals([argparse.Namespace]):
        document = torch.load(path, weights_only=True)
    head = document["model"]["head.weight"].zero_()
    torch.save({**document, "epoch": 1}, path)
    events: list[Event] = []
    finetune(dataclasses.replace(config, resume=config.out, epochs=epochs), events.append)
    (started,) = (event for event in events if isinstance(event, Started))
    told = [note for note in started.notes if "classifier.pth was written by an epoch that is not repeated" in note]
    assert len(told) == (epochs == 4)
    changed = [one.what for one in read_run(config.out).changes]
    assert changed == (["classifier saved -> removed", "epochs 3 -> 4"] if epochs == 4 else [])
    found = load_checkpoint(path)
    assert found.epoch == 1
    assert torch.equal(found.state["head.weight"], head) == (epochs == 3)


def test_weights_of_an_epoch_that_was_rolled_back_are_not_tested(
    finetuning: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second epoch is the best, but its steps are taken back; afterwards the run has another one."""
    finetune(finetuning, *stop_after(3))
    scores, losses = iter((3, 1, 2)), itertools.count()
    loss, predict = TrainingStep.loss, ClassificationTask.predict

    def scored(task: ClassificationTask, model: ImageClassifier, part: Part, name: str, **more: Any) -> Predictions:
        answers = predict(task, model, part, name, **more)
        if name == "test":
            return answers
        return answers._replace(place=(np.arange(len(part)) >= next(scores)).astype(np.int64))

    monkeypatch.setattr(ClassificationTask, "predict", scored)
    monkeypatch.setattr("mae.training.engine._time_batch", lambda *_: 0.1)
    monkeypatch.setattr(
        TrainingStep,
        "loss",
        lambda self, *batch: loss(self, *batch) * (float("nan") if next(losses) in range(5, 9) else 1.0),
    )
    result = finetune(dataclasses.replace(finetuning, resume=finetuning.out, on_nan="rollback", nan_limit=2))
    assert result.test is not None
    assert (result.test.chosen_epoch, result.held_out_accuracy) == (3, pytest.approx(2 / 3))
    kept, newest = (load_checkpoint(finetuning.out / name).state for name in ("classifier.pth", "checkpoint-last.pth"))
    assert same(kept, newest)


def test_an_epoch_whose_evaluation_was_interrupted_is_evaluated_later(
    finetuning: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C may end a loader process that has just been started."""
    config = dataclasses.replace(finetuning, epochs=1, warmup_epochs=0.5)
    stopping: list[bool] = []

    def interrupted(*_: Any, **__: Any) -> Predictions:
        stopping.append(True)
        raise RuntimeError("DataLoader worker (pid 1) exited unexpectedly")

    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "predict", interrupted)
        assert finetune(config, should_stop=lambda: bool(stopping)).stopped
    resumed = finetune(dataclasses.replace(config, resume=config.out))
    assert resumed.test is not None
    assert resumed.test.chosen_epoch == 1
    kinds = ("loss", "train_loss", "val_loss", "test_accuracy")
    lines = [next(kind for kind in kinds if kind in entry) for entry in logged(config.out) if "model" not in entry]
    assert lines == ["loss", "loss", "loss", "train_loss", "val_loss", "test_accuracy"]


def test_the_first_process_says_which_epoch_was_the_best(tmp_path: Path) -> None:
    """Processes that disagree would not all take part in keeping the weights of a sharded model."""
    task: Any = object.__new__(FinetuneTask)
    ranks = SimpleNamespace(gather=lambda mine: [((0.5, -1.0), False), mine])
    task.run = SimpleNamespace(folder=RunFolder(tmp_path, resume=True, writes=False), ranks=ranks)
    task.roll_back(Position())
    assert task.best == (0.5, -1.0)


def killed_before_another_schedule(config: FinetuneConfig) -> Path:
    """A run whose classifier is newer than its state; returns the classifier's path."""
    finetune(config, *stop_after(4))
    path = config.out / "classifier.pth"
    with torch.serialization.safe_globals([argparse.Namespace]):
        torch.save({**torch.load(path, weights_only=True), "epoch": 1}, path)
    return path


def test_after_a_removed_classifier_the_choice_begins_again_even_if_killed_at_once(finetuning: FinetuneConfig) -> None:
    path = killed_before_another_schedule(finetuning)
    run = RunFolder(finetuning.out, resume=True)
    position = Position(epoch=1, batch=2, step=4)
    assert run.log.read(position).best is not None
    longer = dataclasses.replace(finetuning, resume=finetuning.out, epochs=4)
    finetune(longer, *stop_after(0))
    assert not path.exists()
    assert run.log.read(position).best is None


def test_a_classifier_that_cannot_be_removed_is_named(
    finetuning: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = killed_before_another_schedule(finetuning)
    unlink = Path.unlink

    def refuse(self: Path, missing_ok: bool = False) -> None:
        if self == path:
            raise PermissionError(13, "Permission denied")
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    before = path.read_bytes()
    with pytest.raises(
        TrainingError, match=r"classifier\.pth must be removed and cannot be: Permission denied"
    ) as error:
        finetune(dataclasses.replace(finetuning, resume=finetuning.out, epochs=4))
    assert error.value.hint == "make its folder writable"
    assert path.read_bytes() == before


def test_a_run_begun_with_options_that_are_refused_today_goes_on(
    finetuning: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_effect = {"select": "last", "val_share": 0.2, "mixup": 0.0, "cutmix": 0.0, "mixup_prob": 0.5}
    with monkeypatch.context() as earlier:
        earlier.setattr("mae.training.classifier_config.refuse_without_effect", lambda *_: None)
        older = dataclasses.replace(finetuning, **without_effect)
        assert finetune(older, should_stop=lambda: True).stopped
    with pytest.raises(ConfigError, match=r"--val-share .* has no effect with --select last"):
        dataclasses.replace(older)
    assert finetune(dataclasses.replace(older, resume=older.out)).epochs == older.epochs


def test_a_read_only_run_folder_is_named(finetuning: FinetuneConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    path = killed_before_another_schedule(finetuning)
    finetuning.out.chmod(0o555)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    try:
        if os.access(finetuning.out, os.W_OK):  # for root, who ignores permission bits, the first write is refused
            monkeypatch.setattr("mae.training.run_folder.take_lock", refuse)
        with pytest.raises(ConfigError, match="run: Permission denied"):
            finetune(dataclasses.replace(finetuning, resume=finetuning.out, epochs=4))
        assert path.exists()
    finally:
        finetuning.out.chmod(0o755)


def test_the_test_images_are_read_once_and_the_best_epochs_weights_answer(
    finetuning: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    load = EvalDataset.__getitem__

    def watched(self: EvalDataset, index: int) -> Any:
        read.append(str(self.source.name(index)))
        return load(self, index)

    monkeypatch.setattr(EvalDataset, "__getitem__", watched)
    events: list[Event] = []
    result = finetune(finetuning, events.append)
    tested = [name for name in read if "/test/" in name]
    assert len(tested) == len(set(tested)) == 12
    assert read[-12:] == tested
    validated = [event for event in events if isinstance(event, Validated)]
    assert len(validated) == 3
    scores = [(event.val_accuracy, -event.val_loss) for event in validated]
    assert [event.best for event in validated] == [score == max(scores[: n + 1]) for n, score in enumerate(scores)]
    assert result.test is not None
    assert result.test.chosen_epoch == 1 + scores.index(max(scores))
    (test,) = (event for event in events if isinstance(event, FinalTest))
    assert (test.test_accuracy, test.test_images) == (result.test.top1.value, 12)
    evaluating = [event for event in events if isinstance(event, Evaluating)]
    assert [event.part for event in evaluating] == sorted(event.part for event in evaluating)  # held-out, then test
    assert (evaluating[-1].part, evaluating[-1].images, evaluating[-1].total) == ("test", 12, 12)
    assert sum(map(sum, result.test.confusion)) == 12
    assert sum(result.test.confusion[k][k] for k in range(3)) == round(12 * result.test.top1.value)
    model, _ = build_classifier(load_checkpoint(finetuning.out))
    assert class_names(load_checkpoint(finetuning.out)) == (("blue", "green", "red"), True)
    assert model.classes == 3


def test_the_last_epoch_holds_nothing_out(finetuning: FinetuneConfig) -> None:
    events: list[Event] = []
    result = finetune(dataclasses.replace(finetuning, select="last"), events.append)
    (started,) = (event for event in events if isinstance(event, Started))
    assert started.classification is not None
    assert (started.plan.images, started.classification.held_out) == (24, 0)
    assert not [event for event in events if isinstance(event, Validated)]
    assert result.test is not None
    assert result.test.chosen_epoch == 3
    assert same(weights(finetuning.out), load_checkpoint(finetuning.out / "classifier.pth").state)


def test_pre_trained_weights_are_taken_and_from_scratch_takes_sizes_alone(
    finetuning: FinetuneConfig, tmp_path: Path
) -> None:
    """With a tiny learning rate, the encoder's weights do not change."""
    still = dataclasses.replace(finetuning, lr=1e-30, min_lr=0.0, epochs=1, weight_decay=0.0)
    finetune(still)
    found, given = weights(still.out), load_checkpoint(tmp_path / "encoder.pth").state
    shared = [key for key in found if key in given]
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.1.mlp.fc2.bias"} <= set(shared)
    assert all(torch.allclose(found[key], given[key], atol=1e-7) for key in shared)
    assert float(found["head.weight"].std()) == pytest.approx(2e-5, rel=0.3)
    scratch = dataclasses.replace(still, from_scratch=True, out=tmp_path / "scratch")
    finetune(scratch)
    assert weights(scratch.out).keys() == found.keys()
    assert not torch.allclose(weights(scratch.out)["blocks.0.attn.qkv.weight"], given["blocks.0.attn.qkv.weight"])
    larger = dataclasses.replace(still, image_size=(32, 32), out=tmp_path / "larger")
    finetune(larger)
    assert weights(larger.out)["pos_embed"].shape == (1, 17, 32)


def test_layer_groups_are_those_of_the_formula() -> None:
    """Re-derived parameter by parameter: 0.5 for each layer above, of depth + 2 layers."""
    model = ImageClassifier(MAEConfig(**SIZES | {"img_size": (16, 16)}), 3)
    groups = layer_groups(model, 0.05, 0.5)
    found = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(found) == len(list(model.parameters())) == sum(len(group["params"]) for group in groups)
    for name, parameter in model.named_parameters():
        above = 3 if name.startswith(("cls", "pos", "patch")) else 0
        if name.startswith("blocks."):
            above = 2 - int(name[7])
        decays = parameter.ndim > 1 and not name.startswith(("cls", "pos"))
        assert found[id(parameter)] == (0.5**above, 0.05 if decays else 0.0), name


def test_each_group_learns_at_its_own_rate(finetuning: FinetuneConfig) -> None:
    finetune(dataclasses.replace(finetuning, epochs=1, layer_decay=0.5, warmup_epochs=0.0))
    groups = (load_checkpoint(finetuning.out / "checkpoint-last.pth").optimizer or {})["param_groups"]
    assert {round(group["lr"] / groups[-1]["lr"], 6) for group in groups} == {1.0, 0.5, 0.25, 0.125}


def test_gradients_are_scaled_down_to_the_norm_that_is_asked(finetuning: FinetuneConfig, tmp_path: Path) -> None:
    def momentum(clip_grad: float | None) -> float:
        config = dataclasses.replace(finetuning, epochs=1, clip_grad=clip_grad, out=tmp_path / f"clip-{clip_grad}")
        finetune(config)
        state = (load_checkpoint(config.out / "checkpoint-last.pth").optimizer or {})["state"]
        return float(torch.cat([entry["exp_avg"].flatten() for entry in state.values()]).norm())

    # A running mean of gradients of norm 0.001 has at most this norm.
    assert 0.0 < momentum(0.001) <= 0.00101 < momentum(None)


@pytest.mark.parity
@pytest.mark.parametrize(("pool", "fc_norm"), [("mean", True), ("cls", False)])
def test_timm_loads_the_file_strictly_and_computes_the_same_logits(
    finetuning: FinetuneConfig, pool: str, fc_norm: bool
) -> None:
    timm = pytest.importorskip("timm.models.vision_transformer")
    finetune(dataclasses.replace(finetuning, epochs=1, pool=pool, lr=1e-2))
    path = finetuning.out / "classifier.pth"
    state = torch.load(path, weights_only=False)["model"]
    theirs = timm.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=3, fc_norm=fc_norm,
        global_pool="avg" if pool == "mean" else "token", norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    theirs.load_state_dict(state, strict=True)
    ours, _ = build_classifier(load_checkpoint(path))
    imgs = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = theirs.eval()(imgs)
        assert float(wanted.std()) > 1e-4
        assert torch.allclose(ours(imgs), wanted, atol=1e-5, rtol=1e-5)


def test_a_batch_has_the_labels_of_the_images_that_took_the_place_of_broken_ones(
    finetuning: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mae.training.tasks.finetune import FinetuneTask

    for path in (finetuning.data[0] / "train/blue").glob("[0-3].png"):
        path.write_bytes(path.read_bytes()[:60])  # it begins like an image, so the scan accepts it
    seen: list[tuple[str, str]] = []
    inputs = FinetuneTask.inputs

    def watched(self: FinetuneTask, position: Any, number: int, batch: Any) -> Any:
        names = [self.images.name(index).parent.name for index in batch.indices]
        seen.extend(zip(names, (self.labelled.classes[int(one)] for one in self.labels_of(batch)), strict=True))
        return inputs(self, position, number, batch)

    monkeypatch.setattr(FinetuneTask, "inputs", watched)
    finetune(dataclasses.replace(finetuning, select="last", max_unreadable=0.9, epochs=1))
    assert len(seen) == 24
    assert all(folder == label for folder, label in seen)


def one_of_each(data: Path) -> None:
    """Three images, not divided."""
    shutil.rmtree(data / "test")
    for path in [*data.rglob("[1-9].png")]:
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: [shutil.rmtree(data / part / name) for part in ("train", "test") for name in ("red", "green")],
         r"there is only one class, blue"),
        (lambda data: shutil.rmtree(data / "test/red"), r"data/test has no folder red with images"),
        (lambda data: (data / "test/red").rename(data / "test/crimson"), r"data/train has no folder crimson"),
        (one_of_each, r"data/blue has only one image"),
    ],
)  # fmt: skip
def test_data_that_cannot_teach_classes(finetuning: FinetuneConfig, spoil: Any, message: str) -> None:
    spoil(finetuning.data[0])
    with pytest.raises(DataError, match=message):
        finetune(finetuning)
    assert not finetuning.out.exists()


def test_too_many_corrupt_images_are_named(finetuning: FinetuneConfig) -> None:
    for path in (finetuning.data[0] / "test").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"12 of 12 images cannot be read, for instance .*png"):
        finetune(finetuning)


def test_weights_that_cannot_be_taken(finetuning: FinetuneConfig, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such checkpoint file: .*none\.pth"):
        finetune(dataclasses.replace(finetuning, init=tmp_path / "none.pth"))
    finetune(dataclasses.replace(finetuning, epochs=1))
    events: list[Event] = []
    other = dataclasses.replace(finetuning, init=finetuning.out, out=tmp_path / "other", epochs=1)
    finetune(other, events.append)
    (started,) = (event for event in events if isinstance(event, Started))
    assert "the file is fine-tuned: its encoder has seen labels, and its head is not used" in started.notes


def test_an_answer_is_right_only_if_it_is_a_number_and_the_first_of_the_likeliest() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0], [1.0] * 3, [1.0] * 3, [torch.nan] * 3, [0.0, 1.0, torch.inf]])
    labels = torch.tensor([1, 0, 2, 0, 2])
    assert places(logits, labels).tolist() == [0, 0, 2, 3, 3]
    finite = places(logits[:3], labels[:3]) == 0
    assert finite.tolist() == (logits[:3].argmax(dim=1) == labels[:3]).tolist()


@pytest.mark.parametrize("select", ["best", "last"])
def test_a_run_that_diverges_names_nothing_rightly(finetuning: FinetuneConfig, select: str) -> None:
    """Finite weights give non-finite logits."""
    events: list[Event] = []
    config = dataclasses.replace(finetuning, lr=1e18, warmup_epochs=0.0, epochs=2, nan_limit=99, select=select)
    with pytest.raises(TrainingError, match=r"classifier\.pth.*non-finite|classifier\.pth is missing") as refused:
        finetune(config, events.append)
    assert "lower --lr" in str(refused.value.hint)
    assert not (config.out / "result.json").exists()
    assert [one.val_accuracy for one in events if isinstance(one, Validated)] == ([0, 0] if select == "best" else [])


def test_replay_repeats_the_step_with_its_labels_mixing_and_drop_path(
    finetuning: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mae.training.config import ReplayConfig
    from mae.training.replay import replay
    from mae.training.step import TrainingStep

    losses: list[float] = []
    backward = TrainingStep.backward

    def spoiled(self: TrainingStep, *batch: Any, **how: Any) -> torch.Tensor:
        losses.append(float(backward(self, *batch, **how)))
        return torch.tensor(torch.nan)

    config = dataclasses.replace(finetuning, nan_limit=1, mixup=0.8, cutmix=1.0, drop_path=0.2)
    monkeypatch.setattr(TrainingStep, "backward", spoiled)
    with pytest.raises(TrainingError, match="the loss became nan") as stopped:
        finetune(config)
    monkeypatch.undo()
    assert f"to find the module where it began: maecli replay {config.out / 'replay.pth'};" in str(stopped.value.hint)
    found = replay(ReplayConfig(config.out / "replay.pth", device="cpu"))
    assert [one.precision for one in found.passes] == ["fp32"]
    assert found.passes[0].loss == pytest.approx(sum(losses[-2:]) / 2, rel=1e-6)
    assert found.passes[0].first_module is None
    kept = torch.load(config.out / "replay.pth", weights_only=False)
    del kept["replay"]["smoothing"]
    torch.save(kept, config.out / "replay.pth")
    with pytest.raises(CheckpointError, match=r"replay\.pth is damaged: 'smoothing'"):
        replay(ReplayConfig(config.out / "replay.pth", device="cpu"))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_test_that_is_broken_off_is_made_up_for(
    finetuning: FinetuneConfig, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C does not wait for the last test image; it may stop loader processes first."""
    config = dataclasses.replace(finetuning, epochs=1)
    if workers:

        def ended(*_: object) -> None:
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Interrupt")

        monkeypatch.setattr(ClassificationTask, "_logits", ended)
        config = dataclasses.replace(config, select="last")
    asked = 0

    def in_the_test() -> bool:
        nonlocal asked
        asked += (config.out / "checkpoint-last.pth").exists()
        return asked > 1 - workers

    stopped = finetune(config, should_stop=in_the_test)
    assert (stopped.stopped, stopped.epochs, stopped.test) == (True, 1, None)
    assert not (config.out / "result.json").exists()
    monkeypatch.undo()
    resumed = finetune(dataclasses.replace(config, resume=config.out))
    assert resumed.test is not None
    assert resumed.test.test_images == 12


def test_a_class_without_a_readable_test_image_is_named(finetuning: FinetuneConfig) -> None:
    from tests.cli.at_terminal import run_at

    for path in (finetuning.data[0] / "test" / "red").glob("*.png"):
        path.write_bytes(path.read_bytes()[:80])
    result = finetune(dataclasses.replace(finetuning, epochs=1, max_unreadable=0.5))
    assert result.test is not None
    assert result.test.untested == ("red",)
    assert read_test_result(finetuning.out) == result.test
    seen = run_at("finetune", "--resume", finetuning.out)
    assert "warning: no test image could be read of red: what is told is of the others" in seen.err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"variant": "vit_tiny"}, "--variant vit_tiny needs --from-scratch: pre-trained weights"),
        ({"variant": "vit_tiny", "from_scratch": True}, "--variant and --init both set the sizes"),
        ({"min_lr": 1.0}, "--min-lr 1 is above --lr 0.002"),
        ({"select": "last", "val_share": 0.3}, "--val-share 0.3 has no effect with --select last"),
        ({"mixup": 0.0, "cutmix": 0.0, "mixup_prob": 0.5}, "--mixup-prob 0.5 has no effect with --mixup 0 and --cut"),
        ({"cutmix": 0.0, "mixup_switch_prob": 0.1}, "--mixup-switch-prob 0.1 has no effect unless both --mixup and"),
    ],
)
def test_settings_that_do_not_fit(finetuning: FinetuneConfig, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(finetuning, **given)


@pytest.mark.parametrize("inside", [".", "train", "run", "test/run/one"])
def test_a_run_does_not_write_among_its_images(finetuning: FinetuneConfig, inside: str) -> None:
    out = finetuning.data[0] / inside
    before = sorted(finetuning.data[0].rglob("*"))
    with pytest.raises(ConfigError, match=r"--out .* (is|lies in) .*data, whose images are read"):
        finetune(dataclasses.replace(finetuning, out=out))
    assert sorted(finetuning.data[0].rglob("*")) == before
    with pytest.raises(ConfigError, match="whose images are read"):
        plan_task(FINETUNING, dataclasses.replace(finetuning, out=out))


def test_a_policy_that_is_none(finetuning: FinetuneConfig) -> None:
    with pytest.raises(ConfigError, match="--aa rand-x9: wanted a RandAugment policy"):
        finetune(dataclasses.replace(finetuning, aa="rand-x9"))


def test_another_commands_run_is_refused(finetuning: FinetuneConfig) -> None:
    from mae.training.config import PretrainConfig, settings_of_resumed

    finetune(dataclasses.replace(finetuning, epochs=1))
    with pytest.raises(ConfigError, match=r"run holds a run of maecli finetune, not of maecli pretrain"):
        settings_of_resumed({"resume": finetuning.out})
    with pytest.raises(ConfigError, match=r"run holds a run of maecli finetune, not of maecli pretrain"):
        RunFolder(finetuning.out, resume=True).read_config(PretrainConfig)


def test_other_classes_are_another_run(finetuning: FinetuneConfig, tmp_path: Path) -> None:
    finetune(finetuning, *stop_after(2))
    for part in ("train", "test"):
        (finetuning.data[0] / part / "red").rename(finetuning.data[0] / part / "crimson")
    with pytest.raises(ConfigError, match=r"would not be the same run"):
        finetune(dataclasses.replace(finetuning, resume=finetuning.out))


def test_a_dry_run_writes_nothing(finetuning: FinetuneConfig) -> None:
    started = plan_task(FINETUNING, finetuning)
    assert started.classification is not None
    assert started.classification.classes == ("blue", "green", "red")
    assert started.zero_prediction_loss == pytest.approx(1.0986, abs=1e-4)
    assert (started.plan.images, started.classification.held_out, started.classification.test_images) == (21, 3, 12)
    assert not finetuning.out.exists()


def test_one_tree_is_split_by_the_seed_and_said(finetuning: FinetuneConfig, tmp_path: Path) -> None:
    class_folders(tmp_path / "tree", 10)
    events: list[Event] = []
    result = finetune(dataclasses.replace(finetuning, data=(tmp_path / "tree",), epochs=1), events.append)
    (started,) = (event for event in events if isinstance(event, Started))
    assert any(
        "20% of each class (6 of 30 images) are test images, drawn by --seed 0" in note for note in started.notes
    )
    assert result.test is not None
    assert result.test.test_images == 6
    assert json.loads((finetuning.out / "result.json").read_text())["test_images"] == 6


def test_four_channels_need_no_colour_policy(finetuning: FinetuneConfig, tmp_path: Path) -> None:
    four = dataclasses.replace(finetuning, init=checkpoint(tmp_path / "four.pth", in_chans=4), epochs=1)
    assert finetune(four).epochs == 1
    with pytest.raises(ConfigError, match="is for images of 3 channels; the model has 4"):
        finetune(dataclasses.replace(four, aa="rand-m9", out=tmp_path / "aa"))


def test_watch_and_report_show_the_accuracies(finetuning: FinetuneConfig, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from mae.reporting.config import ReportConfig, RunsConfig
    from mae.reporting.run import report
    from mae.reporting.runs import runs
    from maecli.app import app

    result = finetune(finetuning)
    assert result.test is not None
    assert runs(RunsConfig(tmp_path)).runs[0].model == "width 32, 2 blocks"
    log = read_run(finetuning.out)
    assert [one.epoch for one in log.validations] == [1, 2, 3]
    assert max(one.accuracy for one in log.validations) == result.held_out_accuracy
    assert log.test is not None
    assert (log.test.epoch, log.test.accuracy) == (result.test.chosen_epoch, result.test.top1.value)
    assert log.other_lines == 0
    report(ReportConfig(finetuning.out, out=tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert "Accuracy over epochs" in page
    assert "test accuracy (" in page
    assert "Reconstructions" not in page
    assert "PSNR" not in page
    watched = CliRunner().invoke(app, ["watch", str(finetuning.out)]).output
    assert f"test accuracy     {result.test.top1.value:.1%}" in watched
    assert "held-out accuracy" in watched


def test_the_command_prints_one_document_and_resumes(finetuning: FinetuneConfig) -> None:
    from typer.testing import CliRunner

    from maecli.app import app

    words = [
        "finetune", str(finetuning.data[0]), "--init", str(finetuning.init), "--out", str(finetuning.out),
        "--epochs", "1",
        "--batch-size", "4", "--augmenter", "torchvision", "--aa", "none", "--reprob", "0", "--workers", "0", "--json",
        "--device", "cpu", "--warmup-epochs", "0",
    ]  # fmt: skip
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["test"]["test_images"] == 12
    assert 0 <= document["test"]["top1"]["low"] <= document["test"]["top1"]["value"]
    longer = CliRunner().invoke(app, ["finetune", "--resume", str(finetuning.out), "--epochs", "2"])
    assert longer.exit_code == 0, longer.output
    assert "12 test images, read once" in longer.output
    plan = CliRunner().invoke(app, [*words, "--dry-run", "--out", f"{finetuning.out}-other"])
    assert json.loads(plan.stdout)["classification"]["classes"] == ["blue", "green", "red"]
