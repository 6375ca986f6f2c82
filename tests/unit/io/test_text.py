"""Untrusted text is made safe for a terminal."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from mae.io.text import a_few, counted, short_names, shown, typed, unfolded


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("photo é 猫.png", "photo é 猫.png"),
        (os.fsdecode(b"caf\xe9.png"), r"caf\xe9.png"),
        ("two\nlines\t", r"two\nlines\t"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\ud800", r"\ud800"),  # a lone surrogate, which JSON and pickles may contain and no encoding accepts
        ("\u202egnp.exe", r"\u202egnp.exe"),
    ],
)
def test_every_text_becomes_one_harmless_line(text: str, line: str) -> None:
    assert shown(text) == line
    assert shown(text).isprintable()


def test_long_texts_are_cut() -> None:
    assert shown("a" * 10**6, 80) == "a" * 80
    assert a_few(["a\n", "b" * 100, "c", "d", "e"]) == rf"a\n, {'b' * 80}, c, d ..."


def test_one_is_counted_in_the_singular() -> None:
    counts = [counted(0, "image"), counted(1, "image"), counted(1200, "image"), counted(2, "class", "classes")]
    assert counts == ["0 images", "1 image", "1,200 images", "2 classes"]


def test_names_are_as_short_as_tells_them_apart() -> None:
    paths = [Path("/runs/a/last"), Path("/runs/b/last"), Path("/runs/b/last")]
    assert short_names(paths[:2]) == ["a/last", "b/last"]
    assert short_names([Path("/runs/a"), Path("/runs/b")]) == ["a", "b"]
    assert short_names(paths) == ["a/last", "b/last (2)", "b/last (3)"]


@pytest.mark.skipif(os.name == "nt", reason="another shell, which quotes otherwise")
@pytest.mark.parametrize("path", ["runs/base-1.0", "my run", "it's/$HOME", "a;b", "-", "~/r\u00e9"])
def test_a_path_can_be_typed_as_it_is_shown(path: str) -> None:
    assert shlex.split(f"maecli report {typed(path)} --json") == ["maecli", "report", path, "--json"]


def test_a_usual_path_is_not_quoted_and_an_odd_one_stays_on_its_line() -> None:
    assert typed("/tmp/runs/base-1.0") == "/tmp/runs/base-1.0"
    assert typed("two\nlines") == r"'two\nlines'"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (Path("s3://bucket/x.tar"), "s3://bucket/x.tar"),
        (Path("https://host/x.tar/a:/b.jpg"), "https://host/x.tar/a:/b.jpg"),
        (Path("/data/s3:/x"), "/data/s3:/x"),
        (Path("C:/photos"), "C:/photos"),
        ("s3://bucket/x.tar", "s3://bucket/x.tar"),
    ],
)
def test_a_url_keeps_its_double_slash(path: str | Path, text: str) -> None:
    assert unfolded(path) == text
    assert shown(path) == text
