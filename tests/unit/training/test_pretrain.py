"""A run is repeated bit for bit, resumes from any step, and never loses saved states."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from mae.checkpoints import load_checkpoint
from mae.data.sampler import EpochBatches
from mae.errors import CheckpointError, ConfigError, DataError, MaeError, TrainingError
from mae.options import build_config
from mae.system.distributed import Ranks
from mae.training import checkpointer as saving_module
from mae.training import failures, monitor
from mae.training.config import PretrainConfig, ReplayConfig
from mae.training.events import EpochDone, Event, ImageUnreadable, RolledBack, Started, Stepped, StepSkipped
from mae.training.parallel import PretrainingLoss
from mae.training.position import Position
from mae.training.pretrain import pretrain
from mae.training.replay import replay
from mae.training.run_folder import RunFolder
from mae.training.step import TrainingStep
from mae.training.tasks.pretrain import PretrainingTask
from tests.unit.training.small import logged, same, stop_after, weights

pytestmark = pytest.mark.usefixtures("small_models")


def test_the_same_seed_gives_the_same_bits(config: PretrainConfig, tmp_path: Path) -> None:
    pretrain(config)
    pretrain(dataclasses.replace(config, out=tmp_path / "again", workers=1))
    pretrain(dataclasses.replace(config, out=tmp_path / "other", seed=1))
    assert same(weights(tmp_path / "run"), weights(tmp_path / "again"))
    assert logged(tmp_path / "run") == logged(tmp_path / "again")
    assert not same(weights(tmp_path / "run"), weights(tmp_path / "other"))


@pytest.mark.parametrize("steps", [1, 3, 4, 8])
def test_resumed_equals_uninterrupted(config: PretrainConfig, tmp_path: Path, steps: int) -> None:
    pretrain(config)
    parted = dataclasses.replace(config, out=tmp_path / "parted")
    result = pretrain(parted, *stop_after(steps))
    assert result.stopped
    assert result.steps == steps
    result = pretrain(dataclasses.replace(parted, resume=tmp_path / "parted"))
    assert not result.stopped
    assert same(weights(tmp_path / "run"), weights(tmp_path / "parted"))
    assert logged(tmp_path / "run") == logged(tmp_path / "parted")
    image = "previews/epoch-0003.png"
    assert (tmp_path / "run" / image).read_bytes() == (tmp_path / "parted" / image).read_bytes()


def test_weights_ahead_of_the_position_are_not_saved(config: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal to all processes ends loader processes too, and torch's error may come at the end of an update."""
    pretrain(config, *stop_after(4))
    update, stopping = TrainingStep.update, []

    def interrupted(self: TrainingStep, *rest: Any) -> Any:
        update(self, *rest)
        stopping.append(True)
        raise RuntimeError("a loader process has ended")

    again = dataclasses.replace(config, resume=config.out)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "update", interrupted)
        with pytest.raises(RuntimeError, match="a loader process has ended"):
            pretrain(again, should_stop=lambda: bool(stopping))
    pretrain(again)
    whole = dataclasses.replace(config, out=config.out.with_name("whole"))
    pretrain(whole)
    assert same(weights(config.out), weights(whole.out))
    assert logged(config.out) == logged(whole.out)


def test_what_is_timed_and_measured_is_no_part_of_an_epoch(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, gone = time.monotonic, [0.0]

    def timed(*_: Any) -> float:
        gone[0] += 1000
        return 0.1

    monkeypatch.setattr(time, "monotonic", lambda: now() + gone[0])
    monkeypatch.setattr("mae.training.engine._time_batch", timed)
    monkeypatch.setattr(PretrainingTask, "validate", lambda *_: timed() and None)
    events: list[Event] = []
    pretrain(dataclasses.replace(config, save_minutes=1000), events.append)
    assert all(event.seconds < 1000 for event in events if isinstance(event, EpochDone))
    assert all(event.images_per_second > 0.01 for event in events if isinstance(event, Stepped))
    started = next(event for event in events if isinstance(event, Started))
    assert started.seconds == pytest.approx(3 * 5 * 0.1)  # the last step of an epoch has one batch, not two


def test_a_killed_run_drops_what_it_logged_past_its_last_state(config: PretrainConfig, tmp_path: Path) -> None:
    pretrain(config, *stop_after(4))
    with (tmp_path / "run/log.jsonl").open("a") as file:
        file.write('{"step": 5, "epoch": 1.8, "loss": 99.0, "lr": 1.0}\n')
        file.write('{"epoch": 1, "train_loss": 99.0, "train_lr": 1.0}\n{"step": 6, "lo')
    pretrain(dataclasses.replace(config, resume=tmp_path / "run"))
    steps = [entry["step"] for entry in logged(tmp_path / "run") if "loss" in entry]
    assert steps == list(range(1, 10))
    assert all(99.0 not in entry.values() for entry in logged(tmp_path / "run"))
    assert [entry["epoch"] for entry in logged(tmp_path / "run") if "train_loss" in entry] == [0, 1, 2]


def test_every_batch_of_every_epoch_has_masks_of_its_own() -> None:
    plan, model = SimpleNamespace(seed=0, global_batch_size=2), SimpleNamespace(config=SimpleNamespace(num_patches=8))
    task: Any = SimpleNamespace(run=SimpleNamespace(plan=plan, ranks=Ranks()), model=model, mask_ratio=0.75)
    batch: Any = None  # masks do not depend on the images
    places = itertools.product((0, 1), (0, 1))
    noises = [PretrainingTask.inputs(task, Position(epoch=epoch), number, batch)[1] for epoch, number in places]
    assert len({tuple(noise.flatten().tolist()) for noise in noises}) == 4


def test_the_run_folder(config: PretrainConfig, tmp_path: Path) -> None:
    events: list[Event] = []
    result = pretrain(dataclasses.replace(config, save_every=2), events.append)
    epochs = [entry for entry in logged(config.out) if "train_loss" in entry]
    assert [entry["epoch"] for entry in epochs] == [0, 1, 2]
    assert {"train_loss", "train_lr", "epoch"} <= set(epochs[0])
    done = [event for event in events if isinstance(event, EpochDone)]
    assert epochs[-1]["train_loss"] == done[-1].train_loss == result.train_loss
    # 11 images in batches of 2: five batches, and steps of 2, 2 and 1 batches.
    assert [event.step for event in events if isinstance(event, Stepped)] == list(range(1, 10))
    names = sorted(str(path.relative_to(config.out)) for path in config.out.rglob("*") if path.is_file())
    assert names == [
        ".lock", "checkpoint-1.pth", "checkpoint-last-1.pth", "checkpoint-last.pth", "config.toml",
        "environment.json", "log.jsonl",
        "previews/epoch-0002.png", "previews/epoch-0003.png",
    ]  # fmt: skip
    started = next(event for event in events if isinstance(event, Started))
    assert started.step_seconds > 0
    assert started.zero_prediction_loss == pytest.approx(191 / 192, rel=1e-3)


def test_the_official_layout_of_a_checkpoint(config: PretrainConfig) -> None:
    pretrain(config)
    checkpoint = load_checkpoint(config.out / "checkpoint-last.pth")
    assert checkpoint.epoch == 2
    assert checkpoint.args["norm_pix_loss"] is True
    assert checkpoint.args["model"] == "custom"  # the tests' models are smaller than the variant
    assert checkpoint.config == config.model_config()
    assert checkpoint.norm_pix_loss is True
    groups = checkpoint.optimizer["param_groups"] if checkpoint.optimizer else []
    assert [(group["weight_decay"], group["betas"]) for group in groups] == [(0.0, (0.9, 0.95)), (0.05, (0.9, 0.95))]


def test_the_written_config_repeats_the_run(config: PretrainConfig, tmp_path: Path) -> None:
    import tomllib

    pretrain(config)
    values = tomllib.loads((config.out / "config.toml").read_text())
    again = build_config(PretrainConfig, values | {"out": tmp_path / "again"}, source="config.toml")
    pretrain(again)
    assert same(weights(config.out), weights(tmp_path / "again"))


def test_accumulated_batches_step_like_one_large_batch(
    config: PretrainConfig, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdamW's first moment is a tenth of the gradient; the step alone would not reveal a wrong scale."""
    for number in range(8, 11):
        (images / f"{number}.png").unlink()
    noise = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(
        PretrainingTask,
        "inputs",
        lambda self, position, number, batch: (
            self.mask_ratio,
            noise.split(self.run.plan.global_batch_size)[number],
        ),
    )
    moments, losses = {}, {}
    for name, batch in (("large", 8), ("small", 2)):
        events: list[Event] = []
        run = dataclasses.replace(
            config, epochs=1, warmup_epochs=0.0, batch_size=batch, accum_iter=8 // batch, out=tmp_path / name
        )
        assert pretrain(run, events.append).steps == 1
        losses[name] = next(event.loss for event in events if isinstance(event, Stepped))
        optimizer = load_checkpoint(run.out / "checkpoint-last.pth").optimizer
        assert optimizer is not None
        moments[name] = [state["exp_avg"] for state in optimizer["state"].values()]
    assert losses["large"] == pytest.approx(losses["small"], rel=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(moments["large"], moments["small"], strict=True))
    assert max(float(moment.abs().max()) for moment in moments["large"]) > 1e-3


def test_the_batches_of_a_step_weigh_alike(config: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the steps of two, two and one; several processes average gradients after the last one of each."""
    backward, seen = TrainingStep.backward, []

    def noted(self: TrainingStep, *batch: Any, **options: Any) -> Any:
        seen.append((options["share"], options["last"]))
        return backward(self, *batch, **options)

    monkeypatch.setattr(TrainingStep, "backward", noted)
    monkeypatch.setattr("mae.training.engine._time_batch", lambda *_: 0.1)
    pretrain(dataclasses.replace(config, epochs=1, warmup_epochs=0.0))
    assert seen == [(0.5, False), (0.5, True), (0.5, False), (0.5, True), (1.0, True)]


def spoil(monkeypatch: pytest.MonkeyPatch, batches: set[int], factor: float = float("nan")) -> None:
    """Multiply the losses of these batches, which are counted from the start of the next run."""
    loss, numbers = TrainingStep.loss, itertools.count()
    monkeypatch.setattr(
        TrainingStep, "loss", lambda self, *batch: loss(self, *batch) * (factor if next(numbers) in batches else 1.0)
    )
    monkeypatch.setattr("mae.training.engine._time_batch", lambda *_: 0.1)


@pytest.mark.parametrize("factor", [float("nan"), 1e38])
def test_a_step_without_a_finite_gradient_is_not_applied(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    """The third step of an epoch has only the fifth batch, whose loss is non-finite, so two steps count."""
    pretrain(config, *stop_after(2))
    before = weights(config.out)
    with monkeypatch.context() as patch:
        spoil(patch, {0}, factor)
        events: list[Event] = []
        pretrain(dataclasses.replace(config, resume=config.out, epochs=1), events.append)
    left_out = next(event for event in events if isinstance(event, StepSkipped))
    assert (left_out.step, left_out.in_a_row) == (3, 1)
    assert same(weights(config.out), before)
    state = load_checkpoint(config.out / "checkpoint-last.pth").optimizer or {}
    assert {float(entry["step"]) for entry in state["state"].values()} == {2.0}
    losses = [entry["loss"] for entry in logged(config.out) if "loss" in entry and "left_out" not in entry]
    epoch = next(entry for entry in logged(config.out) if "train_loss" in entry)
    assert epoch["train_loss"] == pytest.approx(sum(losses) / 2)
    # The rates of all batches count: of two, two and one, as far up the warm-up as the step began.
    assert epoch["train_lr"] == pytest.approx(2e-3 * (2 * 0.0 + 2 * 0.4 + 0.8) / 5)


def test_too_many_such_steps_stop_the_run_and_leave_what_shows_why(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(config, *stop_after(4))
    before = weights(config.out)
    with monkeypatch.context() as patch:
        spoil(patch, {0, 1, 2, 3, 4})  # steps 5, 6 and 7, the last of them the first of the next epoch
        with pytest.raises(TrainingError, match=r"loss became nan at step 7, epoch 2, lr .*3 steps in a row.*\.png"):
            pretrain(dataclasses.replace(config, resume=config.out))
    assert same(weights(config.out), before)
    position = load_checkpoint(config.out / "checkpoint-last.pth").extra["maecli"]["position"]
    assert (position["epoch"], position["batch"], position["step"], position["in_a_row"]) == (2, 0, 6, 2)
    assert position["left_out"] == 0  # the step is repeated, and would count twice
    found = replay(ReplayConfig(config.out / "replay.pth"))
    assert (found.step, len(found.files)) == (7, 4)
    assert all(math.isfinite(one.loss) and one.first_module is None for one in found.passes)
    # Without the test's patch the run continues, and the step that was skipped twice counts.
    assert pretrain(dataclasses.replace(config, resume=config.out)).steps == 9


def test_steps_that_do_not_follow_each_other_do_not_stop_the_run(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {0, 9, 14})  # the first step of the first epoch, of two batches, and the last ones of the others
    events: list[Event] = []
    assert pretrain(dataclasses.replace(config, nan_limit=2), events.append).steps == 9
    assert [event.in_a_row for event in events if isinstance(event, StepSkipped)] == [1, 1, 1]
    second, third = (entry["loss"] for entry in logged(config.out) if entry.get("step") in (2, 3) and "loss" in entry)
    epoch = next(entry for entry in logged(config.out) if "train_loss" in entry)
    assert epoch["train_loss"] == pytest.approx((2 * second + third) / 3)


def in_fp16(monkeypatch: pytest.MonkeyPatch, largest: float) -> list[float]:
    """Enable fp16 on the CPU, for this test only; gradients overflow above a loss scale. Returns the tried scales."""
    tried: list[float] = []
    backward = TrainingStep.backward

    def overflowing(self: TrainingStep, *batch: Any, **options: Any) -> Any:
        loss = backward(self, *batch, **options)
        tried.append(self.scaler.get_scale())
        if tried[-1] > largest:
            self.model.decoder.mask_token.grad.fill_(math.inf)  # type: ignore[union-attr,operator]
        return loss

    monkeypatch.setattr(TrainingStep, "backward", overflowing)
    monkeypatch.setattr("mae.system.device.resolve_precision", lambda *_: "fp16")
    monkeypatch.setattr("mae.training.engine._time_batch", lambda *_: 0.1)
    return tried


def test_the_search_for_a_loss_scale_is_no_failure(config: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = in_fp16(monkeypatch, 2.0**10)
    events: list[Event] = []
    result = pretrain(dataclasses.replace(config, accum_iter=1, nan_limit=1), events.append)
    assert result.steps == len(tried) == 15
    assert tried == [*(2.0**power for power in range(16, 10, -1)), *([2.0**10] * 9)]
    assert not any(isinstance(event, StepSkipped) for event in events)
    state = load_checkpoint(config.out / "checkpoint-last.pth").optimizer or {}
    assert {float(entry["step"]) for entry in state["state"].values()} == {9.0}


def test_a_loss_that_is_not_finite_is_no_search_for_a_loss_scale(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_fp16(monkeypatch, math.inf)
    spoil(monkeypatch, {0})
    with pytest.raises(TrainingError, match=r"loss became nan at step 1, .* and this step was skipped"):
        pretrain(dataclasses.replace(config, nan_limit=1))


def test_gradients_that_no_loss_scale_makes_finite_end_the_run(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = in_fp16(monkeypatch, 0.0)
    before: list[dict[str, torch.Tensor]] = []
    monkeypatch.setattr(TrainingStep, "__init__", noting(TrainingStep.__init__, before))
    with pytest.raises(
        TrainingError,
        match=r"fp16 gradients are non-finite even at a loss scale of 1 or less at step 19.* 3 steps in a row",
    ) as caught:
        pretrain(dataclasses.replace(config, accum_iter=1, epochs=90))
    assert tried == [2.0**power for power in range(16, -3, -1)]
    assert "--precision bf16" in str(caught.value.hint)
    assert same(weights(config.out), before[0])


def noting(init: Callable[..., None], into: list[dict[str, torch.Tensor]]) -> Callable[..., None]:
    def noted(self: TrainingStep, model: Any, *rest: Any, **options: Any) -> None:
        into.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        init(self, model, *rest, **options)

    return noted


@pytest.mark.parametrize("activation_checkpointing", [False, True])
@pytest.mark.parametrize(
    "where", ["the timed batch", "the trial of the plain step", "the move to the device", "the model's weights"]
)
def test_memory_that_is_full_before_the_first_step_is_explained(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch, where: str, activation_checkpointing: bool
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    if where == "the move to the device":
        monkeypatch.setattr(torch.nn.Module, "to", full)
    elif where == "the model's weights":
        monkeypatch.setattr("mae.training.pretrain.create_model", full)
    else:
        monkeypatch.setattr(TrainingStep, "backward", full)
    if where == "the trial of the plain step":
        config = dataclasses.replace(config, compile=True)
        monkeypatch.setattr("mae.training.engine.compile_if_it_pays", lambda loss, run: run(loss))
    with pytest.raises(TrainingError, match=r"^out of memory$") as caught:
        pretrain(dataclasses.replace(config, activation_checkpointing=activation_checkpointing))
    assert "halve --batch-size and double --accum-iter" in str(caught.value.hint)
    assert ("--activation-checkpointing" in str(caught.value.hint)) is not activation_checkpointing


def test_a_gpu_that_fails_in_a_run_is_no_bug(config: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nFor debugging ...")

    monkeypatch.setattr(TrainingStep, "update", fail)
    with pytest.raises(TrainingError, match=r"the GPU cannot be used: .* busy or unavailable$") as caught:
        pretrain(config)
    assert "CUDA_VISIBLE_DEVICES" in str(caught.value.hint)


def test_a_trial_of_the_compiled_step_that_fills_memory_leaves_the_plain_one(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Large(PretrainingLoss):
        def forward(self, *batch: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(torch, "compile", lambda loss: Large(loss.model))
    events: list[Event] = []
    assert pretrain(dataclasses.replace(config, compile=True, epochs=1), events.append).steps == 3
    (note,) = (note for note in next(one for one in events if isinstance(one, Started)).notes if "compile" in note)
    assert note.startswith("torch.compile failed, so the step is not compiled: CUDA out of memory.")


def read_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read losses later than their step, as on an accelerator, where reading waits."""
    several = property(lambda self: len(self.pending) >= monitor.STEPS_BETWEEN_READS)
    monkeypatch.setattr(monitor.StepMonitor, "due", several)


def test_losses_read_in_groups_as_on_a_gpu_change_nothing(
    config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, epochs=10)
    pretrain(config)
    read_in_groups(monkeypatch)
    monkeypatch.setattr(monitor, "STEPS_BETWEEN_READS", 2)  # of three steps an epoch
    grouped = dataclasses.replace(config, out=tmp_path / "grouped")
    pretrain(grouped, *stop_after(10))
    pretrain(dataclasses.replace(grouped, resume=grouped.out))
    assert logged(config.out) == logged(grouped.out)
    assert same(weights(config.out), weights(grouped.out))


def test_a_limit_met_within_a_group_stops_the_run_too(config: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Further steps were taken after the last bad one, so the state before them can no longer be saved."""
    read_in_groups(monkeypatch)
    with monkeypatch.context() as patch:
        spoil(patch, {0, 1})
        with pytest.raises(TrainingError, match=r"loss became nan at step 1, .* and this step was skipped"):
            pretrain(dataclasses.replace(config, nan_limit=1))
    assert not (config.out / "checkpoint-last.pth").exists()


def test_a_replay_names_the_module_that_lost_the_number(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(config, *stop_after(1))
    state = torch.load(config.out / "checkpoint-last.pth", weights_only=False)
    state["model"]["blocks.0.mlp.fc1.weight"].mul_(1e30)
    state["model"]["blocks.0.mlp.fc2.weight"].mul_(1e30)
    torch.save(state, config.out / "checkpoint-last.pth")
    with pytest.raises(TrainingError, match="loss became"):
        pretrain(dataclasses.replace(config, resume=config.out))
    found = replay(ReplayConfig(config.out / "replay.pth"))
    assert found.passes[0].first_module == "encoder.blocks.0.mlp.fc2"
    assert found.passes[0].bad_gradients > 0
    assert not math.isfinite(found.passes[0].loss)

    def fail(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(TrainingStep, "backward", fail)  # fp32 takes more than the run's precision
    with pytest.raises(MaeError, match=r"^out of memory$") as full:
        replay(ReplayConfig(config.out / "replay.pth"))
    assert full.value.exit_code == 1  # as of any command whose memory runs out


def test_rollback_goes_on_from_the_last_state_in_another_order(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(config, *stop_after(2))
    before = weights(config.out)
    again = dataclasses.replace(config, resume=config.out, on_nan="rollback", nan_limit=2)
    spoil(monkeypatch, {1, 2, 3, 4})  # a good step before them changes the weights
    events: list[Event] = []
    pretrain(again, events.append, lambda: any(isinstance(event, RolledBack) for event in events))
    assert same(weights(config.out), before)
    position = load_checkpoint(config.out / "checkpoint-last.pth").extra["maecli"]["position"]
    assert (position["step"], position["turn"], position["in_a_row"]) == (2, 1, 0)
    result = pretrain(again, events.append)
    assert [(event.step, event.turn) for event in events if isinstance(event, RolledBack)] == [(2, 1)]
    assert (result.steps, result.stopped) == (9, False)
    steps = [entry["step"] for entry in logged(config.out) if "loss" in entry]
    assert steps == list(range(1, 10))
    plain, turned = (list(EpochBatches(11, 2, 1, config.seed, turn=turn)) for turn in (0, 1))
    assert plain != turned


def test_rollbacks_end(config: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrain(config, *stop_after(2))
    spoil(monkeypatch, set(range(100)))
    events: list[Event] = []
    with pytest.raises(TrainingError, match="loss became nan"):
        pretrain(dataclasses.replace(config, resume=config.out, on_nan="rollback"), events.append)
    assert sum(isinstance(event, RolledBack) for event in events) == 3


def test_a_broken_newest_state_falls_back_to_the_one_before(config: PretrainConfig, tmp_path: Path) -> None:
    pretrain(dataclasses.replace(config, out=tmp_path / "whole"))
    pretrain(dataclasses.replace(config, save_minutes=0.0, keep_last=3), *stop_after(5))
    names = [path.name for path in RunFolder(config.out, resume=True).states()]
    assert names == ["checkpoint-last.pth", "checkpoint-last-1.pth", "checkpoint-last-2.pth"]
    steps = [load_checkpoint(config.out / name).extra["maecli"]["position"]["step"] for name in names]
    assert steps == [5, 4, 3]
    for name in names[:2]:
        whole = (config.out / name).read_bytes()
        (config.out / name).unlink()
        (config.out / name).write_bytes(whole[: len(whole) // 2])
    events: list[Event] = []
    pretrain(dataclasses.replace(config, resume=config.out), events.append)
    started = next(event for event in events if isinstance(event, Started))
    assert started.first_step == 3
    assert len(started.warnings) == 2
    assert "checkpoint-last.pth" in started.warnings[0]
    assert "; resuming from " in started.warnings[0]
    broken = sorted(path.name for path in config.out.glob("*.broken"))
    assert broken == ["checkpoint-last-1.pth.broken", "checkpoint-last.pth.broken"]
    for path in RunFolder(config.out, resume=True).states():
        load_checkpoint(path)
    assert same(weights(config.out), weights(tmp_path / "whole"))
    assert logged(config.out) == logged(tmp_path / "whole")


def test_no_state_that_can_be_read_is_said(config: PretrainConfig) -> None:
    pretrain(config, *stop_after(2))
    (config.out / "checkpoint-last.pth").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"checkpoint-last\.pth"):
        pretrain(dataclasses.replace(config, resume=config.out))


def test_auto_resume_starts_and_goes_on(config: PretrainConfig, tmp_path: Path) -> None:
    pretrain(dataclasses.replace(config, out=tmp_path / "whole"))
    again = dataclasses.replace(config, auto_resume=True)
    assert pretrain(again, *stop_after(3)).stopped
    assert not pretrain(again).stopped
    assert same(weights(config.out), weights(tmp_path / "whole"))


def test_a_second_run_is_kept_out(config: PretrainConfig) -> None:
    first = RunFolder(config.out, resume=False)
    first.make()
    with pytest.raises(ConfigError, match=rf"another run is writing into .*\(process {os.getpid()} on "):
        pretrain(config)
    (config.out / ".lock-holder").unlink()
    with pytest.raises(ConfigError, match=r"another run is writing into .*\(unknown\)"):
        pretrain(config)
    first.release()
    assert pretrain(config).steps == 9
    assert not (config.out / ".lock-holder").exists()


def test_what_a_killed_run_left_half_written_is_removed(config: PretrainConfig) -> None:
    config.out.mkdir()
    (config.out / ".checkpoint.tmp").write_bytes(b"half")
    (config.out / ".log.jsonl.1234.tmp").write_bytes(b"half")
    pretrain(config)
    assert not list(config.out.glob(".*.tmp"))


def test_a_run_that_fails_first_completes_the_state_that_is_being_written(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread inside torch when the interpreter ends would abort the process."""
    failed = threading.Event()
    write = saving_module.save

    def slow(path: Path, document: Any) -> None:
        assert failed.wait(30)
        time.sleep(0.3)
        write(path, document)

    def listen(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 4:
            failed.set()
            raise DataError("gone")

    monkeypatch.setattr(saving_module, "save", slow)
    with pytest.raises(DataError, match="gone"):
        pretrain(dataclasses.replace(config, save_every=1), listen)
    assert not any(thread.name == "checkpoint" for thread in threading.enumerate())
    assert load_checkpoint(config.out / "checkpoint-last.pth").extra["maecli"]["position"]["step"] == 3


def test_training_goes_on_while_a_state_is_written(
    config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer waits until two more steps are done; it still writes the state of its own step."""
    steps_done, seen = threading.Event(), []
    write = saving_module.save

    def slow(path: Path, document: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            assert steps_done.wait(30)
            seen.append((document["maecli"]["position"]["step"], document["model"]["cls_token"].clone()))
        write(path, document)

    at: dict[int, torch.Tensor] = {}

    def listen(event: Event) -> None:
        if isinstance(event, Stepped):
            at[event.step] = model[0].state_dict()["cls_token"].clone()
            if event.step == 5:
                steps_done.set()

    model: list[Any] = []
    init = TrainingStep.__init__

    def keep(self: TrainingStep, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        model.append(self.model)

    monkeypatch.setattr(saving_module, "save", slow)
    monkeypatch.setattr(TrainingStep, "__init__", keep)
    monkeypatch.setattr(
        saving_module.Checkpointer, "due", lambda self: len(at) == 3 and not seen and self._thread is None
    )
    pretrain(config, listen)
    assert [step for step, _ in seen] == [3]
    assert torch.equal(seen[0][1], at[3])
    assert not torch.equal(at[3], at[5])


def test_a_full_disk_met_by_the_thread_ends_the_run(config: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, document: Any) -> None:
        raise CheckpointError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(saving_module, "save", full)
    with pytest.raises(TrainingError, match=r"checkpoint-last\.pth: No space left"):
        pretrain(dataclasses.replace(config, save_minutes=0.0))


def test_a_full_disk_keeps_the_last_state(config: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrain(config, *stop_after(4))
    before = (config.out / "checkpoint-last.pth").read_bytes()

    def full(file: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mae.io.files.os.fsync", full)
    monkeypatch.setattr("mae.training.log.Log.cut", lambda self, position: None)
    monkeypatch.setattr("mae.training.run_folder.RunFolder.write_environment", lambda self: None)
    monkeypatch.setattr("mae.training.previews.Previews.draw", lambda self, path, epoch, write: 0.0)
    with pytest.raises(TrainingError, match=r"checkpoint-last\.pth: No space left"):
        pretrain(dataclasses.replace(config, resume=config.out))
    assert (config.out / "checkpoint-last.pth").read_bytes() == before
    assert not list(config.out.glob(".*.tmp"))


def test_too_little_room_is_said_before_a_checkpoint_is_written(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr("mae.checkpoints.save.shutil.disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(
        TrainingError, match=r"checkpoint-last\.pth: it needs \d+\.\d MB and the disk has 0\.0 MB"
    ) as caught:
        pretrain(config)
    assert caught.value.hint is None  # there is no earlier checkpoint
    assert not list(config.out.glob("*.pth"))


@pytest.mark.parametrize("name", ["config.toml", "epoch-0002.png"])
def test_a_full_disk_is_named_whatever_was_being_written(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write = failures.write_atomically

    def full(path: Path, content: Callable[[Any], object]) -> None:
        if path.name == name:
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(failures, "write_atomically", full)
    with pytest.raises(TrainingError, match=rf"{name}: No space left"):
        pretrain(config)


def test_no_images_leave_no_folder(config: PretrainConfig, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="no image in"):
        pretrain(dataclasses.replace(config, data=(tmp_path / "nothing",)))
    assert not config.out.exists()


@pytest.mark.parametrize("read", ["data", "val", "probe"])
def test_a_run_does_not_write_among_the_images_that_it_reads(read: str, config: PretrainConfig, tmp_path: Path) -> None:
    """Its previews would be held-out images once it is resumed, and a class of labelled ones."""
    shutil.copytree(config.data[0], tmp_path / "others" / "a")
    folder = tmp_path / "others"
    values: dict[str, Any] = {read: (folder,) if read == "data" else folder}
    with pytest.raises(ConfigError, match=r"--out .* lies in .*others, whose images are read"):
        pretrain(dataclasses.replace(config, out=folder / "run", **values))
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_broken_images_are_passed_over_and_reported(config: PretrainConfig, images: Path) -> None:
    (images / "empty.jpg").touch()
    whole = (images / "3.png").read_bytes()
    (images / "3.png").write_bytes(whole[: len(whole) // 2])
    events: list[Event] = []
    pretrain(dataclasses.replace(config, max_unreadable=0.2), events.append)
    assert {event.path.name for event in events if isinstance(event, ImageUnreadable)} == {"3.png"}
    report = (config.out / "unreadable.tsv").read_text().splitlines()
    assert report[0] == "file\treason"
    assert [Path(line.split("\t")[0]).name for line in report[1:]] == ["empty.jpg", "3.png"]


def test_the_hit_rate_of_the_cache_is_said(config: PretrainConfig, tmp_path: Path) -> None:
    events: list[Event] = []
    result = pretrain(dataclasses.replace(config, cache=1), events.append)
    hits = [entry["cache_hits"] for entry in logged(config.out) if "train_loss" in entry]
    assert hits == [event.cache_hits for event in events if isinstance(event, EpochDone)]
    assert hits[0] == 0.0
    assert 0.5 < hits[1] <= hits[2] == result.cache_hits  # each epoch leaves out one image of eleven
    result = pretrain(dataclasses.replace(config, out=tmp_path / "without"))
    assert result.cache_hits is None
    assert not any("cache_hits" in entry for entry in logged(tmp_path / "without"))
    assert same(weights(config.out), weights(tmp_path / "without"))


def test_too_many_broken_images_stop_the_run(config: PretrainConfig, images: Path) -> None:
    for number in range(2):
        (images / f"empty{number}.jpg").touch()
    with pytest.raises(DataError, match=r"2 of 13 images are unreadable, more than --max-unreadable 0\.1"):
        pretrain(config)
    assert not (config.out / "checkpoint-last.pth").exists()


def test_images_that_break_later_are_counted_against_all_that_were_found(config: PretrainConfig, images: Path) -> None:
    """Of 14 images 3 cannot be read at first, and 4 in the end: 29 per cent, and 36 of those that could be read."""
    for number in range(3):
        (images / f"empty{number}.jpg").touch()

    def break_one(event: Event) -> None:
        if isinstance(event, Started):
            (images / "5.png").write_bytes((images / "5.png").read_bytes()[:60])

    pretrain(dataclasses.replace(config, max_unreadable=0.3), break_one)
    assert len((config.out / "unreadable.tsv").read_text().splitlines()) == 1 + 4


def test_all_images_breaking_during_the_run_stop_it(config: PretrainConfig, images: Path) -> None:
    def break_all(event: Event) -> None:
        if isinstance(event, Started):
            for path in images.iterdir():
                path.write_bytes(path.read_bytes()[:60])

    with pytest.raises(DataError, match="are unreadable"):
        pretrain(config, break_all)


def test_a_disk_that_is_gone_stops_the_run_and_is_named(config: PretrainConfig, images: Path) -> None:
    """Also if any fraction may be unreadable: training on black images is useless."""

    def break_all(event: Event) -> None:
        if isinstance(event, Started):
            for path in images.iterdir():
                path.unlink()

    with pytest.raises(DataError, match=r"none of 11 images in a row can be read: ") as caught:
        pretrain(dataclasses.replace(config, max_unreadable=1.0), break_all)
    assert re.search(r"\d+\.png: no such file; .*; \.\.\.$", caught.value.message)
    assert "unreadable.tsv" in (caught.value.hint or "")
    assert len((config.out / "unreadable.tsv").read_text().splitlines()) == 1 + 11


def test_a_run_is_not_overwritten_and_not_resumed_as_another(config: PretrainConfig, images: Path) -> None:
    with pytest.raises(ConfigError, match=r"no checkpoint-last\.pth"):
        pretrain(dataclasses.replace(config, resume=config.out))
    pretrain(config, *stop_after(2))
    with pytest.raises(ConfigError, match="already holds a run"):
        pretrain(config)
    with pytest.raises(ConfigError, match=r"--batch-size +2 +3"):
        pretrain(dataclasses.replace(config, resume=config.out, batch_size=3))
    (images / "0.png").rename(images / "x.png")
    with pytest.raises(ConfigError, match="the images' names"):
        pretrain(dataclasses.replace(config, resume=config.out))
    (images / "x.png").unlink()
    with pytest.raises(ConfigError, match=r"number of images +11 +10"):
        pretrain(dataclasses.replace(config, resume=config.out))


def test_init_takes_the_weights_and_nothing_else(config: PretrainConfig, tmp_path: Path) -> None:
    pretrain(config)
    events: list[Event] = []
    new = dataclasses.replace(config, out=tmp_path / "new", init=config.out / "checkpoint-last.pth", lr=1e-9)
    result = pretrain(new, events.append)
    started = next(event for event in events if isinstance(event, Started))
    assert started.first_step == 0
    assert result.steps == 9
    old = weights(config.out)
    assert all(torch.allclose(value, old[key], atol=1e-6) for key, value in weights(tmp_path / "new").items())


def test_bf16_and_grey_and_alpha_learn(config: PretrainConfig, tmp_path: Path) -> None:
    for precision, in_chans in (("bf16", 3), ("fp32", 1), ("fp32", 4)):
        out = tmp_path / f"{precision}-{in_chans}"
        events: list[Event] = []
        pretrain(
            dataclasses.replace(
                config, precision=precision, in_chans=in_chans, out=out, epochs=12, norm_pix_loss=False
            ),
            events.append,
        )
        losses = [event.train_loss for event in events if isinstance(event, EpochDone)]
        assert losses[-1] < 0.8 * losses[0]


def test_tensorboard_events_are_written(config: PretrainConfig) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pretrain(dataclasses.replace(config, tensorboard=True))
    board = EventAccumulator(str(config.out / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("step/loss")] == list(range(1, 10))
    assert len(board.Scalars("epoch/train_loss")) == 3


def test_a_compiled_run_goes_on_compiled(config: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []

    class Compiled(PretrainingLoss):
        def forward(self, *batch: Any) -> Any:
            made.append(True)
            return super().forward(*batch)

    monkeypatch.setattr(
        "mae.training.engine.compile_if_it_pays", lambda loss, run: (Compiled(loss.model), True, "fast")
    )
    monkeypatch.setattr("mae.training.engine.compiled_loss", lambda loss: Compiled(loss.model))
    events: list[Event] = []
    listen, should_stop = stop_after(3)

    def both(event: Event) -> None:
        listen(event)
        events.append(event)

    pretrain(dataclasses.replace(config, compile=True), both, should_stop)
    assert "fast" in next(event for event in events if isinstance(event, Started)).notes
    made.clear()
    pretrain(dataclasses.replace(config, compile=True, resume=config.out))
    assert made


def test_a_compiler_that_fails_in_a_resumed_run_is_explained(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mae.training.engine.compile_if_it_pays", lambda loss, run: (loss, True, "fast"))
    pretrain(dataclasses.replace(config, compile=True), *stop_after(3))

    def fail(*batch: Any) -> Any:
        raise TorchDynamoException("No working C++ compiler found")

    monkeypatch.setattr("mae.training.engine.compiled_loss", lambda loss: fail)
    with pytest.raises(TrainingError, match=r"^torch.compile failed: No working C\+\+") as caught:
        pretrain(dataclasses.replace(config, compile=True, resume=config.out))
    assert "--no-compile" in str(caught.value.hint)
    assert pretrain(dataclasses.replace(config, resume=config.out)).steps == 9


def test_recomputing_changes_nothing_but_memory(config: PretrainConfig, tmp_path: Path) -> None:
    pretrain(config)
    pretrain(dataclasses.replace(config, activation_checkpointing=True, out=tmp_path / "recomputed"))
    assert same(weights(config.out), weights(tmp_path / "recomputed"))
