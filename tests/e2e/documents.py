"""The blocks of commands and Python code in the documents, and how the tests run them.

A comment before a block says how it is run. Without one, it is run unchanged in the page's folder, after the blocks
before it:

    <!-- not run: REASON -->             one of ``REASONS``
    <!-- run smaller: COMMAND OPTIONS --> OPTIONS are added to each line that begins with ``maecli COMMAND``
    <!-- without installing -->          commands that set up an environment, and its folder in paths, are left out
    <!-- run: slow -->                   only with ``-m slow``
    <!-- exit code: N -->                the last line ends with N instead of 0
    <!-- file: NAME -->                  the block is the content of a file
    <!-- says -->                        a block of text; the command before it must have printed each line

A page may begin with ``<!-- begins with: NAME ... -->``: names of ``FIXTURES`` in the test, which its commands need.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
REASONS = {
    "hardware": "needs a GPU, or several",
    "network": "downloads something",
    "your files": "names files that only the reader has",
    "installs": "sets up an environment",
    "waits for you": "serves a page until it is interrupted",
    "minutes": "a benchmark, or a training run of useful length",
}
SHELL, PYTHON = ("sh", "bash", "shell", "console"), ("python", "py")
OTHER = ("text", "toml", "json", "tsv")  # no command
_INDENTED_COMMAND = re.compile(r"    (maecli|python3?|torchrun|pip|[A-Z_]+=\S+ maecli|timm\.|transformers\.) ?")


@dataclasses.dataclass(frozen=True)
class Block:
    """One block of a page.

    Attributes:
        line: Number of its first line in the page, from 1.
        language: Language of the fence; for an indented block "sh" or "python", by its text.
        marks: The comments before it, as (name, value).
    """

    page: Path
    line: int
    language: str
    text: str
    marks: tuple[tuple[str, str], ...] = ()

    @property
    def where(self) -> str:
        """Name of the block in messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def mark(self, name: str) -> str | None:
        """The value of a comment, or None."""
        return dict(self.marks).get(name)

    def commands(self) -> list[str]:
        """The commands: continued lines are joined, comments and prompts are left out."""
        joined = re.sub(r"\\\n\s*", " ", self.text)
        lines = [re.sub(r"\s+# .*", "", line.strip()) for line in joined.splitlines()]
        if self.mark("without installing") is not None:
            parts = (part.strip().replace(".venv/bin/", "") for line in lines for part in line.split("&&"))
            lines = [part for part in parts if not re.match(r"python3 -m venv|pip install|source", part)]
        return [line for line in lines if line and not line.startswith("#")]

    def smaller(self, command: str) -> str:
        """A command with the options that make it small enough for a test."""
        for name, value in self.marks:
            wanted, _, options = value.partition(" ")
            if name == "run smaller" and command.split()[:2] == ["maecli", wanted]:
                command = f"{command} {options}"
        return command


def pages() -> list[Path]:
    """The documents."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> Iterator[Block]:
    """All fenced blocks of a page, and indented ones that look like commands or code."""
    lines = page.read_text().splitlines()
    marks: list[tuple[str, str]] = []
    number = 0
    while number < len(lines):
        line = lines[number]
        if comment := re.fullmatch(r"<!-- ([a-z ]+?)(?:: (.*))? -->", line):
            marks.append((comment[1], comment[2] or ""))
        elif fence := re.fullmatch(r"( *)(```+)(\w*).*", line):
            end = next(n for n in range(number + 1, len(lines)) if lines[n].strip() == fence[2])
            body = "\n".join(one.removeprefix(fence[1]) for one in lines[number + 1 : end])
            yield Block(page, number + 1, fence[3], body, tuple(marks))
            marks, number = [], end
        elif line.startswith("    ") and not lines[number - 1].strip():
            end = next((n for n in range(number, len(lines)) if not lines[n].startswith("    ")), len(lines))
            body = "\n".join(one[4:] for one in lines[number:end])
            if _INDENTED_COMMAND.match(line):
                language = "python" if re.match(r"(timm|transformers)\.", body) else "sh"
                yield Block(page, number + 1, language, body, tuple(marks))
            marks, number = [], end - 1
        elif line.strip():
            marks = []
        number += 1


def given(page: Path) -> list[str]:
    """Names of the fixtures that a page needs."""
    found = re.search(r"^<!-- begins with: (.*) -->$", page.read_text(), re.MULTILINE)
    return found[1].split() if found else []


def inline_commands(page: Path) -> list[str]:
    """Commands within sentences and tables, each between backquotes."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return [" ".join(found.split()) for found in re.findall(r"`((?:maecli|python benchmarks/) ?[^`]+)`", prose)]
