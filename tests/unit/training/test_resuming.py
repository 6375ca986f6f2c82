"""A resumed run is the same run; changed settings are allowed and recorded, or refused."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mae.checkpoints import load_checkpoint
from mae.checkpoints.run_states import run_states
from mae.errors import CheckpointError, ConfigError, DataError, TrainingError
from mae.io.locks import take_lock
from mae.io.toml import read_toml
from mae.options import flag_name
from mae.reporting.run_log import read_run
from mae.system.products import ProductTimes
from mae.training import checkpointer as saving_module
from mae.training.checkpointer import SavedState
from mae.training.config import PretrainConfig
from mae.training.events import Event, Started
from mae.training.identity import ON_RESUME, OnResume
from mae.training.plan import make_plan
from mae.training.position import Position
from mae.training.pretrain import pretrain
from mae.training.resuming import Resumption, check_same_run, take_up
from mae.training.run_folder import RunFolder
from mae.training.step import TrainingStep
from tests.unit.training.small import logged, make_images, make_models_small, same, small_config, stop_after, weights

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.usefixtures("small_models")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``whole`` is a run of nine steps, ``run`` the same one stopped after four of them."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        make_models_small(patch)
        config = small_config(make_images(folder / "images"), folder / "whole")
        pretrain(config)
        pretrain(dataclasses.replace(config, out=folder / "run"), *stop_after(4))
    return folder


@pytest.fixture
def parted(begun: Path, tmp_path: Path) -> PretrainConfig:
    """Settings that resume a copy of the stopped run."""
    return take(begun, "run", tmp_path)


@pytest.fixture
def finished(begun: Path, tmp_path: Path) -> PretrainConfig:
    """Settings that resume a copy of the finished run."""
    return take(begun, "whole", tmp_path)


def take(begun: Path, name: str, tmp_path: Path) -> PretrainConfig:
    shutil.copytree(begun / name, tmp_path / "run")
    config = small_config(begun / "images", tmp_path / "run")
    return dataclasses.replace(config, resume=tmp_path / "run")


def started(config: PretrainConfig, steps: int = 10**9) -> Started:
    """Resume a run; returns its first event."""
    events: list[Event] = []
    listen, should_stop = stop_after(steps)

    def both(event: Event) -> None:
        events.append(event)
        listen(event)

    pretrain(config, both, should_stop)
    return next(event for event in events if isinstance(event, Started))


def settings(run: Path) -> dict[str, Any]:
    return read_toml(run / "config.toml", "")


def changes(run: Path) -> list[dict[str, Any]]:
    return [entry for entry in logged(run) if "changed" in entry]


def rewrite(state: Path, change: Any) -> None:
    """Change what a state says about its run."""
    document = torch.load(state, weights_only=False)
    change(document)
    state.unlink()  # it may be a hard link to another state
    torch.save(document, state)


def test_every_setting_says_what_a_change_of_it_does() -> None:
    assert list(ON_RESUME) == [field.name for field in dataclasses.fields(PretrainConfig)]


def test_the_documents_name_every_setting_that_may_change() -> None:
    text = (ROOT / "docs/runs.md").read_text()
    table = text[text.index("## Changing options on resuming") :].partition("\n## ")[0]
    for kind, words in (
        (OnResume.FREE, "losses and weights stay the same"),
        (OnResume.ROUNDING, "rounded differently"),
        (OnResume.LENGTH, "longer or shorter"),
    ):
        (row,) = [line for line in table.splitlines() if line.startswith("|") and words in line]
        names = {name for name, what in ON_RESUME.items() if what is kind} - {"data", "out", "resume", "auto_resume"}
        assert sorted(word.strip("`,") for word in row.split() if word.startswith("`--")) == sorted(
            flag_name(name) for name in names
        )


FIXED: list[tuple[dict[str, Any], list[tuple[str, ...]]]] = [
    ({"base_lr": 3.0}, [("--base-lr", "0.00015", "3")]),
    ({"lr": None}, [("--lr", "0.002", "not given")]),
    ({"mask_ratio": 0.5, "hflip": False}, [("--mask-ratio", "0.75", "0.5"), ("--hflip", "on", "off")]),
    ({"betas": (0.9, 0.99)}, [("--betas", "0.9 0.95", "0.9 0.99")]),
    ({"image_size": (32, 32)}, [("--image-size", "32 16", "32 32")]),
    ({"batch_size": 3}, [("--batch-size", "2", "3")]),
    ({"accum_iter": 1}, [("--accum-iter", "2", "1")]),
    ({"warmup_epochs": 2.0}, [("--warmup-epochs", "1", "2")]),
    ({"seed": 1}, [("--seed", "0", "1")]),
    ({"init": Path("/some/weights.pth")}, [("--init", "not given", "/some/weights.pth")]),
]


@pytest.mark.parametrize(("change", "rows"), FIXED, ids=["+".join(change) for change, _ in FIXED])
def test_another_recipe_is_refused_in_a_table_of_what_differs(
    parted: PretrainConfig, change: dict[str, Any], rows: list[tuple[str, ...]]
) -> None:
    before = sorted((path.name, path.read_bytes()) for path in parted.out.iterdir() if path.is_file())
    with pytest.raises(ConfigError, match="would not be the same run") as refused:
        pretrain(dataclasses.replace(parted, workers=1, **change))
    header, *table = refused.value.details
    assert header.split() == ["option", "before", "now"]
    assert [" ".join(line.split()) for line in table] == [" ".join(row) for row in rows]
    assert f"--init {parted.out / 'checkpoint-last.pth'}" in (refused.value.hint or "")
    assert before == sorted((path.name, path.read_bytes()) for path in parted.out.iterdir() if path.is_file())


def test_a_recipe_that_was_changed_in_its_file_is_refused(parted: PretrainConfig) -> None:
    """``--resume`` alone reads it, so it must be compared with the settings in the state."""
    path = parted.out / "config.toml"
    path.write_text(path.read_text().replace("mask_ratio = 0.75", "mask_ratio = 0.5"))
    with pytest.raises(ConfigError, match=r"--mask-ratio +0\.75 +0\.5"):
        pretrain(dataclasses.replace(parted, mask_ratio=0.5))


def test_other_images_are_refused_and_moved_ones_are_not(parted: PretrainConfig, begun: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(begun / "images", moved)
    (moved / "0.png").rename(moved / "x.png")
    (moved / "empty.png").touch()
    again = dataclasses.replace(parted, data=(moved,))
    before = sorted((path.name, path.read_bytes()) for path in parted.out.iterdir() if path.is_file())
    with pytest.raises(ConfigError, match="the images' names") as refused:
        pretrain(again)
    assert len(refused.value.details) == 2
    assert before == sorted((path.name, path.read_bytes()) for path in parted.out.iterdir() if path.is_file())
    (moved / "empty.png").unlink()
    (moved / "x.png").unlink()
    with pytest.raises(ConfigError, match=r"number of images +11 +10$"):
        pretrain(again)
    shutil.copy(begun / "images/0.png", moved)
    said = started(again)
    assert said.changes == (f"the images were in {begun / 'images'} before; their names are the same",)
    assert settings(parted.out)["data"] == [str(moved)]
    assert same(weights(parted.out), weights(begun / "whole"))


def test_images_that_are_gone_may_have_moved(parted: PretrainConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder") as missing:
        pretrain(dataclasses.replace(parted, data=(tmp_path / "gone",)))
    assert f"--resume {parted.out}" in (missing.value.hint or "")


def test_what_changes_no_number_may_change_and_is_kept(parted: PretrainConfig, begun: Path) -> None:
    said = started(dataclasses.replace(parted, workers=1, activation_checkpointing=True, save_every=5, keep_last=3))
    assert said.changes == (
        "workers 0 -> 1, activation-checkpointing off -> on, save-every 20 -> 5, keep-last 2 -> 3: "
        "losses and weights stay the same",
    )
    kept = settings(parted.out)
    assert (kept["workers"], kept["activation_checkpointing"], kept["save_every"]) == (1, True, 5)
    assert changes(parted.out) == []
    assert same(weights(parted.out), weights(begun / "whole"))


def test_what_only_rounds_otherwise_may_change_and_is_said(parted: PretrainConfig) -> None:
    said = started(dataclasses.replace(parted, precision="bf16"), 5)
    assert said.changes == ("precision fp32 -> bf16: from here on losses and weights differ by rounding",)
    assert settings(parted.out)["precision"] == "bf16"
    assert [entry["changed"] for entry in changes(parted.out)] == [{"precision": ["fp32", "bf16"]}]
    # With "auto", a resumed run keeps the recorded precision on any machine.
    said = started(dataclasses.replace(parted, precision="auto"), 6)
    assert (said.precision, said.changes) == ("bf16", ())


def test_a_run_chooses_its_precision_once_and_says_why(parted: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A timing decides for a new run; a resumed run keeps the recorded choice, whatever a timing says then."""
    fast = ProductTimes(fp32=3e-3, bf16=1e-3)
    monkeypatch.setattr("mae.system.device.product_times", lambda: fast)
    begun = dataclasses.replace(parted, precision="auto", resume=None, out=parted.out.with_name("chosen"))
    said = started(begun, 2)
    assert (said.precision, said.precision_reason) == ("bf16", "bf16 products timed at 3.0 times the speed of fp32")
    assert settings(begun.out)["precision"] == "bf16"
    monkeypatch.setattr("mae.system.device.product_times", lambda: ProductTimes(fp32=1e-3, bf16=3e-3))
    said = started(dataclasses.replace(begun, resume=begun.out), 3)
    assert (said.precision, said.precision_reason) == ("bf16", None)


def test_a_state_of_a_device_without_a_fused_kernel_goes_on(parted: PretrainConfig, begun: Path) -> None:
    """For instance of an Apple GPU; torch's other kernels do not read the flag of a step to skip."""

    def as_there(document: dict[str, Any]) -> None:
        for group in document["optimizer"]["param_groups"]:
            group["fused"] = False

    rewrite(parted.out / "checkpoint-last.pth", as_there)
    pretrain(parted)
    assert same(weights(parted.out), weights(begun / "whole"))


def test_a_scaler_starts_afresh_where_none_was_saved() -> None:
    step = object.__new__(TrainingStep)
    weight = torch.nn.Parameter(torch.zeros(2))
    step.model = torch.nn.ParameterDict({"w": weight})  # type: ignore[assignment]
    step.optimizer = torch.optim.AdamW([weight])
    step.scaler = torch.amp.GradScaler("cpu", enabled=True)
    step.restore({"w": torch.ones(2)}, {}, {})
    assert weight.tolist() == [1.0, 1.0]
    assert step.scaler.get_scale() == 2**16


def test_a_longer_run_is_recorded_and_a_bare_resume_goes_on_with_it(
    finished: PretrainConfig, tmp_path: Path, begun: Path
) -> None:
    """A run that is extended, stopped and resumed equals one that is extended and not stopped."""
    longer = dataclasses.replace(finished, epochs=5)
    said = started(longer, 11)
    assert said.changes == (
        "epochs 3 -> 5: the cosine is stretched; the learning rate continues at 0.001 instead of 0",
    )
    assert said.plan.total_steps == 15
    log = read_run(finished.out)
    assert (log.wanted_epochs, log.finished, settings(finished.out)["epochs"]) == (5, False, 5)
    assert [(one.epoch, one.what) for one in log.changes] == [(3.0, "epochs 3 -> 5")]
    assert log.other_lines == 0
    assert load_checkpoint(finished.out / "checkpoint-last.pth").args["epochs"] == 5
    recorded = RunFolder(finished.out, resume=True).read_config(PretrainConfig)
    assert recorded is not None
    said = started(dataclasses.replace(recorded, resume=finished.out))
    assert (said.changes, said.config.epochs, said.first_step) == ((), 5, 11)
    assert read_run(finished.out).finished
    at_once = tmp_path / "at_once"
    shutil.copytree(begun / "whole", at_once)
    result = pretrain(dataclasses.replace(longer, resume=at_once))
    assert (result.epochs, result.steps) == (5, 15)
    assert same(weights(finished.out), weights(at_once))
    assert logged(finished.out) == logged(at_once)


def test_a_longer_run_that_is_killed_before_its_next_state_goes_on_longer(
    finished: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(event: Event) -> None:
        if isinstance(event, Started):
            raise Killed

    for _ in range(2):
        with pytest.raises(Killed):
            pretrain(dataclasses.replace(finished, epochs=4), kill)
    recorded = RunFolder(finished.out, resume=True).read_config(PretrainConfig)
    assert recorded is not None
    assert recorded.epochs == 4
    assert len(changes(finished.out)) == 1
    assert pretrain(dataclasses.replace(recorded, resume=finished.out)).epochs == 4
    assert len(changes(finished.out)) == 1


def test_a_shorter_run_keeps_what_is_done(parted: PretrainConfig) -> None:
    with pytest.raises(ConfigError, match=r"--epochs 1 is less than .*: 1 are done and one is under way") as refused:
        pretrain(dataclasses.replace(parted, epochs=1))
    assert refused.value.hint == "give at least 2, or leave --epochs out"
    with pytest.raises(ConfigError, match="--epochs 1 is less than") as refused:
        pretrain(dataclasses.replace(parted, epochs=1, resume=None, auto_resume=True))
    assert refused.value.hint == "give at least 2"  # without --epochs it would be 800
    said = started(dataclasses.replace(parted, epochs=2))
    assert "epochs 3 -> 2: the cosine is shortened" in said.changes[0]
    log = read_run(parted.out)
    assert (log.finished, log.wanted_epochs, log.epochs_done) == (True, 2, 2.0)


def test_a_command_that_is_repeated_does_not_take_an_extension_back(finished: PretrainConfig) -> None:
    started(dataclasses.replace(finished, epochs=5), 10)
    repeated = dataclasses.replace(finished, resume=None, auto_resume=True)
    with pytest.raises(ConfigError, match=r"--auto-resume: .* take back that it was extended to 5") as refused:
        pretrain(dataclasses.replace(repeated, epochs=4))
    assert "give --epochs 5" in (refused.value.hint or "")
    with pytest.raises(ConfigError, match=r"--auto-resume: .*would not be the same run.*\n.*\n--seed +0 +1"):
        pretrain(dataclasses.replace(repeated, epochs=5, seed=1))
    assert pretrain(dataclasses.replace(repeated, epochs=6)).epochs == 6


def test_a_finished_run_says_so_and_does_nothing(finished: PretrainConfig) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.out.rglob("*")}
    events: list[Event] = []
    result = pretrain(dataclasses.replace(finished, workers=1), events.append)
    assert result.was_finished
    assert events == []
    assert (result.epochs, result.steps, result.stopped, result.seconds) == (3, 9, False, 0.0)
    epochs = [entry for entry in logged(finished.out) if "train_loss" in entry]
    assert result.train_loss == epochs[-1]["train_loss"]
    assert result.psnr is not None
    assert result.checkpoint == finished.out / "checkpoint-last.pth"
    assert result.preview == finished.out / "previews/epoch-0003.png"
    assert before == {path: path.stat().st_mtime_ns for path in finished.out.rglob("*")}


def test_a_finished_run_is_not_one_of_other_images(finished: PretrainConfig, begun: Path, tmp_path: Path) -> None:
    other = shutil.copytree(begun / "images", tmp_path / "other")
    assert pretrain(dataclasses.replace(finished, data=(other,))).was_finished
    (other / "0.png").unlink()
    before = {path: path.stat().st_mtime_ns for path in finished.out.rglob("*")}
    with pytest.raises(ConfigError, match=r"would not be the same run.*\n.*\nnumber of images +11 +10"):
        pretrain(dataclasses.replace(finished, data=(other,)))
    assert before == {path: path.stat().st_mtime_ns for path in finished.out.rglob("*")}


def test_a_loss_that_is_not_known_yet_is_none(config: PretrainConfig) -> None:
    assert pretrain(config, *stop_after(1)).train_loss is None
    assert pretrain(dataclasses.replace(config, resume=config.out), *stop_after(4)).train_loss is not None


@pytest.mark.parametrize("how", ["resume", "auto_resume"])
def test_a_run_without_a_state_begins_again(parted: PretrainConfig, begun: Path, how: str) -> None:
    """A run that was killed before its first save has only a config and part of a log."""
    for path in parted.out.glob("*.pth"):
        path.unlink()
    again = parted if how == "resume" else dataclasses.replace(parted, resume=None, auto_resume=True)
    said = started(again)
    assert (said.first_step, said.changes) == (0, ())
    assert same(weights(parted.out), weights(begun / "whole"))
    assert logged(parted.out) == logged(begun / "whole")


def test_a_run_without_a_state_is_not_another_one(parted: PretrainConfig) -> None:
    for path in parted.out.glob("*.pth"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"--seed +0 +1") as refused:
        pretrain(dataclasses.replace(parted, seed=1))
    assert "start again" in (refused.value.hint or "")
    (parted.out / "config.toml").unlink()
    with pytest.raises(ConfigError, match=r"no checkpoint-last\.pth and no config\.toml"):
        pretrain(parted)


def test_a_run_without_a_state_begins_with_the_weights_that_it_was_given(
    config: PretrainConfig, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(begun)
    given = dataclasses.replace(config, init=Path("whole/checkpoint-last.pth"), epochs=1)
    pretrain(dataclasses.replace(given, out=tmp_path / "other"))
    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "update", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pretrain(given)
    monkeypatch.chdir("/")
    recorded = RunFolder(config.out, resume=True).read_config(PretrainConfig)
    assert recorded is not None
    pretrain(dataclasses.replace(recorded, resume=config.out))
    assert same(weights(config.out), weights(tmp_path / "other"))


def test_a_released_name_is_kept_as_it_is(config: PretrainConfig) -> None:
    config.out.mkdir()
    run = RunFolder(config.out, resume=False)
    run.write_config(dataclasses.replace(config, init=Path("mae_visualize_vit_base")).as_plain())
    assert settings(config.out)["init"] == "mae_visualize_vit_base"


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def old_identity(document: dict[str, Any]) -> None:
    """A state as the first version wrote it, before runs had several processes."""
    about = document["maecli"]
    for name in ("processes", "compiled", "settings", "images_digest"):
        about["run"].pop(name)
    about["run"]["pictures"] = about["run"].pop("images")
    for name in ("left_out", "in_a_row", "turn"):
        about["position"].pop(name)


def test_a_state_of_an_older_version_goes_on_bit_for_bit(parted: PretrainConfig, begun: Path) -> None:
    rewrite(parted.out / "checkpoint-last.pth", old_identity)
    with pytest.raises(ConfigError, match=r"--mask-ratio +0\.75 +0\.5"):
        pretrain(dataclasses.replace(parted, mask_ratio=0.5))
    assert started(parted).changes == ()
    assert same(weights(parted.out), weights(begun / "whole"))
    assert logged(parted.out) == logged(begun / "whole")


def test_a_state_of_an_older_version_still_tells_its_images(parted: PretrainConfig) -> None:
    def of_other_images(document: dict[str, Any]) -> None:
        old_identity(document)
        # As many steps an epoch, so that the position fits.
        document["maecli"]["run"]["pictures"] += 1

    rewrite(parted.out / "checkpoint-last.pth", of_other_images)
    with pytest.raises(ConfigError, match="number of images"):
        pretrain(parted)


def test_what_an_older_version_changed_in_silence_comes_to_light(parted: PretrainConfig) -> None:
    """An older version resumed with other options and did not change config.toml."""

    def changed(document: dict[str, Any]) -> None:
        old_identity(document)
        document["args"].epochs, document["args"].blr = 5, 3.0

    rewrite(parted.out / "checkpoint-last.pth", changed)
    with pytest.raises(ConfigError, match=r"--base-lr +3 +0\.00015"):
        pretrain(parted)
    said = started(dataclasses.replace(parted, base_lr=3.0, epochs=5), 5)
    assert said.changes == ()
    assert (settings(parted.out)["base_lr"], settings(parted.out)["epochs"]) == (3.0, 5)


def spoilt_position(name: str, value: Any) -> Any:
    return lambda about: about["position"].__setitem__(name, value)


SPOILT: dict[str, Any] = {
    "position is a list": lambda about: about.__setitem__("position", [1, 2]),
    "position is empty": lambda about: about.__setitem__("position", {}),
    "position has an unknown name": spoilt_position("stop", 3),
    "step is a word": spoilt_position("step", "four"),
    "step is another": spoilt_position("step", 7),
    "batch is out of the epoch": spoilt_position("batch", 10**9),
    "epoch is negative": spoilt_position("epoch", -1),
    "epoch is true": spoilt_position("epoch", True),
    "loss_sum is no number": spoilt_position("loss_sum", float("nan")),
    "run is missing": lambda about: about.pop("run"),
    "run is a word": lambda about: about.__setitem__("run", "x"),
    "run is empty": lambda about: about.__setitem__("run", {}),
    "batch_size is 0": lambda about: about["run"].__setitem__("batch_size", 0),
    "processes is a word": lambda about: about["run"].__setitem__("processes", "two"),
    "images is a fraction": lambda about: about["run"].__setitem__("images", 11.5),
    "settings is a list": lambda about: about["run"].__setitem__("settings", []),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_state_whose_fields_are_damaged_is_passed_over(parted: PretrainConfig, what: str) -> None:
    newest = parted.out / "checkpoint-last.pth"
    shutil.copy(newest, parted.out / "checkpoint-last-1.pth")
    rewrite(newest, lambda document: SPOILT[what](document["maecli"]))
    state, warnings = saving_module.newest_state(run_states(parted.out))
    assert state is not None
    assert (state.path.name, state.position.step) == ("checkpoint-last-1.pth", 4)
    assert len(warnings) == 1
    assert f"{newest} is damaged" in warnings[0]


@pytest.mark.parametrize("what", SPOILT)
def test_shards_whose_fields_are_damaged_are_passed_over(parted: PretrainConfig, what: str) -> None:
    (parted.out / "checkpoint-last.pth").rename(parted.out / "checkpoint-last-1.pth")
    about = torch.load(parted.out / "checkpoint-last-1.pth", weights_only=False)["maecli"]
    SPOILT[what](about)
    shards = parted.out / "checkpoint-last.dcp"
    shards.mkdir()
    (shards / ".metadata").write_bytes(b"")
    (shards / "about.json").write_text(json.dumps(about))
    state, warnings = saving_module.newest_state(run_states(parted.out))
    assert state is not None
    assert state.path.name == "checkpoint-last-1.pth"
    assert f"{shards} is damaged" in warnings[0]


def test_tensors_of_another_model_are_said_to_be_such(parted: PretrainConfig) -> None:
    rewrite(parted.out / "checkpoint-last.pth", lambda document: document["model"].pop("norm.weight"))
    with pytest.raises(CheckpointError, match=r"checkpoint-last\.pth is damaged, or belongs to .*: .*norm\.weight"):
        pretrain(parted)


def test_a_state_for_which_a_gpu_has_no_memory_is_not_damaged(
    parted: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(TrainingStep, "restore", fail)
    with pytest.raises(TrainingError, match=r"^out of memory$"):
        pretrain(parted)
    assert (parted.out / "checkpoint-last.pth").exists()


def test_moments_of_a_parameter_that_is_not_there(parted: PretrainConfig) -> None:
    def rename(document: dict[str, Any]) -> None:
        moments = document["optimizer"]["state"]
        moments[10_000] = moments.pop(next(iter(moments)))

    rewrite(parted.out / "checkpoint-last.pth", rename)
    with pytest.raises(CheckpointError, match=r"checkpoint-last\.pth is damaged, or belongs to another model"):
        pretrain(parted)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (MemoryError(), "out of memory"),
        (RuntimeError("[enforce fail at alloc]"), "RuntimeError: .enforce fail"),
        (ValueError("surprise"), "ValueError: surprise"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_whatever_stops_the_saving_thread_ends_the_run(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch, failure: Exception, message: str
) -> None:
    def fail(*_: Any) -> None:
        raise failure

    monkeypatch.setattr(saving_module, "save", fail)
    with pytest.raises(TrainingError, match=rf"cannot write .*checkpoint-last\.pth: {message}"):
        pretrain(dataclasses.replace(config, save_minutes=0.0))
    assert not list(config.out.glob("*.pth"))


def test_a_checkpoint_to_keep_is_there_before_the_run_can_go_on_after_it(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was killed between the two would never write it."""

    def killed(*_: Any) -> Path:
        raise OSError(errno.EIO, "killed")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "place", killed)
        with pytest.raises(TrainingError, match="killed"):
            pretrain(dataclasses.replace(config, save_every=1))
    assert [path.name for path in run_states(config.out)] == ["checkpoint-0.pth"]


def test_a_failure_of_the_thread_is_not_kept_for_minutes(config: PretrainConfig) -> None:
    """The next step requests a save, which raises the error, even if the next regular save is far away."""
    checkpointer = saving_module.Checkpointer(
        RunFolder(config.out, resume=False), None, None, args={}, identity={}, minutes=60, keep_last=1  # type: ignore[arg-type]
    )  # fmt: skip
    assert not checkpointer.due()
    checkpointer._failure = MemoryError()
    assert checkpointer.due()
    with pytest.raises(TrainingError, match="out of memory"):
        checkpointer.check()


@pytest.mark.parametrize(("available", "threads"), [(10**12, True), (10_000, False), (None, True)])
def test_a_copy_is_made_where_there_is_room_for_it(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch, available: int | None, threads: bool
) -> None:
    import threading

    on_a_thread = []
    write = saving_module.save

    def note(path: Path, document: Any) -> None:
        on_a_thread.append(threading.current_thread() is not threading.main_thread())
        write(path, document)

    monkeypatch.setattr(saving_module, "available_memory", lambda: available)
    monkeypatch.setattr(saving_module, "save", note)
    pretrain(dataclasses.replace(config, save_minutes=0.0, epochs=1, preview_every=0))
    assert on_a_thread[-1] is False  # the run waits for the last write
    assert any(on_a_thread) is threads


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux what is mapped")
def test_a_state_is_not_kept_mapped_once_it_is_read(parted: PretrainConfig) -> None:
    mapped = []

    def look(event: Event) -> None:
        if isinstance(event, Started):
            mapped.append(str(parted.out) in Path("/proc/self/maps").read_text())

    pretrain(parted, look, lambda: True)
    assert mapped == [False]


def test_the_time_that_is_left_follows_from_the_log(parted: PretrainConfig, begun: Path) -> None:
    lines = [json.loads(line) for line in (parted.out / "log.jsonl").read_text().splitlines()]
    for line in lines:
        if "images_per_second" in line:
            line["images_per_second"] = 0.5 if "train_loss" in line else 77.0
    (parted.out / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    # Seven of fifteen batches of two are done: five of the first epoch, and two more.
    assert started(parted, 5).seconds_left == pytest.approx(8 * 2 / 0.5)
    assert started(dataclasses.replace(parted, precision="bf16"), 6).seconds_left is None
    first = small_config(begun / "images", parted.out.with_name("new"))
    assert started(first, 1).seconds_left is None


def test_lines_that_no_run_wrote_do_not_end_a_resume(parted: PretrainConfig) -> None:
    with (parted.out / "log.jsonl").open("a") as log:
        log.write('[1, 2]\n7\n{"step": "five", "train_loss": "x", "epoch": null}\n{"images_per_second": "fast"}\n{"x"')
    run = RunFolder(parted.out, resume=True)
    assert run.log.read(Position(epoch=1, batch=2, step=4)).train_loss is not None
    run.log.cut(Position(epoch=1, batch=2, step=4))
    assert '{"x"' not in (parted.out / "log.jsonl").read_text()


def failing(*_: Any) -> Any:
    raise TrainingError("out of memory")


@pytest.mark.parametrize("where", ["mae.training.engine._time_batch", "mae.training.step.TrainingStep.update"])
def test_a_start_that_comes_to_nothing_leaves_no_folder(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    deep = dataclasses.replace(config, out=tmp_path / "runs/first", tensorboard=True)
    with monkeypatch.context() as patch:
        patch.setattr(where, failing)
        with pytest.raises(TrainingError):
            pretrain(deep)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]
    (tmp_path / "runs/first").mkdir(parents=True)
    (tmp_path / "runs/first/notes.txt").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(where, failing)
        with pytest.raises(TrainingError):
            pretrain(deep)
    assert {path.name for path in (tmp_path / "runs/first").iterdir()} <= {"notes.txt", ".lock"}
    assert pretrain(deep, *stop_after(1)).steps == 1


def test_a_resume_that_fails_at_its_start_leaves_the_run_as_it_was(
    finished: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted((path.name, path.read_bytes()) for path in finished.out.glob("c*"))
    with monkeypatch.context() as patch:
        patch.setattr("mae.training.engine._time_batch", failing)
        with pytest.raises(TrainingError):
            pretrain(dataclasses.replace(finished, epochs=9))
    assert sorted((path.name, path.read_bytes()) for path in finished.out.glob("c*")) == before


def test_a_refused_second_run_takes_nothing_away_from_the_first(parted: PretrainConfig) -> None:
    for path in parted.out.glob("*.pth"):
        path.unlink()
    release = take_lock(parted.out / ".lock", wait=False)
    names = sorted(path.name for path in parted.out.iterdir())
    with pytest.raises(ConfigError, match="another run is writing"):
        pretrain(parted)
    assert sorted(path.name for path in parted.out.iterdir()) == names
    release()


def test_a_report_on_unreadable_images_stays(config: PretrainConfig, images: Path) -> None:
    (images / "empty1.jpg").touch()
    (images / "empty2.jpg").touch()
    with pytest.raises(DataError, match="are unreadable"):
        pretrain(config)
    assert [path.name for path in config.out.iterdir() if path.name != ".lock"] == ["unreadable.tsv"]


def test_there_is_no_rollback_without_a_state(config: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = TrainingStep.loss
    monkeypatch.setattr(TrainingStep, "loss", lambda self, *batch: loss(self, *batch) * float("nan"))
    with pytest.raises(TrainingError, match="the loss became nan at step 2") as stopped:
        pretrain(dataclasses.replace(config, on_nan="rollback", nan_limit=2))
    assert "--base-lr" in (stopped.value.hint or "")


def saved_with(**identity: Any) -> SavedState:
    identity = {"batch_size": 4, "processes": 1, "settings": {"batch_size": 4}} | identity
    return SavedState(Path("run/checkpoint-last.pth"), Position(), identity, identity["settings"])


@pytest.mark.parametrize(
    ("batch_size", "processes", "refused"),
    [
        (4, 1, ""),
        (4, 2, ""),  # not given: the run's batch is divided differently
        (2, 2, ""),  # given, and the same in all
        (1, 4, ""),
        (3, 1, "--batch-size +4 +3"),
        (8, 1, "--batch-size +4 +8"),
        (8, 2, "--batch-size +4 in all +8 x 2 processes"),
    ],
)
def test_a_batch_is_that_of_all_processes(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch, batch_size: int, processes: int, refused: str
) -> None:
    state = saved_with()
    monkeypatch.setattr("mae.training.resuming.newest_state", lambda states: (state, ()))
    now = dataclasses.replace(config, batch_size=batch_size, resume=config.out)
    if refused:
        with pytest.raises(ConfigError, match=refused):
            take_up(RunFolder(config.out, resume=True), now, None, processes)
    else:
        resumption = take_up(RunFolder(config.out, resume=True), now, None, processes)
        assert (resumption.global_batch_size, resumption.changes) == (4, ())
        assert resumption.other_processes(processes) is (processes != 1)


def test_the_command_of_two_processes_is_repeated_in_one_as_often_as_needed(
    parted: PretrainConfig, begun: Path
) -> None:
    """A scheduler repeats it after each kill, with the batch size of each of the two."""

    def of_two(document: dict[str, Any]) -> None:
        document["maecli"]["run"]["processes"] = 2
        document["maecli"]["run"]["settings"]["batch_size"] = 1

    rewrite(parted.out / "checkpoint-last.pth", of_two)
    path = parted.out / "config.toml"
    path.write_text(path.read_text().replace("batch_size = 2", "batch_size = 1"))
    repeated = dataclasses.replace(parted, resume=None, auto_resume=True, batch_size=1)
    for steps in (5, 6, 10**9):
        assert "the run's batch of 2 images is divided among 1 process, 2 images each" in started(repeated, steps).notes
    assert same(weights(parted.out), weights(begun / "whole"))


def test_of_two_models_the_sizes_that_differ_are_shown(config: PretrainConfig) -> None:
    plan = make_plan(config, 11)
    now = repr(config.model_config())
    grown = now.replace("depth=1, num_heads", "depth=7, num_heads")
    older = now.replace(", norm_pix_loss=True", "")
    assert grown != now != older
    run = RunFolder(config.out, resume=True)
    same_model = {**plan.identity(), "model": now}
    check_same_run(Resumption(saved=saved_with(model=older, batch_size=2)), same_model, run)
    with pytest.raises(ConfigError) as refused:
        check_same_run(Resumption(saved=saved_with(model=grown, batch_size=2)), same_model, run)
    assert [line.split() for line in refused.value.details[1:]] == [["model:", "depth", "7", "1"]]
    with pytest.raises(ConfigError, match=r"model +nonsense\( +MAEConfig"):
        check_same_run(Resumption(saved=saved_with(model="nonsense(", batch_size=2)), same_model, run)
