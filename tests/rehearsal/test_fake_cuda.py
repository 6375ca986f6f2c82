"""A training step on a fake GPU: the host never waits for it, and every tensor ends on the right device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mae.config import MAEConfig
from mae.data.eval_loader import EvalBatch
from mae.data.transforms import denormalise, normalise
from mae.mae import MaskedAutoencoder
from mae.masking import random_masking
from mae.models.classifier import ImageClassifier
from mae.reconstruction.panels import predict
from mae.system.device import PRECISIONS, autocast
from mae.system.distributed import Ranks
from mae.training import checkpointer as saving_module
from mae.training.checkpointer import Checkpointer
from mae.training.labelled import Part
from mae.training.lars import LARS
from mae.training.mixing import drop_path_scales
from mae.training.optim import adamw
from mae.training.position import Position
from mae.training.run_folder import RunFolder
from mae.training.step import TrainingStep
from mae.training.tasks import classification
from mae.training.tasks.classification import ClassificationLoss
from mae.training.tasks.finetune import FinetuneLoss, layer_groups
from tests.rehearsal.fake_cuda import Traffic, fake_cuda, walk_backward

pytestmark = pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch cannot even pretend a GPU")


def small_model() -> MaskedAutoencoder:
    return MaskedAutoencoder(
        img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, decoder_embed_dim=32, decoder_depth=2,
        decoder_num_heads=2, norm_pix_loss=True,
    )  # fmt: skip


def small_step(precision: str = "fp32", *, activation_checkpointing: bool = False) -> TrainingStep:
    with torch.device("cuda"):
        model = small_model()
    model.set_activation_checkpointing(activation_checkpointing)
    return TrainingStep(model, precision, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)


def batch() -> tuple[Tensor, Tensor]:
    """Images in the loader's layout, and the noise of their masks, on the host."""
    return torch.zeros(4, 32, 32, 3, dtype=torch.uint8).permute(0, 3, 1, 2), torch.rand(4, 16)


def take_step(step: TrainingStep) -> Traffic:
    with Traffic() as traffic:
        images, noise = batch()
        torch.stack([step.backward(images, 0.75, noise), step.update(1e-3), step.loss_scale])
    return traffic


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("activation_checkpointing", [False, True], ids=["kept", "recomputed"])
def test_a_step_never_makes_the_host_wait(precision: str, activation_checkpointing: bool) -> None:
    with fake_cuda():
        step = small_step(precision, activation_checkpointing=activation_checkpointing)
        traffic = take_step(step)
        assert traffic.waits == []
        assert traffic.sent == [4 * 3 * 32 * 32, 4 * 16]  # only the images and the noise
        assert traffic.product_types == {PRECISIONS[precision]}
        held = [*step.model.parameters(), *step.model.buffers()]
        held += [value for entry in step.optimizer.state.values() for value in entry.values()]
        assert {tensor.device for tensor in held} == {torch.device("cuda", 0)}


def classifier_step(task: str, precision: str) -> tuple[TrainingStep, tuple[Any, ...]]:
    """The training step of ``finetune`` or ``linprobe``, and its loss's inputs other than images, on the host."""
    config = MAEConfig((32, 32), 8, 3, 32, 2, 2)
    labels = torch.zeros(4, dtype=torch.int64)
    with torch.device("cuda"):
        model = ImageClassifier(config, 3, fc_norm=task == "finetune", probe=task == "linprobe")
    if task == "finetune":
        scales = drop_path_scales(0.5, 4, config.depth, torch.Generator())
        inputs = (labels, torch.ones(32, 32), torch.ones(()), scales)
        make = lambda: adamw(layer_groups(model, 0.05, 0.75), lr=1e-3, betas=(0.9, 0.999))  # noqa: E731
        return TrainingStep(model, precision, loss=FinetuneLoss(model, 0.1), optimizer=make, clip_grad=1.0), inputs
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    make_lars = lambda: LARS(list(model.head.parameters()), 0.1)  # noqa: E731
    return TrainingStep(model, precision, loss=ClassificationLoss(model), optimizer=make_lars), (labels,)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("task", ["finetune", "linprobe"])
def test_learning_classes_never_makes_the_host_wait(task: str, precision: str) -> None:
    with fake_cuda():
        step, inputs = classifier_step(task, precision)
        with Traffic() as traffic:
            torch.stack([step.backward(batch()[0], *inputs), step.update(1e-3), step.loss_scale])
        assert traffic.waits == []
        assert traffic.sent == [4 * 3 * 32 * 32, *(value.numel() for value in inputs)]
        held = [value for entry in step.optimizer.state.values() for value in entry.values()]
        assert {tensor.device for tensor in held} == {torch.device("cuda", 0)}


def test_held_out_images_are_copied_while_the_host_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images come from pinned memory, as in training."""

    def eval_batches(dataset: Any, batches: Any, *, workers: int, pin_memory: bool = False) -> Any:
        images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
        yield EvalBatch((0, 1, 2, 3), images.pin_memory() if pin_memory else images, ())

    monkeypatch.setattr(classification, "eval_batches", eval_batches)
    run = SimpleNamespace(device=torch.device("cuda", 0), plan=SimpleNamespace(global_batch_size=4), ranks=Ranks())
    config = SimpleNamespace(crop_pct=1.0, workers=0, precision="bf16")
    with fake_cuda():
        model = classifier_step("linprobe", "bf16")[0].model.eval()
        task: Any = SimpleNamespace(
            run=run, config=config, labelled=SimpleNamespace(source=[], classes=("a", "b", "c"))
        )
        four = Part(np.arange(4), np.zeros(4, dtype=np.int64))
        with Traffic() as traffic:
            ((indices, logits, unreadable),) = classification.ClassificationTask._logits(task, model, four, slice(4))
        assert traffic.waits == []
        assert traffic.sent == [4 * 3 * 32 * 32]
        assert (indices, unreadable) == ((0, 1, 2, 3), [])
        assert logits.device == run.device


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_state_is_copied_to_the_host_before_it_is_written(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directly at the end of a run, and in the thread during the run."""
    written: list[dict[str, Any]] = []

    def save(path: Path, document: dict[str, Any]) -> None:
        written.append(document)
        path.touch()

    monkeypatch.setattr(saving_module, "save", save)
    scaler = {**torch.amp.GradScaler("cpu").state_dict(), "scale": 1024.0}
    monkeypatch.setattr(torch.amp.GradScaler, "state_dict", lambda self: scaler)  # its own would read the scale
    run = RunFolder(tmp_path / "run", resume=False)
    run.make()
    with fake_cuda():
        step = small_step(precision)
        take_step(step)
        checkpointer = Checkpointer(run, step, Ranks(), args={}, identity={}, minutes=5, keep_last=2)
        for wait in (True, False):
            checkpointer.save(Position(step=1), wait=wait)
        checkpointer.finish()
        assert len(written) == 2
        for document in written:
            assert set(document["model"]) == set(step.model.state_dict())
            entries = document["optimizer"]["state"].values()
            tensors = [*document["model"].values(), *(value for entry in entries for value in entry.values())]
            assert len(tensors) == len(document["model"]) + 3 * len(list(step.model.parameters()))
            assert {tensor.device.type for tensor in tensors} == {"cpu"}
        fresh = small_step(precision)
        fresh.restore(document["model"], document["optimizer"], document["scaler"])
        moments = [value for entry in fresh.optimizer.state.values() for value in entry.values()]
        assert len(moments) == len(tensors) - len(document["model"])
        assert {value.device for value in (*moments, *fresh.model.state_dict().values())} == {torch.device("cuda", 0)}
        assert take_step(fresh).waits == []
    run.release()


def test_a_model_is_built_where_torch_is_told_to() -> None:
    with fake_cuda(), torch.device("cuda"):
        model = small_model()
        assert {tensor.device for tensor in model.state_dict().values()} == {torch.device("cuda", 0)}


def test_using_a_model_does_not_wait_either() -> None:
    with fake_cuda():
        with torch.device("cuda"):
            model = small_model()
            imgs, noise = torch.zeros(4, 3, 32, 32), torch.rand(4, 16)
        with Traffic() as traffic, torch.no_grad(), autocast(imgs.device, "bf16"):
            model(imgs)
            model.encode(imgs)
            predict(model, imgs, random_masking(noise, 0.75))
            denormalise(normalise(imgs.to(torch.uint8)))
        assert traffic.waits == []
        assert traffic.sent == []


WAITING: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "item": lambda device, host: device.sum().item(),
    "bool": lambda device, host: bool(device.sum() == 0),
    "tolist": lambda device, host: device.tolist(),
    "nonzero": lambda device, host: device.nonzero(),
    "mask": lambda device, host: device[device > 0],
    "cpu": lambda device, host: device.cpu(),
    "numbers": lambda device, host: host.copy_(device),
    "blocking": lambda device, host: host.to("cuda"),
    "blocking though pinned": lambda device, host: host.pin_memory().to("cuda"),
    "not pinned": lambda device, host: host.to("cuda", non_blocking=True),
    "into": lambda device, host: device.copy_(host, non_blocking=True),
}


@pytest.mark.parametrize("name", WAITING)
def test_what_waits_is_noticed(name: str) -> None:
    with fake_cuda():
        device, host = torch.ones(4, device="cuda"), torch.ones(4)
        with Traffic() as traffic, contextlib.suppress(Exception):  # fake tensors have no numbers to read
            WAITING[name](device, host)
    assert len(traffic.waits) == 1


def test_the_walk_over_the_graph_is_the_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mae.transformer._keeps_less", lambda *_: False)  # as on a GPU: the blocks' modules
    images, noise = torch.rand(2, 3, 32, 32), torch.rand(2, 16)
    gradients = []
    for activation_checkpointing in (False, True):
        for backward in (Tensor.backward, walk_backward):
            torch.manual_seed(0)
            model = small_model()
            model.set_activation_checkpointing(activation_checkpointing)
            loss = model.pretraining_loss(images, 0.75, noise)
            backward(loss)
            gradients.append([parameter.grad for parameter in model.parameters()])
    for others in gradients[1:]:
        for one, other in zip(gradients[0], others, strict=True):
            assert one is not None
            assert other is not None
            torch.testing.assert_close(one, other)
