"""Defects are found and named: in a single file, in the computation, and between two files."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import mae.comparison.clone
import mae.comparison.run
from mae.checkpoints import Checkpoint, save_checkpoint
from mae.checkpoints.build import build_usable
from mae.comparison.config import CompareConfig
from mae.comparison.reference import run_reference
from mae.comparison.run import CompareResult, compare
from mae.comparison.stages import compare_stages
from mae.config import MAEConfig
from mae.errors import CheckpointError, ConfigError, DataError
from mae.mae import MaskedAutoencoder
from mae.models import create_model
from mae.patch_embed import patchify
from tests.golden import official

TINY = official.GOLDEN["golden_tiny"]
CLONE = Path(__file__).parents[2] / "golden/clone"
HEADS = {"num_heads": 2, "decoder_num_heads": 4}


def written(tmp_path: Path, state: dict[str, Tensor], name: str = "file.pth") -> Path:
    torch.save({"model": state}, tmp_path / name)
    return tmp_path / name


def compared(path: Path, **options: Any) -> CompareResult:
    return compare(CompareConfig(official=path, **({"reference": "paper"} | HEADS | options)))


# Defects that a single file shows: a change of its tensors, and the expected message.
def _exchanged(state: dict[str, Tensor]) -> None:
    state["pos_embed"] = state["pos_embed"].roll(64, dims=-1)


def _exchanged_decoder(state: dict[str, Tensor]) -> None:
    state["decoder_pos_embed"] = state["decoder_pos_embed"].roll(32, dims=-1)


def _no_table(state: dict[str, Tensor]) -> None:
    state["pos_embed"] = torch.zeros_like(state["pos_embed"])


def _class_row(state: dict[str, Tensor]) -> None:
    state["pos_embed"][0, 0] = 0.1


def _other_table(state: dict[str, Tensor]) -> None:
    state["pos_embed"][0, 5, 3] += 0.3


def _nan(state: dict[str, Tensor]) -> None:
    state["decoder_blocks.1.attn.proj.weight"][3, 4] = float("nan")


def _missing(state: dict[str, Tensor]) -> None:
    del state["blocks.1.norm2.bias"]


def _misshapen(state: dict[str, Tensor]) -> None:
    state["blocks.1.mlp.fc1.weight"] = state["blocks.1.mlp.fc1.weight"].T.contiguous()


def _unexpected(state: dict[str, Tensor]) -> None:
    state["blocks.1.attn.relative"] = torch.ones(3)


def _fresh(prefixes: tuple[str, ...]) -> Callable[[dict[str, Tensor]], None]:
    def change(state: dict[str, Tensor]) -> None:
        """Reset parts to their initial values."""
        torch.manual_seed(0)
        state |= {key: tensor for key, tensor in create_model(TINY).state_dict().items() if key.startswith(prefixes)}

    return change


def _zero_token(state: dict[str, Tensor]) -> None:
    state["mask_token"].zero_()


ONE_FILE: dict[str, tuple[Callable[[dict[str, Tensor]], None], str]] = {
    "table halves": (_exchanged, "pos_embed: its halves are exchanged"),
    "decoder table halves": (_exchanged_decoder, "decoder_pos_embed: its halves are exchanged"),
    "no table": (_no_table, "pos_embed: all zeros"),
    "class row": (_class_row, "pos_embed: the class token's row is not zero"),
    "another table": (_other_table, "pos_embed: not the sine-cosine formula (off by up to 0.3)"),
    "nan": (_nan, "decoder_blocks.1.attn.proj.weight: NaN or infinity"),
    "missing": (_missing, "missing: blocks.1.norm2.bias"),
    "misshapen": (_misshapen, "blocks.1.mlp.fc1.weight has shape (128, 512); (512, 128) is wanted"),
    "unexpected": (_unexpected, "unexpected: blocks.1.attn.relative"),
    "untrained decoder": (_fresh(("decoder_", "mask_token")), "the decoder is at its initial values"),
    "half-loaded decoder": (_fresh(("decoder_blocks.1.",)), "decoder_blocks.1: at initial values, half-loaded?"),
    "half-loaded prediction": (_fresh(("decoder_pred.",)), "decoder_pred: at initial values, half-loaded?"),
    "untrained encoder": (_fresh(("blocks.", "norm.")), "the encoder is at its initial values"),
    "no mask token": (_zero_token, "mask_token: all zeros"),
}


@pytest.mark.parametrize("name", ONE_FILE)
def test_what_one_file_shows(name: str, tmp_path: Path) -> None:
    change, wanted = ONE_FILE[name]
    state = official.weights(TINY)
    change(state)
    result = compared(written(tmp_path, state))
    assert not result.equal
    (problem,) = result.official.weights.problems
    assert wanted in problem
    assert problem in result.verdict
    assert result.verdict.startswith("different: ")
    # The computation is right for any values; it is not tried if it is impossible.
    assert bool(result.computations) == (name not in ("nan", "missing", "misshapen"))
    assert not any(one.first_beyond for one in result.computations)


def _zero_rows(state: dict[str, Tensor]) -> None:
    state["blocks.1.mlp.fc1.weight"][:256] = 0


def _wild_element(state: dict[str, Tensor]) -> None:
    state["decoder_pred.weight"][5, 6] += 100


def _exchanged_norm(state: dict[str, Tensor]) -> None:
    state["norm.weight"], state["norm.bias"] = state["norm.bias"], state["norm.weight"]


def _vanished(state: dict[str, Tensor]) -> None:
    state["patch_embed.proj.weight"] *= 1e-40


def _fresh_with_biases(state: dict[str, Tensor]) -> None:
    _fresh(("decoder_", "mask_token"))(state)
    for name in state:
        if name.startswith("decoder_") and name.endswith("bias"):
            state[name] = 0.01 * torch.randn(state[name].shape)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (_zero_rows, "blocks.1.mlp.fc1.weight: 256 of its 512 rows are zeros"),
        (_wild_element, "decoder_pred.weight: element [5, 6] is 10"),
        (_exchanged_norm, "norm.weight: 5"),
        (_vanished, "patch_embed.proj.weight: its size is"),
        (_fresh_with_biases, "the decoder: all of its matrices are spread evenly over the bounds of their initial"),
    ],
)
def test_damage_fails(change: Callable[[dict[str, Tensor]], None], wanted: str, tmp_path: Path) -> None:
    """The kinds of damage are tested in tests/unit/comparison."""
    state = official.weights(TINY)
    change(state)
    result = compared(written(tmp_path, state))
    assert not result.equal
    assert wanted in result.official.weights.problems[0]
    assert result.verdict.startswith("different: file.pth: ")
    assert result.computations  # its computation agrees with the references, which have the same weights


def test_what_is_suspicious_is_said_and_fails_nothing(tmp_path: Path) -> None:
    state = official.weights(TINY.replace(depth=6))
    state["blocks.2.mlp.fc1.weight"] *= 5
    result = compared(written(tmp_path, state))
    assert result.equal
    (warning,) = result.warnings
    wanted = "its size is 0.44; about 0.089 is usual in the blocks next to it"
    assert warning.startswith(f"file.pth: blocks.2.mlp.fc1.weight: {wanted}")
    assert result.verdict.startswith("equal: ")
    assert result.verdict.endswith(f"; suspicious: {warning}")


def test_a_fresh_model_is_no_damage_where_the_file_says_so(tmp_path: Path) -> None:
    model = create_model(TINY)
    save_checkpoint(tmp_path / "new.pth", model)
    untold = compared(tmp_path / "new.pth")
    assert len(untold.problems) == 2
    assert "never trained, or not loaded" in untold.verdict
    save_checkpoint(tmp_path / "new.pth", model, extra={"maecli": {"position": {"step": 0}}})
    told = compared(tmp_path / "new.pth")
    assert told.equal, told.verdict
    assert sum("as the file itself says" in note for note in told.official.weights.notes) == 2
    save_checkpoint(tmp_path / "new.pth", model, extra={"maecli": {"position": {"step": 500}}})
    assert not compared(tmp_path / "new.pth").equal


def test_large_finite_numbers_are_not_called_infinite(tmp_path: Path) -> None:
    state = official.weights(TINY)
    state["blocks.1.mlp.fc1.weight"][0, :2] = 3e38
    result = compared(written(tmp_path, state))
    assert result.official.weights.not_finite == ()
    assert "blocks.1.mlp.fc1.weight" in result.official.weights.problems[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored_as", ["itself", "float32"])
def test_rounded_weights_are_a_precision_not_a_failure(dtype: torch.dtype, stored_as: str, tmp_path: Path) -> None:
    state = {key: tensor.to(dtype) for key, tensor in official.weights(TINY).items()}
    if stored_as == "float32":
        state = {
            key: tensor.float() if "pos_embed" not in key else official.weights(TINY)[key]
            for key, tensor in state.items()
        }
    result = compared(written(tmp_path, state))
    assert result.equal, result.verdict
    name = str(dtype).removeprefix("torch.")
    assert result.official.weights.precision == (name if stored_as == "itself" else f"{name}, stored as float32")
    assert any(name in note for note in result.official.weights.notes)


def test_what_a_good_file_is(tmp_path: Path) -> None:
    report = compared(written(tmp_path, official.weights(TINY))).official
    assert (report.kind, report.dialect, report.variant, report.target) == ("full", "official", None, "unknown")
    assert (report.encoder, report.decoder) == ("128/3/2", "64/2/4")
    assert (report.weights.matched, report.weights.precision) == (74, "float32")
    assert dict(report.weights.tables) == {"pos_embed": "formula", "decoder_pos_embed": "formula"}
    assert sum(group.tensors for group in report.weights.groups) == 74
    assert sum(group.parameters for group in report.weights.groups) == report.parameters
    tokens = next(group for group in report.weights.groups if group.name == "tokens")
    both = torch.cat([official.weights(TINY)[key].flatten() for key in ("cls_token", "mask_token")])
    assert tokens.rms == pytest.approx(float(both.square().mean().sqrt()), rel=1e-6)
    assert tokens.largest == pytest.approx(float(both.abs().max()))


def test_the_rms_of_huge_values_is_finite(tmp_path: Path) -> None:
    state = official.weights(TINY) | {"cls_token": torch.full((1, 1, 128), 1e30)}
    tokens = next(one for one in compared(written(tmp_path, state)).official.weights.groups if one.name == "tokens")
    assert tokens.rms == pytest.approx((2 / 3) ** 0.5 * 1e30, rel=1e-6)


def test_a_fine_tuned_file(tmp_path: Path) -> None:
    state = {key: t for key, t in official.weights(TINY).items() if not official.is_decoder(key) and key[:5] != "norm."}
    state["pos_embed"] += 0.1  # fine-tuning trains it
    state |= {"fc_norm.weight": torch.full((128,), 0.9), "fc_norm.bias": torch.full((128,), 0.1)}
    state |= {"head.weight": torch.randn(10, 128), "head.bias": torch.randn(10)}
    result = compared(written(tmp_path, state))
    assert result.equal, result.verdict
    assert result.official.kind == "fine-tuned"
    assert [stage.name for stage in result.computations[0].stages[-2:]] == ["encoder block 2", "logits"]


@pytest.mark.parametrize("first", [0, *(pytest.param(first, marks=pytest.mark.slow) for first in range(1, 5))])
def test_a_tensor_of_any_other_shape_is_named(first: int, tmp_path: Path) -> None:
    """One shape for each tensor; the slow runs together try all shapes for every tensor."""
    shapes: list[tuple[int, ...]] = [(), (0,), (1,), (3, 5), (2, 3, 4, 5, 6)]
    state = official.weights(MAEConfig((16, 16), 8, 1, 16, 1, 1, 16, 1, 2))
    for number, key in enumerate(state, first):
        path = written(tmp_path, state | {key: torch.ones(shapes[number % 5])})
        try:
            said = compared(path, num_heads=1, decoder_num_heads=2).verdict
        except CheckpointError as error:
            said = error.message
        assert key in said, (key, said)


# Defects that only computation shows: a defect in our loaded model, and the stage where it must be found.
def _transposed(model: MaskedAutoencoder) -> None:
    weight = model.get_parameter("encoder.blocks.1.attn.proj.weight")
    weight.data = weight.data.T.contiguous()


def _exchanged_q_k(model: MaskedAutoencoder) -> None:
    for part in ("weight", "bias"):
        parameter = model.get_parameter(f"decoder.blocks.0.attn.qkv.{part}")
        q, k, v = parameter.data.chunk(3)
        parameter.data = torch.cat([k, q, v])


def _eps(model: MaskedAutoencoder) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5


def _one_eps(model: MaskedAutoencoder) -> None:
    model.decoder.norm.eps = 1e-5


def _tanh(model: MaskedAutoencoder) -> None:
    for module in model.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh"


def _bias(name: str) -> Callable[[MaskedAutoencoder], None]:
    def zero(model: MaskedAutoencoder) -> None:
        model.get_parameter(name).data.zero_()

    return zero


def _skipped(model: MaskedAutoencoder) -> None:
    del model.encoder.blocks[1]


def _passed_through(model: MaskedAutoencoder) -> None:
    model.decoder.blocks[1].forward = lambda x, first_query=0: x  # type: ignore[method-assign]


def _channel_row_column(model: MaskedAutoencoder) -> None:
    """The projection reads a patch in the order of a convolution."""
    projection = model.patch_embed.proj.weight
    size = projection.shape
    projection.data = projection.data.reshape(size[0], size[2], size[3], size[1]).permute(0, 3, 1, 2).contiguous()


def _channels_first_patchify(imgs: Tensor, patch_size: int) -> Tensor:
    patches = patchify(imgs, patch_size)
    return patches.unflatten(-1, (patch_size**2, imgs.shape[1])).transpose(-1, -2).flatten(-2)


def _biased(patches: Tensor) -> tuple[Tensor, Tensor]:
    variance = patches.var(dim=-1, keepdim=True, correction=0)
    return patches.mean(dim=-1, keepdim=True), (variance + 1e-6).sqrt()


INJECTED: dict[str, tuple[Callable[[MaskedAutoencoder], None], str]] = {
    "a transposed weight": (_transposed, "encoder block 1"),
    "q and k exchanged": (_exchanged_q_k, "decoder block 0"),
    "eps 1e-5": (_eps, "encoder block 0"),
    "eps 1e-5 in one norm": (_one_eps, "decoder norm"),
    "GELU's tanh form": (_tanh, "encoder block 0"),
    "a query bias zeroed": (_bias("encoder.blocks.2.attn.qkv.bias"), "encoder block 2"),
    "a norm's bias zeroed": (_bias("encoder.norm.bias"), "encoder norm"),
    "an MLP's bias zeroed": (_bias("decoder.blocks.1.mlp.fc2.bias"), "decoder block 1"),
    "the prediction's bias zeroed": (_bias("decoder.pred.bias"), "prediction"),
    "the projection's bias zeroed": (_bias("patch_embed.proj.bias"), "patch embedding"),
    "a block skipped": (_skipped, "encoder block 1"),
    "a block passed through": (_passed_through, "decoder block 1"),
    "patches read (channel, row, column)": (_channel_row_column, "patch embedding"),
}


@pytest.mark.parametrize("name", INJECTED)
def test_what_computation_shows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject, stage = INJECTED[name]

    def build(checkpoint: Checkpoint) -> MaskedAutoencoder:
        model = copy.deepcopy(build_usable(checkpoint)).requires_grad_(False)
        inject(model)
        return model

    path = written(tmp_path, official.weights(TINY))
    monkeypatch.setattr(mae.comparison.run, "build_usable", build)
    result = compared(path)
    assert result.computations[0].precision == "float64"
    assert result.computations[0].first_beyond == stage
    assert not result.equal
    assert f"computation differs from paper from {stage!r} on (float64)" in " ".join(result.problems)


@pytest.mark.parametrize(
    ("attribute", "defect", "stage"),
    [
        ("patch_statistics", _biased, "loss, normalised"),
        ("patchify", _channels_first_patchify, "loss, pixels"),
    ],
)
def test_what_the_loss_shows(
    attribute: str, defect: Callable[..., Any], stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, official.weights(TINY))
    monkeypatch.setattr(f"mae.mae.{attribute}", defect)
    result = compared(path)
    assert [one.first_beyond for one in result.computations] == [stage, stage]


def test_a_patch_order_that_embeds_wrongly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, official.weights(TINY))
    monkeypatch.setattr("mae.patch_embed.patchify", _channels_first_patchify)
    assert compared(path).computations[0].first_beyond == "patch embedding"


def test_a_key_bias_changes_nothing_but_is_missed_in_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant added to all keys does not change the softmax: the computation is the same, the weights differ."""

    def build(checkpoint: Checkpoint) -> MaskedAutoencoder:
        model = copy.deepcopy(build_usable(checkpoint)).requires_grad_(False)
        model.get_parameter("encoder.blocks.0.attn.qkv.bias").data[128:256] = 0
        return model

    path = written(tmp_path, official.weights(TINY))
    monkeypatch.setattr(mae.comparison.run, "build_usable", build)
    result = compared(path)
    assert not any(one.first_beyond for one in result.computations)
    assert result.verdict.startswith("different: not in our model as in the file: blocks.0.attn.qkv.bias")


def test_float32_has_its_own_tolerance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An eps of 1e-5 is hidden by float32's rounding but not by float64's; so both are computed."""

    def build(checkpoint: Checkpoint) -> MaskedAutoencoder:
        model = build_usable(checkpoint)
        _eps(model)
        return model

    path = written(tmp_path, official.weights(TINY))
    monkeypatch.setattr(mae.comparison.run, "build_usable", build)
    double, single = compared(path).computations
    assert (double.precision, single.precision) == ("float64", "float32")
    assert double.first_beyond == "encoder block 0"
    assert single.first_beyond is None
    assert 1e-7 < double.stages[2].relative < 1e-5


def test_differences_by_hand() -> None:
    theirs = {"a": torch.tensor([3.0, 4.0]), "b": torch.zeros(2), "c": torch.ones(2), "d": torch.ones(2)}
    ours = {"a": torch.tensor([3.0, 4.5]), "b": torch.zeros(2), "c": torch.ones(3)}
    a, b, c, d = compare_stages(ours, theirs)
    assert (a.name, a.largest, a.relative) == ("a", 0.5, pytest.approx(0.1))
    assert (b.largest, b.relative) == (0.0, 0.0)
    assert c.largest == d.largest == c.relative == d.relative == float("inf")
    for value in (float("nan"), float("inf")):
        (lost,) = compare_stages({"a": torch.tensor([value, 4.0])}, {"a": theirs["a"]})
        assert np.isnan(lost.largest)
        assert lost.relative == float("inf")


def test_the_reference_shares_no_code_with_the_model() -> None:
    source = Path(run_reference.__code__.co_filename).read_text()
    imported = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert not any("mae" in line for line in imported)
    assert "torch.nn" not in source
    assert "F." not in source


# A clone of the official repository.
@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the clone's code in this process, so that timm is imported once; its changes are undone."""
    vision_transformer = pytest.importorskip("timm.models.vision_transformer")

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[:3] == [sys.executable, "-m", "mae.comparison.clone"]
        with monkeypatch.context() as patch:
            patch.setattr(vision_transformer, "Block", vision_transformer.Block)
            patch.setattr(np, "float", float, raising=False)
            patch.setattr(torch, "rand", torch.rand)
            patch.setattr(sys, "path", list(sys.path))
            try:
                mae.comparison.clone._child(*command[3:])
            except Exception as error:
                return subprocess.CompletedProcess(command, 1, "", f"{type(error).__name__}: {error}\n")
            finally:
                sys.modules.pop("models_mae", None)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.parametrize("name", ["golden_tiny", "golden_gray"])
def test_a_users_clone(name: str, tmp_path: Path, in_this_process: None) -> None:
    config = official.GOLDEN[name]
    heads = {"num_heads": config.num_heads, "decoder_num_heads": config.decoder_num_heads}
    result = compared(written(tmp_path, official.weights(config)), reference=str(CLONE), **heads)
    assert result.equal, result.verdict
    (one,) = result.computations
    assert one.reference == "the clone"
    assert one.largest < 1e-12
    assert len(one.stages) == (14 if config.in_chans == 3 else 10)  # its loss knows three channels only


@pytest.mark.slow
def test_a_users_clone_runs_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    (tmp_path / "mae.py").write_text("raise OSError('a file of the user')")
    monkeypatch.chdir(tmp_path)
    assert compared(written(tmp_path, official.weights(TINY)), reference=str(CLONE)).equal
    assert "models_mae" not in sys.modules
    (tmp_path / "models_mae.py").write_text("raise OSError('no disk')")
    with pytest.raises(ConfigError, match="the clone's model cannot run: OSError: no disk"):
        compared(tmp_path / "file.pth", reference=str(tmp_path))


def test_a_clone_that_differs_is_caught(tmp_path: Path, in_this_process: None) -> None:
    source = (CLONE / "models_mae.py").read_text()
    (tmp_path / "models_mae.py").write_text(source.replace("self.decoder_norm(x)", "self.decoder_norm(x.relu())"))
    result = compared(written(tmp_path, official.weights(TINY)), reference=str(tmp_path))
    assert result.computations[0].first_beyond == "decoder norm"


def test_a_clone_that_cannot_run(tmp_path: Path, in_this_process: None) -> None:
    path = written(tmp_path, official.weights(TINY))
    with pytest.raises(ConfigError, match=r"no clone of the official repository \(it has no models_mae\.py\)"):
        compared(path, reference=str(tmp_path))
    (tmp_path / "models_mae.py").write_text("raise OSError('no disk')")
    with pytest.raises(ConfigError, match="the clone's model cannot run: OSError: no disk"):
        compared(path, reference=str(tmp_path))


def test_a_clone_whose_message_is_in_another_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    (tmp_path / "models_mae.py").touch()
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nprintf 'd\\351fense' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ConfigError, match="the clone's model cannot run: d\ufffdfense"):
        compared(written(tmp_path, official.weights(TINY)), reference=str(tmp_path))


# Two files.
def test_the_same_weights_in_two_dialects(tmp_path: Path) -> None:
    model = create_model(TINY)
    model.load_state_dict(official.weights(TINY))
    save_checkpoint(tmp_path / "own.pth", model)
    result = compared(written(tmp_path, official.weights(TINY)), checkpoint=tmp_path / "own.pth")
    assert result.equal, result.verdict
    assert result.verdict.endswith("; both files hold the same weights")
    assert result.files is not None
    assert (result.files.equal, result.files.differing) == (74, ())
    assert result.between is not None
    assert result.between.largest == 0


def test_a_changed_tensor(tmp_path: Path) -> None:
    state = official.weights(TINY)
    first = written(tmp_path, state, "first.pth")
    state["decoder_blocks.1.mlp.fc1.bias"][7] += 1e-5
    state["norm.weight"][0] += 0.5
    result = compared(first, checkpoint=written(tmp_path, state, "second.pth"))
    assert not result.equal
    assert result.files is not None
    assert [tensor.name for tensor in result.files.differing] == ["norm.weight", "decoder_blocks.1.mlp.fc1.bias"]
    assert result.files.differing[0].largest == pytest.approx(0.5, rel=1e-5)
    assert result.files.differing[1].largest == pytest.approx(1e-5, rel=1e-2)
    assert result.files.equal == 72
    assert result.between is not None
    assert result.between.first_beyond == "encoder norm"
    assert "2 tensors differ between the files, most of all norm.weight" in result.verdict


def test_rounding_alone_is_no_difference(tmp_path: Path) -> None:
    state = official.weights(TINY)
    first = written(tmp_path, state, "first.pth")
    second = written(tmp_path, {key: tensor.bfloat16() for key, tensor in state.items()}, "second.pth")
    result = compared(first, checkpoint=second)
    assert result.equal, result.verdict
    assert result.verdict.endswith("; the files differ by rounding alone")
    assert result.files is not None
    assert all(tensor.rounding for tensor in result.files.differing)


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    state = official.weights(TINY)
    first = written(tmp_path / "a", state)
    state["blocks.1.norm2.bias"][3] = float("nan")
    result = compared(first, checkpoint=written(tmp_path / "b", state))
    assert result.checkpoint is not None
    assert (result.official.name, result.checkpoint.name) == ("a/file.pth", "b/file.pth")
    assert result.problems[0] == "b/file.pth: blocks.1.norm2.bias: NaN or infinity"
    assert compared(first).official.name == "file.pth"


def test_files_of_other_sizes(tmp_path: Path) -> None:
    first = written(tmp_path, official.weights(TINY), "first.pth")
    other = TINY.replace(depth=2)
    second = written(tmp_path, official.weights(other), "second.pth")
    result = compared(first, checkpoint=second)
    assert not result.equal
    assert "the files' sizes differ: depth is 3 and 2" in result.verdict
    assert any("only in the first file: blocks.2.norm1.weight" in problem for problem in result.problems)
    assert result.between is None


def test_files_of_other_targets(tmp_path: Path) -> None:
    """Files with the same bits are different models if their decoders have different targets."""
    paths = []
    for normalised in (False, True):
        model = create_model(TINY.replace(norm_pix_loss=normalised))
        model.load_state_dict(official.weights(TINY))
        paths.append(tmp_path / f"{normalised}.pth")
        save_checkpoint(paths[-1], model)
    result = compared(paths[0], checkpoint=paths[1])
    assert not result.equal
    (problem,) = result.problems
    assert problem == "the files' decoders predict different targets: norm_pix_loss is false and true"
    assert result.between is not None
    assert result.between.largest == 0

    unknown = compared(written(tmp_path, official.weights(TINY)), checkpoint=paths[1])
    assert unknown.equal, unknown.verdict
    assert "norm_pix_loss is true in True.pth; file.pth does not say, so it is not compared" in unknown.notes


def test_the_differing_sizes_alone_are_shown(tmp_path: Path) -> None:
    first = written(tmp_path, official.weights(TINY), "first.pth")
    second = written(tmp_path, official.weights(TINY.replace(depth=2, decoder_depth=1)), "second.pth")
    problems = compared(first, checkpoint=second).problems
    assert problems[0] == "the files' sizes differ: depth is 3 and 2; decoder_depth is 2 and 1"
    encoder = {key: tensor for key, tensor in official.weights(TINY).items() if not official.is_decoder(key)}
    problems = compared(first, checkpoint=written(tmp_path, encoder, "encoder.pth")).problems
    assert not any("sizes" in problem for problem in problems)


def test_assumed_heads_qualify_the_verdict(tmp_path: Path) -> None:
    path = written(tmp_path, official.weights(TINY))
    guessed = compared(path, num_heads=None, decoder_num_heads=None)
    assert guessed.official.assumed == {"num_heads": 2, "decoder_num_heads": 2}
    qualified = "with 2 heads assumed in the encoder and 2 heads assumed in the decoder"
    assert f"computes as paper, as far as can be told {qualified} (" in guessed.verdict
    assert "as far as" not in compared(path).verdict
    one = compared(path, num_heads=None).verdict
    assert "with 2 heads assumed in the encoder (" in one


def test_both_reconstructions_side_by_side(tmp_path: Path) -> None:
    state = official.weights(TINY)
    first = written(tmp_path, state, "first.pth")
    state["decoder_pred.bias"] += 1
    second = written(tmp_path, state, "second.pth")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 64, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    out = tmp_path / "both.png"
    result = compared(first, checkpoint=second, out=out, image=tmp_path / "photo.png")
    assert result.out == out
    with Image.open(out) as page:
        assert page.width > 4 * 192


def test_options_that_cannot_work(tmp_path: Path) -> None:
    path = written(tmp_path, official.weights(TINY))
    for options, message in (
        ({"reference": "timmm"}, "neither auto, paper, transformers, timm nor a folder"),
        ({"out": tmp_path / "x.png"}, "needs --checkpoint"),
        ({"out": tmp_path / "x.tif", "checkpoint": path}, r"must end in \.png"),
        ({"out": tmp_path / "no/x.png", "checkpoint": path}, "there is no folder"),
        ({"mask_ratio": 0.0}, "masks no patch"),
    ):
        with pytest.raises(ConfigError, match=message):
            compared(path, **options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no such file"):
        compared(path, image=tmp_path / "none.png")
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        compared(tmp_path / "none.pth")


def test_a_library_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, official.weights(TINY))
    monkeypatch.setattr("mae.comparison.libraries.is_installed", lambda library: False)
    with pytest.raises(ConfigError, match="--reference timm: timm is not installed"):
        compared(path, reference="timm")
    with pytest.raises(ConfigError, match="timm, which it needs, is not installed"):
        compared(path, reference=str(CLONE))
    result = compared(path, reference="auto")
    assert result.equal
    assert {one.reference for one in result.computations} == {"paper"}
    assert any("not compared with transformers: transformers is not installed" in note for note in result.notes)
