"""Shell completion for bash, zsh and fish, without torch."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT, environment, finish, start, start_python

CODE = (
    "import sys\nfrom maecli.app import app\n"
    "try:\n    app(prog_name='maecli')\nfinally:\n"
    "    print('loaded', [name for name in ('torch', 'numpy', 'PIL') if name in sys.modules], file=sys.stderr)\n"
)


def complete(line: str, shell: str = "bash") -> list[str]:
    """The completions of the last word of a line."""
    words = line.split(" ")
    asked = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    done = finish(start_python("-c", CODE, env=environment(**asked, _MAECLI_COMPLETE=f"complete_{shell}")))
    assert done.stderr == "loaded []\n"
    return [line for line in done.stdout.splitlines() if line]  # as a shell's $(...)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("maecli pro", ["profile"]),
        ("maecli profile --var", ["--variant"]),
        ("maecli profile --variant vit_", ["vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"]),
        ("maecli pretrain x --variant vit_t", ["vit_tiny"]),
        ("maecli pretrain x --precision ", ["auto", "fp32", "bf16", "fp16"]),
        ("maecli pretrain x --precision=b", ["bf16"]),
        ("maecli profile --gpu rtx", ["rtx3090", "rtx4090", "rtx5090"]),
        ("maecli export x --to s", ["safetensors"]),
        ("maecli compare --reference t", ["transformers", "timm"]),
        ("maecli reconstruct x --checkpoint mae_visualize_vit_b", ["mae_visualize_vit_base"]),
        # There are no completions, so that the shell completes file names.
        ("maecli reconstruct ", []),
        ("maecli reconstruct x --checkpoint ", []),
        ("maecli reconstruct x --checkpoint run/", []),
        ("maecli pretrain ", []),
        ("maecli report ", []),
    ],
)
def test_bash(line: str, wanted: list[str]) -> None:
    assert complete(line) == wanted


def test_every_option_is_offered() -> None:
    offered = complete("maecli pretrain --")
    for name in ("--variant", "--no-hflip", "--resume", "--config", "--json", "--quiet", "--verbose", "--help"):
        assert name in offered


def test_zsh_and_fish() -> None:
    assert complete("maecli profile --variant vit_b", "zsh") == ["_arguments '*: :((\"vit_base\"))'"]
    assert complete("maecli reconstruct x --checkpoint ", "zsh") == ["_files"]
    assert complete("maecli profile --variant vit_b", "fish") == ["vit_base"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_a_real_bash_completes_words_and_files(tmp_path: Path) -> None:
    (tmp_path / "maecli").write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m maecli "$@"\n')
    (tmp_path / "maecli").chmod(0o755)
    script = """
        source <(_MAECLI_COMPLETE=source_bash maecli)
        COMP_WORDS=(maecli profile --variant vit_s) COMP_CWORD=3
        _maecli_completion maecli
        printf '%s\\n' "${COMPREPLY[@]}"
        complete -p maecli
    """
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = finish(start("bash", "--norc", "-c", script, env=environment(PATH=path)))
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["vit_small", "complete -o default -F _maecli_completion maecli"]
