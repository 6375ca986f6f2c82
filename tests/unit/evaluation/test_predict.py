"""Predicting classes: most probable first, for files, folders and archives; checkpoints without a head."""

from __future__ import annotations

import csv
import gc
import json
import zipfile
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mae.checkpoints import load_checkpoint
from mae.checkpoints.classifiers import about_classes, build_classifier
from mae.checkpoints.save import checkpoint_document, save
from mae.config import MAEConfig
from mae.data.image_transform import transforms
from mae.errors import CheckpointError, ConfigError, DataError
from mae.evaluation.config import PredictConfig
from mae.evaluation.extract import Progress
from mae.evaluation.predict import predict
from mae.models.classifier import ImageClassifier
from mae.system.seeding import seeded
from maecli.app import app
from tests.unit.evaluation.small import SIZES, checkpoint, class_folders

NAMES = ("blue", "green", "red", "unknown")


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    with seeded(3):
        model = ImageClassifier(MAEConfig(**SIZES | {"img_size": (16, 16)}), 4)
        torch.nn.init.normal_(model.head.weight)  # type: ignore[arg-type]
    extra = {"maecli": about_classes(NAMES, "mean")}
    save(tmp_path / "classifier.pth", checkpoint_document(model.state_dict(), model.config, extra=extra))
    return tmp_path / "classifier.pth"


def config(images: Path, classifier: Path, **changes: object) -> PredictConfig:
    settings = {"images": (images,), "checkpoint": classifier, "workers": 0, "device": "cpu", "precision": "fp32"}
    return PredictConfig(**settings | {"batch_size": 2} | changes)  # type: ignore[arg-type]


def test_the_likeliest_classes_are_named_in_order(tmp_path: Path, classifier: Path) -> None:
    class_folders(tmp_path / "images", 2)
    result = predict(config(tmp_path / "images", classifier, top_k=9, out=tmp_path / "table.csv"))
    model, _ = build_classifier(load_checkpoint(classifier))
    assert len(result.predictions) == 6
    for one in result.predictions:
        with torch.no_grad():
            shares = model(transforms(model)(one.image)[None]).softmax(dim=1)[0]
        wanted = sorted(zip(NAMES, shares.tolist(), strict=True), key=lambda pair: -pair[1])
        assert [name for name, _ in one.classes] == [name for name, _ in wanted]
        assert [share for _, share in one.classes] == pytest.approx([share for _, share in wanted], rel=1e-4)
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [row["class_1"] for row in rows] == [one.classes[0][0] for one in result.predictions]
    assert rows[0]["image"] == result.predictions[0].image
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in sorted((tmp_path / "images").rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path / "images"))
    packed = predict(config(tmp_path / "images.zip", classifier))
    assert [one.classes[0] for one in packed.predictions] == [one.classes[0] for one in result.predictions]


def test_broken_images_are_skipped_unless_all_are(tmp_path: Path, classifier: Path) -> None:
    class_folders(tmp_path / "images", 2)
    broken = tmp_path / "images/red/0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    page = tmp_path / "images/red/page.png"  # found while looking at the files, so it is not one of those to predict
    page.write_text("<html>")
    progress: list[Progress] = []
    result = predict(config(tmp_path / "images", classifier), progress.append)
    assert (len(result.predictions), [name for name, _ in result.skipped]) == (5, [str(page), str(broken)])
    assert (progress[-1].done, progress[-1].total) == (6, 6)
    with pytest.raises(DataError, match=r"none of 1 images can be read, for instance .*0\.png"):
        predict(config(broken, classifier))


def test_an_encoder_without_a_head_is_refused_with_what_to_type(tmp_path: Path) -> None:
    weights = checkpoint(tmp_path / "mae.pth")
    class_folders(tmp_path / "images", 1)
    with pytest.raises(CheckpointError, match=r"mae\.pth holds no classification head") as refused:
        predict(config(tmp_path / "images", weights))
    assert refused.value.hint == f"train one on labelled images: maecli finetune DATA --init {weights}"
    done = CliRunner().invoke(app, ["predict", str(tmp_path / "images"), "--checkpoint", str(weights)])
    assert done.exit_code == 4


def test_a_classifier_that_was_not_trained_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"there is no classifier in \./finetuned") as error:
        predict(PredictConfig(images=(tmp_path,)))
    assert "maecli finetune DATA" in (error.value.hint or "")


def test_a_file_without_names_gives_numbers_and_says_so(tmp_path: Path, classifier: Path) -> None:
    document = torch.load(classifier, weights_only=False)
    save(tmp_path / "official.pth", {"model": document["model"]})
    class_folders(tmp_path / "images", 1)
    result = predict(config(tmp_path / "images", tmp_path / "official.pth"))
    assert {one.classes[0][0] for one in result.predictions} <= {"0", "1", "2", "3"}
    assert any("has no class names" in note for note in result.notes)


def test_the_command_prints_one_document(tmp_path: Path, classifier: Path) -> None:
    class_folders(tmp_path / "images", 1)
    words = ["predict", str(tmp_path / "images"), "--checkpoint", str(classifier), "--workers", "0", "--top-k", "2"]
    done = CliRunner().invoke(app, [*words, "--json"])
    document = json.loads(done.stdout)
    assert [len(one["classes"]) for one in document["predictions"]] == [2, 2, 2]
    assert set(document["predictions"][0]["classes"][0]) == {"class", "probability"}
    shown = CliRunner().invoke(app, words)
    assert document["predictions"][0]["classes"][0]["class"] in shown.stdout


def test_rows_are_written_as_they_come_and_only_the_first_are_kept(
    tmp_path: Path, classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mae.evaluation import predict as module

    monkeypatch.setattr(module, "MOST_KEPT", 2)
    class_folders(tmp_path / "images", 2)
    whole = predict(config(tmp_path / "images", classifier))
    out = tmp_path / "table.csv"
    alive: list[int] = []
    result = predict(
        config(tmp_path / "images", classifier, out=out),
        lambda _: alive.append(sum(type(one) is module.Prediction for one in gc.get_objects())),
    )
    assert max(alive) - alive[0] <= 3  # the two that are kept and the last one
    assert (result.images, result.predictions) == (6, whole.predictions[:2])
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [(row["image"], row["class_1"]) for row in rows] == [
        (one.image, one.classes[0][0]) for one in whole.predictions
    ]
    assert (whole.images, len(whole.predictions)) == (6, 6)


def test_a_table_is_whole_or_not_there(tmp_path: Path, classifier: Path) -> None:
    class_folders(tmp_path / "images", 2)
    out = tmp_path / "table.csv"
    out.write_text("as it was")

    def interrupted(progress: Progress) -> None:
        if progress.done == 4:
            assert len(list(tmp_path.glob(".table.csv*"))) == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(config(tmp_path / "images", classifier, out=out), interrupted)
    assert out.read_text() == "as it was"
    assert list(tmp_path.glob(".table*")) == []


def test_answers_that_are_no_numbers_are_refused(tmp_path: Path, classifier: Path) -> None:
    document = torch.load(classifier, weights_only=True)
    document["model"]["head.weight"] *= 3e38 / document["model"]["head.weight"].abs().max()
    save(tmp_path / "diverged.pth", document)
    class_folders(tmp_path / "images", 1)
    with pytest.raises(CheckpointError, match=r"diverged\.pth: its logits for .*0\.png are non-finite"):
        predict(config(tmp_path / "images", tmp_path / "diverged.pth"))


def test_more_classes_than_there_are_is_said(tmp_path: Path, classifier: Path) -> None:
    class_folders(tmp_path / "images", 1)
    result = predict(config(tmp_path / "images", classifier, top_k=9))
    assert "--top-k 9: the classifier has only 4 classes, so all are shown" in result.notes


def test_quiet_is_a_line_for_each_image_whatever_the_classes_are_called(tmp_path: Path) -> None:
    with seeded(3):
        model = ImageClassifier(MAEConfig(**SIZES | {"img_size": (16, 16)}), 2)
    extra = {"maecli": about_classes(("a\nb", "c\nd"), "mean")}
    save(tmp_path / "odd.pth", checkpoint_document(model.state_dict(), model.config, extra=extra))
    class_folders(tmp_path / "images", 1)
    words = ["predict", str(tmp_path / "images"), "--checkpoint", str(tmp_path / "odd.pth"), "--workers", "0"]
    lines = CliRunner().invoke(app, [*words, "--quiet"]).stdout.splitlines()
    assert len(lines) == 3
    assert set(lines) <= {"a\\nb", "c\\nd"}


@pytest.mark.parity
@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_compare_and_export_hold_logits_against_others(tmp_path: Path, pool: str) -> None:
    """Comparison with timm and a second file; a changed head is found, and an export keeps the class names."""
    from mae.checkpoints.classifiers import class_names
    from mae.comparison.config import CompareConfig
    from mae.comparison.run import compare
    from mae.exporting.config import ExportConfig
    from mae.exporting.run import export

    with seeded(4):
        model = ImageClassifier(MAEConfig(**SIZES | {"img_size": (16, 16)}), 4, pool=pool, fc_norm=pool == "mean")
        for parameter in model.parameters():  # biases and norms as after training
            torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.1)
    extra = {"maecli": about_classes(NAMES, pool)}
    path = tmp_path / "first.pth"
    save(path, checkpoint_document(model.state_dict(), model.config, extra=extra))
    found = compare(CompareConfig(path))
    by_reference = {(one.reference, one.precision): one for one in found.computations}
    assert {"paper"} <= {name for name, _ in by_reference}
    for one in found.computations:
        assert one.stages[-1].name == "logits"
        assert one.first_beyond is None
    if any(name == "timm" for name, _ in by_reference):
        written = export(ExportConfig(path, "timm", out=tmp_path / "timm.safetensors"))
        assert (written.checked_by, written.output) == ("timm", "logits")
        assert class_names(load_checkpoint(written.out)) == (NAMES, True)
    with torch.no_grad():
        model.head.bias[1] += 0.5  # type: ignore[index, union-attr]
    save(tmp_path / "second.pth", checkpoint_document(model.state_dict(), model.config, extra=extra))
    between = compare(CompareConfig(path, checkpoint=tmp_path / "second.pth")).between
    assert between is not None
    assert between.first_beyond == "logits"


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_an_exported_encoder_has_no_head(tmp_path: Path, pool: str) -> None:
    from mae.checkpoints.classifiers import has_head
    from mae.evaluation.frozen import load_encoder
    from mae.exporting.config import ExportConfig
    from mae.exporting.run import export
    from mae.system.device import Computing

    with seeded(4):
        model = ImageClassifier(MAEConfig(**SIZES | {"img_size": (16, 16)}), 4, pool=pool, fc_norm=pool == "mean")
    extra = {"maecli": about_classes(NAMES, pool)}
    save(tmp_path / "first.pth", checkpoint_document(model.state_dict(), model.config, extra=extra))
    written = export(ExportConfig(tmp_path / "first.pth", "encoder", out=tmp_path / "encoder.pth"))
    checkpoint = load_checkpoint(written.out)
    assert not has_head(checkpoint)
    assert written.output == "features"
    assert "classes" not in checkpoint.extra["maecli"]
    encoder = load_encoder(written.out, Computing(torch.device("cpu"), "fp32"))
    assert encoder.pools_first == (pool == "mean")
    class_folders(tmp_path / "images", 1)
    with pytest.raises(CheckpointError, match="holds no classification head"):
        predict(config(tmp_path / "images", written.out))


def test_several_processes_would_do_the_same_twice(
    tmp_path: Path, classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class_folders(tmp_path / "images", 1)
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="predict runs in one process, and torchrun started several"):
        predict(config(tmp_path / "images", classifier))
