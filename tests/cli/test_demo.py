"""``maecli demo`` prints the page's address, serves the page, and ends on Ctrl-C."""

from __future__ import annotations

import json
import signal
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from maecli.app import app
from tests import processes
from tests.unit.checkpoints.small_builtin import write_builtin

# As in a terminal, even if the tests run in the background of a shell, where Ctrl-C is ignored.
HEEDING = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from maecli.__main__ import main; main()"
)


def test_it_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    write_builtin(tmp_path / "weights")
    server = processes.start_python(
        *("-c", HEEDING, "demo", "--port", "0", "--device", "cpu", "--json"),
        cwd=tmp_path,
        env=processes.environment(MAECLI_BUILTIN=str(tmp_path / "weights")),
    )
    assert server.stdout is not None
    url = json.loads("".join(server.stdout.readline() for _ in range(3)))["url"]
    assert url.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(url, timeout=20) as page:
        assert b"maecli demo" in page.read()
    server.send_signal(signal.SIGINT)
    done = processes.finish(server)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "ended" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--checkpoint", "none.pth"], 4, "no such checkpoint file: none.pth"),
        (["--port", "70000"], 2, "--port must be at least 0 and at most 65535"),
        (["nowhere", "--checkpoint", "builtin"], 3, "nowhere"),
    ],
)
def test_mistakes(words: list[str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAECLI_BUILTIN", str(tmp_path / "weights"))
    write_builtin(tmp_path / "weights")
    result = CliRunner().invoke(app, ["demo", *words])
    assert result.exit_code == code, result.output
    assert said in " ".join(result.stderr.split())
