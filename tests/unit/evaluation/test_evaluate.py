"""``evaluate``: all numbers equal those of its parts, features are cached, and bad data gives a one-line error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch

from mae.data.decoding.formats import ImageError
from mae.data.sources.paths import ImagePaths
from mae.errors import ConfigError, DataError
from mae.evaluation import attentive as attentive_module
from mae.evaluation import evaluate as module
from mae.evaluation import features as features_module
from mae.evaluation import linear as linear_module
from mae.evaluation.config import EmbedConfig, EvaluateConfig, parse_fractions
from mae.evaluation.embed import embed
from mae.evaluation.evaluate import evaluate
from mae.evaluation.extract import Progress
from mae.evaluation.features import PatchTokens, prune
from mae.evaluation.knn import knn
from mae.evaluation.linear import linear
from mae.evaluation.results import EvaluateResult, Row, percent
from mae.evaluation.store import PartStore
from tests.golden import official
from tests.unit.evaluation.small import checkpoint, class_folders

FIXED: dict[str, Any] = {"device": "cpu", "precision": "fp32", "workers": 0, "probe": ("knn", "linear")}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = tmp_path_factory.mktemp("evaluate")
    class_folders(world / "colours" / "train", 20)
    class_folders(world / "colours" / "test", 6, seed=1)
    checkpoint(world / "tiny.pth")
    return world


@pytest.fixture(autouse=True, scope="module")
def few_steps() -> Iterator[None]:
    """Low accuracy is enough here; the solvers have their own tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attentive_module, "MOST_EPOCHS", 12)
        patch.setattr(linear_module, "MOST_STEPS", 8)
        patch.setattr(linear_module, "ENOUGH_IN_A_TENTH", 1)
        yield


@pytest.fixture(scope="module")
def whole(world: Path) -> EvaluateResult:
    """All probes on a checkpoint and its baselines."""
    return run(world, probe=("knn", "linear", "attentive"), label_fraction=(0.25, 1.0))


def run(world: Path, **changes: Any) -> EvaluateResult:
    given = {"data": world / "colours", "checkpoint": (world / "tiny.pth",), "cache": world / "cache"}
    return evaluate(EvaluateConfig(**{**given, **FIXED, **changes}))


def row(result: EvaluateResult, kind: str, pool: str | None, norm: str | None = "final") -> Row:
    (found,) = (one for one in result.rows if (one.kind, one.pool, one.feature_norm) == (kind, pool, norm))
    return found


def test_the_last_blocks_side_by_side(world: Path, whole: EvaluateResult) -> None:
    both = run(world, probe=("linear", "attentive"), last_blocks=2)
    assert [one.dimensions for one in both.rows if one.kind != "pixels"] == [64, 64, 64, 64, 32, 64, 64, 32]
    assert any("2 blocks side by side" in note for note in both.notes)
    assert row(both, "checkpoint", "patches").scores[-1] == row(whole, "checkpoint", "patches").scores[-1]
    with pytest.raises(ConfigError, match="--last-blocks 2 has no effect with the attentive probe alone"):
        run(world, probe=("attentive",), last_blocks=2)


def test_what_is_asked_of_what(whole: EvaluateResult) -> None:
    """The checkpoint in four views and by attention, then the baselines."""
    seen = [(one.kind, one.pool, one.feature_norm) for one in whole.rows]
    assert seen == [
        ("checkpoint", "cls", "none"),
        ("checkpoint", "cls", "final"),
        ("checkpoint", "mean", "none"),
        ("checkpoint", "mean", "final"),
        ("checkpoint", "patches", "final"),
        ("untrained", "cls", "final"),
        ("untrained", "mean", "final"),
        ("untrained", "patches", "final"),
        ("pixels", None, None),
        ("pixels", None, None),
    ]
    for one in whole.rows:
        assert [scores.label_fraction for scores in one.scores] == [0.25, 1.0]
        assert [scores.train_images for scores in one.scores] == [15, 60]
        attends = one.pool == "patches"
        for scores in one.scores:
            assert (scores.attentive is not None) == attends
            assert (scores.knn is None) == (scores.linear is None) == attends
        assert (one.rank_me is None) == attends
    assert (whole.train_images, whole.test_images, whole.split) == (60, 18, "folders")


def test_a_notebook_shows_the_accuracies(whole: EvaluateResult) -> None:
    page = whole._repr_html_()
    first = row(whole, "checkpoint", "mean").scores[-1]
    assert first.knn is not None
    assert first.linear is not None
    for words in (f"k-NN ({whole.shown_k})", percent(first.knn[whole.shown_k]), percent(first.linear.test), "tiny.pth"):
        assert words in page


def test_colours_are_told_apart_by_pixels(whole: EvaluateResult) -> None:
    pixels = next(one for one in whole.rows if one.subject.startswith("pixels, 16x16"))
    scores = pixels.scores[-1]
    assert scores.linear is not None
    assert scores.linear.test.value > 0.9
    assert scores.linear.test.low < scores.linear.test.value
    assert scores.knn is not None
    assert list(scores.knn) == [10, 20]


def test_the_numbers_are_those_of_embedded_features(world: Path, whole: EvaluateResult, tmp_path: Path) -> None:
    """The same two probes, by hand, on the features that ``embed`` writes."""
    found: dict[str, Any] = {}
    for part in ("train", "test"):
        out = tmp_path / f"{part}.npz"
        given = {name: FIXED[name] for name in ("device", "precision", "workers")}
        data = (world / "colours" / part,)
        embed(EmbedConfig(data=data, checkpoint=world / "tiny.pth", out=out, pool="cls", feature_norm="none", **given))
        with np.load(out) as arrays:
            found[part] = torch.from_numpy(arrays["features"]), arrays["labels"]
    (train, labels), (test, truth) = found["train"], found["test"]
    scores = row(whole, "checkpoint", "cls", "none").scores[-1]
    assert scores.linear is not None
    assert scores.knn is not None
    assert scores.linear.test.value == pytest.approx((linear(train, labels, test, 3).predicted == truth).mean())
    for k, predicted in knn(train, torch.from_numpy(labels), test, 3).predicted.items():
        assert scores.knn[k].value == pytest.approx((predicted == truth).mean())


def test_the_headline_is_chosen_without_the_test_images(whole: EvaluateResult) -> None:
    headline = whole.headline
    assert headline is not None
    held_out = {
        (one.pool, one.feature_norm): one.scores[-1].linear.held_out
        for one in whole.rows
        if one.kind == "checkpoint" and one.scores[-1].linear
    }
    assert held_out[headline.pool, headline.feature_norm] == max(value or 0 for value in held_out.values())
    confusion = np.array(headline.confusion)
    assert confusion.sum(axis=1).tolist() == [6, 6, 6]
    assert np.trace(confusion) / confusion.sum() == pytest.approx(headline.linear.value)
    assert headline.mean_class_accuracy == pytest.approx(np.mean([one.test.value for one in headline.classes]))


def test_the_test_images_are_named_once_by_each_probe(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels of test images are used only by ``accuracy``, once for each probe (and k) of each row."""
    calls = []

    def count(predicted: Any, truth: Any) -> Any:
        calls.append(len(truth))
        return original(predicted, truth)

    original = module.accuracy
    monkeypatch.setattr(module, "accuracy", count)
    run(world, references=False, probe=("linear",))
    assert calls.count(18) == 4


def test_features_are_worked_out_once(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second command computes nothing; other weights, or a changed image, cause a new computation."""
    class_folders(tmp_path / "colours", 5)
    given: dict[str, Any] = {"data": tmp_path / "colours", "cache": tmp_path / "cache", "references": False}
    seen: list[Progress] = []

    def stages(**changes: Any) -> set[str]:
        seen.clear()
        config = EvaluateConfig(**{"checkpoint": (world / "tiny.pth",), **FIXED, **given, **changes})
        evaluate(config, seen.append)
        return {one.stage for one in seen}

    assert "features" in stages()
    assert "features" not in stages()
    assert "features" not in stages(label_fraction=(0.5,), probe=("knn",))
    assert "features" not in stages(seed=3, test_share=0.5)  # the same images, split otherwise
    for other in ({"crop_pct": 0.5}, {"layer": 1}, {"last_blocks": 2}, {"image_size": (32, 32)}, {"precision": "bf16"}):
        assert "features" in stages(**other, probe=("knn",)), other
    checkpoint(tmp_path / "other.pth", depth=1)
    assert "features" in stages(checkpoint=(tmp_path / "other.pth",))
    changed = tmp_path / "colours" / "red" / "0.png"
    changed.write_bytes((tmp_path / "colours" / "blue" / "0.png").read_bytes())
    assert "features" in stages()


def test_several_checkpoints_share_one_pass(world: Path, tmp_path: Path) -> None:
    """There is one untrained encoder for each architecture."""
    checkpoint(tmp_path / "deep.pth", depth=3)
    checkpoint(tmp_path / "wide.pth", img_size=32)
    names = (world / "tiny.pth", tmp_path / "wide.pth", tmp_path / "deep.pth")
    result = run(world, checkpoint=names, probe=("knn",))
    subjects = [one.subject for one in result.rows if (one.pool, one.feature_norm) == ("mean", "final")]
    assert subjects == [*map(str, names), "untrained", "untrained", "untrained"]
    alone = run(world, probe=("knn",))
    assert row(alone, "checkpoint", "mean") == next(
        one for one in result.rows if one.subject == str(names[0]) and (one.pool, one.feature_norm) == ("mean", "final")
    )


def test_the_official_trainers_file_gets_its_numbers(world: Path, tmp_path: Path) -> None:
    tiny = official.GOLDEN["golden_tiny"]
    torch.save(official.checkpoint(tiny, "training"), tmp_path / "official.pth")
    result = run(world, checkpoint=(tmp_path / "official.pth",), references=False)
    assert result.headline is not None
    assert 0 <= result.headline.linear.value <= 1
    assert row(result, "checkpoint", "mean").dimensions == tiny.embed_dim


def test_patches_that_do_not_fit_make_a_part_of_the_images(world: Path) -> None:
    """4 patches of 32 numbers in 2 bytes are 256 bytes an image: 8 kB hold 31 of 78, 15 or 16 of each part."""
    result = run(world, probe=("attentive",), references=False, tokens_gb=8e-6, label_fraction=(0.05, 0.1, 0.5))
    scores = row(result, "checkpoint", "patches").scores
    # The labels are those of images whose patches there are.
    assert [one.attentive and one.attentive.train_images for one in scores] == [3, 6, 15]
    assert [one.attentive and one.attentive.test_images for one in scores] == [15] * 3
    assert any("the attentive probe uses 15 of 60 training images and 15 of 18" in note for note in result.notes)


def test_unreadable_images_are_left_out(tmp_path: Path, world: Path) -> None:
    class_folders(tmp_path / "colours", 10)
    broken = tmp_path / "colours" / "green" / "3.png"
    broken.write_bytes(broken.read_bytes()[:200])
    given = {"data": tmp_path / "colours", "cache": tmp_path / "cache", "references": False, "probe": ("knn",)}
    result = run(world, **given)
    assert (result.train_images + result.test_images, [name for name, _ in result.skipped]) == (29, [str(broken)])
    with pytest.raises(DataError, match=r"1 of 30 images cannot be read, for instance .*3\.png"):
        run(world, **given, max_unreadable=0.01)
    for number in range(10):
        path = tmp_path / "colours" / "green" / f"{number}.png"
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="no training image of green can be read"):
        run(world, **given, max_unreadable=0.9)


def test_an_image_that_can_be_read_again_is_not_left_out_for_ever(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails for a moment changes no file; the rows of all encoders must stay those of the same images."""
    class_folders(tmp_path / "colours", 4)
    checkpoint(tmp_path / "deep.pth", depth=3)
    given = {"data": tmp_path / "colours", "references": False, "probe": ("knn",)}
    once = {**given, "checkpoint": (world / "tiny.pth",), "cache": tmp_path / "cache"}
    load = ImagePaths.open

    def fail(paths: ImagePaths, index: int) -> IO[bytes]:
        if paths.name(index).match("blue/0.png"):
            raise ImageError("blue/0.png", "Input/output error")
        return load(paths, index)

    both = (world / "tiny.pth", tmp_path / "deep.pth")
    with monkeypatch.context() as patch:
        patch.setattr(ImagePaths, "open", fail)
        without = run(world, **{**given, "checkpoint": both, "cache": tmp_path / "without"})
        assert len(run(world, **once).skipped) == len(without.skipped) == 1
    result = run(world, **{**once, "checkpoint": both})
    assert result.skipped == ()
    assert result.rows == run(world, **given, checkpoint=both, cache=tmp_path / "fresh").rows
    checkpoint(tmp_path / "wide.pth", img_size=32)
    monkeypatch.setattr(ImagePaths, "open", fail)
    broken = run(world, **{**once, "checkpoint": (*both, tmp_path / "wide.pth")})  # after two encoders have seen it
    assert (broken.skipped, broken.test_images) == (without.skipped, without.test_images)
    assert broken.rows[: len(without.rows)] == without.rows


def test_thousands_of_parts_need_few_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(features_module, "MOST_OPEN", 4)
    store = PartStore(tmp_path, {}, 120, 2)
    rows = np.arange(120.0).reshape(60, 2, 1)
    for part in store.parts:
        store.write(part, {"all": rows[part]}, [])
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)  # all numbers below it are open files
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 30, before[1]))
    try:
        whole = store.whole("all")
        taken = PatchTokens(store, "all", np.arange(120), np.ones(120, dtype=bool)).take(np.arange(119, -1, -1))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert whole.tolist() == [[number] for number in range(120)]
    assert taken.tolist() == whole.tolist()[::-1]


def test_fewer_labels_than_classes_are_told(world: Path) -> None:
    result = run(world, label_fraction=(0.01,), references=False)
    assert row(result, "checkpoint", "mean").scores[0].train_images == 3
    assert any("fewer than the 3 classes" in note for note in result.notes)
    assert any("with 18 test images, smaller differences" in note for note in result.notes)


def test_shares_of_labels_are_read_as_people_write_them() -> None:
    assert parse_fractions(["0.01 0.1", "1"]) == parse_fractions("0.01,0.1,1") == (0.01, 0.1, 1.0)
    for wrong in ("0", "1.5", "many", "", [], "nan"):
        with pytest.raises(ValueError, match="wanted fractions"):
            parse_fractions(wrong)
    with pytest.raises(ConfigError, match="must end in"):
        EvaluateConfig(data=Path("x"), report=Path("x.txt"))


def test_the_cache_keeps_what_was_used_last(tmp_path: Path) -> None:
    for number, name in enumerate(("old", "new", "used")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.npy").write_bytes(b"0" * 1000)
        os.utime(tmp_path / name, (number, number))
    prune(tmp_path, {tmp_path / "used"}, 2500)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "used"}
    prune(tmp_path, {tmp_path / "used"}, 10)
    assert {path.name for path in tmp_path.iterdir()} == {"used"}


def test_parts_do_not_change_the_numbers(world: Path, whole: EvaluateResult, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches are found across the boundaries of parts."""
    monkeypatch.setattr(features_module, "PART_IMAGES", 7)
    again = run(world, probe=("knn", "linear", "attentive"), label_fraction=(0.25, 1.0), batch_size=5)
    assert [one.scores for one in again.rows] == [one.scores for one in whole.rows]


def test_it_runs_in_one_process(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="evaluate runs in one process") as error:
        run(world)
    assert "embed" in str(error.value.hint)
