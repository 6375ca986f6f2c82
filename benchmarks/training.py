"""Training steps per second beside other implementations of the masked autoencoder, interleaved in one run.

    python benchmarks/training.py --official ~/mae --variant vit_base --batch-size 32 --rounds 7

Each contestant lives in a process of its own and takes one full step (forward, backward, AdamW) when it is its
turn, so all of them meet the same noise of the machine; the ratio is taken round by round. ``official`` is a
clone of facebookresearch/mae given by path; ``+heap`` tells glibc to keep freed memory, which our trainer always
does; ``+recompute`` is ``pretrain --activation-checkpointing``.
Peers come from their packages: pip install transformers lightly timm.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZES = {
    # encoder width, blocks, heads; decoder width, blocks, heads
    "vit_base": (768, 12, 12, 512, 8, 16),
    "vit_large": (1024, 24, 16, 512, 8, 16),
    "tiny": (192, 12, 3, 128, 4, 4),
}
CONTESTANTS = (
    "ours-bf16", "ours-bf16+recompute", "ours-fp32", "official-fp32", "official-bf16", "official-fp32+heap",
    "official-bf16+heap", "transformers-fp32", "lightly-fp32",
)  # fmt: skip


def main() -> None:
    """Start a process for each contestant, let them step in turn, print the table and write the figures."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--official", type=Path, help="a clone of facebookresearch/mae")
    cli.add_argument("--variant", choices=SIZES, default="vit_base")
    cli.add_argument("--batch-size", type=int, default=32)
    cli.add_argument("--rounds", type=int, default=7)
    cli.add_argument("--device", default="cpu")
    cli.add_argument("--contestants", nargs="+", default=list(CONTESTANTS))
    cli.add_argument("--steps", type=int, default=1, help="steps in one turn")
    cli.add_argument("--out", type=Path, help="write the figures as JSON")
    cli.add_argument("--worker", help=argparse.SUPPRESS)
    args = cli.parse_args()
    if args.worker:
        work(args)
        return
    names = [name for name in args.contestants if args.official or not name.startswith("official")]
    processes = {name: start(name) for name in names}
    for name, process in processes.items():
        ask(process, name)  # the first step warms up
    rounds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(args.rounds):
        for name, process in processes.items():
            rounds[name].append(args.batch_size * args.steps / float(ask(process, name)["seconds"]))
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
    facts = {name: ask(process, name, "end") for name, process in processes.items()}
    report(args, rounds, facts)


def start(name: str) -> subprocess.Popen[str]:
    """A contestant in a process of its own."""
    return subprocess.Popen(
        [sys.executable, *sys.argv, "--worker", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def ask(process: subprocess.Popen[str], name: str, word: str = "step") -> dict[str, Any]:
    """Let a contestant take its turn and return what it says."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(word + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{name} ended: {process.wait()}")
    answer: dict[str, Any] = json.loads(line)
    return answer


def report(args: argparse.Namespace, rounds: dict[str, list[float]], facts: dict[str, dict[str, Any]]) -> None:
    """Median images/s of each and, round by round, the ratios of ours to each peer."""
    import torch

    rows = []
    print(f"{args.variant}, batch {args.batch_size}, {args.device}, torch {torch.__version__}")
    print(f"{'':22}{'images/s':>22}{'peak GB':>9}{'ours-bf16 over it':>24}{'ours-fp32 over it':>24}")
    for name, rates in rounds.items():
        row: dict[str, Any] = {
            "name": name,
            "images_per_second": spread(rates),
            "peak_bytes": facts[name]["peak_bytes"],
        }
        cells = [f"{name:22}", f"{text(spread(rates)):>22}", f"{facts[name]['peak_bytes'] / 1e9:9.2f}"]
        for ours in ("ours-bf16", "ours-fp32"):
            cell = ""
            if ours in rounds and not name.startswith("ours"):
                ratios = spread([a / b for a, b in zip(rounds[ours], rates, strict=True)])
                row[f"{ours}_ratio"], cell = ratios, text(ratios)
            cells.append(f"{cell:>24}")
        rows.append(row)
        print("".join(cells))
    if args.out:
        document = {
            "command": " ".join(["python", *sys.argv]),
            "machine": {"processor": processor(), "threads": torch.get_num_threads()},
            "versions": {key: value for fact in facts.values() for key, value in fact["versions"].items()}
            | {"python": platform.python_version()},
            "variant": args.variant, "batch_size": args.batch_size, "rounds": args.rounds, "rows": rows,
        }  # fmt: skip
        if args.device == "cuda":
            document["machine"]["gpu"] = torch.cuda.get_device_name()
        args.out.write_text(json.dumps(document, indent=1) + "\n")


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def text(values: dict[str, float]) -> str:
    """2.31 (2.20..2.40)."""
    return f"{values['median']:.2f} ({values['low']:.2f}..{values['high']:.2f})"


def processor() -> str:
    """The CPU's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def work(args: argparse.Namespace) -> None:
    """Be one contestant: answer each "step" with its seconds, and "end" with the peak memory."""
    import torch

    name, _, how = args.worker.partition("+")
    kind, precision = name.split("-")
    if how == "heap":
        keep_heap()
    args.activation_checkpointing = how == "recompute"
    torch.manual_seed(0)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    cuda = args.device == "cuda"
    autocast = functools.partial(torch.autocast, args.device, dtype, enabled=precision == "bf16")
    if cuda and precision == "fp32":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    step, versions = BUILDERS[kind](args, autocast, precision)
    for line in sys.stdin:
        if line.strip() == "end":
            peak = (
                torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            )
            print(json.dumps({"peak_bytes": peak, "versions": {"torch": torch.__version__, **versions}}), flush=True)
            return
        began = time.perf_counter()
        for _ in range(args.steps):
            step()
        if cuda:
            torch.cuda.synchronize()
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


def keep_heap() -> None:
    """Tell glibc to keep freed memory, as our trainer does."""
    libc = ctypes.CDLL(None)
    libc.mallopt(-4, 0)  # M_MMAP_MAX
    libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD


Built = tuple[Callable[[], None], dict[str, str]]


def build_ours(args: argparse.Namespace, autocast: Any, precision: str) -> Built:
    """Our trainer's step: images travel as uint8."""
    import torch

    import mae
    from mae.config import MAEConfig
    from mae.models import create_model
    from mae.training.step import TrainingStep

    model = create_model(MAEConfig((224, 224), 16, 3, *SIZES[args.variant], norm_pix_loss=True))
    model.set_activation_checkpointing(args.activation_checkpointing)
    step = TrainingStep(model.to(args.device), precision, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)
    images = torch.randint(0, 256, (args.batch_size, 3, 224, 224), dtype=torch.uint8).to(args.device)

    def run() -> None:
        noise = torch.rand(args.batch_size, 196, device=args.device)
        step.backward(images, 0.75, noise)
        step.update()

    return run, {"maecli": mae.__version__}


def build_official(args: argparse.Namespace, autocast: Any, precision: str) -> Built:
    """The official model and optimiser; its pinned timm of 2021 is bridged by leaving ``qk_scale`` out."""
    import numpy as np
    import timm
    import timm.models.vision_transformer as timm_vit
    import torch

    np.float = float  # type: ignore[attr-defined]
    block = timm_vit.Block
    timm_vit.Block = lambda *a, qk_scale=None, **k: block(*a, **k)
    sys.path.insert(0, str(args.official))
    import models_mae

    width, depth, heads, decoder_width, decoder_depth, decoder_heads = SIZES[args.variant]
    model = models_mae.MaskedAutoencoderViT(
        patch_size=16, embed_dim=width, depth=depth, num_heads=heads, decoder_embed_dim=decoder_width,
        decoder_depth=decoder_depth, decoder_num_heads=decoder_heads, mlp_ratio=4, norm_pix_loss=True,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
    ).to(args.device)  # fmt: skip
    step = plain_step(args, model, autocast, lambda imgs: model(imgs, mask_ratio=0.75)[0])
    return step, {"timm": timm.__version__}


def build_transformers(args: argparse.Namespace, autocast: Any, precision: str) -> Built:
    """The ViTMAE of transformers as it is."""
    import transformers

    width, depth, heads, decoder_width, decoder_depth, decoder_heads = SIZES[args.variant]
    config = transformers.ViTMAEConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=4 * width,
        decoder_hidden_size=decoder_width, decoder_num_hidden_layers=decoder_depth,
        decoder_num_attention_heads=decoder_heads, decoder_intermediate_size=4 * decoder_width,
        norm_pix_loss=True, mask_ratio=0.75,
    )  # fmt: skip
    model = transformers.ViTMAEForPreTraining(config).to(args.device).train()
    return plain_step(args, model, autocast, lambda imgs: model(imgs).loss), {"transformers": transformers.__version__}


def build_lightly(args: argparse.Namespace, autocast: Any, precision: str) -> Built:
    """The MAE modules of lightly put together as in its documented example."""
    import lightly
    import torch
    from lightly.models import utils
    from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
    from timm.models.vision_transformer import VisionTransformer

    width, depth, heads, decoder_width, decoder_depth, decoder_heads = SIZES[args.variant]

    class MAE(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            vit = VisionTransformer(embed_dim=width, depth=depth, num_heads=heads, num_classes=0)
            self.backbone = MaskedVisionTransformerTIMM(vit=vit)
            self.decoder = MAEDecoderTIMM(
                num_patches=196, patch_size=16, embed_dim=width, decoder_embed_dim=decoder_width,
                decoder_depth=decoder_depth, decoder_num_heads=decoder_heads, mlp_ratio=4.0,
            )  # fmt: skip

        def forward(self, imgs: torch.Tensor) -> torch.Tensor:
            batch = len(imgs)
            keep, removed = utils.random_token_mask(size=(batch, 197), mask_ratio=0.75, device=imgs.device)
            encoded = self.decoder.embed(self.backbone.encode(images=imgs, idx_keep=keep))
            masked = utils.repeat_token(self.decoder.mask_token, (batch, 197))
            masked = utils.set_at_index(masked, keep, encoded.type_as(masked))
            pred = self.decoder.predict(utils.get_at_index(self.decoder.decode(masked), removed))
            target = utils.get_at_index(utils.patchify(imgs, 16), removed - 1)
            return torch.nn.functional.mse_loss(pred, utils.normalize_mean_var(target))

    model = MAE().to(args.device)
    return plain_step(args, model, autocast, model), {"lightly": lightly.__version__}


def plain_step(
    args: argparse.Namespace, model: Any, autocast: Any, loss_of: Callable[[Any], Any]
) -> Callable[[], None]:
    """A step as the official engine takes it: loss read each time, torch's AdamW in two groups."""
    import torch

    flat = [p for p in model.parameters() if p.requires_grad and p.ndim == 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    groups = [{"params": flat, "weight_decay": 0.0}, {"params": others, "weight_decay": 0.05}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95))
    imgs = torch.randn(args.batch_size, 3, 224, 224, device=args.device)

    def run() -> None:
        with autocast():
            loss = loss_of(imgs)
        loss.item()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


BUILDERS = {
    "ours": build_ours,
    "official": build_official,
    "transformers": build_transformers,
    "lightly": build_lightly,
}

if __name__ == "__main__":
    main()
