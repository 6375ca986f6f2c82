"""Make the built-in weights' files of a finished run: the weights, their checksum, recipe, credits and model card.

    python benchmarks/builtin_weights.py runs/builtin --sources photos136/SOURCES.tsv --measure

writes into mae/weights/:

- builtin.safetensors: encoder and decoder under the official key names. float16, but for the position tables, which
  stay float32;
- builtin.sha256: its checksum, as sha256sum writes it;
- config.toml: the run's settings with paths relative to the folder in which the data lies, so that
  ``maecli pretrain --config config.toml`` trains the same model; config-1.toml and so on for the runs before it, where
  it began from another run's weights (give all runs, in the order of training);
- SOURCES.tsv: where the photographs come from;
- MODEL_CARD.md: benchmarks/MODEL_CARD.template.md with the figures of the run's log and of the JSON files that
  fills.py, frames.py and features.py in benchmarks/ have written to benchmarks/results/ about these very weights.

``--measure`` runs fills.py and frames.py on sample_images and on the run's held-out photographs before it writes the
card, and features.py on the labelled images that ``--labelled NAME=DATA`` gives. It takes minutes, OpenCV and scipy.
``--card`` writes the card alone, from the weights and the results that are there.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import json
import os
import string
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w
import torch

from mae.checkpoints import Checkpoint, build_model, load_checkpoint
from mae.checkpoints.builtin import CARD_FILE, CHECKSUM_FILE, RECIPE_FILE, WEIGHTS_FILE
from mae.checkpoints.save import save_safetensors
from mae.config import format_size
from mae.data.sources.scan import scan_images
from mae.io.files import write_atomically

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LARGEST = 25_000_000  # bytes of the file
SMALLER = 128  # px, a size that reconstructions are also measured at
TABLES = ("pos_embed", "decoder_pos_embed")
SOURCES_FILE = "SOURCES.tsv"
FACTS_FILE = RESULTS / "builtin_training.json"


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="The runs, in the order of training.")
    parser.add_argument("--sources", type=Path, help="Table of the photographs' origins.")
    parser.add_argument("--checkpoint", type=Path, help="Take these weights of the last run, not its newest state.")
    parser.add_argument("--out", type=Path, default=ROOT / "mae" / "weights")
    parser.add_argument("--measure", action="store_true", help="Measure the weights before the card is written.")
    parser.add_argument("--labelled", action="append", default=[], metavar="NAME=DATA", help="With --measure.")
    parser.add_argument("--card", action="store_true", help="Write the card alone.")
    options = parser.parse_args()
    if not options.card:
        if not options.runs:
            parser.error("a run is wanted")
        options.out.mkdir(exist_ok=True)
        write_weights(options.runs, options.checkpoint, options.sources, options.out)
    if options.measure:
        held_out = tomllib.loads((options.runs[-1] / "config.toml").read_text()).get("val") if options.runs else None
        measure(options.out / WEIGHTS_FILE, held_out, dict(one.split("=", 1) for one in options.labelled))
    write_text(options.out / CARD_FILE, card(options.out))


def write_weights(runs: list[Path], named: Path | None, sources: Path | None, out: Path) -> None:
    """Everything but the card."""
    settings = [tomllib.loads((run / "config.toml").read_text()) for run in runs]
    base = common_folder(settings[-1])
    checkpoint = load_checkpoint(named or runs[-1])
    images = sum(len(scan_images([Path(place)]).images) for place in settings[-1]["data"])
    trained_on = f"{images:,} photographs for {passes(runs, settings):.4g} epochs"

    path = out / WEIGHTS_FILE
    state = {key: shrunk(key, tensor) for key, tensor in checkpoint.state.items()}
    entry = {"config": dataclasses.asdict(checkpoint.config), "trained_on": trained_on, "licence": "Apache-2.0"}
    save_safetensors(path, state, {"maecli": json.dumps(entry)})
    if path.stat().st_size > LARGEST:
        raise SystemExit(f"{path} has {path.stat().st_size:,} bytes; at most {LARGEST:,} are wanted")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    write_text(out / CHECKSUM_FILE, f"{digest}  {WEIGHTS_FILE}\n")

    for stale in out.glob("config*.toml"):
        stale.unlink()
    for number, one in enumerate(settings, start=1):
        name = RECIPE_FILE if number == len(settings) else f"config-{number}.toml"
        before = number - 1 if number > 1 else None
        write_text(out / name, tomli_w.dumps(recipe(one, base, number, before, last=number == len(settings))))
    if sources:
        write_text(out / SOURCES_FILE, sources.read_text())

    facts = {
        "sha256": digest,
        "bytes": path.stat().st_size,
        "images": images,
        "images_by_set": images_by_set([Path(place) for place in settings[-1]["data"]]),
        "float16_psnr_db": rounding(checkpoint, path),
        "stages": [
            stage(run, one, checkpoint if number == len(runs) else None)
            for number, (run, one) in enumerate(zip(runs, settings, strict=True), start=1)
        ],
    }
    write_text(FACTS_FILE, json.dumps(facts, indent=1) + "\n")
    print(f"wrote {path} ({path.stat().st_size:,} bytes, SHA-256 {digest[:16]}...)")


def measure(weights: Path, held_out: str | None, labelled: Mapping[str, str]) -> None:
    """Run the scripts whose results the card shows."""
    shown = [("sample_images", str(ROOT / "sample_images"), "1"), ("held-out", held_out, "10")]
    commands = []
    native = load_checkpoint(weights).config.img_size
    for name, place, every in shown:
        if place is not None:
            end = name.replace("-", "_")
            commands += [
                ("fills.py", place, "--name", name, "--image-size", size, "--out", RESULTS / f"fills_{end}_{size}.json")
                for size in sorted({native[0], SMALLER})
            ]
            commands += [
                ("frames.py", place, "--name", name, "--every", every, "--out", RESULTS / f"frames_{end}.json"),
            ]
    for name, place in labelled.items():
        commands.append(("features.py", place, "--name", name, "--out", RESULTS / f"features_{name.lower()}.json"))
    for script, *words in commands:
        command = [sys.executable, ROOT / "benchmarks" / script, *words, "--checkpoint", weights]
        subprocess.run([str(word) for word in command], check=True)


def shrunk(key: str, tensor: torch.Tensor) -> torch.Tensor:
    """In float16 where that is a rounding of a weight, and not of the formula's table."""
    return tensor.float() if key in TABLES else tensor.half()


def common_folder(settings: Mapping[str, Any]) -> Path:
    """The folder in which the data lies, from which the recipe's paths lead."""
    return Path(os.path.commonpath([Path(place).parent for place in settings["data"]])).parent


def recipe(settings: Mapping[str, Any], base: Path, number: int, before: int | None, *, last: bool) -> dict[str, Any]:
    """A run's settings for another machine: the same numbers, and paths from the folder of the data on."""
    moved = dict(settings)
    moved["data"] = [relative(place, base) for place in settings["data"]]
    if "val" in settings:
        moved["val"] = relative(settings["val"], base)
    moved["out"] = "builtin" if last else f"builtin-{number}"
    if before is not None:
        moved["init"] = f"builtin-{before}"
    elif "init" in settings:
        raise SystemExit(f"the first run began from {settings['init']}: give that run too, before it")
    return moved


def relative(place: str, base: Path) -> str:
    """A path from the folder of the data on."""
    return Path(os.path.relpath(place, base)).as_posix()


def rows(run: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's log."""
    for line in (run / "log.jsonl").read_text().splitlines():
        yield json.loads(line)


def passes(runs: list[Path], settings: list[dict[str, Any]]) -> float:
    """Passes over the photographs in all runs; of a run that was stopped as far as it came."""
    return sum(
        min(float(one["epochs"]), max(map(epochs_at, rows(run)), default=0.0))
        for run, one in zip(runs, settings, strict=True)
    )


def epochs_at(row: Mapping[str, Any]) -> float:
    """Passes that are done at a line of a log: of steps as it says, and an epoch's line comes at its end."""
    return float(row.get("epoch", 0)) + ("train_loss" in row)


def stage(run: Path, settings: Mapping[str, Any], checkpoint: Checkpoint | None) -> dict[str, Any]:
    """What a run was: its settings, the time of its finished epochs by the log, and the machine."""
    environment = json.loads((run / "environment.json").read_text())
    epochs = [row for row in rows(run) if "train_loss" in row]
    seconds = sum(row["seconds"] for row in epochs)
    names = ("variant", "image_size", "mask_ratio", "norm_pix_loss", "epochs", "warmup_epochs", "batch_size", "lr")
    more = ("weight_decay", "betas", "crop_scale", "hflip", "precision", "seed")
    return {
        "settings": {name: settings[name] for name in (*names, *more) if name in settings},
        "images_per_second": sum(row["images_per_second"] * row["seconds"] for row in epochs) / seconds,
        "hours": seconds / 3600,
        "epochs_done": passes([run], [dict(settings)]),
        "last_loss": epochs[-1]["train_loss"],
        "machine": {name: environment[name] for name in ("processor", "usable_cores", "threads", "gpus")},
        "torch": environment["packages"]["torch"],
        "epoch_of_the_weights": None if checkpoint is None else checkpoint.epoch,
    }


def images_by_set(folders: list[Path]) -> dict[str, int]:
    """Training photographs by the folders right below the data."""
    below = sorted(one for folder in folders for one in folder.iterdir() if one.is_dir())
    return {one.name: len(scan_images([one]).images) for one in below}


def rounding(checkpoint: Checkpoint, path: Path) -> float:
    """How near the predictions of the file are to those of float32, as PSNR of images on a scale of 0 to 1, dB."""
    exact, stored = build_model(checkpoint)[0], build_model(load_checkpoint(path))[0]
    generator = torch.Generator().manual_seed(0)
    config = checkpoint.config
    imgs = torch.randn(8, config.in_chans, *config.img_size, generator=generator)
    noise = torch.rand(8, config.num_patches, generator=generator)
    with torch.no_grad():
        error = (exact(imgs, 0.75, noise)[1] - stored(imgs, 0.75, noise)[1]) * 0.226
    return float(-10 * error.square().mean().log10())


def card(out: Path) -> str:
    """The model card: the template with measured figures in it."""
    facts = json.loads(FACTS_FILE.read_text())
    checkpoint = load_checkpoint(out / WEIGHTS_FILE)
    config = checkpoint.config
    sources = list(csv.DictReader((out / SOURCES_FILE).read_text().splitlines(), delimiter="\t"))
    recipes = [*sorted(path.name for path in out.glob("config-*.toml")), RECIPE_FILE]
    template = string.Template((ROOT / "benchmarks" / "MODEL_CARD.template.md").read_text())
    return template.substitute(
        sha256=facts["sha256"],
        megabytes=f"{facts['bytes'] / 1e6:.1f}",
        variant=checkpoint.variant or "a model of its own sizes",
        parameters=f"{checkpoint.num_parameters / 1e6:.2f}",
        encoder=f"{config.embed_dim}/{config.depth}/{config.num_heads}",
        decoder=f"{config.decoder_embed_dim}/{config.decoder_depth}/{config.decoder_num_heads}",
        image_size=format_size(config.img_size),
        patch_size=config.patch_size,
        patches=config.num_patches,
        target="normalised patches" if config.norm_pix_loss else "raw pixels",
        rounding=f"{facts['float16_psnr_db']:.0f}",
        images=f"{facts['images']:,}",
        data_table="\n".join(data_lines(facts["images_by_set"], sources)),
        command=" &&\n".join(
            f"OMP_NUM_THREADS={one['machine']['threads']} maecli pretrain --config {name}"
            for name, one in zip(recipes, facts["stages"], strict=True)
        ),
        training_table="\n".join(training_lines(facts["stages"])),
        duplicates=duplicates_sentence(),
        fills="\n".join(fill_lines(facts["sha256"])),
        frames="\n".join(frame_lines(facts["sha256"])),
        features="\n".join(feature_lines(facts["sha256"])),
    )


def data_lines(counts: Mapping[str, int], sources: list[dict[str, str]]) -> Iterator[str]:
    """A row for each set, from the table of sources; the books of one publisher are one row."""
    yield "| set | photographs | from | licence |"
    yield "|---|---|---|---|"
    for name, count in counts.items():
        parts = [row for row in sources if row["set"] == name and row["images"] != "0"]
        where = parts[0]["source"] if len(parts) == 1 else f"{len(parts)} sources (SOURCES.tsv)"
        commit = f" at {parts[0]['commit'][:10]}" if len(parts) == 1 and parts[0]["commit"] != "-" else ""
        licences = "; ".join(dict.fromkeys(row["licence"] for row in parts))
        yield f"| {name} | {count:,} | {where}{commit} | {licences} |"


def training_lines(stages: list[dict[str, Any]]) -> Iterator[str]:
    """A row for each run."""
    yield "| run | epochs | image size | batch | learning rate | machine | hours | images/s | last loss |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for number, one in enumerate(stages, start=1):
        settings, machine = one["settings"], one["machine"]
        gpus = ", ".join(str(gpu.get("name", gpu)) if isinstance(gpu, dict) else str(gpu) for gpu in machine["gpus"])
        where = gpus or f"{machine['processor']}, {machine['threads']} of {machine['usable_cores']:g} cores"
        cells = (
            number,
            f"{one['epochs_done']:.4g} of {settings['epochs']}",
            format_size(tuple(settings["image_size"])),
            settings["batch_size"],
            f"{settings['lr']:g}",
            where,
            f"{one['hours']:.2f}",
            f"{one['images_per_second']:.0f}",
            f"{one['last_loss']:.3f}",
        )
        yield f"| {' | '.join(map(str, cells))} |"


def measured(pattern: str, sha256: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Results about these weights; of others none, so that a card never has old figures."""
    for path in sorted(RESULTS.glob(pattern)):
        result = json.loads(path.read_text())
        if result.get("weights_sha256") == sha256:
            yield path, result
        else:
            print(f"{path.name} is about other weights and not in the card")


NOT_MEASURED = "Not measured yet for these weights."


def duplicates_sentence() -> str:
    """What the search for the shown photographs among the training images found."""
    path = RESULTS / "duplicates.json"
    if not path.is_file():
        return "The training images were not searched for copies of them."
    found = json.loads(path.read_text())
    names = ", ".join(found["duplicates"]) or "none"
    return (
        f"Copies of them among the {found['training_images']:,} training images, found by comparing thumbnails "
        f"(`benchmarks/duplicates.py`): {names}. The most similar training image has a cosine similarity of "
        f"{found['highest']:.2f}; a recompressed copy has at least {found['lowest_of_a_recompressed_copy']:.2f}."
    )


def fill_lines(sha256: str) -> Iterator[str]:
    """The model beside classical fills."""
    found = list(measured("fills_*.json", sha256))
    if not found:
        yield NOT_MEASURED
        return
    yield "| photographs | number | px | model | Telea | Navier-Stokes | linear | mean colour | margin over the best |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for _, result in found:
        psnr = result["psnr_db"]
        best = [max(value for name, value in psnr.items() if name.startswith(kind)) for kind in ("telea", "navier")]
        cells = [psnr["model"], *best, psnr["linear"], psnr["mean"]]
        size = format_size(tuple(result["image_size"]))
        yield (
            f"| {result['name']} | {result['photographs']} | {size} | {' | '.join(f'{cell:.2f}' for cell in cells)} | "
            f"{result['margin_db']:+.2f} dB, better on {result['photographs_won']} of {result['photographs']} |"
        )


def frame_lines(sha256: str) -> Iterator[str]:
    """Other frames than the one of the training."""
    found = list(measured("frames*.json", sha256))
    if not found:
        yield NOT_MEASURED
        return
    for _, result in found:
        yield f"On {result['photographs']} photographs ({result['name']}):"
        yield ""
        yield "| frame | positions | model | linear fill | margin |"
        yield "|---|---|---|---|---|"
        for one in result["frames"]:
            yield (
                f"| {one['frame']} | {one['positions']} | {one['psnr_db']:.2f} | {one['linear_db']:.2f} | "
                f"{one['psnr_db'] - one['linear_db']:+.2f} |"
            )
        yield ""


def feature_lines(sha256: str) -> Iterator[str]:
    """Frozen features beside an untrained encoder's and pixels."""
    found = list(measured("features_*.json", sha256))
    if not found:
        yield NOT_MEASURED
        return
    yield "| data | features of | k-NN | linear | attentive |"
    yield "|---|---|---|---|---|"
    for _, result in found:
        for row in result["rows"]:
            accuracies = [row["knn"], row["linear"], row["attentive"]]
            shown = ["-" if one is None else f"{one:.1%}" for one in accuracies]
            images = f"{result['train_images']:,} + {result['test_images']:,} images"
            data = f"{result['name']}, {result['classes']} classes, {images}"
            yield f"| {data} | {row['subject']} | {' | '.join(shown)} |"


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    write_atomically(path, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    main()
