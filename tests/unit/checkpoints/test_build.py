"""Reading and writing models: round trips, other image sizes, errors, and the cost of reading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import mae
from mae.checkpoints import build_model, load_checkpoint, load_weights, save_checkpoint
from mae.checkpoints.build import build_encoder
from mae.checkpoints.pos_tables import follows_formula
from mae.errors import CheckpointError
from mae.mae import MaskedAutoencoder
from mae.models import create_model
from mae.pos_embed import sincos_2d
from tests.golden import official
from tests.processes import finish, start_python

TINY = official.GOLDEN["golden_tiny"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file.pth"
    torch.save(official.checkpoint(TINY), path)
    return path


def read(path: Path) -> tuple[MaskedAutoencoder, tuple[str, ...]]:
    return build_model(load_checkpoint(path, decoder_num_heads=4))


def saved(tmp_path: Path, state: dict[str, Tensor], name: str = "other.pth") -> Path:
    torch.save({"model": state}, tmp_path / name)
    return tmp_path / name


def test_a_model_has_the_files_weights(path: Path) -> None:
    model, notes = read(path)
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert {name for name, _ in model.named_buffers()} == {"pos_embed", "decoder.decoder_pos_embed"}
    assert not notes
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, official.weights(TINY)[key]), key


def test_the_public_names(path: Path) -> None:
    model = mae.from_pretrained(path, decoder_num_heads=4, img_size=(32, 48), norm_pix_loss=True)
    assert model.config == TINY.replace(img_size=(32, 48), norm_pix_loss=True)
    assert mae.load_checkpoint(str(path)).kind == "full"


def test_what_is_saved_is_read_again_bit_for_bit(tmp_path: Path) -> None:
    config = TINY.replace(img_size=(32, 48), in_chans=2, norm_pix_loss=True)
    model = create_model(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.pretraining_loss(torch.randn(2, 2, 32, 48)).backward()
    optimizer.step()
    path = tmp_path / "own.pth"
    save_checkpoint(
        path, model, optimizer=optimizer, epoch=3, scaler={"scale": 2.0}, args={"seed": 5}, extra={"x": [1]}
    )
    checkpoint = load_checkpoint(path)
    assert (checkpoint.dialect, checkpoint.kind, checkpoint.config) == ("maecli", "training", config)
    assert (checkpoint.epoch, checkpoint.scaler, checkpoint.args) == (3, {"scale": 2.0}, {"seed": 5})
    assert checkpoint.extra["x"] == [1]
    assert checkpoint.norm_pix_loss is True
    assert not checkpoint.notes
    assert list(checkpoint.state) == list(model.state_dict())
    for key, tensor in model.state_dict().items():
        assert torch.equal(checkpoint.state[key], tensor)
    again = build_model(checkpoint)[0]
    imgs, noise = torch.randn(2, 2, 32, 48), torch.rand(2, 24)
    assert all(torch.equal(a, b) for a, b in zip(again(imgs, noise=noise), model(imgs, noise=noise), strict=True))
    other = torch.optim.AdamW(again.parameters(), lr=1.0)
    other.load_state_dict(checkpoint.optimizer or {})
    assert other.param_groups[0]["lr"] == 1e-3


def test_official_scripts_read_what_is_saved(tmp_path: Path) -> None:
    """As the official code does: unpickle and load with strict names; only a Namespace besides plain values."""
    path = tmp_path / "own.pth"
    save_checkpoint(path, create_model(TINY), epoch=0, args={"seed": 5})
    document = torch.load(path, weights_only=False)
    assert {key: tuple(tensor.shape) for key, tensor in document["model"].items()} == official.shapes(TINY)
    assert document["args"].seed == 5


def test_another_image_size_computes_the_tables_anew(path: Path) -> None:
    checkpoint = load_checkpoint(path, decoder_num_heads=4)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        checkpoint.state["pos_embed"] = official.weights(TINY)["pos_embed"].to(dtype)
        model, notes = build_model(checkpoint, img_size=(32, 96))
        assert any("pos_embed is recomputed" in note and "8x8 patches in the file, 4x12 here" in note for note in notes)
        wanted = torch.from_numpy(official.position_table(128, (4, 12))).to(dtype).float()
        assert torch.allclose(model.pos_embed, wanted, atol=1e-6)
    assert torch.equal(model.state_dict()["norm.weight"], official.weights(TINY)["norm.weight"])
    scaled, notes = build_model(checkpoint, img_size=(32, 96), scaled_positions=True)
    assert any(note.startswith("decoder_pos_embed") and "scaled to the file's grid" in note for note in notes)
    wanted = sincos_2d(scaled.config.decoder_embed_dim, (4, 12), scaled_to=(8, 8))
    assert torch.equal(scaled.decoder.decoder_pos_embed, wanted)


def test_a_learnt_table_is_resampled_and_said_so(tmp_path: Path) -> None:
    state = official.weights(TINY)
    rows = torch.arange(8.0).repeat_interleave(8)
    state["pos_embed"][0, 1:, 0] = rows  # a ramp, which bicubic resampling keeps in the middle
    model, notes = build_model(load_checkpoint(saved(tmp_path, state), decoder_num_heads=4), img_size=(128, 64))
    assert any("pos_embed is resampled" in note for note in notes)
    ramp = model.pos_embed[0, 1:, 0].reshape(16, 8)
    assert torch.allclose(ramp[4:12, 5], (torch.arange(4, 12) + 0.5) / 2 - 0.5, atol=0.05)
    assert torch.equal(model.pos_embed[0, 0], state["pos_embed"][0, 0])


def test_exchanged_halves_are_not_the_formula(tmp_path: Path) -> None:
    state = official.weights(TINY)
    state["pos_embed"] = state["pos_embed"].roll(64, dims=-1)
    notes = build_model(load_checkpoint(saved(tmp_path, state), decoder_num_heads=4), img_size=128)[1]
    assert any(note.startswith("pos_embed is resampled") for note in notes)
    assert any(note.startswith("decoder_pos_embed is recomputed") for note in notes)
    near = sincos_2d(128, (8, 8))
    assert follows_formula(near, (8, 8))
    near[0, 5, 7] += 2e-4  # as little as this was learnt
    assert not follows_formula(near, (8, 8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_become_float32_aloud(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {key: tensor.to(dtype) for key, tensor in official.weights(TINY).items()}
    model, notes = read(saved(tmp_path, state))
    name = str(dtype).removeprefix("torch.")
    assert any(f"the weights are {name} in the file and float32 in the model" in note for note in notes)
    assert all(torch.equal(tensor, state[key].float()) for key, tensor in model.state_dict().items())


def test_an_encoder_alone_is_refused_with_the_file_to_get(tmp_path: Path) -> None:
    torch.save(official.checkpoint(TINY, "encoder"), tmp_path / "encoder.pth")
    with pytest.raises(CheckpointError, match="encoder only") as caught:
        read(tmp_path / "encoder.pth")
    assert "visualize/mae_visualize_vit_base.pth" in (caught.value.hint or "")


def test_weights_into_a_model_that_exists(path: Path, tmp_path: Path) -> None:
    model = create_model(TINY.replace(img_size=128))
    notes = load_weights(model, load_checkpoint(path))
    assert any("recomputed" in note for note in notes)
    assert torch.equal(model.state_dict()["decoder_pred.bias"], official.weights(TINY)["decoder_pred.bias"])

    torch.save(official.checkpoint(TINY, "encoder"), tmp_path / "encoder.pth")
    model = create_model(TINY)
    fresh = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    notes = load_weights(model, load_checkpoint(tmp_path / "encoder.pth"))
    assert any("the decoder starts from fresh weights" in note for note in notes)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, (fresh if official.is_decoder(key) else official.weights(TINY))[key]), key


def test_a_fine_tuned_file_lends_its_encoder(tmp_path: Path) -> None:
    state = {
        k: v for k, v in official.weights(TINY).items() if not official.is_decoder(k) and not k.startswith("norm.")
    }
    state |= {"head.weight": torch.ones(10, 128), "fc_norm.weight": torch.ones(128)}
    notes = load_weights(create_model(TINY), load_checkpoint(saved(tmp_path, state)))
    assert any("no final encoder norm" in note for note in notes)
    assert any("2 tensors of the file are not part of the model" in note for note in notes)

    neutral = {"norm.weight": torch.ones(128), "norm.bias": torch.zeros(128)}
    for norm in ({}, {"norm.weight": torch.full((128,), 3.0), "norm.bias": torch.ones(128)}):
        found = build_encoder(load_checkpoint(saved(tmp_path, state | norm)))[0].state_dict()
        for key, tensor in (state | neutral | norm).items():
            assert key.startswith(("head.", "fc_norm.")) or torch.equal(found[key], tensor), key
    del state["blocks.0.norm1.weight"]
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors of the model: blocks\.0\.norm1\.weight"):
        load_weights(create_model(TINY), load_checkpoint(saved(tmp_path, state)))


def test_another_width_is_refused(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cls_token must be \(1, 1, 64\); got \(1, 1, 128\) \(and \d+ more\)"):
        load_weights(create_model(official.GOLDEN["golden_gray"]), load_checkpoint(path))


def test_a_refusal_names_the_sizes_that_differ_and_no_other(path: Path) -> None:
    with pytest.raises(CheckpointError) as refused:
        load_weights(create_model(TINY.replace(depth=4, decoder_embed_dim=32)), load_checkpoint(path))
    assert refused.value.hint == (
        "the file's model has other sizes: depth is 4 here and 3 in the file, "
        "decoder_embed_dim is 32 here and 64 in the file; type --depth 3 --decoder-embed-dim 64"
    )


def test_heads_that_differ_fit_and_are_said(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "own.pth", create_model(TINY))
    checkpoint = load_checkpoint(tmp_path / "own.pth")
    assert load_weights(create_model(TINY), checkpoint) == ()
    (note,) = load_weights(create_model(TINY.replace(num_heads=4)), checkpoint)
    assert note == "the file's model has other sizes: num_heads is 4 here and 2 in the file"


_MEASURE = """
import resource, sys, time
import torch
from mae.checkpoints import build_model, load_checkpoint
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
start = time.process_time()
if sys.argv[2] == "ours":  # looks for NaN, and so reads every number
    build_model(load_checkpoint(sys.argv[1]))
else:
    for tensor in torch.load(sys.argv[1], mmap=True, weights_only=True)["model"].values():
        tensor.sum()
print(peak() - before, time.process_time() - start)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_large", "vit_huge"])
def test_reading_copies_nothing(name: str, tmp_path: Path) -> None:
    """Resident memory is at most 1.3 times the file, and the time at most 1.5 times that of mapping and reading it."""
    path = tmp_path / "file.pth"
    torch.save(official.checkpoint(official.GOLDEN[name]), path)

    def measure(way: str) -> tuple[float, float]:
        run = finish(start_python("-c", _MEASURE, path, way))
        assert run.returncode == 0, run.stderr
        peak, seconds = run.stdout.split()
        return float(peak), float(seconds)

    runs = [(measure("ours"), measure("torch")) for _ in range(3)]
    assert max(ours[0] for ours, _ in runs) <= 1.3 * path.stat().st_size
    assert min(ours[1] for ours, _ in runs) <= 1.5 * min(bare[1] for _, bare in runs) + 0.1
    path.unlink()
