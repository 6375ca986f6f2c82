"""Finds the places in the code that behave differently on an accelerator, by its syntax tree."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"\b(cuda|mps)\b")
MODULES = re.compile(r"torch\.(cuda|mps|accelerator|backends\.(cuda|cudnn|mps))")
QUESTIONS = {"is_cuda", "is_mps", "is_cpu"}


def branches() -> Counter[str]:
    """Number of such places in each function, by ``file function``."""
    found: Counter[str] = Counter()
    for package in ("mae", "maecli"):
        for path in sorted((ROOT / package).rglob("*.py")):
            found.update(in_source(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()))
    return found


def naming_mps() -> set[str]:
    """The functions that name an Apple GPU, which torch cannot simulate."""
    return {place for place in branches() if "mps" in _source_of(place)}


def _source_of(place: str) -> str:
    """The source of a function, or of a file outside its functions."""
    file, _, scope = place.partition(" ")
    node: ast.AST = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    for name in filter(None, scope.split(".")):
        node = next(child for child in ast.walk(node) if getattr(child, "name", None) == name)
    inner = () if scope else (ast.FunctionDef, ast.ClassDef)
    return "\n".join(ast.unparse(child) for child in ast.iter_child_nodes(node) if not isinstance(child, inner))


def in_source(text: str, name: str) -> Iterator[str]:
    """The function of each place in a file that names a device, uses torch's module for one, or checks for one."""
    yield from _in(ast.parse(text), name)


def _in(node: ast.AST, scope: str) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        scope = f"{scope}.{node.name}" if " " in scope else f"{scope} {node.name}"
    if _is_place(node):
        yield scope
        return
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):  # documentation
            yield from _in(child, scope)


def _is_place(node: ast.AST) -> bool:
    if isinstance(node, ast.Compare):  # "cpu" is the other branch of the same condition
        sides = [node.left, *node.comparators]
        return any(
            isinstance(part, ast.Constant) and part.value in ("cpu", "cuda", "mps")
            for side in sides
            for part in ast.walk(side)
        )
    if isinstance(node, ast.Attribute):
        return node.attr in QUESTIONS or MODULES.fullmatch(ast.unparse(node)) is not None
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and NAMED.search(node.value) is not None
