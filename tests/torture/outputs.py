"""Output paths that cannot be written, or that need care."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.torture.trials import TINY, Stage, Trial, Words

Place = Callable[[Stage, str], Path]
# Each command that writes, with the suffix of its output; "" for a folder.
WRITERS: dict[str, tuple[str, Callable[[Stage, Path], Words]]] = {
    "reconstruct": (".png", lambda s, out: ["reconstruct", s.image, "--checkpoint", s.weights, "--out", out]),
    "reconstruct --separate": (
        "",
        lambda s, out: [
            "reconstruct", s.image, "--checkpoint", s.weights, "--out", s.folder / "x.png", "--separate", out
        ],
    ),
    "compare": (
        ".png",
        lambda s, out: [
            "compare", "--official", s.weights, "--checkpoint", s.weights, "--reference", "paper", "--out", out
        ],
    ),
    "export --to timm": (".safetensors", lambda s, out: ["export", s.weights, "--to", "timm", "--out", out]),
    "export --to official": (".pth", lambda s, out: ["export", s.weights, "--to", "official", "--out", out]),
    "export --to hf": ("", lambda s, out: ["export", s.weights, "--to", "hf", "--out", out]),
    "pretrain": ("", lambda s, out: ["pretrain", s.images, *TINY, "--out", out]),
}  # fmt: skip


def all_outputs() -> Iterator[Trial]:
    """The whole corpus."""
    for command, (suffix, words) in WRITERS.items():
        for name, place, said in _REFUSED:
            if name not in _NOT_FOR.get(command, ()):
                yield Trial(f"{command}: {name}", _at(place, suffix, words), 2, said)
        for name, place, after in _WRITTEN:
            if name in _NOT_FOR.get(command, ()):
                continue
            yield Trial(f"{command}: {name}", _at(place, suffix, words), 0, after=_looked_at(after, suffix))
        yield Trial(
            f"{command}: on a full disk",
            _at(_plain, suffix, words),
            _FULL_DISK.get(command, 4),
            "cannot write .*(File too large|full|No space|PytorchStreamWriter)",
            _looked_at(_nothing_half, suffix),
            largest_file=300,
        )
        kind = _FILE_WRITTEN if suffix else _FOLDER_WRITTEN
        for name, place, after in kind:
            yield Trial(f"{command}: {name}", _at(place, suffix, words), 0, after=_looked_at(after, suffix))
        for name, place, said in _FILE_REFUSED if suffix else _FOLDER_REFUSED:
            yield Trial(f"{command}: {name}", _at(place, suffix, words), 2, said)
    image = WRITERS["reconstruct"][1]
    for suffix in (".gif", ".tiff", "", ".png.exe"):
        said = r"the name must end in .png, .jpg, .jpeg, .webp"
        yield Trial(f"reconstruct: a name with the suffix '{suffix}'", _at(_plain, suffix, image), 2, said)
    yield Trial(
        "export: onto the checkpoint itself",
        lambda s: ["export", s.weights, "--to", "official", "--out", s.weights],
        2,
        "is the checkpoint itself",
    )
    yield Trial("export: onto the checkpoint itself, by a link", _onto_itself_by_link, 2, "is the checkpoint itself")
    yield Trial("pretrain: over a run", _over_a_run, 2, "already holds a run(?s:.*)--resume")
    yield Trial("pretrain --resume: a run that names another place", _resumed_elsewhere, 0, after=_nothing_elsewhere)


def _at(place: Place, suffix: str, words: Callable[[Stage, Path], Words]) -> Callable[[Stage], Words]:
    return lambda stage: words(stage, place(stage, suffix))


def _looked_at(after: Callable[[Stage, str], object], suffix: str) -> Callable[[Stage], object]:
    return lambda stage: after(stage, suffix)


def _plain(stage: Stage, suffix: str) -> Path:
    return stage.folder / f"out{suffix}"


def _below_a_file(stage: Stage, suffix: str) -> Path:
    (stage.folder / "file").write_text("kept")
    return stage.folder / "file" / f"out{suffix}"


def _long_name(stage: Stage, suffix: str) -> Path:
    return stage.folder / ("x" * 300 + suffix)


def _longest_name(stage: Stage, suffix: str) -> Path:
    return stage.folder / ("é" * 121 + suffix)


def _in_a_long_folder(stage: Stage, suffix: str) -> Path:
    return stage.folder / ("x" * 300) / f"out{suffix}"


def _looping_link(stage: Stage, suffix: str) -> Path:
    path = _plain(stage, suffix)
    path.symlink_to(path)
    return path


def _in_no_folder(stage: Stage, suffix: str) -> Path:
    return stage.folder / "none" / f"out{suffix}"


def _a_folder(stage: Stage, suffix: str) -> Path:
    _plain(stage, suffix).mkdir()
    return _plain(stage, suffix)


def _a_file(stage: Stage, suffix: str) -> Path:
    _plain(stage, suffix).write_text("kept")
    return _plain(stage, suffix)


def _a_fifo(stage: Stage, suffix: str) -> Path:
    os.mkfifo(_plain(stage, suffix))
    return _plain(stage, suffix)


def _link_to_a_device(stage: Stage, suffix: str) -> Path:
    # Not to a real device, so that nothing on the machine is damaged if the test fails.
    os.mkfifo(stage.folder / "device")
    _plain(stage, suffix).symlink_to(stage.folder / "device")
    return _plain(stage, suffix)


def _odd_name(stage: Stage, suffix: str) -> Path:
    return stage.folder / f"-ünï→🙂 [bold]\x1b[31m\n{suffix}"


def _trailing_slash(stage: Stage, suffix: str) -> Path:
    return Path(f"{_plain(stage, suffix)}/")


def _linked(stage: Stage, suffix: str) -> Path:
    """A link to an existing file in another folder."""
    (stage.folder / "far").mkdir()
    target = stage.folder / "far" / f"target{suffix}"
    target.write_text("old") if suffix else target.mkdir()
    _plain(stage, suffix).symlink_to(target)
    return _plain(stage, suffix)


def _dangling(stage: Stage, suffix: str) -> Path:
    (stage.folder / "far").mkdir()
    _plain(stage, suffix).symlink_to(stage.folder / "far" / f"target{suffix}")
    return _plain(stage, suffix)


def _to_another_disk(stage: Stage, suffix: str) -> Path:
    """A link to another file system, if there is one, to which no file can be moved."""
    other = Path("/dev/shm")
    folder = other / f"maecli-{stage.folder.name}-{os.getpid()}" if other.is_dir() else stage.folder / "far"
    folder.mkdir()
    (stage.folder / "other").symlink_to(folder)
    return stage.folder / "other" / f"out{suffix}"


def _is_there(stage: Stage, suffix: str) -> None:
    assert any(_written(path, suffix) for path in stage.folder.iterdir()), list(stage.folder.iterdir())


def _nothing_half(stage: Stage, suffix: str) -> None:
    """No file with the requested name, and no other file next to it."""
    assert not suffix or not list(stage.folder.iterdir())


def _link_is_kept(stage: Stage, suffix: str) -> None:
    assert _plain(stage, suffix).is_symlink()
    assert _written(stage.folder / "far" / f"target{suffix}", suffix)


def _other_disk_is_written(stage: Stage, suffix: str) -> None:
    import shutil

    folder = (stage.folder / "other").resolve()
    try:
        assert _written(folder / f"out{suffix}", suffix)
        assert [path.name for path in folder.iterdir()] == [f"out{suffix}"]
    finally:
        shutil.rmtree(folder)


def _written(path: Path, suffix: str) -> bool:
    return path.stat().st_size > 500 if suffix else path.is_dir() and len(list(path.iterdir())) > 1


_REFUSED = (
    ("below a file", _below_a_file, "file is a file, not a folder|Not a directory"),
    ("a name of 300 letters", _long_name, "File name too long"),
    ("in a folder of 300 letters", _in_a_long_folder, "File name too long"),
    ("a link to itself", _looping_link, "Too many levels of symbolic links|leads back to itself|Symlink loop"),
)
# The run folder is checked late, and its name is printed unchanged.
_NOT_FOR: dict[str, tuple[str, ...]] = {
    "pretrain": ("a name of 300 letters", "in a folder of 300 letters", "a link to itself", "an odd name")
}
_FULL_DISK = {"reconstruct": 2, "reconstruct --separate": 2, "compare": 2, "pretrain": 5}
_FILE_REFUSED = (
    ("in no folder", _in_no_folder, "there is no folder"),
    ("a folder in its place", _a_folder, "is a folder; a file is wanted"),
    ("a FIFO in its place", _a_fifo, "is a device, a pipe or a socket"),
    ("a link to a pipe", _link_to_a_device, "is a device, a pipe or a socket"),
)
_FOLDER_REFUSED = (("a file in its place", _a_file, "is a file; a folder is wanted|File exists"),)
_WRITTEN = (
    ("an odd name", _odd_name, _is_there),
    ("a trailing slash", _trailing_slash, _is_there),
    ("the longest name", _longest_name, _is_there),
    ("a link to what is there", _linked, _link_is_kept),
    ("on another file system", _to_another_disk, _other_disk_is_written),
)
_FILE_WRITTEN = (
    ("a file in its place", _a_file, _is_there),
    ("a dangling link", _dangling, _link_is_kept),
)
_FOLDER_WRITTEN = (
    ("in no folder", _in_no_folder, lambda stage, suffix: _is_there_below(stage)),
    ("an empty folder in its place", _a_folder, _is_there),
)


def _is_there_below(stage: Stage) -> None:
    assert _written(stage.folder / "none" / "out", "")


def _onto_itself_by_link(stage: Stage) -> Words:
    (stage.folder / "link.pth").symlink_to(stage.weights)
    return ["export", stage.weights, "--to", "official", "--out", stage.folder / "link.pth"]


def _over_a_run(stage: Stage) -> Words:
    (stage.folder / "run").mkdir()
    (stage.folder / "run/checkpoint-last.pth").write_bytes(stage.weights.read_bytes())
    return ["pretrain", stage.images, *TINY, "--out", stage.folder / "run"]


def _resumed_elsewhere(stage: Stage) -> Words:
    """A finished run that was moved, whose settings name other folders: only the run's own folder is written."""
    from mae.options import build_config
    from mae.training.config import PretrainConfig
    from mae.training.pretrain import pretrain

    typed = {word[2:].replace("-", "_"): value for word, value in zip(TINY[::2], TINY[1::2], strict=True)}
    numbers = {name: int(value) for name, value in typed.items() if str(value).isdigit() and name != "image_size"}
    values = typed | numbers | {"data": [stage.images], "out": stage.folder / "first"}
    pretrain(build_config(PretrainConfig, values))
    (stage.folder / "first").rename(stage.folder / "moved")
    settings = stage.folder / "moved/config.toml"
    lines = [line for line in settings.read_text().splitlines() if not line.startswith("out")]
    settings.write_text("\n".join([*lines, f'out = "{stage.folder / "elsewhere"}"\n']))
    return ["pretrain", "--resume", stage.folder / "moved", "--epochs", "2"]


def _nothing_elsewhere(stage: Stage) -> None:
    assert [path.name for path in stage.folder.iterdir()] == ["moved"]
