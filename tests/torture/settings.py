"""Invalid settings, in files and on the command line, with the expected message."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.torture.trials import Stage, Trial, Words

# name -> (content of the file, expected message). The command's data does not exist, so a
# file that is not refused ends with exit code 3.
FILES: dict[str, tuple[str | bytes, str]] = {
    "unknown": ("colour = 3", r"unknown option 'colour' in \S*settings.toml"),
    "misspelt": ("batchsize = 3", r"unknown option 'batchsize' in \S*settings.toml\nhint: did you mean batch_size"),
    "misspelt, several near": ("every = 3", "hint: did you mean log_every, save_every"),
    "a name that paints the terminal": ('"\\u001b[2J" = 1', r"unknown option '\\x1b\[2J' in"),
    "a name of 100,000 letters": ("a" * 100_000 + " = 1", r"unknown option 'a{56}\.\.\. in"),
    "a text for a whole number": ('epochs = "many"', r"epochs in \S*settings.toml must be a whole number; got 'many'"),
    "a number in quotes": ('epochs = "3"', r"epochs in \S*settings.toml must be a whole number; got '3'"),
    "true for a whole number": ("epochs = true", "epochs in .* must be a whole number; got True"),
    "a fraction for a whole number": ("epochs = 2.5", "epochs in .* must be a whole number; got 2.5"),
    "1 for true": ("hflip = 1", "hflip in .* must be true or false; got 1"),
    "yes for true": ('hflip = "yes"', "hflip in .* must be true or false; got 'yes'"),
    "true for a number": ("mask_ratio = true", "mask_ratio in .* must be a number; got True"),
    "NaN": ("base_lr = nan", "base_lr in .* must be a finite number; got nan"),
    "infinity": ("weight_decay = inf", "weight_decay in .* must be a finite number; got inf"),
    "infinity by overflow": ("warmup_epochs = 1e999", "warmup_epochs in .* must be a finite number; got inf"),
    "negative": ("epochs = -1", "epochs in .* must be at least 1; got -1"),
    "zero": ("batch_size = 0", "batch_size in .* must be at least 1; got 0"),
    "beyond a share": ("mask_ratio = 75", "mask_ratio in .* must be above 0 and below 1; got 75"),
    "10^30": ("batch_size = 1" + "0" * 30, r"batch_size in .* must be at most 9.22337e\+18; got a number of 100 bits"),
    "10^30 for a fraction": ("base_lr = 1" + "0" * 30, "base_lr in .* must be a finite number"),
    "a number of 5,000 digits": ("epochs = 1" + "0" * 5000, "is not TOML: too long or too deep"),
    "a number of 50,000 hexadecimal digits": (
        "epochs = 0x1" + "0" * 50_000,
        "epochs in .* must be at most .* got a number of 200001 bits",
    ),
    "such a number in a list": ("crop_scale = [0x1" + "0" * 50_000 + "]", "crop_scale in .* needs 2 values; got 1"),
    "a list for a number": ("epochs = [1, 2]", r"epochs in .* must be a whole number; got \[1, 2\]"),
    "a long list for a number": (f"epochs = {list(range(100_000))}", "must be a whole number; got 100,000 values"),
    "lists in a list": ("betas = [[0.9], [0.95]]", r"betas in .* must be a number; got \[0.9\]"),
    "one of two values": ("betas = [0.9]", "betas in .* needs 2 values; got 1"),
    "one bad value of two": ("betas = [0.9, 1.5]", "betas in .* must be at least 0 and below 1; got 1.5"),
    "a table for a number": ("epochs = {n = 3}", "epochs in .* must be a whole number; got {'n': 3}"),
    "a section": ("[model]\nvariant = 'vit_tiny'", r"unknown table \[model\] in .*\n.*no tables"),
    "sections in a list": ("[[runs]]\nepochs = 1", "unknown option 'runs' in"),
    "dotted names": ("model.variant = 'vit_tiny'", r"unknown table \[model\]"),
    "a date for a number": ("epochs = 2024-02-03", "epochs in .* must be a whole number; got 2024-02-03"),
    "a time for a path": ("out = 07:32:00", "out in .* must be a path; got 07:32:00"),
    "a date for a text": ("variant = 1979-05-27T07:32:00Z", "variant in .* must be a text; got 1979-05-27"),
    "a list for a text": ('variant = ["vit_tiny"]', r"variant in .* must be a text; got \['vit_tiny'\]"),
    "no such variant": ('variant = "vit_bse"', r"unknown variant 'vit_bse'(?s:.*)did you mean vit_base"),
    "no such choice": ('precision = "bf61"', "precision in .* must be one of auto, fp32, bf16, fp16; got 'bf61'"),
    "a choice of a megabyte": (f'precision = "{"x" * 900_000}"', r"precision in .* got 'x{56}\.\.\."),
    "a number for a path": ("out = 3", "out in .* must be a path; got 3"),
    "no path": ('out = ""', "out in .* must be a path; got nothing"),
    "a path with a zero byte": ('out = "a\\u0000b"', r"out in .* must be a path; got 'a\\x00b'"),
    "no data": ("data = []", "missing DATA"),
    "data of another kind": ("data = [3]", "data in .* must be a path; got 3"),
    "a size of three sides": ("image_size = [224, 224, 3]", "image_size in .*: wanted pixels as S or HxW"),
    "a size of nothing": ("image_size = 0", "image_size in .*: wanted pixels as S or HxW.* got 0"),
    "a size in words": ('image_size = "224 by 224"', "wanted pixels as S or HxW.* got '224 by 224'"),
    "a size that is true": ("image_size = true", "wanted pixels as S or HxW.* got True"),
    "a size of no whole patches": ("image_size = 100", "100x100 pixels is not a whole number of patches of 16"),
    "a size that no memory holds": ("image_size = 16000000", "16000000x16000000 pixels has 1,000,000,000,000 patches"),
    "a size of 400 digits": ("image_size = 1" + "0" * 400, "wanted pixels as S or HxW.* got a number of 1329 bits"),
    "a ratio that leaves no patch": ("mask_ratio = 0.9999", "leaves none of 196 patches visible"),
    "a ratio that masks no patch": ("mask_ratio = 1e-17", "--mask-ratio .* masks no patch"),
    "the smaller share last": ("crop_scale = [0.8, 0.2]", r"--crop-scale 0.8 0.2.* \(set in \S*settings.toml\)"),
    "an end above the peak": ("lr = 1e-4\nmin_lr = 1e-3", r"--min-lr 0.001 is above --lr .* \(set in \S*settings"),
    "the same name twice": ("epochs = 1\nepochs = 2", "is not TOML: Cannot overwrite a value"),
    "the same name with - and _": ("mask-ratio = 0.5\nmask_ratio = 0.6", "has mask_ratio twice"),
    "no TOML": ("hello", "is not TOML: Expected '='"),
    "JSON": ('{"epochs": 3}', "is not TOML: Invalid statement"),
    "a web page": ("<!DOCTYPE html><html>404</html>", "is not TOML: Invalid statement"),
    "a deep nest": ("a = " + "[" * 50_000 + "]" * 50_000, "is not TOML: too long or too deep"),
    "not UTF-8": (b'out = "\xff\xfe"', "is not TOML: its byte 7 is not UTF-8"),
    "UTF-16": ("epochs = 1".encode("utf-16"), "is not TOML: its byte 0 is not UTF-8"),
    "an image": (b"\x89PNG\r\n\x1a\n" + bytes(99), "is not TOML: its byte 0 is not UTF-8"),
    "zeros": (bytes(5000), "is not TOML: Invalid statement"),
}

# name -> (content of the file, expected message), for files that are accepted.
READ: dict[str, tuple[str | bytes, str]] = {
    "an empty file": ("", "no such folder"),
    "only a comment": ("# nothing", "no such folder"),
    "a byte-order mark": (b"\xef\xbb\xbfepochs = 3", "no such folder"),
    "Windows' line ends": (b"epochs = 3\r\nbatch-size = 4\r\n", "no such folder"),
}

COMMANDS: dict[str, tuple[Callable[[Stage], Words], str]] = {
    "pretrain, 10^30 epochs": (lambda s: _pretrain("--epochs", "1" + "0" * 30), "--epochs must be at most 9.22337e"),
    "pretrain, 10^400 epochs": (lambda s: _pretrain("--epochs", "1" + "0" * 400), "--epochs must be at most 9.22337e"),
    "pretrain, 5,000 digits": (lambda s: _pretrain("--epochs", "1" * 5000), "--epochs"),
    "pretrain, words": (lambda s: _pretrain("--epochs", "many"), "--epochs"),
    "pretrain, a NaN": (lambda s: _pretrain("--base-lr", "nan"), "--base-lr must be a finite number; got nan"),
    "pretrain, infinity": (lambda s: _pretrain("--lr", "1e999"), "--lr must be a finite number; got inf"),
    "pretrain, one beta": (lambda s: _pretrain("--betas", "0.9"), "--betas"),
    "pretrain, a beta of NaN": (lambda s: _pretrain("--betas", "nan", "0.9"), "--betas must be a finite number"),
    "pretrain, a negative seed": (lambda s: _pretrain("--seed", "-1"), "--seed must be at least 0; got -1"),
    "pretrain, no variant": (lambda s: _pretrain("--variant", ""), "unknown variant ''"),
    "pretrain, a near option": (lambda s: _pretrain("--batchsize", "3"), "--batch-size"),
    "pretrain, half a size": (lambda s: _pretrain("--image-size", "224x"), "wanted pixels as S or HxW"),
    "pretrain, other digits": (lambda s: _pretrain("--image-size", "٢٢٤x٢٢٥"), "not a whole number of patches"),
    "pretrain, a vast size": (lambda s: _pretrain("--image-size", "1600000x1600000"), "at most 262,144 can be held"),
    "profile, 10^30 images a batch": (lambda s: ["profile", "--batch-size", "1" + "0" * 30], "--batch-size must be"),
    "profile, no memory": (lambda s: ["profile", "--fit", "0GB"], "--fit: wanted memory as 24GB"),
    "profile, negative memory": (lambda s: ["profile", "--fit=-5GB"], "--fit: wanted memory as 24GB"),
    "profile, 400 digits of memory": (lambda s: ["profile", "--fit", "9" * 400], "--fit: wanted memory as 24GB"),
    "profile, a price of NaN": (lambda s: ["profile", "--price", "nan"], "--price must be a finite number"),
    "profile, more than the peak": (lambda s: ["profile", "--mfu", "2"], "--mfu must be above 0 and at most 1; got 2"),
    "profile, an unknown GPU": (lambda s: ["profile", "--gpu", "h10"], "did you mean"),
    "profile, no depth": (lambda s: ["profile", "--depth", "0"], "--depth must be at least 1; got 0"),
    "reconstruct, a seed of 10^30": (lambda s: _reconstruct(s, "--seed", "1" + "0" * 30), "--seed must be at most"),
    "reconstruct, a ratio of NaN": (lambda s: _reconstruct(s, "--mask-ratio", "nan"), "--mask-ratio must be a finite"),
    "reconstruct, a vast frame": (lambda s: _reconstruct(s, "--image-size", "80000000"), "at most 262,144 can be held"),
    "reconstruct, neither on nor off": (lambda s: _reconstruct(s, "--norm-pix", "maybe"), "--norm-pix must be one of"),
    "reconstruct, a mask and ratios": (
        lambda s: _reconstruct(s, "--mask", s.image, "--mask-ratio", "0.5", "--mask-ratio", "0.6"),
        "--mask and several --mask-ratio",
    ),
    "compare, a ratio of one": (lambda s: ["compare", "--official", s.weights, "--mask-ratio", "1"], "below 1; got 1"),
    "compare, 10^30 heads": (
        lambda s: ["compare", "--official", s.weights, "--num-heads", "1" + "0" * 30],
        "--num-heads must be at most",
    ),
    "compare, no such reference": (
        lambda s: ["compare", "--official", s.weights, "--reference", "tim"],
        r"neither(?s:.*)did you mean timm",
    ),
    "export, no such target": (lambda s: ["export", s.weights, "--to", "onxx"], "--to must be one of official"),
    "export, no target": (lambda s: ["export", s.weights], "missing --to"),
    "export, no heads": (lambda s: ["export", s.weights, "--to", "timm", "--num-heads", "0"], "--num-heads must be"),
}


def all_settings() -> Iterator[Trial]:
    """The whole corpus."""
    for name, (content, said) in FILES.items():
        yield Trial(f"settings: {name}", _with_file(content), 2, said)
    for name, (content, said) in READ.items():
        yield Trial(f"settings: {name}", _with_file(content), 3, said)
    yield Trial("settings: a file of 100 MB", _with_vast_file, 2, "is larger than 1000 kB")
    yield Trial("settings: no file", lambda s: _pretrain("--config", s.folder / "none.toml"), 2, "No such file")
    yield Trial("settings: a folder", lambda s: _pretrain("--config", s.folder), 2, "Is a directory")
    yield Trial("settings: a FIFO", _with_fifo, 2, "is a device, a pipe or a socket, not a file")
    yield Trial("settings: a device", lambda s: _pretrain("--config", "/dev/zero"), 2, "is a device, a pipe")
    yield Trial("settings: a link to itself", _with_loop, 2, "Too many levels of symbolic links")
    yield Trial("settings: a name of 300 letters", lambda s: _pretrain("--config", "x" * 300), 2, "File name too long")
    url = "http://host/train-{00..09}.tar"
    yield Trial(f"command line: pretrain {url}", _pretrain_on(url), 3, "http is refused")
    for url in ("https://host/images", "https://host/train.tar.gz"):
        yield Trial(f"command line: pretrain {url}", _pretrain_on(url), 3, "by URL only images and .tar")
    for name, (make, said) in COMMANDS.items():
        yield Trial(f"command line: {name}", make, 2, said)


def _pretrain(*words: str | Path) -> Words:
    return ["pretrain", "/nonexistent/images", *words]


def _pretrain_on(url: str) -> Callable[[Stage], Words]:
    return lambda stage: ["pretrain", url]


def _reconstruct(stage: Stage, *words: str | Path) -> Words:
    out = stage.folder / "out.png"
    return ["reconstruct", stage.image, "--checkpoint", stage.weights, "--out", out, *words]


def _with_file(content: str | bytes) -> Callable[[Stage], Words]:
    def make(stage: Stage) -> Words:
        path = stage.folder / "settings.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        data: Words = [] if b"data" in path.read_bytes()[:9] else ["/nonexistent/images"]
        return ["pretrain", *data, "--config", path]

    return make


def _with_vast_file(stage: Stage) -> Words:
    with (stage.folder / "vast.toml").open("wb") as file:
        file.truncate(100_000_000)
    return _pretrain("--config", stage.folder / "vast.toml")


def _with_fifo(stage: Stage) -> Words:
    os.mkfifo(stage.folder / "fifo.toml")
    return _pretrain("--config", stage.folder / "fifo.toml")


def _with_loop(stage: Stage) -> Words:
    (stage.folder / "loop.toml").symlink_to(stage.folder / "loop.toml")
    return _pretrain("--config", stage.folder / "loop.toml")
