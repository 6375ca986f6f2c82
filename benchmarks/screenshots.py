"""Screenshots for the documents: the output of a command in a terminal, as SVG.

    python benchmarks/screenshots.py docs/images/help.svg --columns 96 -- maecli --help
    python benchmarks/screenshots.py docs/images/run.svg --seconds 40 -- maecli pretrain photos --out run

The command runs in its own terminal, and rich draws the screen at its end, or after ``--seconds``. A command that is
still running then is interrupted as by Ctrl-C.
"""

from __future__ import annotations

import argparse
import fcntl
import html
import io
import os
import pty
import re
import select
import shlex
import signal
import struct
import sys
import termios
import textwrap
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

_CONTROL = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\r|\n")


def record(command: list[str], columns: int, rows: int, seconds: float) -> str:
    """What a command writes to a terminal of this size."""
    child, terminal = pty.fork()
    if child == 0:
        environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "LINES")}
        words = [sys.executable, "-m", *command] if command[0] == "maecli" else command
        os.execvpe(words[0], words, environment | {"TERM": "xterm-256color", "COLORTERM": "truecolor"})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    written, end = b"", time.monotonic() + seconds
    while time.monotonic() < end:
        if not select.select([terminal], [], [], 0.2)[0]:
            continue
        try:
            part = os.read(terminal, 65536)
        except OSError:  # the command has ended
            break
        if not part:
            break
        written += part
    else:
        os.kill(child, signal.SIGINT)
        while select.select([terminal], [], [], 20)[0]:  # what it says now is not part of the image
            try:
                if not os.read(terminal, 65536):
                    break
            except OSError:
                break
    os.waitpid(child, 0)
    return written.decode(errors="replace")


def screen(written: str) -> str:
    """The lines that are left once every movement of the cursor is followed; colours stay in them."""
    lines, row, returned = [""], 0, False
    for match in re.finditer(r"[^\x1b\r\n]+|" + _CONTROL.pattern, written):
        token, kind = match[0], match[2]
        if token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif kind == "A":
            row = max(0, row - int(match[1] or 1))
        elif kind == "K":
            lines[row] = ""
        elif kind == "m" or not token.startswith(("\x1b", "\r")):
            if returned:  # what stands there is written over
                lines[row] = ""
            lines[row] += token
        returned = token == "\r"
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def draw(text: str, columns: int, title: str) -> str:
    """The screen as SVG, which loads nothing from elsewhere."""
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(text + "\n"), soft_wrap=True)
    image = re.sub(r"\s*@font-face \{.*?\}", "", console.export_svg(title=title), flags=re.DOTALL)
    image = image.replace("Fira Code, monospace", "DejaVu Sans Mono, Menlo, Consolas, monospace")
    image = image.replace("font-size: 20px", "font-size: 20.27px")  # at which the first font is as wide as a cell
    return re.sub(
        r'(<text [^>]*?)x="([\d.]+)"([^>]*?) textLength="([\d.]+)"([^>]*)>(.*?)</text>', _evenly_chosen, image
    )


def _evenly_chosen(match: re.Match[str]) -> str:
    """A place for every character: not every viewer stretches a text to its length."""
    before, x, between, length, after, text = match.groups()
    plain = html.unescape(text)
    lead = len(plain) - len(plain.lstrip("\u00a0 "))
    kept = plain.strip("\u00a0 ")
    if not kept:
        return ""
    step = float(length) / len(plain)
    places = " ".join(f"{float(x) + step * number:.0f}" for number in range(lead, lead + len(kept)))
    return f'{before}x="{places}"{between}{after}>{html.escape(kept, quote=False)}</text>'


def main() -> None:
    """Run, record, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--columns", type=int, default=96)
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120.0, help="How long to watch.")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    written = record(args.command, args.columns, args.rows, args.seconds)
    typed = "\n".join(textwrap.wrap(f"$ {shlex.join(args.command)}", args.columns - 6, break_on_hyphens=False)).replace(
        "\n", " \\\n    "
    )
    args.out.write_text(draw(f"{typed}\n{screen(written)}", args.columns, args.command[0]))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
