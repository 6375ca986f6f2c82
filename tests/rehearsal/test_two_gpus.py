"""``maecli pretrain`` in two processes, from torchrun to the first steps, each with its own GPU."""

from __future__ import annotations

import json
from pathlib import Path

from tests.distributed.test_ranks import FORKING, TORCHRUN
from tests.processes import ROOT, finish, fork


def test_two_processes_start_on_two_gpus(tmp_path: Path) -> None:
    command = [
        *TORCHRUN, *FORKING, "--nproc-per-node", "2", str(Path(__file__).parent / "two_gpus.py"),
        "pretrain", str(ROOT / "sample_images"), "--out", str(tmp_path / "run"), "--variant", "vit_tiny",
        "--image-size", "32", "--patch-size", "8", "--batch-size", "2", "--epochs", "1", "--lr", "1e-3",
        "--workers", "0", "--log-every", "1", "--preview-every", "1",
    ]  # fmt: skip
    done = finish(fork(*command))
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        said = [line for line in done.stderr.splitlines() if line.startswith(f"rank {rank}: ")]
        assert said == [
            f"rank {rank}: set_device {rank}",
            f"rank {rank}: group cpu:gloo,cuda:nccl on cuda:{rank}",
        ]
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "loss" in entry][:1] == [1]
    config = (tmp_path / "run" / "config.toml").read_text()
    assert 'device = "cuda"' in config
    assert 'precision = "bf16"' in config
