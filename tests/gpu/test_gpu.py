"""Tests that need a real GPU; all are skipped without one."""

from __future__ import annotations

import dataclasses
import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from mae.checkpoints import load_checkpoint, save_checkpoint
from mae.config import MAEConfig
from mae.errors import TrainingError
from mae.evaluation.config import EmbedConfig, EvaluateConfig
from mae.evaluation.embed import embed
from mae.evaluation.evaluate import evaluate
from mae.mae import MaskedAutoencoder
from mae.models import create_model
from mae.profiling.config import ProfileConfig
from mae.profiling.doctor import DoctorConfig, examine
from mae.profiling.run import profile
from mae.reconstruction.config import ReconstructConfig
from mae.reconstruction.run import reconstruct
from mae.system.device import PRECISIONS, resolve_device, resolve_precision
from mae.system.distributed import Ranks
from mae.training.checkpointer import Checkpointer
from mae.training.config import PretrainConfig
from mae.training.position import Position
from mae.training.pretrain import pretrain
from mae.training.run_folder import RunFolder
from mae.training.sharded import restore_shards, write_shards
from mae.training.step import TrainingStep
from tests.distributed.test_ranks import RECIPE, SMALL, TORCHRUN, steps
from tests.processes import ROOT, environment, finish, start_python
from tests.unit.evaluation.small import class_folders

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU here"),
    # Warnings of drivers, NCCL and cuDNN are not caused by our code.
    pytest.mark.filterwarnings("default"),
]
SIZES = MAEConfig((64, 64), 8, 3, 64, 2, 2, 64, 2, 2, norm_pix_loss=True)


def precisions() -> list[str]:
    device = resolve_device(DEVICE)
    return [name for name in PRECISIONS if name != "bf16" or resolve_precision("auto", device) == "bf16"]


def small_model() -> MaskedAutoencoder:
    torch.manual_seed(0)
    return create_model(SIZES)


def small_step(
    precision: str = "fp32", device: str = DEVICE, *, activation_checkpointing: bool = False, **how: Any
) -> TrainingStep:
    model = small_model().to(resolve_device(device))
    model.set_activation_checkpointing(activation_checkpointing)
    return TrainingStep(model, precision, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05, **how)


def batch(images: int = 8) -> tuple[torch.Tensor, float, torch.Tensor]:
    """Smooth images, which can be learnt; a different mask for each image."""
    stream = torch.Generator().manual_seed(0)
    coarse = torch.rand(images, 3, 4, 4, generator=stream)
    fine = torch.nn.functional.interpolate(coarse, size=64, mode="bilinear")
    return (fine * 255).to(torch.uint8), 0.75, torch.rand(images, 64, generator=stream)


@pytest.mark.parametrize("activation_checkpointing", [False, True], ids=["kept", "recomputed"])
def test_a_step_is_the_one_of_a_cpu_and_learns(activation_checkpointing: bool) -> None:
    exact = small_step(device="cpu")
    wanted = float(exact.backward(*batch()))
    wanted_norm = float(exact.update())
    for precision in precisions():
        step = small_step(precision, activation_checkpointing=activation_checkpointing)
        assert step.device.index is not None
        tolerance = 1e-3 if precision == "fp32" else 0.05
        losses = [float(step.backward(*batch()))]
        norm = float(step.update())
        assert losses[0] == pytest.approx(wanted, rel=tolerance), precision
        if math.isfinite(norm):  # fp16 may begin with a loss scale that is too large
            assert norm == pytest.approx(wanted_norm, rel=2 * tolerance), precision
        for _ in range(100):
            losses.append(float(step.backward(*batch())))
            step.update()
        assert losses[-1] < 0.8 * losses[0], precision
        moments = [value for entry in step.optimizer.state.values() for value in entry.values()]
        assert {tensor.device for tensor in moments} == {step.device}


@pytest.mark.parametrize("activation_checkpointing", [False, True], ids=["kept", "recomputed"])
def test_a_step_does_not_wait_for_the_gpu(activation_checkpointing: bool) -> None:
    """Torch raises an error if the host would wait."""
    for precision in precisions():
        step = small_step(precision, activation_checkpointing=activation_checkpointing)
        for _ in range(3):  # the first steps initialise libraries and moments
            step.backward(*batch())
            step.update()
        with waiting_is_an_error():
            step.backward(*batch(), share=0.5, last=False)
            step.backward(*batch(), share=0.5)
            step.update(1e-3)


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    for precision in precisions():
        step = small_step(precision)
        before = {name: tensor.clone() for name, tensor in step.model.state_dict().items()}
        step.backward(*batch())
        step.model.cls_token.grad.fill_(math.inf)  # type: ignore[union-attr]
        assert not math.isfinite(float(step.update()))
        assert all(torch.equal(tensor, before[name]) for name, tensor in step.model.state_dict().items()), precision


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_goes_on_bit_for_bit(precision: str, tmp_path: Path) -> None:
    """With torch's deterministic kernels; without them the order of sums on a GPU varies."""
    if precision not in precisions():
        pytest.skip(f"this GPU has no matrix products in {precision}")
    script = Path(__file__).parent / "deterministic.py"
    env = environment(CUBLAS_WORKSPACE_CONFIG=":4096:8")
    done = finish(start_python(script, DEVICE, precision, tmp_path, env=env))
    assert done.returncode == 0, done.stderr


def test_a_saved_state_is_the_one_of_its_moment(tmp_path: Path) -> None:
    """Training continues while the thread writes, and the file can be read without a GPU."""
    run = RunFolder(tmp_path / "run", resume=False)
    run.make()
    for wait in (False, True):
        step = small_step()
        step.backward(*batch())
        step.update()
        expected = {name: tensor.to("cpu", copy=True) for name, tensor in step.model.state_dict().items()}
        checkpointer = Checkpointer(run, step, Ranks(), args={}, identity={}, minutes=5, keep_last=2)
        checkpointer.save(Position(step=1), wait=wait)
        step.backward(*batch())
        step.update()
        checkpointer.finish()
        written = torch.load(run.checkpoint, weights_only=False)  # without map_location
        assert all(torch.equal(tensor, expected[name]) for name, tensor in written["model"].items())
        moments = [value for entry in written["optimizer"]["state"].values() for value in entry.values()]
        assert {tensor.device.type for tensor in (*written["model"].values(), *moments)} == {"cpu"}
        again = small_step()
        again.restore(written["model"], written["optimizer"], written["scaler"])
        assert {tensor.device for tensor in again.model.state_dict().values()} == {step.device}
        again.backward(*batch())
        again.update()
        for one, other in zip(again.model.parameters(), step.model.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    run.release()


def test_memory_that_is_full_is_explained(tmp_path: Path) -> None:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-4)
    try:
        with pytest.raises(TrainingError, match=r"^out of memory$") as caught:
            pretrain(config(tmp_path, variant="vit_base", image_size=(224, 224), patch_size=16))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "--batch-size" in str(caught.value.hint)


def config(folder: Path, **changes: Any) -> PretrainConfig:
    plain = PretrainConfig(
        data=(ROOT / "sample_images",), variant="vit_tiny", image_size=(32, 32), patch_size=8, batch_size=4, epochs=2,
        warmup_epochs=0.0, lr=1e-3, device=DEVICE, log_every=1, preview_every=1, out=folder / "run",
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


def test_pretrain_takes_the_gpu_by_itself(tmp_path: Path) -> None:
    result = pretrain(config(tmp_path, device="auto"))
    assert result.steps == 6
    assert math.isfinite(result.train_loss)
    assert result.preview is not None
    assert f'device = "{DEVICE}"' in (result.run / "config.toml").read_text()
    assert torch.isfinite(load_checkpoint(result.checkpoint).state["cls_token"]).all()


def test_reconstruct_shows_what_a_cpu_shows(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "small.pth", small_model())
    found = {
        device: reconstruct(
            ReconstructConfig(
                images=(sorted((ROOT / "sample_images").glob("*.jpg"))[0],),
                checkpoint=tmp_path / "small.pth",
                mask_ratio=(0.75, 0.5),
                device=device,
                out=tmp_path / f"{device}.png",
            )
        ).images
        for device in dict.fromkeys((DEVICE, "cpu"))
    }
    assert len(found[DEVICE]) == 2
    for one, other in zip(found[DEVICE], found["cpu"], strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-3)
        assert one.psnr == pytest.approx(other.psnr, abs=0.05)


def test_embed_gives_the_features_of_a_cpu(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "small.pth", small_model())
    features = []
    for device, workers in ((DEVICE, 1), ("cpu", 0)):
        out = tmp_path / f"{device}.npz"
        embed(
            EmbedConfig(
                data=(ROOT / "sample_images",),
                checkpoint=tmp_path / "small.pth",
                out=out,
                device=device,
                precision="fp32",
                workers=workers,
                batch_size=4,
            )
        )
        features.append(np.load(out)["features"])
        out.unlink()
    np.testing.assert_allclose(features[0], features[1], rtol=1e-3, atol=1e-4)


def test_evaluate_gives_the_numbers_of_a_cpu(tmp_path: Path) -> None:
    class_folders(tmp_path / "colours", 12)
    save_checkpoint(tmp_path / "small.pth", small_model())
    found = []
    for device in (DEVICE, "cpu"):
        result = evaluate(
            EvaluateConfig(
                data=tmp_path / "colours",
                checkpoint=(tmp_path / "small.pth",),
                cache=tmp_path / device,
                device=device,
                precision="fp32",
                workers=0,
            )
        )
        found.append(result.rows)
    for one, other in zip(*found, strict=True):
        assert (one.subject, one.pool, one.feature_norm) == (other.subject, other.pool, other.feature_norm)
        assert (one.rank_me or 0) == pytest.approx(other.rank_me or 0, rel=1e-2)
        for scores, others in zip(one.scores, other.scores, strict=True):
            if scores.linear is not None and others.linear is not None:
                assert scores.linear.test.value == pytest.approx(others.linear.test.value, abs=0.2)


def test_profile_measures_the_gpu() -> None:
    result = profile(
        ProfileConfig(
            variant=("vit_tiny",),
            image_size=(32, 32),
            patch_size=8,
            batch_size=4,
            measure=True,
            repeats=2,
            device=DEVICE,
        )
    )
    assert result.machine is not None
    assert result.machine.device == DEVICE
    assert result.machine.matmul_flops > 0
    (variant,) = result.variants
    assert variant.measured is not None
    assert variant.measured.failures == ()
    for timing in (variant.measured.latency, variant.measured.encode, variant.measured.training_step):
        assert timing is not None
        assert timing.images_per_second > 0
    assert variant.measured.inference_peak_bytes is not None
    assert variant.measured.training_peak_bytes is not None
    assert 0 < variant.measured.inference_peak_bytes < variant.measured.training_peak_bytes


def test_doctor_measures_the_gpu() -> None:
    found = examine(DoctorConfig())
    assert found.device == DEVICE
    assert (found.precision_reason or "").startswith("the GPU")
    assert len(found.gpus) == torch.cuda.device_count()
    assert found.speed is not None
    assert found.speed.images_per_second > 0


class OneOfOne(Ranks):
    """One process that acts as one of several, so that all code for several processes runs."""

    @property
    def alone(self) -> bool:
        return False


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranks]:
    """A group of one process over NCCL, and over Gloo on the host."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": 0, "WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))
    ranks = OneOfOne()
    ranks.join(resolve_device(DEVICE, 0))
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("shard", [False, True], ids=["copies", "shards"])
def test_one_process_over_nccl_steps_like_one_alone(ranks: Ranks, shard: bool, tmp_path: Path) -> None:
    assert ("nccl" if DEVICE == "cuda" else "gloo") in str(dist.get_backend_config(dist.group.WORLD))
    ranks.begin_training()
    together, alone = small_step(ranks=ranks, shard=shard), small_step()
    assert together.parallel.sharded is shard
    for _ in range(3):
        losses = [step.backward(*batch(), share=0.5, last=last) for step in (together, alone) for last in (False, True)]
        norms = [float(step.update()) for step in (together, alone)]
        assert float(losses[1]) == pytest.approx(float(losses[3]), rel=1e-3)
        assert norms[0] == pytest.approx(norms[1], rel=1e-2)
    assert ranks.mean(losses[0]).device == together.device
    assert ranks.gather("here") == ["here"]
    for flag, answer in ((True, [False]), (False, [True])):
        with ranks.ask(lambda flag=flag: (flag,)) as flags:  # type: ignore[misc]
            assert flags == answer
    if not shard:
        return
    write_shards(tmp_path / "state.dcp", together, {}, ranks)
    again = small_step(ranks=ranks, shard=True)
    restore_shards(tmp_path / "state.dcp", again)
    for one, other in zip(again.model.parameters(), together.model.parameters(), strict=True):
        assert torch.equal(one.full_tensor(), other.full_tensor())  # type: ignore[attr-defined]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU at most here")
@pytest.mark.parametrize("options", [(), ("--shard",)], ids=["copies", "shards"])
def test_two_gpus_train_as_one(tmp_path: Path, options: tuple[str, ...]) -> None:
    recipe = [*RECIPE, "--device", DEVICE, "--epochs", "4"]  # the last --device counts
    logs = []
    for processes in (2, 1):
        out = tmp_path / str(processes)
        torchrun = [*TORCHRUN, "--nproc-per-node", str(processes)] if processes > 1 else []
        images = ["pretrain", ROOT / "sample_images", "--out", out, "--batch-size", str(4 // processes)]
        shards = options if processes > 1 else ()
        done = finish(start_python(*torchrun, SMALL, *images, *recipe, *shards, env=environment()))
        assert done.returncode == 0, done.stderr
        logs.append(steps(out))
    assert [entry["step"] for entry in logs[0]] == [entry["step"] for entry in logs[1]]
    for one, other in zip(*logs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)


def test_a_model_is_built_on_the_gpu_where_torch_is_told_to() -> None:
    with torch.device(DEVICE):
        model = create_model(SIZES)
    assert {tensor.device for tensor in model.state_dict().values()} == {resolve_device(DEVICE)}
    expected = create_model(SIZES)
    assert torch.equal(model.pos_embed.cpu(), expected.pos_embed)
    assert torch.equal(model.decoder.decoder_pos_embed.cpu(), expected.decoder.decoder_pos_embed)  # type: ignore[operator,arg-type]
