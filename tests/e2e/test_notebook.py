"""The notebook of the documentation runs from start to end, and every cell shows its output."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.e2e.documents import ROOT

pytestmark = pytest.mark.e2e

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
KEYS = {"markdown": {"cell_type", "id", "metadata", "source"}}
KEYS["code"] = KEYS["markdown"] | {"execution_count", "outputs"}


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """The result of a cell, as Jupyter shows it: the value of its last line, or None."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(NOTEBOOK), "exec"), names)
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names) if last else None


def test_it_is_a_notebook_without_outputs() -> None:
    """The notebook has format 4.5 with its required keys, and no outputs, which would change with every number."""
    notebook = json.loads(NOTEBOOK.read_text())
    assert set(notebook) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = notebook["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        assert set(cell) == KEYS[cell["cell_type"]]
        assert all(isinstance(line, str) for line in cell["source"])
        assert cell["metadata"] == {}
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
    assert "](notebook.ipynb)" in (ROOT / "docs" / "README.md").read_text()


def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sample_images").symlink_to(ROOT / "sample_images")
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path / "docs")
    names: dict[str, Any] = {}
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    with torch.random.fork_rng():
        shown = [run_cell("".join(cell["source"]), names) for cell in cells]
    profile, run, grid, psnrs, shape, image, numbers, same, error = shown
    assert "vit_base" in profile._repr_html_()
    assert "data:image/png;base64," in run._repr_html_()
    assert grid._repr_png_().startswith(b"\x89PNG")
    assert [name for name, _ in psnrs] == ["cat.jpg", "coffee.jpg"]
    assert shape == (3, 1 + 64, 192)
    assert isinstance(image, Image.Image)
    assert image.size == (64, 64)
    assert numbers[1:] == ((1, 64, 192), 0.75)
    assert same is True
    assert error == (
        "an image of 100x100 pixels is not a whole number of patches of 16",
        "the nearest image size is 96x96",
    )
    assert sorted(path.name for path in tmp_path.glob("docs/*")) == ["notebook-model", "notebook-run"]
