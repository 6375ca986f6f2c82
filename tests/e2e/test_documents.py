"""Every command in README.md and docs/ is run, or the page says why it is not."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

import mae
from mae.checkpoints.builtin import WEIGHTS_FILE, builtin_folder
from mae.evaluation import linear
from maecli.app import app
from tests.e2e.documents import OTHER, PYTHON, REASONS, ROOT, SHELL, Block, blocks, given, inline_commands, pages
from tests.processes import finish, start
from tests.unit.checkpoints.small_builtin import write_builtin
from tests.unit.evaluation.small import class_folders

pytestmark = pytest.mark.e2e

PAGES = {str(page.relative_to(ROOT)): page for page in pages()}
SHELL_ONLY = re.compile(r"[|&;<>$*]")
REDIRECTED = re.compile(r" ([<>]) ([\w.]+)")
SUBSTITUTED = re.compile(r"\"\$\((maecli [^()]+)\)\"")
TINY = (
    "--variant vit_tiny --decoder-embed-dim 64 --decoder-depth 1 --decoder-num-heads 2 "
    "--image-size 32 --patch-size 8 --batch-size 4 --epochs 1 --warmup-epochs 0 --workers 0"
)


class Session:
    """A terminal session in a folder, in which the commands of a page are run one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.printed = self.value = ""
        self.names: dict[str, Any] = {}
        shims = folder / ".shims"
        shims.mkdir()
        for name, words in {"maecli": "-m maecli", "python": "", "torchrun": "-m torch.distributed.run"}.items():
            shim = shims / name
            shim.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable} {words} "$@"\n')
            shim.chmod(0o755)
        self.environment = (
            os.environ
            | {"PATH": f"{shims}:{os.environ['PATH']}", "COLUMNS": "100"}
            | {"MAECLI_CACHE": str(folder / ".cache")}
        )

    def type(self, command: str) -> int:
        """Run a line and record its output."""
        while inner := SUBSTITUTED.search(command):
            if code := self.type(inner[1]):
                return code
            command = command.replace(inner[0], shlex.quote(self.value))
        plain, files = REDIRECTED.sub("", command), dict(REDIRECTED.findall(command))
        words = shlex.split(plain)
        if words[0] == "maecli" and not SHELL_ONLY.search(plain):  # in this process: importing torch takes seconds
            given = (self.folder / files["<"]).read_bytes() if "<" in files else None
            result = CliRunner(env={"COLUMNS": "100"}).invoke(app, words[1:], input=given)
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                raise result.exception
            if ">" in files:
                (self.folder / files[">"]).write_bytes(result.stdout_bytes)
            self.printed, self.value, code = result.output, result.stdout.strip(), result.exit_code
        else:
            done = finish(start("bash", "-c", command, cwd=self.folder, env=self.environment))
            self.printed, code = done.stdout + done.stderr, done.returncode
        return code

    def run(self, block: Block) -> None:
        """Run the commands or the Python code of a block."""
        if block.mark("file"):
            (self.folder / str(block.mark("file"))).write_text(block.text + "\n")
        elif block.language in PYTHON:
            exec(compile("\n" * block.line + block.text, str(block.page), "exec"), self.names)
        elif block.language in SHELL:
            for number, command in enumerate(lines := block.commands(), 1):
                code = self.type(block.smaller(command))
                wanted = int(block.mark("exit code") or 0) if number == len(lines) else 0
                assert code == wanted, f"{block.where}: {command}\nended with {code}\n{self.printed}"
        elif block.mark("says") is not None:
            for line in block.text.splitlines():
                assert squeezed(line) in squeezed(self.printed), f"{block.where}: nothing printed {line!r}"


def squeezed(text: str) -> str:
    return " ".join(text.split())


def photos(folder: Path) -> None:
    """Images of a user, and those of the repository."""
    (folder / "photos").mkdir()
    for name in ("cat", "coffee", "retina", "tulips", "rocket", "pagoda"):
        shutil.copy(ROOT / "sample_images" / f"{name}.jpg", folder / "photos")
    shutil.copy(ROOT / "sample_images" / "cat.jpg", folder)
    for name in ("sample_images", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)


def run(folder: Path) -> None:
    """A finished run of a small model."""
    result = CliRunner().invoke(app, shlex.split(f"pretrain {folder / 'photos'} {TINY} --out {folder / 'run'}"))
    assert result.exit_code == 0, result.output


def scans(folder: Path) -> None:
    """Grey images of 16 bits."""
    (folder / "scans").mkdir()
    stream = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(stream.integers(0, 4096, (48, 40), dtype=np.uint16)).save(folder / "scans" / f"{number}.png")


def flowers(folder: Path) -> None:
    """Class folders, and one more checkpoint to compare with."""
    class_folders(folder / "flowers", 8)
    shutil.copy(folder / "run" / "checkpoint-last.pth", folder / "before.pth")


FIXTURES: dict[str, Callable[[Path], None]] = {"run": run, "scans": scans, "flowers": flowers}


def has_to_be_run(block: Block, *, slow: bool) -> bool:
    return block.mark("not run") is None and (block.mark("run") == "slow") <= slow


def play(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *, slow: bool) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(linear, "MOST_STEPS", 8)  # the accuracy of the probe is tested elsewhere
    photos(folder)
    if not (builtin_folder() / WEIGHTS_FILE).is_file():  # a repository without the weights
        model = mae.create_model("vit_tiny", img_size=32, decoder_embed_dim=128, decoder_num_heads=4)
        write_builtin(folder / ".builtin", model)
        monkeypatch.setenv("MAECLI_BUILTIN", str(folder / ".builtin"))
    for name in given(page):
        FIXTURES[name](folder)
    session = Session(folder)
    for block in blocks(page):
        if has_to_be_run(block, slow=slow):
            session.run(block)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings("default")
def test_every_line_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page is one session, in which all its commands are run."""
    play(PAGES[page], tmp_path, monkeypatch, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", [name for name, page in PAGES.items() if any(b.mark("run") for b in blocks(page))])
@pytest.mark.filterwarnings("default")
def test_every_slow_line_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(PAGES[page], tmp_path, monkeypatch, slow=True)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_it_is(page: str) -> None:
    """Every block has a known language, and one that is not run has a known reason."""
    for block in blocks(PAGES[page]):
        assert block.language in (*SHELL, *PYTHON, *OTHER), (
            f"{block.where}: what is in this block? name it at its fence"
        )
        reason = block.mark("not run")
        assert reason is None or reason in REASONS, f"{block.where}: {reason!r} is none of {', '.join(REASONS)}"
        for name, _ in block.marks:
            known = ("not run", "run smaller", "without installing", "run", "exit code", "file", "says", "begins with")
            assert name in known, f"{block.where}: no comment is called {name!r}"
        if block.mark("not run") is None and block.language in SHELL:
            assert block.commands(), f"{block.where}: nothing to type"


@pytest.mark.parametrize("page", PAGES)
def test_options_are_spelt_rightly(page: str) -> None:
    """Also in commands that are not run, and within sentences."""
    commands: Any = get_command(app)
    lines = [line for block in blocks(PAGES[page]) if block.language in SHELL for line in block.commands()]
    for line in (*lines, *inline_commands(PAGES[page])):
        for part in re.split(r"&&|[|;)]|\$\(", line):
            words = part.split()
            start = next((n for n, word in enumerate(words) if word.split("/")[-1] == "maecli"), None)
            if start is not None and len(words) > start + 1:
                check_command(commands, words[start + 1 :], line)
            script = next((word for word in words if re.match(r"benchmarks/\w+\.py", word)), None)
            if script:
                source = (ROOT / script).read_text()
                for word in words[words.index(script) :]:
                    assert not word.startswith("--") or f'"{word}"' in source, f"{page}: {script} knows no {word}"


def check_command(commands: Any, words: list[str], line: str) -> None:
    name = words[0]
    if name.startswith("-"):
        known = {flag for one in commands.params for flag in (*one.opts, *one.secondary_opts)} | {"--help"}
    else:
        assert name in commands.commands, f"{line}: there is no command {name}"
        command = commands.commands[name]
        known = {flag for one in command.params for flag in (*one.opts, *one.secondary_opts)} | {"--help"}
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in known, f"{line}: maecli {name} has no {word}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", PAGES[page].read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (PAGES[page].parent / target).exists(), f"{page}: {target} is not there"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, f"docs/README.md does not lead to {page.name}"


def test_the_table_of_official_options_is_complete() -> None:
    """The table has all options of the official script, and the right options here."""
    table = (ROOT / "docs" / "official-options.md").read_text()
    official = (
        "batch_size epochs accum_iter model input_size mask_ratio norm_pix_loss weight_decay lr blr min_lr "
        "warmup_epochs data_path output_dir log_dir device seed resume start_epoch num_workers pin_mem no_pin_mem "
        "world_size local_rank dist_on_itp dist_url"
    )
    commands: Any = get_command(app)
    shown = [one for one in commands.commands["pretrain"].params if not getattr(one, "hidden", False)]
    ours = [flag for one in shown for flag in one.opts if flag.startswith("--")]
    for flag in (*(f"--{name}" for name in official.split()), *ours):
        assert f"`{flag}`" in table, f"docs/official-options.md says nothing of {flag}"
