"""``maecli compare``: tables, JSON document, exit codes, time and memory."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import mae.comparison.run
from mae.comparison.reference import run_reference
from maecli.app import app
from tests.golden import official
from tests.processes import finish, start_python

TINY = official.GOLDEN["golden_tiny"]
ROOT = Path(__file__).parents[2]
HEADS = ["--num-heads", "2", "--decoder-num-heads", "4"]


def maecli(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command run in this process."""
    result = CliRunner(env={"COLUMNS": "100"}).invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(official.checkpoint(TINY, "training"), tmp_path / "file.pth")
    return tmp_path / "file.pth"


def test_a_good_file(path: Path) -> None:
    code, out, err = maecli("compare", "--official", path, *HEADS, "--reference", "paper")
    assert code == 0
    assert err == ""
    for line in ("training, official names", "128/3/2", "normalised patches", "74 matched, 0 missing, 0 unexpected"):
        assert line in out
    stages = [
        line for line in out.splitlines() if line.startswith(("patch", "visible", "encoder b", "decoder b", "loss"))
    ]
    assert len([line for line in stages if "e-" in line or "0.0e+00" in line]) == 9
    assert "tolerance" in out
    assert out.splitlines()[-1].startswith(
        "equal: a model of 128/3/2 at 64x64, training, 74 tensors, computes as paper"
    )
    assert max(map(len, out.splitlines()[:-1])) <= 100


def test_assumed_heads_are_shown_where_the_sizes_are(path: Path) -> None:
    code, out, _ = maecli("compare", "--official", path, "--reference", "paper")
    assert code == 0
    assert "128/3/2 (width/blocks/heads, heads assumed)" in out
    assert "64/2/2, heads assumed" in out
    _, out, _ = maecli("compare", "--official", path, "--reference", "paper", "--json")
    assert json.loads(out)["official"]["assumed"] == {"num_heads": 2, "decoder_num_heads": 2}


def test_a_suspicion_is_shown_and_ends_with_0(tmp_path: Path) -> None:
    document = official.checkpoint(TINY.replace(depth=6))
    document["model"]["blocks.2.mlp.fc1.weight"] *= 5
    torch.save(document, tmp_path / "odd.pth")
    code, out, _ = maecli("compare", "--official", tmp_path / "odd.pth", *HEADS, "--reference", "paper")
    assert code == 0
    assert "! odd.pth: blocks.2.mlp.fc1.weight: its size is 0.44; about 0.089 is usual in the blocks next to it" in out
    assert "; suspicious: odd.pth: blocks.2" in out.splitlines()[-1]
    code, out, _ = maecli("compare", "--official", tmp_path / "odd.pth", *HEADS, "--reference", "paper", "--json")
    assert len(json.loads(out)["warnings"]) == 1


def test_one_document(path: Path) -> None:
    code, out, err = maecli("compare", "--official", path, *HEADS, "--reference", "paper", "--json")
    document = json.loads(out)
    assert (code, err, document["equal"]) == (0, "", True)
    assert document["official"]["kind"] == "training"
    assert document["official"]["weights"]["matched"] == 74
    double, single = document["computations"]
    assert (double["reference"], double["precision"], double["first_beyond"]) == ("paper", "float64", None)
    assert single["precision"] == "float32"
    assert double["stages"][0]["name"] == "patch embedding"
    assert maecli("compare", "--official", path, *HEADS, "--reference", "paper", "--quiet") == (0, "equal\n", "")


def test_a_difference_ends_with_1(path: Path, tmp_path: Path) -> None:
    document = official.checkpoint(TINY)
    document["model"]["pos_embed"] = document["model"]["pos_embed"].roll(64, dims=-1)
    document["model"]["[red]markup"] = torch.ones(2)
    torch.save(document, tmp_path / "changed.pth")
    code, out, _ = maecli("compare", "--official", tmp_path / "changed.pth", *HEADS, "--reference", "paper")
    assert code == 1
    assert "pos_embed: its halves are exchanged" in out
    assert "unexpected: [red]markup (1 tensors)" in out
    assert out.splitlines()[-1].startswith("different: changed.pth: unexpected")

    code, out, _ = maecli(
        "compare", "--official", path, "--checkpoint", tmp_path / "changed.pth", *HEADS, "--reference", "paper"
    )
    assert code == 1
    assert "73 tensors are the same in both files, 1 differ" in out
    assert "only in the second file (1): [red]markup" in out
    code, out, _ = maecli(
        "compare", "--official", tmp_path / "changed.pth", *HEADS, "--reference", "builtin", "--quiet"
    )
    assert (code, out) == (1, "different\n")


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_no_value_is_cut_in_a_narrow_terminal(columns: int, path: Path, tmp_path: Path) -> None:
    document = official.checkpoint(TINY)
    document["model"]["decoder_blocks.1.attn.qkv.weight"] += 1
    torch.save(document, tmp_path / "second.pth")
    command = ["compare", "--official", str(path), "--checkpoint", str(tmp_path / "second.pth"), *HEADS]
    out = CliRunner(env={"COLUMNS": str(columns)}).invoke(app, command).stdout
    assert "…" not in out
    assert "\ndecoder_blocks.1.attn.qkv.weight" in out


def test_control_characters_of_names_are_escaped(path: Path, tmp_path: Path) -> None:
    document = official.checkpoint(TINY)
    document["model"] |= {"norm.bias": torch.ones(128), "clear\x1b[2J": torch.ones(2)}
    red = tmp_path / "red\x1b[31m.pth"
    torch.save(document, red)
    for words in (["--official", red], ["--official", path, "--checkpoint", red]):
        _, out, err = maecli("compare", *words, *HEADS, "--reference", "paper")
        assert "\x1b" not in out + err
        assert "red\\x1b[31m.pth: unexpected: clear\\x1b[2J (1 tensors)" in out
    assert "only in the second file (1): clear\\x1b[2J" in out


def test_what_is_not_finite_is_told_from_what_is_missing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*arguments: Any) -> dict[str, torch.Tensor]:
        stages = run_reference(*arguments)
        return stages | {"prediction": stages["prediction"] * float("nan"), "loss, pixels": torch.zeros(2)}

    monkeypatch.setattr(mae.comparison.run, "run_reference", damaged)
    code, out, _ = maecli("compare", "--official", path, *HEADS, "--reference", "paper")
    assert code == 1
    rows = {line[:16].strip(): line[16:].split() for line in out.splitlines()}
    assert rows["prediction"][:2] == ["nan", "inf"]
    assert rows["loss, pixels"][:2] == ["–", "missing"]
    assert rows["decoder norm"][2].startswith("█")  # relative to the finite ones
    assert out.splitlines()[-1].startswith("different: computation differs from paper from 'prediction' on (float64)")

    document = official.checkpoint(TINY)
    document["model"]["norm.bias"][3] = float("nan")
    torch.save(document, tmp_path / "second.pth")
    _, out, _ = maecli("compare", "--official", path, "--checkpoint", tmp_path / "second.pth", *HEADS)
    (row,) = [line.split() for line in out.splitlines() if line.startswith("norm.bias")]
    assert row == ["norm.bias", "nan", "inf"]


def test_what_cannot_be_read_ends_with_4(tmp_path: Path) -> None:
    for content, message in (
        (b"", "is empty (0 bytes)"),
        (b"<html>", "an HTML page"),
        (b"\x80\x02cos\nsystem\n", "os.system"),
    ):
        (tmp_path / "bad.pth").write_bytes(content)
        code, out, err = maecli("compare", "--official", tmp_path / "bad.pth")
        assert (code, out) == (4, "")
        assert message in err
        assert "Traceback" not in err


def test_usage(path: Path) -> None:
    code, _, err = maecli("compare")
    assert code == 2
    assert "missing --official" in err
    code, _, err = maecli("compare", "--official", path, "--reference", "transfomers")
    assert code == 2
    assert "did you mean transformers?" in err


def test_released_names_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MAECLI_CACHE", str(tmp_path))
    commands = (
        ["compare", "--official", "mae_visualize_vit_base"],
        ["export", "hf:facebook/vit-mae-base", "--to", "timm"],
        [
            "reconstruct",
            ROOT / "sample_images/cat.jpg",
            "--checkpoint",
            "mae_visualize_vit_base",
            "--out",
            tmp_path / "x.png",
        ],
    )
    for command in commands:
        code, out, err = maecli(*command, "--offline")
        assert (code, out) == (4, "")
        assert "is not in the cache, and downloads are disabled (--offline)" in err
        assert "save it as" in err


def test_pretraining_starts_from_a_released_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MAECLI_CACHE", str(tmp_path))
    monkeypatch.setenv("MAECLI_OFFLINE", "1")
    command = ["pretrain", ROOT / "sample_images", "--variant", "vit_tiny", "--image-size", "32", "--device", "cpu"]
    command += ["--init", "mae_pretrain_vit_base", "--out", tmp_path / "run", "--epochs", 1, "--workers", 0]
    code, _, err = maecli(*command)
    assert code == 4
    assert "mae_pretrain_vit_base is not in the cache" in err
    torch.save(official.checkpoint(TINY, "encoder"), tmp_path / "mae_pretrain_vit_base.pth")
    code, _, err = maecli(*command)
    assert code == 4
    assert "must be (1, 1, 192); got (1, 1, 128)" in err  # found, and of another width


@pytest.mark.slow
@pytest.mark.parametrize(("name", "seconds", "gigabytes"), [("vit_base", 20, 2.5), ("vit_large", 60, 6)])
def test_time_and_memory(name: str, seconds: float, gigabytes: float, tmp_path: Path) -> None:
    """With all installed references. CPU seconds are measured, because the machine may have other work."""
    path = tmp_path / "ckpt.pth"
    torch.save(official.checkpoint(official.GOLDEN[name]), path)
    code = (
        "import resource, sys\n"
        "from maecli.app import app\n"
        "sys.argv = ['maecli', 'compare', '--official', sys.argv[1], '--quiet']\n"
        "try:\n    app()\n"
        "finally:\n    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = finish(start_python("-c", code, path), timeout=600)
    assert run.returncode == 0, run.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    path.unlink()
    assert run.stdout == "equal\n"
    assert int(run.stderr.split()[-1]) * 1024 < gigabytes * 1e9
    assert (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 2 < seconds
