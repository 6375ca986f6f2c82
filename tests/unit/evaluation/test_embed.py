"""``embed``: features, names and labels are right in every format, and an interrupted command resumes."""

from __future__ import annotations

import csv
import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from torch import Tensor

import mae
from mae.checkpoints import load_checkpoint
from mae.data.decoding.image import load_image
from mae.data.eval_transform import EvalTransform
from mae.data.transforms import normalise
from mae.errors import CheckpointError, ConfigError, DataError, MaeError
from mae.evaluation import store
from mae.evaluation.config import EmbedConfig
from mae.evaluation.embed import EmbedResult, embed, parts_folder
from mae.evaluation.extract import Progress
from mae.exporting.run import export
from tests.unit.evaluation.small import checkpoint, class_folders, image

FIXED: dict[str, Any] = {"device": "cpu", "precision": "fp32", "workers": 0}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = tmp_path_factory.mktemp("embed")
    class_folders(world / "photos", 5)
    checkpoint(world / "tiny.pth")
    return world


def run(world: Path, out: Path, **changes: Any) -> EmbedResult:
    config = EmbedConfig(
        **{"data": (world / "photos",), "checkpoint": world / "tiny.pth", "out": out, **FIXED, **changes}
    )
    result = embed(config)
    assert result is not None
    return result


def expected(world: Path, names: list[str]) -> Tensor:
    """Tokens computed by the model, (N, 1 + L, D)."""
    model = mae.from_pretrained(world / "tiny.pth")
    images = [EvalTransform((16, 16))(load_image(Path(name))) for name in names]
    with torch.no_grad():
        return model.encode(normalise(torch.stack(images)))


def test_features_are_the_models_own(world: Path, tmp_path: Path) -> None:
    """Each pool with the final norm equals ``model.encode``; names and classes are right."""
    for pool, pick in {
        "cls": lambda x: x[:, 0],
        "mean": lambda x: x[:, 1:].mean(1),
        "patches": lambda x: x[:, 1:],
    }.items():
        result = run(world, tmp_path / "f.npz", pool=pool, batch_size=4)
        found = np.load(tmp_path / "f.npz")
        names = found["names"].tolist()
        torch.testing.assert_close(
            torch.from_numpy(found["features"]), pick(expected(world, names)), atol=1e-5, rtol=1e-5
        )
        assert result.shape == found["features"].shape[1:]
        assert [found["classes"][label] for label in found["labels"]] == [Path(name).parent.name for name in names]
        assert len(names) == len(set(names)) == result.images == 15
        assert json.loads(str(found["settings"]))["pool"] == pool
    assert not parts_folder(tmp_path / "f.npz").exists()


def test_without_the_final_norm_and_from_an_inner_block(world: Path, tmp_path: Path) -> None:
    model = mae.from_pretrained(world / "tiny.pth")
    run(world, tmp_path / "raw.npz", pool="cls", feature_norm="none")
    raw = np.load(tmp_path / "raw.npz")
    with torch.no_grad():
        normed = model.encoder.norm(torch.from_numpy(raw["features"]))
        torch.testing.assert_close(normed, expected(world, raw["names"].tolist())[:, 0], atol=1e-5, rtol=1e-5)
        run(world, tmp_path / "inner.npz", pool="cls", feature_norm="none", layer=1)
        inner = np.load(tmp_path / "inner.npz")["features"]
        del model.encoder.blocks[1]
        images = torch.stack([EvalTransform((16, 16))(load_image(Path(name))) for name in raw["names"].tolist()])
        again = model.encode(normalise(images))[:, 0]
    torch.testing.assert_close(model.encoder.norm(torch.from_numpy(inner)), again, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"--layer 3: .* has 2 blocks"):
        run(world, tmp_path / "f.npz", layer=3)


def test_the_last_blocks_side_by_side(world: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        run(world, tmp_path / f"{number}.npz", pool="cls", layer=number)
    parts = [np.load(tmp_path / f"{number}.npz")["features"] for number in (1, 2)]
    run(world, tmp_path / "both.npz", pool="cls", last_blocks=2)
    np.testing.assert_allclose(np.load(tmp_path / "both.npz")["features"], np.concatenate(parts, axis=1), atol=1e-6)
    with pytest.raises(ConfigError, match=r"--last-blocks 3: .* has 2 blocks$"):
        run(world, tmp_path / "f.npz", last_blocks=3)
    with pytest.raises(ConfigError, match=r"--last-blocks 2: .* has 1 blocks up to --layer"):
        run(world, tmp_path / "f.npz", layer=1, last_blocks=2)
    with pytest.raises(ConfigError, match="--last-blocks 2 has no effect with --pool patches"):
        run(world, tmp_path / "f.npz", pool="patches", last_blocks=2)


def test_every_format_holds_the_same(world: Path, tmp_path: Path) -> None:
    for ending in ("npz", "pt", "csv", "parquet"):
        run(world, tmp_path / f"f.{ending}")
    arrays = np.load(tmp_path / "f.npz")
    wanted, names = arrays["features"], arrays["names"].tolist()
    labels = [arrays["classes"][label] for label in arrays["labels"]]
    loaded = torch.load(tmp_path / "f.pt", weights_only=True)
    assert np.array_equal(loaded["features"].numpy(), wanted)
    assert (loaded["names"], [loaded["classes"][label] for label in loaded["labels"]]) == (names, labels)
    with (tmp_path / "f.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["name", "label", *(f"f{number}" for number in range(32))]
    assert np.array_equal(np.array([row[2:] for row in rows], dtype=np.float32), wanted)
    assert ([row[0] for row in rows], [row[1] for row in rows]) == (names, labels)
    table = parquet.read_table(tmp_path / "f.parquet").to_pydict()
    assert np.array_equal(np.array(table["features"], dtype=np.float32), wanted)
    assert (table["name"], table["label"]) == (names, labels)


def test_half_the_bytes(world: Path, tmp_path: Path) -> None:
    run(world, tmp_path / "full.npz")
    run(world, tmp_path / "half.npz", dtype="float16")
    full, half = (np.load(tmp_path / f"{name}.npz")["features"] for name in ("full", "half"))
    assert half.dtype == np.float16
    assert np.array_equal(full.astype(np.float16), half)


class StoppedError(Exception):
    """Simulates a killed process."""


def test_an_interrupted_command_goes_on(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written parts are not computed again, other settings are refused, and the final file is the same."""
    monkeypatch.setattr(store, "MOST_PART_IMAGES", 4)
    run(world, tmp_path / "whole.npz")
    out = tmp_path / "f.npz"
    config = EmbedConfig(data=(world / "photos",), checkpoint=world / "tiny.pth", out=out, batch_size=2, **FIXED)

    def stop(progress: Progress) -> None:
        if progress.done >= 10:
            raise StoppedError

    with pytest.raises(StoppedError):
        embed(config, stop)
    assert not out.exists()
    with pytest.raises(
        ConfigError, match=r"--out: .*f\.npz\.parts holds parts of other features: .*pool was mean"
    ) as error:
        embed(dataclasses.replace(config, pool="cls"))
    assert "delete" in str(error.value.hint)
    seen: list[Progress] = []
    result = embed(config, seen.append)
    assert result is not None
    assert result.kept == 8
    assert (seen[0].done, seen[0].kept, seen[-1].done, seen[-1].total) == (8, 8, 15, 15)
    assert np.array_equal(np.load(out)["features"], np.load(tmp_path / "whole.npz")["features"])


def test_a_part_that_was_cut_off_is_worked_out_again(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MOST_PART_IMAGES", 4)
    out = tmp_path / "f.npz"
    config = EmbedConfig(data=(world / "photos",), checkpoint=world / "tiny.pth", out=out, batch_size=4, **FIXED)

    def stop(progress: Progress) -> None:
        if progress.done == 12:
            raise StoppedError

    with pytest.raises(StoppedError):
        embed(config, stop)
    broken = parts_folder(out) / "000000.mean-final.npy"
    broken.write_bytes(broken.read_bytes()[:-7])
    result = embed(config)
    assert result is not None
    assert result.kept == 4
    assert np.isfinite(np.load(out)["features"]).all()


def test_archives_and_wrapped_folders_have_labels_too(world: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted((world / "photos").rglob("*.png")):
            archive.write(path, Path("wrapper") / path.relative_to(world / "photos"))
    result = run(world, tmp_path / "f.npz", data=(tmp_path / "photos.zip",))
    assert result.classes == ("blue", "green", "red")
    run(world, tmp_path / "g.npz")
    assert np.array_equal(np.load(tmp_path / "f.npz")["features"], np.load(tmp_path / "g.npz")["features"])
    assert run(world, tmp_path / "h.npz", data=(world / "photos" / "blue", world / "photos" / "red")).classes == (
        "blue",
        "red",
    )


def test_no_class_folders_is_no_error(world: Path, tmp_path: Path) -> None:
    run(world, tmp_path / "f.npz", data=(world / "photos" / "blue",))
    found = np.load(tmp_path / "f.npz")
    assert found["labels"].tolist() == [-1] * 5
    assert len(found["classes"]) == 0


def test_unreadable_images_are_left_out_and_named(tmp_path: Path) -> None:
    checkpoint(tmp_path / "tiny.pth")
    class_folders(tmp_path / "photos", 4)
    broken = tmp_path / "photos" / "green" / "1.png"
    broken.write_bytes(broken.read_bytes()[:300])
    (tmp_path / "photos" / "red" / "page.jpg").write_bytes(b"<html>")
    result = run(tmp_path, tmp_path / "f.npz", max_unreadable=0.5, batch_size=3)
    assert result.images == 11
    assert {Path(name).name for name, _ in result.skipped} == {"1.png", "page.jpg"}
    names = np.load(tmp_path / "f.npz")["names"].tolist()
    assert str(broken) not in names
    assert len(names) == 11
    torch.testing.assert_close(
        torch.from_numpy(np.load(tmp_path / "f.npz")["features"]),
        expected(tmp_path, names)[:, 1:].mean(1),
        atol=1e-5,
        rtol=1e-5,
    )
    with pytest.raises(DataError, match=r"2 of 13 images cannot be read, for instance .*page\.jpg"):
        run(tmp_path, tmp_path / "g.npz")


def test_files_without_a_decoder_and_other_sizes(world: Path, tmp_path: Path) -> None:
    """An encoder-only file gives the same features; another image size adapts the position embeddings."""
    from mae.exporting.config import ExportConfig

    export(ExportConfig(checkpoint=world / "tiny.pth", to="encoder", out=tmp_path / "encoder.pth"))
    run(world, tmp_path / "f.npz")
    run(world, tmp_path / "g.npz", checkpoint=tmp_path / "encoder.pth")
    assert np.array_equal(np.load(tmp_path / "f.npz")["features"], np.load(tmp_path / "g.npz")["features"])
    result = run(world, tmp_path / "h.npz", image_size=(24, 32), pool="patches")
    assert result.shape == (12, 32)
    assert any("pos_embed is recomputed" in note for note in result.notes)


def test_a_fine_tuned_file_uses_its_own_norm(world: Path, tmp_path: Path) -> None:
    """Tokens are pooled before ``fc_norm``, as in training; there is no norm for the class token."""
    found = load_checkpoint(world / "tiny.pth")
    state = found.state
    kept = {key: tensor.clone() for key, tensor in state.items() if not key.startswith(("decoder", "mask", "norm"))}
    weight, bias = torch.linspace(0.5, 2, 32), torch.linspace(-1, 1, 32)
    head = {
        "fc_norm.weight": weight,
        "fc_norm.bias": bias,
        "head.weight": torch.ones(3, 32),
        "head.bias": torch.ones(3),
    }
    torch.save({"model": kept | head, "maecli": found.extra["maecli"]}, tmp_path / "tuned.pth")
    run(world, tmp_path / "raw.npz", feature_norm="none")
    result = run(world, tmp_path / "f.npz", checkpoint=tmp_path / "tuned.pth")
    raw = torch.from_numpy(np.load(tmp_path / "raw.npz")["features"])
    wanted = torch.nn.functional.layer_norm(raw, (32,), weight, bias, 1e-6)
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "f.npz")["features"]), wanted, atol=1e-5, rtol=1e-5)
    assert any("fine-tuned" in note for note in result.notes)
    with pytest.raises(ConfigError, match="has a norm for that alone"):
        run(world, tmp_path / "f.npz", checkpoint=tmp_path / "tuned.pth", pool="cls")


def test_weights_that_overflow_are_named(world: Path, tmp_path: Path) -> None:
    found = load_checkpoint(world / "tiny.pth")
    state = {key: tensor.clone() for key, tensor in found.state.items()}
    state["norm.bias"][0] = 1e6
    torch.save({"model": state, "maecli": found.extra["maecli"]}, tmp_path / "wild.pth")
    with pytest.raises(CheckpointError, match=r"wild\.pth: its features .*\.png are non-finite") as error:
        run(world, tmp_path / "f.npz", checkpoint=tmp_path / "wild.pth", dtype="float16")
    assert "float32" in str(error.value.hint)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"out": "f.txt"}, ConfigError, "must end in"),
        ({"out": "f.csv", "pool": "patches"}, ConfigError, "a .csv file has one vector per image"),
        ({"out": "nowhere/f.npz"}, ConfigError, "there is no folder"),
        ({"checkpoint": Path("none.pth")}, CheckpointError, "none.pth"),
        ({"data": (Path("none"),)}, DataError, "none"),
        ({"image_size": (20, 20)}, ConfigError, "not a whole number of patches"),
    ],
)
def test_bad_input_is_one_line(
    world: Path, tmp_path: Path, changes: dict[str, Any], kind: type[MaeError], words: str
) -> None:
    out = tmp_path / changes.pop("out", "f.npz")
    with pytest.raises(kind, match=words) as error:
        run(world, out, **changes)
    assert "\n" not in error.value.message


def test_an_input_is_never_overwritten(world: Path, tmp_path: Path) -> None:
    checkpoint(tmp_path / "weights.pt")
    before = (tmp_path / "weights.pt").read_bytes()
    with pytest.raises(ConfigError, match=r"is the .* itself; it would be overwritten"):
        run(world, tmp_path / "weights.pt", checkpoint=tmp_path / "weights.pt")
    assert (tmp_path / "weights.pt").read_bytes() == before


def test_one_large_image_among_small_parts(tmp_path: Path) -> None:
    """Patches of large images give small parts, so memory does not grow with the image size."""
    rows = store.PartStore(tmp_path, {}, images=5000, part_images=store.part_images(2**20))
    assert rows.part_images == 64
    assert [len(rows.indices(part)) for part in (0, rows.parts[-1])] == [64, 5000 % 64]
    image(tmp_path / "x.png", (0, 0, 0), 0)


def test_a_full_disk_is_named_as_the_reason(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    rows = store.PartStore(tmp_path, {}, images=8, part_images=8)
    rows.open("--out")
    features = np.arange(8 * 1024, dtype=np.float32).reshape(8, 1024)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        with pytest.raises(DataError, match=r"cannot write features to .*: File too large"):
            rows.write(0, {"mean": features}, [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert rows.missing() == [0]
    rows.write(0, {"mean": features}, [])
    assert np.array_equal(rows.whole("mean"), features)
