"""``maecli embed``: JSON document, quiet output, and a one-line error for each mistake."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.at_terminal import run_at
from tests.unit.evaluation.small import checkpoint, class_folders

QUICK = ("--device", "cpu", "--workers", "0")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = tmp_path_factory.mktemp("embed")
    class_folders(world / "photos", 3)
    (world / "photos" / "red" / "page.jpg").write_bytes(b"<html>")
    checkpoint(world / "tiny.pth")
    return world


def test_the_document_the_value_and_the_table(world: Path) -> None:
    words = ("embed", world / "photos", "--checkpoint", world / "tiny.pth", "--out", world / "f.npz", *QUICK)
    seen = run_at(*words, "--max-unreadable", "0.2", "--json")
    document = json.loads(seen.out)
    assert (document["images"], document["shape"], document["classes"]) == (9, [32], ["blue", "green", "red"])
    assert document["skipped"][0]["path"].endswith("page.jpg")
    assert "skipped" in seen.err
    assert np.load(world / "f.npz")["features"].shape == (9, 32)
    assert run_at(*words, "--max-unreadable", "0.2", "--quiet").out.strip() == str(world / "f.npz")
    shown = run_at(*words, "--max-unreadable", "0.2").out
    assert "9 images, 3 classes; 32 numbers each, float32" in shown


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("--out", "f.txt"), 2, "the name must end in .npz, .parquet, .csv, .pt"),
        (("--layer", "9"), 2, "has 2 blocks"),
        (("--pool", "max"), 2, "must be one of cls, mean, patches"),
        (("--checkpoint", "none.pth"), 4, "none.pth"),
        ((), 3, "1 of 10 images cannot be read"),
    ],
)
def test_a_mistake_is_a_line_with_its_exit_code(world: Path, words: tuple[str, ...], code: int, line: str) -> None:
    words = (*words, "--max-unreadable", "0.05")
    seen = run_at(
        "embed", world / "photos", "--checkpoint", world / "tiny.pth", "--out", world / "g.npz", *QUICK, *words
    )
    assert seen.code == code, seen.err
    assert line in seen.err
    assert "Traceback" not in seen.err
    assert not seen.out
