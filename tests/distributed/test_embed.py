"""Several processes embed each image once and write one file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.distributed.test_ranks import FORKING, TORCHRUN
from tests.processes import finish, fork
from tests.unit.evaluation.small import checkpoint, class_folders

SMALL = str(Path(__file__).with_name("small_embed.py"))


def test_two_processes_write_what_one_writes(tmp_path: Path) -> None:
    class_folders(tmp_path / "photos", 6)
    checkpoint(tmp_path / "tiny.pth")
    words = ["embed", "photos", "--checkpoint", "tiny.pth", "--device", "cpu", "--workers", "0", "--precision", "fp32"]
    for name, start in {
        "one": [SMALL],
        "two": [*TORCHRUN, *FORKING, "--nproc-per-node", "2", SMALL],
    }.items():
        done = finish(fork(*start, *words, "--out", f"{name}.npz", "--json", cwd=tmp_path))
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["images"] == 18  # one document, not two
    one, two = (np.load(tmp_path / f"{name}.npz") for name in ("one", "two"))
    assert two["names"].tolist() == one["names"].tolist()
    assert len(set(two["names"].tolist())) == 18
    assert np.array_equal(two["features"], one["features"])
    assert not (tmp_path / "two.npz.parts").exists()
