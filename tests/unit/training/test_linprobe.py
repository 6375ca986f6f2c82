"""Linear probing: only the head is trained, and the result is a plain classifier file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mae.checkpoints import load_checkpoint
from mae.checkpoints.build import build_encoder
from mae.checkpoints.classifiers import build_classifier, folded
from mae.errors import TrainingError
from mae.training.classifier_config import LinprobeConfig
from mae.training.config import ReplayConfig
from mae.training.events import Event, Started
from mae.training.linprobe import linprobe
from mae.training.replay import replay
from mae.training.step import TrainingStep
from tests.unit.training.labelled import probing as probing
from tests.unit.training.small import logged, same, stop_after, weights


def test_the_head_alone_learns_and_resumes_exactly(probing: LinprobeConfig, tmp_path: Path) -> None:
    events: list[Event] = []
    whole = linprobe(probing, events.append)
    (started,) = (event for event in events if isinstance(event, Started))
    assert started.classification is not None
    assert started.classification.trained == 3 * 32 + 3
    state, given = weights(probing.out), load_checkpoint(tmp_path / "encoder.pth").state
    assert all(torch.equal(state[key], given[key]) for key in state if not key.startswith("head."))
    assert set(state) - set(given) == {
        "head.0.running_mean", "head.0.running_var", "head.0.num_batches_tracked", "head.1.weight", "head.1.bias",
    }  # fmt: skip
    assert int(state["head.0.num_batches_tracked"]) == 15  # equals the number of batches: timing a step does not count
    assert whole.test is not None
    for steps in (2, 4):
        parted = dataclasses.replace(probing, out=tmp_path / f"parted{steps}")
        linprobe(parted, *stop_after(steps))
        assert linprobe(dataclasses.replace(parted, resume=parted.out)).test == whole.test
        assert same(weights(probing.out), weights(parted.out))
        assert logged(probing.out) == logged(parted.out)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_the_batch_norm_becomes_part_of_a_plain_head(probing: LinprobeConfig, tmp_path: Path, pool: str) -> None:
    linprobe(dataclasses.replace(probing, pool=pool, select="last"))
    trained = load_checkpoint(probing.out / "checkpoint-last.pth").state
    checkpoint = load_checkpoint(probing.out)
    assert checkpoint.path == probing.out / "classifier.pth"
    model, _ = build_classifier(checkpoint)
    encoder, _ = build_encoder(load_checkpoint(tmp_path / "encoder.pth"))
    imgs = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = encoder.encode(imgs)
        pooled = tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(dim=1)
        normed = (pooled - trained["head.0.running_mean"]) / (trained["head.0.running_var"] + 1e-6).sqrt()
        wanted = F.linear(normed, trained["head.1.weight"], trained["head.1.bias"])
        assert torch.allclose(model(imgs), wanted, atol=1e-5)
        assert torch.allclose(
            build_classifier(load_checkpoint(probing.out / "checkpoint-last.pth"))[0](imgs), wanted, atol=1e-5
        )
    assert folded(checkpoint.state).keys() == checkpoint.state.keys()


def test_replay_repeats_a_step_of_the_head(probing: LinprobeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[float] = []
    backward = TrainingStep.backward

    def spoiled(self: TrainingStep, *batch: Any, **how: Any) -> torch.Tensor:
        losses.append(float(backward(self, *batch, **how)))
        return torch.tensor(torch.nan)

    monkeypatch.setattr(TrainingStep, "backward", spoiled)
    with pytest.raises(TrainingError, match="the loss became nan"):
        linprobe(dataclasses.replace(probing, nan_limit=1))
    monkeypatch.undo()
    found = replay(ReplayConfig(probing.out / "replay.pth", device="cpu"))
    assert found.passes[0].loss == pytest.approx(sum(losses[-2:]) / 2, rel=1e-6)
    assert found.passes[0].bad_gradients == 0
