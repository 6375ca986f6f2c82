"""Damaged and malicious files: refused with a one-line error, quickly and in little memory; no code is run."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path, PurePosixPath

import pytest
import torch
from safetensors.torch import save_file

from mae.checkpoints import build_model, load_checkpoint, load_weights
from mae.errors import CheckpointError
from mae.models import create_model
from tests.golden import official
from tests.processes import finish, fork
from tests.unit.checkpoints.hostile import HOSTILE, TINY, code_pickles, legacy_head, torch_zip

# A separate process that reads every file of a folder, and prints its peak memory and the CPU seconds of each file.
_READ_ALL = """
import re, sys, time
from pathlib import Path, PurePosixPath
from mae.checkpoints import load_checkpoint
from mae.errors import CheckpointError
for path in sorted(Path(sys.argv[1]).iterdir()):
    start = time.process_time()
    try:
        load_checkpoint(path)
        print("READ", path)
    except CheckpointError:
        print(time.process_time() - start)
# Not ru_maxrss: a child begins with its parent's.
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.parametrize("name", HOSTILE)
def test_refused_in_one_line(name: str, tmp_path: Path) -> None:
    make, message = HOSTILE[name]
    path = tmp_path / "file.pth"
    path.write_bytes(make())
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert str(path) in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1000 + len(str(path))


def test_refused_at_once_and_in_little_memory(tmp_path: Path) -> None:
    for number, (make, _) in enumerate(HOSTILE.values()):
        (tmp_path / f"{number:03d}.pth").write_bytes(make())
    run = finish(fork("-c", _READ_ALL, tmp_path))
    assert run.returncode == 0, run.stderr
    *seconds, peak = run.stdout.split("\n")[:-1]
    assert len(seconds) == len(HOSTILE)
    assert max(map(float, seconds)) < 10
    assert int(peak) < 2_000_000  # KB; torch alone takes 0.3 GB


@pytest.mark.parametrize("name", code_pickles(Path("canary")))
@pytest.mark.parametrize("container", ["zip", "plain", "legacy"])
def test_nothing_is_run(name: str, container: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    pickled = code_pickles(canary)[name]
    pickle.loads(pickled)
    assert canary.exists(), "the pickle is harmless, so the test shows nothing"
    canary.unlink()
    path = tmp_path / "file.pth"
    if container == "legacy":
        pickled = legacy_head() + pickled
    path.write_bytes(torch_zip(pickled) if container == "zip" else pickled)
    with pytest.raises(CheckpointError, match=r"nothing was run|protocol 4"):
        load_checkpoint(path)
    assert not canary.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", code_pickles(Path("canary")))
def test_torchs_own_wall_stands_behind_ours(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mae.checkpoints.container.check_pickle", lambda pickled, path: 0)
    path = tmp_path / "file.pth"
    path.write_bytes(torch_zip(code_pickles(tmp_path / "canary")[name]))
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)
    assert not (tmp_path / "canary").exists()


def test_not_even_a_good_file_with_a_bad_option(tmp_path: Path) -> None:
    """The one allowed class only carries data; a hostile class in its place is refused by name."""
    document = official.checkpoint(TINY, "training")
    document["args"] = PurePosixPath("/")  # pickled as a call of pathlib
    path = tmp_path / "file.pth"
    torch.save(document, path)
    with pytest.raises(CheckpointError, match=r"asks for pathlib\.\w+, which could run code"):
        load_checkpoint(path)


def outcome(path: Path) -> str | None:
    """The error message of reading a file, or None."""
    try:
        load_checkpoint(path)
    except CheckpointError as error:
        return error.message
    return None


@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors"])
def test_damaged_bytes_never_crash(container: str, tmp_path: Path) -> None:
    """Random changes of bytes, mostly in the file's structure, give a ``MaeError`` or a model."""
    if container == "safetensors":
        save_file(official.weights(official.GOLDEN["golden_gray"]), tmp_path / "good")
    else:
        document = official.checkpoint(official.GOLDEN["golden_gray"], "training")
        torch.save(document, tmp_path / "good", _use_new_zipfile_serialization=container == "zip")
    good = (tmp_path / "good").read_bytes()
    start = good.index(b"cls_token") if container == "zip" else 0
    stream = random.Random(0)
    messages = []
    for _ in range(150):
        damaged = bytearray(good)
        for _ in range(stream.choice((1, 1, 2, 5))):
            places = (stream.randrange(start, start + 6000), stream.randrange(len(good) - 6000, len(good)))
            damaged[stream.choice(places)] = stream.randrange(256)
        path = tmp_path / "file.pth"
        path.write_bytes(damaged)
        message = outcome(path)
        assert message is None or (str(path) in message and message.isprintable())
        messages.append(message)
    assert len([message for message in messages if message]) > 25


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(CheckpointError, match="a device, a pipe or a socket"):
        load_checkpoint(tmp_path / "pipe.pth")
    (tmp_path / "model.pth").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="no such checkpoint file") as caught:
        load_checkpoint(tmp_path / "modle.pth")
    assert caught.value.hint == "did you mean model.pth?"
    (tmp_path / "pre-trained").mkdir()
    for name, hint in (("pretrained", "did you mean pre-trained?"), ("x", "give a checkpoint file, a run folder or")):
        with pytest.raises(CheckpointError, match="no such checkpoint file") as caught:
            load_checkpoint(tmp_path / name)
        assert (caught.value.hint or "").startswith(hint)
    with pytest.raises(CheckpointError, match="is a folder") as caught:
        load_checkpoint(tmp_path)
    assert caught.value.hint == "it holds model.pth, pipe.pth"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_a_number_is_named(value: float, tmp_path: Path) -> None:
    document = official.checkpoint(TINY)
    document["model"]["blocks.1.mlp.fc2.bias"][5] = value
    path = tmp_path / "file.pth"
    torch.save(document, path)
    checkpoint = load_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.mlp\.fc2\.bias holds NaN or infinity"):
        build_model(checkpoint)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.mlp\.fc2\.bias holds NaN or infinity"):
        load_weights(create_model(TINY), checkpoint)


def test_large_half_precision_weights_are_no_infinity(tmp_path: Path) -> None:
    document = official.checkpoint(TINY)
    document["model"] = {key: tensor.half() for key, tensor in document["model"].items()}
    document["model"]["blocks.1.mlp.fc2.bias"].fill_(60_000)
    path = tmp_path / "file.pth"
    torch.save(document, path)
    build_model(load_checkpoint(path))


def test_integer_weights_are_named(tmp_path: Path) -> None:
    document = official.checkpoint(TINY)
    document["model"]["blocks.1.mlp.fc2.weight"] = torch.ones(128, 512, dtype=torch.int8)
    path = tmp_path / "file.pth"
    torch.save(document, path)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.mlp\.fc2\.weight is int8; weights must be floats"):
        load_checkpoint(path)
    torch.save({"model": {key: tensor.to(torch.int8) for key, tensor in document["model"].items()}}, path)
    with pytest.raises(CheckpointError, match=r"\w+ is int8; weights must be floats"):  # the position table too
        load_checkpoint(path)


@pytest.mark.parametrize("number", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors"])
def test_eight_bit_floats_are_named(number: str, container: str, tmp_path: Path) -> None:
    """Refused with their own error, in every container, and not as files that could run code."""
    state = official.weights(TINY)
    state["blocks.1.mlp.fc2.weight"] = state["blocks.1.mlp.fc2.weight"].to(getattr(torch, number))
    path = tmp_path / "file.pth"
    if container == "safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state}, path, _use_new_zipfile_serialization=container == "zip")
    with pytest.raises(CheckpointError) as refused:
        load_checkpoint(path)
    said = refused.value.message.lower().replace("f8_", "float8_")
    assert f"blocks.1.mlp.fc2.weight is {number[:11]}" in said
    assert "weights must be floats of 16 bits or more" in said
    assert refused.value.hint is not None
    assert "get the float32 or bfloat16 weights it was made from" in refused.value.hint


def test_other_types_without_a_storage_class_are_named(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    torch.save({"model": official.weights(TINY) | {"norm.bias": torch.zeros(128, dtype=torch.uint16)}}, path)
    with pytest.raises(CheckpointError, match=r"norm\.bias is uint16; weights must be floats"):
        load_checkpoint(path)


def test_a_rebuilding_call_without_a_type_stays_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(torch_zip(b"\x80\x02ctorch._utils\n_rebuild_tensor_v3\n)R."))
    with pytest.raises(CheckpointError, match=r"asks for torch\._utils\._rebuild_tensor_v3"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("key", "layout"),
    [
        ("encoder_to_decoder.weight", "MAE-pytorch"),
        ("to_patch_embedding.1.weight", "vit-pytorch"),
        ("backbone.cls_tokens", "OpenMMLab"),
        ("mask_units.weight", "no patch projection"),
    ],
)
def test_another_masked_autoencoder_is_named(key: str, layout: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    torch.save({"model": {key: torch.ones(3)}}, path)
    with pytest.raises(CheckpointError, match=layout):
        load_checkpoint(path)


def test_a_video_model_is_named(tmp_path: Path) -> None:
    document = official.checkpoint(TINY)
    document["model"]["patch_embed.proj.weight"] = torch.ones(128, 3, 2, 8, 8)
    path = tmp_path / "file.pth"
    torch.save(document, path)
    with pytest.raises(CheckpointError, match="a masked autoencoder of video"):
        load_checkpoint(path)


def test_every_missing_or_misshapen_tensor_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    small = official.GOLDEN["golden_gray"]
    for key, tensor in official.weights(small).items():
        for wrong in (None, torch.cat([tensor, tensor], dim=-1)):
            document = official.checkpoint(small)
            document["model"] |= {key: wrong}
            torch.save(document, path)
            with pytest.raises(CheckpointError) as caught:
                build_model(load_checkpoint(path))
            assert key in caught.value.message
