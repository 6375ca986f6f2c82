"""The structure of the code: import direction, test layout, vocabulary, and a command line without heavy imports."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Modules directly in mae/: the model's files, and the base that all other modules import.
MODEL = ("attention", "transformer", "patch_embed", "pos_embed", "masking", "encoder", "decoder", "mae")
GROUND = ("config", "options", "errors", "__init__")

# A module imports from its own layer or from a later one.
LAYERS = (
    ("maecli",),
    ("mae.demo", "mae.exporting", "mae.profiling"),
    ("mae.comparison", "mae.training"),
    ("mae.evaluation", "mae.inspection"),
    ("mae.reporting", "mae.reconstruction"),
    ("mae.checkpoints",),
    ("mae.data",),
    ("mae.system",),
    ("mae.io",),
    ("mae.models",),
    ("mae.mae",),
    ("mae.encoder", "mae.decoder"),
    ("mae.transformer",),
    ("mae.attention", "mae.patch_embed", "mae.pos_embed", "mae.masking"),
    ("mae.config",),
    ("mae.options",),
    ("mae.errors",),
)
# Imports from a higher layer, allowed only inside functions.
ALLOWED = {
    ("mae.models.registry", "mae.mae"),  # the registry's factories build models
    ("mae.mae", "mae.data.image_transform"),  # ``encode`` also takes files and PIL images
    ("mae.mae", "mae.checkpoints.save"),  # ``save_pretrained`` is a method, as in other libraries
}

# Words that are not used in the field, with the usual words.
BANNED = {
    "picture": "image",
    "deviation": "std",
    "recompute": "activation checkpointing",
    "patience": "timeout",
    "studio": "reconstructor",
    "stranger": "",
    "spread": "parallel",
    "eighths": "DCT scale",
    "nobody_reads": "SIGPIPE",
    "leave_out": "skip",
    "nothing_learnt": "zero prediction",
    "passed_over": "skipped, or unreadable",
    "hold_against": "compare",
    "no_number": "non-finite",
    "anew": "again",
}
# Old spellings that existing files and command lines use.
OLD_SPELLINGS: dict[str, set[str]] = {}


def sources() -> Iterator[tuple[str, Path]]:
    for package in ("mae", "maecli"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            if name != "mae":
                yield name, path


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def layer(module: str) -> int:
    fits = [
        (len(prefix), number)
        for number, prefixes in enumerate(LAYERS)
        for prefix in prefixes
        if module == prefix or module.startswith(prefix + ".")
    ]
    return max(fits)[1] if fits else -1


def imports(path: Path, *, top_level: bool = False) -> Iterator[str]:
    tree = parsed(path)
    hidden = {
        id(inner)
        for node in (ast.walk(tree) if top_level else ())
        if isinstance(node, ast.FunctionDef) or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_imports_go_one_way() -> None:
    wrong = []
    for module, path in sources():
        own = layer(module)
        assert own >= 0, f"{module} has no place in the layers"
        wrong += [
            f"{module} imports {imported}, which lies above it"
            for imported in imports(path)
            if imported.split(".")[0] in ("mae", "maecli") and imported != "mae" and (module, imported) not in ALLOWED
            if layer(imported) < own
        ]
    assert not wrong


def test_no_circle_among_packages() -> None:
    def room(module: str) -> str:
        return ".".join(module.split(".")[:2]) if module.startswith("mae.") else "maecli"

    arrows = {
        (room(module), room(imported))
        for module, path in sources()
        for imported in imports(path)
        if imported.startswith(("mae.", "maecli"))
        if room(module) != room(imported) and (module, imported) not in ALLOWED
    }
    assert not [(a, b) for a, b in arrows if (b, a) in arrows]


def test_the_model_stands_alone_at_the_top() -> None:
    found = {path.stem for path in (ROOT / "mae").glob("*.py")}
    assert found == {*MODEL, *GROUND}


def test_the_command_line_starts_without_heavy_imports() -> None:
    heavy = {"torch", "torchvision", "numpy", "PIL", "safetensors"}
    for module, path in sources():
        if module.startswith("maecli"):
            assert not heavy & {name.split(".")[0] for name in imports(path, top_level=True)}, module


def test_unit_tests_mirror_the_code() -> None:
    for test in sorted((ROOT / "tests" / "unit").rglob("test_*.py")):
        inside = test.relative_to(ROOT / "tests" / "unit")
        if inside.parts in (("test_structure.py",), ("test_models.py",)):  # a test of all modules; a test of a package
            continue
        tested = inside.with_name(inside.name.removeprefix("test_"))
        package = inside.with_name(inside.stem.removeprefix("test_"))
        homes = (ROOT / "mae" / tested, ROOT / "maecli" / tested, ROOT / "mae" / package, ROOT / "maecli" / package)
        assert any(home.exists() for home in homes), f"{inside} tests no file of mae or maecli"


# Functions of the training package that take all settings of a run; others take the values that they need.
MOST_WITH_ALL_SETTINGS = 30


def test_few_functions_take_all_settings_of_a_run() -> None:
    config = re.compile(r"((Pretrain|Run|Classifier|Finetune|Linprobe)?Config)( \| None)?|Start\[.*\]")
    found = [
        f"{module}.{node.name}"
        for module, path in sources()
        if module.startswith("mae.training")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        if any(one.annotation and config.fullmatch(ast.unparse(one.annotation)) for one in node.args.args)
    ]
    assert 10 < len(found) <= MOST_WITH_ALL_SETTINGS, found


def identifiers(path: Path) -> Iterator[str]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def words(identifier: str) -> str:
    """The words of an identifier: those of ``SavedState`` and ``saved_state`` are the same."""
    return "_".join(part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", identifier))


def test_identifiers_use_the_words_of_the_field() -> None:
    wrong = {
        f"{module}: {name} (say {BANNED[word] or 'something else'})"
        for module, path in sources()
        for name in set(identifiers(path))
        for spoken in [words(name)]
        for word in BANNED
        if re.search(rf"(^|_){word}s?(_|$)", spoken) and name not in OLD_SPELLINGS.get(module, set())
    }
    assert not sorted(wrong)


@pytest.mark.parametrize(("identifier", "expected"), [("SavedState", "saved_state"), ("_LossMAE2", "loss_mae_2")])
def test_words_of_an_identifier(identifier: str, expected: str) -> None:
    assert words(identifier) == expected


def test_the_files_that_run_first_are_there(pytestconfig: pytest.Config) -> None:
    """A renamed file would no longer run first, and no other test would notice."""
    (plugin,) = (one for one in pytestconfig.pluginmanager.get_plugins() if hasattr(one, "FIRST"))
    assert [name for name in plugin.FIRST if not (ROOT / "tests" / name).is_file()] == []


def test_every_test_has_a_time_limit(pytestconfig: pytest.Config) -> None:
    """A test that hangs fails within minutes; tests/test_processes.py checks that its processes end too."""
    assert 0 < float(pytestconfig.getini("timeout")) <= 300
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(name.startswith("pytest-timeout>") for name in extras["test"])


# Files that may start processes: the module for all tests, the browser, and a script.
STARTERS = {"processes.py", "browser/chromium.py", "torture/report.py"}


def test_processes_are_started_where_they_are_ended_too() -> None:
    """Only by tests/processes.py, so that no process is left behind, however its test ends."""
    calls = {f"subprocess.{name}" for name in ("Popen", "run", "call", "check_call", "check_output")}
    calls |= {"os.fork", "os.system", "os.popen", "os.posix_spawn"}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text()))
        called = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
        where = path.relative_to(ROOT / "tests").as_posix()
        assert where in STARTERS or not called & calls, f"tests/{where}: start it with tests/processes.py"


# Unclear phrases in messages, docstrings and documents, with plain words for them.
UNCLEAR = {
    r"passed over": "skipped, or unreadable",
    r"(held|hold|holds) against": "compared with",
    r"no finite numbers?": "non-finite",
    r"would hurt": "is likely to be a problem",
    r"learnt by heart": "memorised",
    r"ends the watching": "stops watching",
    r"deviation": "std",
    r"steps? (was|were) left out": "skipped",
    r"[Ww]ork(s|ed|ing)? out": "compute",
    r"computed anew|written anew": "again",
    r"nothing learnt": "predicting zero",
    r"is no number": "is not a number, or non-finite",
    r"without a word": "without a message",
    r"in peace": "",
    r"(examined|looked) at": "examined, scanned",
    r"strangers?'?": "untrusted",
    r"going on after": "resuming after",
    r"(?<!there )(?<!There )is no (file|folder|option|image|tar|plain)": "is not a",
}


def test_texts_use_plain_words() -> None:
    texts = [
        (module, node.value)
        for module, path in sources()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    pages = [path for path in (ROOT / "docs").glob("*.md") if path.name != "robustness.md"]  # it quotes file names
    texts += [(f"docs/{page.name}", line) for page in pages for line in page.read_text().splitlines()]
    wrong = [
        f"{place}: {text[:60]!r} (say {plain or 'something else'})"
        for place, text in texts
        for unclear, plain in UNCLEAR.items()
        if re.search(rf"\b{unclear}\b", text)
    ]
    assert not wrong


def names_in(tree: ast.AST, inside: str = "") -> Iterator[str]:
    """Every class, function and variable of a module, with those of its classes as ``Class.name``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield inside + node.name
            if isinstance(node, ast.ClassDef):
                yield from names_in(node, f"{inside}{node.name}.")
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield inside + node.target.id
        elif isinstance(node, ast.Assign):
            yield from (inside + target.id for target in node.targets if isinstance(target, ast.Name))


def is_defined(dotted: str) -> bool:
    """Whether ``mae.package.module.Class.method`` is defined, by reading the code."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:cut])
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if file.is_file():
            return cut == len(parts) or ".".join(parts[cut:]) in set(names_in(ast.parse(file.read_text())))
    return False


def test_the_architecture_page_names_what_is_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    paths = set(re.findall(r"`((?:mae|maecli|tests)/[\w/.]*)`", page))
    dotted = set(re.findall(r"`((?:mae|maecli)(?:\.\w+)+)`", page))
    assert len(paths) > 20
    assert len(dotted) > 20
    assert not [path for path in sorted(paths) if not (ROOT / path).exists()]
    assert not [name for name in sorted(dotted) if not is_defined(name)]


@pytest.mark.parametrize(
    ("dotted", "expected"),
    [
        ("mae.mae.MaskedAutoencoder.target", True),
        ("mae.models.VARIANTS", False),  # imported there, defined in the registry
        ("mae.mae.MaskedAutoencoder.draw_nothing", False),
        ("mae.no_such_module.name", False),
        ("mae.training.trainer", True),
    ],
)
def test_defined(dotted: str, expected: bool) -> None:
    assert is_defined(dotted) is expected


def test_every_image_of_the_documents_is_shown_and_says_how_it_is_made() -> None:
    pages = "".join(page.read_text() for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    shown = set(re.findall(r"\]\((?:docs/)?images/([\w.-]+)\)", pages))
    there = {path.name for path in (ROOT / "docs" / "images").iterdir()}
    table = [line for line in (ROOT / "docs" / "README.md").read_text().splitlines() if line.startswith("| `")]
    made = {name for line in table for name in re.findall(r"`([\w.-]+)`", line.split("|")[1])}
    assert there == shown == made


def test_the_diagram_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("architecture", ROOT / "benchmarks" / "architecture.py")
    assert spec is not None
    assert spec.loader is not None
    diagram = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(diagram)
    drawn = (ROOT / "docs" / "images" / "architecture.svg").read_text()
    assert drawn == diagram.draw(diagram.arrows()), (
        "run: python benchmarks/architecture.py docs/images/architecture.svg"
    )
    with pytest.raises(ValueError, match="circle: a -> b -> a"):
        diagram.depths({"a": {"b"}, "b": {"a"}})
    assert diagram.reduced({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}
