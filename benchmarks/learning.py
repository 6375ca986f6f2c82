"""Compares recipes of pre-training with the same CPU time, by their frozen features.

    python benchmarks/learning.py CIFAR/train --minutes 10 --out benchmarks/results/learning_cifar10.json
    python benchmarks/learning.py CIFAR/train --minutes 10 --arm paper --arm muon --seeds 3 --out learning.json

Every recipe (arm) trains an encoder of the same sizes on the same images with the same seed and CPU time, so an arm
with cheaper steps takes more steps; its learning rate follows a cosine over this time. The features (mean of the
patch tokens after the final norm) are then evaluated by k-NN and a linear classifier, trained on 10,000 labelled
training images and tested on 5,000 held-out **training** images; test images are not used. Arms run one after the
other, each in its own process. A finished arm is not run again, so the command can be stopped and repeated.
With ``--points 4`` the features are also evaluated before training and after each quarter of the time; evaluations do
not count as CPU time.

The encoder has the official format in every arm. The arms:

    paper      the paper's decoder (8 blocks of width 512) and learning rate (1.5e-4 per 256 images)
    paper-lr   the paper's decoder, with the learning rate of the arms below
    small      AdamW, single patches are masked, all of them predicted by 2 decoder blocks of width 128;
               every arm below changes one property of this one
    lr-low, lr-high, batch-128            learning rate and batch
    muon       Muon (Jordan 2024) for the blocks' matrices, AdamW for the rest
    half       a random half of the masked patches is predicted
    cross      half of them, by a decoder with cross-attention only (CrossMAE, without its mix of encoder blocks)
    blocks     patches are masked in blocks of 2 x 2
    grid       one patch of every 2 x 2 is visible, the same one in the whole image
    mask-85    85 % masked
    crops-20   crops from 20 % of the area
    shallow    one decoder block instead of two; shallow-muon adds Muon
    growing    the first half of the time with three quarters of the image size
    average    the encoder is an exponential moving average of the weights
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import mae
from mae.config import LAYER_NORM_EPS
from mae.evaluation.knn import knn
from mae.evaluation.linear import linear
from mae.io.files import write_atomically
from mae.masking import Masking, masking_from_order, take_patches
from mae.pos_embed import sincos_2d
from mae.transformer import Mlp

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KNN_K = 20
WARMUP = 0.05  # of the time
LAST_IMAGES = 6_400  # the loss that is reported is the mean over these


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to pre-train."""

    lr: float = 1.5e-3
    batch_size: int = 64
    mask_ratio: float = 0.75
    mask_block: int = 1  # side, in patches, of what is removed together
    mask_grid: bool = False
    smallest_crop: float = 0.5  # of the area
    decoder_depth: int = 2
    decoder_width: int = 128
    decoder_heads: int = 4
    predicted: float = 1.0  # of the masked patches
    cross: bool = False
    muon: bool = False
    average: float = 0.0  # decay of the moving average per step
    growing: bool = False


ARMS = {
    "paper": Arm(lr=1.5e-4 * 64 / 256, decoder_depth=8, decoder_width=512, decoder_heads=16),
    "paper-lr": Arm(decoder_depth=8, decoder_width=512, decoder_heads=16),
    "small": Arm(),
    "lr-low": Arm(lr=7.5e-4),
    "lr-high": Arm(lr=3e-3),
    "batch-128": Arm(lr=2e-3, batch_size=128),
    "muon": Arm(lr=4e-3, batch_size=128, muon=True),
    "half": Arm(predicted=0.5),
    "cross": Arm(predicted=0.5, cross=True),
    "blocks": Arm(mask_block=2),
    "grid": Arm(mask_grid=True),
    "mask-85": Arm(mask_ratio=0.85),
    "crops-20": Arm(smallest_crop=0.2),
    "shallow": Arm(decoder_depth=1),
    "shallow-muon": Arm(lr=4e-3, batch_size=128, muon=True, decoder_depth=1),
    "growing": Arm(growing=True),
    "average": Arm(average=0.99),
}
# The encoder of all arms; with patches of 4 at 32 pixels and the decoder of "small", docs/cifar10.md trains it.
DEPTH, WIDTH, HEADS = 6, 192, 3


def main() -> None:
    """Run the arms that the result lacks, or one (in a process of its own)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="Class folders of training images.")
    parser.add_argument("--minutes", type=float, default=10, help="CPU time of each arm.")
    parser.add_argument("--arm", action="append", choices=ARMS, help="Default: all.")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--points", type=int, default=1, help="Parts of the time that end with an evaluation.")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--patch-size", type=int, default=4)
    parser.add_argument("--labelled", type=int, default=10_000, help="Images that teach the classifiers.")
    parser.add_argument("--held-out", type=int, default=5_000, help="Images that judge them.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="JSON; runs that are in it are not run again.")
    parser.add_argument("--only", nargs=2, metavar=("ARM", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        torch.set_num_threads(options.threads)
        name, seed = options.only
        print(json.dumps(run(options, name, int(seed))))
        return
    document = json.loads(options.out.read_text()) if options.out.exists() else {"runs": []}
    done = {(one["arm"], one["seed"], one["minutes"]) for one in document["runs"]}
    for seed in range(options.seeds):
        for name in options.arm or ARMS:
            if (name, seed, options.minutes) in done:
                continue
            command = [sys.executable, __file__, *sys.argv[1:], "--only", name, str(seed)]
            answer = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
            document["runs"].append(json.loads(answer.splitlines()[-1]))
            document |= surroundings(options)
            content = json.dumps(document, indent=1).encode() + b"\n"
            write_atomically(options.out, lambda file, content=content: file.write(content))
    print(table(document["runs"], options.minutes))


def surroundings(options: argparse.Namespace) -> dict[str, Any]:
    """What a reader needs to judge the figures."""
    return {
        "data": options.data.name,
        "image_size": options.image_size,
        "threads": options.threads,
        "encoder": {"depth": DEPTH, "width": WIDTH, "heads": HEADS, "patch": options.patch_size},
        "held_out_training_images": options.held_out,
        "labelled_training_images": options.labelled,
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "maecli": mae.__version__},
    }


def processor() -> str:
    """The processor's name, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def table(runs: Sequence[dict[str, Any]], minutes: float) -> str:
    """Markdown, the best linear accuracy first; the spread where there are several seeds."""
    rows = []
    for name in dict.fromkeys(one["arm"] for one in runs):
        mine = [one for one in runs if one["arm"] == name and one["minutes"] == minutes]
        if mine:
            rows.append((statistics.mean(one["linear"] for one in mine), name, mine))
    lines = ["| arm | seeds | images seen | linear, % | k-NN, % |", "|---|---:|---:|---:|---:|"]
    for _, name, mine in sorted(rows, key=lambda row: -row[0]):
        seen = statistics.mean(one["images_seen"] for one in mine)
        figures = " | ".join(spread([100 * one[key] for one in mine]) for key in ("linear", "knn"))
        lines.append(f"| {name} | {len(mine)} | {seen:,.0f} | {figures} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Mean and range."""
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f}..{max(values):.1f})"


def run(options: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Train one arm and evaluate its features."""
    arm, size = ARMS[name], options.image_size
    images, labels = read(options.data, size)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(99))  # the same for all arms and seeds
    held_out, unlabelled = order[: options.held_out], order[options.held_out :]
    labelled = unlabelled[: options.labelled]
    truth, teaching, classes = labels[held_out].numpy(), labels[labelled], int(labels.max()) + 1

    def evaluate(model: Any) -> dict[str, float]:
        features = [encode(model, images[chosen]) for chosen in (labelled, held_out)]
        neighbours = knn(features[0], teaching, features[1], classes, ks=[KNN_K]).predicted[KNN_K]
        answers = linear(features[0], teaching.numpy(), features[1], classes).predicted
        return {"linear": float((answers == truth).mean()), "knn": float((neighbours == truth).mean())}

    torch.manual_seed(seed)
    model = make_model(arm, size, options.patch_size)
    training = Training(model, arm, images[unlabelled], torch.Generator().manual_seed(seed))
    curve = []
    for point in range(0 if options.points > 1 else 1, options.points + 1):
        training.run(60 * options.minutes, until=point / options.points)
        with training.final_weights():
            curve.append({"minutes": options.minutes * point / options.points, **evaluate(model)})
    last = {key: curve[-1][key] for key in ("linear", "knn")}
    result = {"arm": name, "seed": seed, "minutes": options.minutes, **last, **training.facts()}
    return result | ({"curve": curve} if options.points > 1 else {}) | {"settings": dataclasses.asdict(arm)}


def make_model(arm: Arm, size: int, patch_size: int) -> Any:
    """Fresh weights; torch's global seed decides them."""
    model = mae.create_model(
        "vit_tiny",
        img_size=size,
        patch_size=patch_size,
        depth=DEPTH,
        embed_dim=WIDTH,
        num_heads=HEADS,
        decoder_embed_dim=arm.decoder_width,
        decoder_depth=arm.decoder_depth,
        decoder_num_heads=arm.decoder_heads,
        norm_pix_loss=True,
    )
    if arm.cross:
        blocks = (CrossBlock(arm.decoder_width, arm.decoder_heads) for _ in range(arm.decoder_depth))
        model.decoder.blocks = nn.ModuleList(blocks)
    return model


def read(data: Path, size: int) -> tuple[Tensor, Tensor]:
    """Class folders -> (N, 3, S, S) uint8 and (N,) classes; whole images, scaled where they are of another size."""
    files = sorted(data.glob("*/*.*"))
    names = sorted({file.parent.name for file in files})
    pixels = np.empty((len(files), size, size, 3), dtype=np.uint8)
    for row, file in zip(pixels, files, strict=True):
        with Image.open(file) as image:
            row[:] = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
    labels = torch.tensor([names.index(file.parent.name) for file in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels


class Training:
    """An arm's training, in parts."""

    def __init__(self, model: Any, arm: Arm, images: Tensor, generator: torch.Generator) -> None:
        self.model, self.arm, self.generator = model, arm, generator
        self.optimizers = list(make_optimizers(model, arm))
        self.peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.averages = {name: value.clone() for name, value in model.state_dict().items()} if arm.average else {}
        self.full_size = model.config.img_size[0]
        self.batches = shuffled(images, arm.batch_size, generator)
        self.losses: list[float] = []
        self.used = self.wall = 0.0

    def run(self, seconds: float, until: float) -> None:
        """Train until a fraction of ``seconds`` of CPU time is used."""
        start, clock = time.perf_counter(), time.process_time() - self.used
        while (share := (time.process_time() - clock) / seconds) < until:
            self.step(share)
        self.used = time.process_time() - clock
        self.wall += time.perf_counter() - start

    def step(self, share: float) -> None:
        """One step, with the learning rate at this share of the time."""
        model, arm = self.model, self.arm
        factor = min(1.0, share / WARMUP) * 0.5 * (1 + math.cos(math.pi * max(0.0, share - WARMUP) / (1 - WARMUP)))
        for optimizer, lrs in zip(self.optimizers, self.peaks, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * factor
        if arm.growing:
            resize(model, self.full_size * 3 // 4 if share < 0.5 else self.full_size)
        pixels = augment(next(self.batches), arm.smallest_crop, model.config.img_size[0], self.generator)
        loss = pretraining_loss(model, arm, pixels, self.generator)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.losses.append(loss.item())
        steps = len(self.losses)
        for name, value in model.state_dict().items() if arm.average else ():
            if value.shape == self.averages[name].shape:
                self.averages[name].lerp_(value, 1 - min(arm.average, steps / (steps + 10)))

    @contextlib.contextmanager
    def final_weights(self) -> Iterator[None]:
        """The weights and the size that are evaluated; training can go on afterwards."""
        resize(self.model, self.full_size)
        trained = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(trained | self.averages)
        yield
        self.model.load_state_dict(trained)

    def facts(self) -> dict[str, Any]:
        """Steps, and the mean loss of the last ones."""
        steps, size = len(self.losses), self.arm.batch_size
        loss = statistics.mean(self.losses[-max(1, LAST_IMAGES // size) :])
        return {"images_seen": steps * size, "steps": steps, "loss": loss, "wall_seconds": self.wall}


def pretraining_loss(model: Any, arm: Arm, pixels: Tensor, generator: torch.Generator) -> Tensor:
    """The model's loss, with the arm's mask and over what the arm predicts."""
    rows, columns = model.config.grid
    side = arm.mask_block
    noise = torch.rand(len(pixels), -(-rows // side), -(-columns // side), generator=generator)
    noise = noise.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, :rows, :columns]
    if arm.mask_grid:
        noise = noise[:, :2, :2].tile(1, -(-rows // 2), -(-columns // 2))[:, :rows, :columns]
    noise = noise.flatten(1)
    if arm.predicted == 1 and not arm.cross:
        return model.pretraining_loss(pixels, arm.mask_ratio, noise)
    masking = masking_from_order(noise, round(rows * columns * (1 - arm.mask_ratio)))
    removed = masking.ids_masked.shape[1]
    # Positions come in the order of the noise, so the first of the removed are a random part of them.
    ids = masking.ids_masked[:, : round(removed * arm.predicted)]
    patches = model.patchify(pixels)
    visible = model.patch_embed.embed(take_patches(patches, masking.ids_keep))
    latent = model._encode(visible + F.embedding(masking.ids_keep, model.pos_embed[0, 1:]))
    if arm.cross:
        prediction = predict_by_cross_attention(model.decoder, latent, masking.ids_keep, ids)
    else:
        prediction = model.decoder.predict_masked(latent, Masking(masking.ids_keep, ids, masking.ids_restore))
    return (prediction - model.target(take_patches(patches, ids))).square().mean()


def predict_by_cross_attention(decoder: Any, latent: Tensor, ids_keep: Tensor, ids: Tensor) -> Tensor:
    """(B, 1 + K, D) -> (B, M, p * p * C): mask tokens look at the visible tokens and not at one another."""
    positions = decoder.decoder_pos_embed[0]
    ids_visible = torch.cat([ids_keep.new_zeros(len(latent), 1), ids_keep + 1], dim=1)
    visible = decoder.decoder_embed(latent) + F.embedding(ids_visible, positions)
    queries = decoder.mask_token + F.embedding(ids + 1, positions)
    for block in decoder.blocks:
        queries = block(queries, visible)
    return decoder.pred(decoder.norm(queries))


class CrossBlock(nn.Module):
    """Cross-attention and an MLP, each behind a norm and beside a residual path (CrossMAE, Fu et al. 2024)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm_visible, self.norm2 = (nn.LayerNorm(width, eps=LAYER_NORM_EPS) for _ in range(3))
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.mlp = Mlp(width, 4 * width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, queries: Tensor, visible: Tensor) -> Tensor:
        """(B, M, E), (B, 1 + K, E) -> (B, M, E)."""
        q = self.q(self.norm1(queries)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(self.norm_visible(visible)).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        queries = queries + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return queries + self.mlp(self.norm2(queries))


def resize(model: Any, size: int) -> None:
    """Another image size: positions are a formula, so only its tables change."""
    if model.config.img_size != (size, size):
        model.config = model.config.replace(img_size=(size, size))
        model.pos_embed = sincos_2d(model.config.embed_dim, model.config.grid)
        model.decoder.decoder_pos_embed = sincos_2d(model.config.decoder_embed_dim, model.config.grid)


def make_optimizers(model: nn.Module, arm: Arm) -> Iterator[torch.optim.Optimizer]:
    """AdamW as the paper has it; with Muon, for all but the blocks' matrices."""
    matrices = []
    rest = dict(model.named_parameters())
    if arm.muon:
        matrices = [name for name, value in rest.items() if "blocks" in name and value.ndim == 2]
        yield Muon([rest.pop(name) for name in matrices], lr=arm.lr)
    decayed = [value for name, value in rest.items() if value.ndim > 1 and "token" not in name]
    others = [value for name, value in rest.items() if value.ndim == 1 or "token" in name]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    yield torch.optim.AdamW(groups, lr=min(arm.lr, 1.5e-3) if arm.muon else arm.lr, betas=(0.9, 0.95), fused=True)


class Muon(torch.optim.Optimizer):
    """Muon in float32: ``torch.optim.Muon`` works in bfloat16, which a processor without its instructions emulates.

    Matrices of one shape are orthogonalised together. The step has the size that AdamW's would have, so its
    learning rates apply.
    """

    def __init__(self, params: Sequence[nn.Parameter], lr: float, weight_decay: float = 0.05) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Orthogonalise each matrix's momentum by five steps of Newton and Schulz."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = {}
            for value in group["params"]:
                alike.setdefault(value.shape, []).append(value)
            for shape, values in alike.items():
                update = torch.stack([self.momentum(value, group["momentum"]) for value in values])
                update = orthogonalised(update if shape[0] <= shape[1] else update.mT)
                update = update if shape[0] <= shape[1] else update.mT
                for value, direction in zip(values, update, strict=True):
                    value.mul_(1 - group["lr"] * group["weight_decay"])
                    value.add_(direction, alpha=-group["lr"] * 0.2 * math.sqrt(max(shape)))

    def momentum(self, value: nn.Parameter, decay: float) -> Tensor:
        """Nesterov's momentum of a parameter's gradient."""
        assert value.grad is not None
        state = self.state[value]
        if not state:
            state["average"] = torch.zeros_like(value)
        state["average"].lerp_(value.grad, 1 - decay)
        return value.grad.lerp(state["average"], decay)


def orthogonalised(x: Tensor) -> Tensor:
    """(N, R, C) with R <= C: singular values become about 1."""
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return x


def shuffled(images: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches without end, each epoch in a new order."""
    while True:
        for rows in torch.randperm(len(images), generator=generator).split(batch_size):
            if len(rows) == batch_size:
                yield images[rows]


def augment(pixels: Tensor, smallest: float, size: int, generator: torch.Generator) -> Tensor:
    """(B, 3, S, S) uint8 -> (B, 3, size, size) normalised: a random crop and a flip of each image."""
    count = len(pixels)
    area, ratio, x, y, flip = torch.rand(5, count, generator=generator)
    area, ratio = smallest + (1 - smallest) * area, torch.exp((2 * ratio - 1) * math.log(4 / 3))
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    boxes = torch.zeros(count, 2, 3)
    boxes[:, 0, 0], boxes[:, 0, 2] = width * torch.where(flip < 0.5, -1, 1), (2 * x - 1) * (1 - width)
    boxes[:, 1, 1], boxes[:, 1, 2] = height, (2 * y - 1) * (1 - height)
    places = F.affine_grid(boxes, [count, 3, size, size], align_corners=False)
    return F.grid_sample(normalised(pixels), places, mode="bicubic", padding_mode="border", align_corners=False)


def normalised(pixels: Tensor) -> Tensor:
    """(B, 3, S, S) uint8 -> float."""
    return (pixels.float() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@torch.inference_mode()
def encode(model: Any, images: Tensor) -> Tensor:
    """(N, 3, S, S) uint8 -> (N, D), the mean of the patch tokens."""
    return torch.cat([model.encode(normalised(part))[:, 1:].mean(dim=1) for part in images.split(250)]).clone()


if __name__ == "__main__":
    main()
