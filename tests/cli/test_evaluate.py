"""``maecli evaluate``: table, JSON document, quiet output, and a one-line error for each mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.at_terminal import run_at
from tests.unit.evaluation.small import checkpoint, class_folders

QUICK = ("--device", "cpu", "--workers", "0", "--no-references", "--probe", "knn")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = tmp_path_factory.mktemp("evaluate")
    class_folders(world / "colours", 10)
    checkpoint(world / "tiny.pth")
    return world


def words(world: Path, *more: str | Path) -> tuple[str | Path, ...]:
    return (
        "evaluate", world / "colours", "--checkpoint", world / "tiny.pth", "--cache", world / "cache", *QUICK, *more
    )  # fmt: skip


def test_the_table_the_document_and_the_value(world: Path) -> None:
    seen = run_at(*words(world, "--probe", "linear"), columns=200)
    assert seen.code == 0, seen.err
    assert "linear" in seen.out
    assert "24 training and 6 test images, 3 classes" in seen.out
    assert "tiny.pth, mean of patches, no norm" in seen.out
    assert "20% of each class (6 of 30 images) are test images, drawn by --seed 0" in seen.err
    document = json.loads(run_at(*words(world, "--json")).out)
    assert document["headline"] is None
    first = document["rows"][0]["scores"][0]["knn"]["20"]["value"]
    assert document["split"] == "seed"
    assert [row["kind"] for row in document["rows"]] == ["checkpoint"] * 4
    assert set(document["rows"][0]["scores"][0]["knn"]) == {"10", "20"}
    assert run_at(*words(world, "--quiet")).out.strip() == f"{first:.4f}"


def test_probes_that_were_not_run_have_no_column(world: Path) -> None:
    seen = run_at(*words(world), columns=200)  # the table has one line per row, however long the path is
    assert seen.code == 0, seen.err
    titles = next(line for line in seen.out.splitlines() if line.startswith("features  ")).split("  ")
    assert [one.strip() for one in titles if one] == ["features", "numbers", "k-NN (20)", "RankMe", "alpha"], seen.out


def test_shares_of_labels_make_a_table_each(world: Path) -> None:
    seen = run_at(*words(world, "--label-fraction", "0.5 1"))
    assert "50 % of the labels: 12 images" in seen.out
    assert "100 % of the labels: 24 images" in seen.out
    narrow = run_at(*words(world), columns=40)
    assert "k-NN" in narrow.out
    assert "…" not in narrow.out


def test_a_terminal_sees_a_bar(world: Path, tmp_path: Path) -> None:
    seen = run_at(*words(world, "--cache", tmp_path), terminal=True)
    assert seen.code == 0
    assert "features" in seen.err
    assert "probing" in seen.err


@pytest.mark.parametrize(
    ("more", "code", "line"),
    [
        (("--probe", "svm"), 2, "must be one of knn, linear, attentive"),
        (("--label-fraction", "2"), 2, "--label-fraction: wanted fractions"),
        (("--tokens-gb", "1"), 2, "--tokens-gb 1 has no effect without --probe attentive"),
        (("--report", "page.pdf"), 2, "must end in .html or .htm"),
        (("--checkpoint", "none.pth"), 4, "none.pth"),
        (("--image-size", "20"), 2, "not a whole number of patches"),
    ],
)
def test_a_mistake_is_a_line_with_its_exit_code(world: Path, more: tuple[str, ...], code: int, line: str) -> None:
    seen = run_at(*words(world, *more))
    assert seen.code == code, seen.err
    assert line in seen.err
    assert not seen.out


def test_data_that_does_not_fit_ends_with_3(world: Path) -> None:
    seen = run_at(
        "evaluate", world / "colours" / "red", "--checkpoint", world / "tiny.pth", "--cache", world / "cache", *QUICK
    )
    assert seen.code == 3
    assert "there are no class folders" in seen.err
    assert "DATA/train/CLASS/image" in seen.err
