"""The shape of the code: imports go one way, and the command line stays lean."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A module imports from its own layer or from a later one.
LAYERS = (
    ("maecli",),
    ("mae.compare", "mae.comparing", "mae.export", "mae.profiling.profile", "mae.training.pretrain", "mae.reconstruct"),
    ("mae.evaluation",),
    ("mae.doctor", "mae.reporting"),
    ("mae.training", "mae.profiling"),
    ("mae.figure", "mae.panels"),
    ("mae.data", "mae.checkpoints"),
    ("mae.environment",),
    ("mae.device", "mae.download"),
    ("mae.seeding", "mae.files", "mae.toml"),
    ("mae.models",),
    ("mae.mae",),
    ("mae.encoder", "mae.decoder"),
    ("mae.transformer",),
    ("mae.attention", "mae.patch_embed", "mae.pos_embed", "mae.masking"),
    ("mae.config", "mae.precision", "mae.results"),
    ("mae.options",),
    ("mae.errors",),
)
# The registry's factories build the model that the registry's sizes describe, inside functions.
ALLOWED = {("mae.models", "mae.mae")}


def sources() -> Iterator[tuple[str, Path]]:
    for package in ("mae", "maecli"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            if name != "mae":
                yield name, path


def layer(module: str) -> int:
    fits = [
        (len(prefix), number)
        for number, prefixes in enumerate(LAYERS)
        for prefix in prefixes
        if module == prefix or module.startswith(prefix + ".")
    ]
    return max(fits)[1] if fits else -1


def imports(path: Path, *, top_level: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if top_level and id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize(
    ("module", "path"), list(sources()), ids=lambda value: str(value) if isinstance(value, str) else ""
)
def test_imports_go_one_way(module: str, path: Path) -> None:
    own = layer(module)
    assert own >= 0, f"{module} has no place in the layers"
    for imported in imports(path):
        if imported.split(".")[0] in ("mae", "maecli") and imported != "mae" and (module, imported) not in ALLOWED:
            assert layer(imported) >= own, f"{module} imports {imported}, which lies above it"


@pytest.mark.parametrize(
    ("module", "path"),
    [(module, path) for module, path in sources() if module.startswith("maecli")],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_the_command_line_starts_without_heavy_imports(module: str, path: Path) -> None:
    heavy = {"torch", "torchvision", "numpy", "PIL", "safetensors"}
    assert not heavy & {name.split(".")[0] for name in imports(path, top_level=True)}


def test_every_test_has_a_time_limit(pytestconfig: pytest.Config) -> None:
    """One that hangs fails within minutes; tests/test_processes.py shows that what it started ends too."""
    assert 0 < float(pytestconfig.getini("timeout")) <= 300
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(name.startswith("pytest-timeout>") for name in extras["test"])


# What starts processes itself: the one place for all tests, a browser, and a script that is no test.
STARTERS = {
    "processes.py",
    "browser/chromium.py",
    "torture/report.py",
    "distributed/test_kill.py",
    "unit/training/test_pretrain.py",
}


def test_processes_are_started_where_they_are_ended_too() -> None:
    """By tests/processes.py: none is left behind, whatever ends its test."""
    calls = {f"subprocess.{name}" for name in ("Popen", "run", "call", "check_call", "check_output")}
    calls |= {"os.fork", "os.system", "os.popen", "os.posix_spawn"}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        called = {
            ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        }
        where = path.relative_to(ROOT / "tests").as_posix()
        assert where in STARTERS or not called & calls, f"tests/{where}: start it with tests/processes.py"
