"""Speed of training steps compared with other implementations of the masked autoencoder, which take turns.

    python benchmarks/training.py --official ~/mae --variant vit_base --batch-size 32 --rounds 7

Each implementation runs in its own process and takes one full step (forward, backward, AdamW) per turn, so other load
on the machine affects all of them; ratios are calculated per round. ``official`` is a clone of facebookresearch/mae,
given by path. ``+heap`` tells glibc to keep freed memory, as our trainer always does; ``+recompute`` is ``pretrain
--activation-checkpointing``, ``+compiled`` is ``--compile``. ``+blocks`` compiles each block by itself, and
``+graphs`` is torch.compile's "reduce-overhead", which replays CUDA graphs on a GPU. ``arithmetic`` has the
operations of the official code, built from our modules: all patches embedded, all tokens decoded and predicted,
attention as separate products. The other implementations come from their packages: pip install transformers lightly
timm.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from mae.config import MAEConfig

SIZES = {
    # encoder width, blocks, heads; decoder width, blocks, heads
    "vit_base": (768, 12, 12, 512, 8, 16),
    "vit_large": (1024, 24, 16, 512, 8, 16),
    "vit_huge": (1280, 32, 16, 512, 8, 16),
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

    if args.worker.endswith("+heap"):
        keep_heap()
    torch.manual_seed(0)
    cuda = args.device == "cuda"
    if cuda and "-fp32" in args.worker:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    step, versions = build(
        args.worker, Setting(model_config(args.variant), args.batch_size, args.device, args.official)
    )
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


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all contestants have in common.

    Attributes:
        config: Sizes; normalised pixels are predicted.
        batch_size: Images in a step.
        device: Where it is computed.
        official: A clone of facebookresearch/mae.
        backend: torch.compile's.
    """

    config: MAEConfig
    batch_size: int
    device: Any
    official: Path | None = None
    backend: str = "inductor"

    def autocast(self, precision: str) -> Any:
        """The context of a forward pass."""
        import torch

        from mae.system.device import autocast

        return autocast(torch.device(self.device), precision)


def model_config(variant: str) -> MAEConfig:
    """One of ``SIZES`` at 224 px."""
    from mae.config import MAEConfig

    return MAEConfig((224, 224), 14 if variant == "vit_huge" else 16, 3, *SIZES[variant], norm_pix_loss=True)


def build(name: str, setting: Setting) -> Built:
    """A contestant's step, which takes a whole optimiser step when called, and its versions."""
    name, _, how = name.partition("+")
    kind, precision = name.split("-")
    if kind == "ours":
        return build_ours(setting, precision, how)
    return PEERS[kind](setting, precision)


def build_ours(setting: Setting, precision: str, how: str = "") -> Built:
    """Our trainer's step: images travel as uint8."""
    import torch

    import mae
    from mae.models import create_model
    from mae.training.step import TrainingStep

    config, batch = setting.config, setting.batch_size
    with torch.device(setting.device):  # a host takes seconds to fill in the weights of a large one
        model = create_model(config)
    model.set_activation_checkpointing(how == "recompute")
    loss = compiled(model, how, setting.backend)
    step = TrainingStep(model, precision, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, loss=loss)
    shape = (batch, config.in_chans, *config.img_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=setting.device)

    def run() -> None:
        if how == "graphs":
            torch.compiler.cudagraph_mark_step_begin()  # memory of the step before may be written over
        noise = torch.rand(batch, config.num_patches, device=setting.device)
        step.backward(images, 0.75, noise)
        step.update()

    if setting.device == "cpu":  # `pretrain` begins by timing a few images; what is allocated then lies out of the way
        step.backward(images[:8], 0.75, None)
        step.optimizer.zero_grad()
    return run, {"maecli": mae.__version__}


def compiled(model: nn.Module, how: str, backend: str) -> nn.Module | None:
    """The loss as it is compiled; None for the plain one. ``blocks`` changes the model."""
    import torch

    from mae.training.parallel import PretrainingLoss
    from mae.transformer import Block

    if how == "blocks":
        for module in model.modules():
            if isinstance(module, Block):
                module.compile(backend=backend, dynamic=False)
        return None
    if how not in ("compiled", "graphs"):
        return None
    mode = {"mode": "reduce-overhead"} if how == "graphs" and backend == "inductor" else {}
    return torch.compile(PretrainingLoss(model), backend=backend, **mode)  # type: ignore[arg-type,call-overload,no-any-return]


def build_official(setting: Setting, precision: str) -> Built:
    """The official model and optimiser; its pinned timm of 2021 is bridged by leaving ``qk_scale`` out."""
    import numpy as np
    import timm
    import timm.models.vision_transformer as timm_vit
    import torch

    np.float = float  # type: ignore[attr-defined]
    block = timm_vit.Block
    timm_vit.Block = lambda *a, qk_scale=None, **k: block(*a, **k)
    sys.path.insert(0, str(setting.official))
    import models_mae

    config = setting.config
    model = models_mae.MaskedAutoencoderViT(
        img_size=config.img_size[0], patch_size=config.patch_size, in_chans=config.in_chans,
        embed_dim=config.embed_dim, depth=config.depth, num_heads=config.num_heads,
        decoder_embed_dim=config.decoder_embed_dim, decoder_depth=config.decoder_depth,
        decoder_num_heads=config.decoder_num_heads, mlp_ratio=config.mlp_ratio, norm_pix_loss=True,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
    ).to(setting.device)  # fmt: skip
    timm_vit.Block = block
    step = plain_step(setting, precision, model, lambda imgs: model(imgs, mask_ratio=0.75)[0])
    return step, {"timm": timm.__version__}


def build_arithmetic(setting: Setting, precision: str) -> Built:
    """The operations of the official forward pass from our modules, with its attention of separate products."""
    import torch

    import mae
    from mae.attention import Attention
    from mae.models import create_model

    class SeparateProducts(Attention):
        def _mix(self, q: Any, k: Any, v: Any) -> Any:
            batch, _, dim = q.shape
            heads = (batch, -1, self.num_heads, dim // self.num_heads)
            q, k, v = (x.view(heads).transpose(1, 2) for x in (q, k, v))
            weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
            return (weights @ v).transpose(1, 2).flatten(2)

    with torch.device(setting.device):
        model = create_model(setting.config)
    for module in model.modules():
        if isinstance(module, Attention):
            module.__class__ = SeparateProducts
    step = plain_step(setting, precision, model, lambda imgs: model(imgs, 0.75)[0])
    return step, {"maecli": mae.__version__}


def build_transformers(setting: Setting, precision: str) -> Built:
    """The ViTMAE of transformers as it is."""
    import torch
    import transformers

    sizes = setting.config
    config = transformers.ViTMAEConfig(
        image_size=sizes.img_size[0], patch_size=sizes.patch_size, num_channels=sizes.in_chans,
        hidden_size=sizes.embed_dim, num_hidden_layers=sizes.depth, num_attention_heads=sizes.num_heads,
        intermediate_size=4 * sizes.embed_dim, decoder_hidden_size=sizes.decoder_embed_dim,
        decoder_num_hidden_layers=sizes.decoder_depth, decoder_num_attention_heads=sizes.decoder_num_heads,
        decoder_intermediate_size=4 * sizes.decoder_embed_dim, norm_pix_loss=True, mask_ratio=0.75,
    )  # fmt: skip
    with torch.device(setting.device):
        model = transformers.ViTMAEForPreTraining(config)
    model.to(setting.device).train()
    step = plain_step(setting, precision, model, lambda imgs: model(imgs).loss)
    return step, {"transformers": transformers.__version__}


def build_lightly(setting: Setting, precision: str) -> Built:
    """The MAE modules of lightly put together as in its documented example."""
    import lightly
    import torch
    from lightly.models import utils
    from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
    from timm.models.vision_transformer import VisionTransformer

    config, patches = setting.config, setting.config.num_patches
    width, decoder_width = config.embed_dim, config.decoder_embed_dim

    class MAE(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            vit = VisionTransformer(
                config.img_size[0], config.patch_size, config.in_chans, embed_dim=width, depth=config.depth,
                num_heads=config.num_heads, num_classes=0,
            )  # fmt: skip
            self.backbone = MaskedVisionTransformerTIMM(vit=vit)
            self.decoder = MAEDecoderTIMM(
                num_patches=patches, patch_size=config.patch_size, embed_dim=width, decoder_embed_dim=decoder_width,
                decoder_depth=config.decoder_depth, decoder_num_heads=config.decoder_num_heads, mlp_ratio=4.0,
            )  # fmt: skip

        def forward(self, imgs: torch.Tensor) -> torch.Tensor:
            batch = len(imgs)
            keep, removed = utils.random_token_mask(size=(batch, patches + 1), mask_ratio=0.75, device=imgs.device)
            encoded = self.decoder.embed(self.backbone.encode(images=imgs, idx_keep=keep))
            masked = utils.repeat_token(self.decoder.mask_token, (batch, patches + 1))
            masked = utils.set_at_index(masked, keep, encoded.type_as(masked))
            pred = self.decoder.predict(utils.get_at_index(self.decoder.decode(masked), removed))
            target = utils.get_at_index(utils.patchify(imgs, config.patch_size), removed - 1)
            return torch.nn.functional.mse_loss(pred, utils.normalize_mean_var(target))

    model = MAE().to(setting.device)
    return plain_step(setting, precision, model, model), {"lightly": lightly.__version__}


def plain_step(setting: Setting, precision: str, model: Any, loss_of: Callable[[Any], Any]) -> Callable[[], None]:
    """A step as the official engine takes it: loss read each time, torch's AdamW in two groups, fp16 scaled."""
    import torch

    flat = [p for p in model.parameters() if p.requires_grad and p.ndim == 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    groups = [{"params": flat, "weight_decay": 0.0}, {"params": others, "weight_decay": 0.05}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95))
    scaler = torch.amp.GradScaler(torch.device(setting.device).type, enabled=precision == "fp16")
    shape = (setting.batch_size, setting.config.in_chans, *setting.config.img_size)
    imgs = torch.randn(shape, device=setting.device)

    def run() -> None:
        with setting.autocast(precision):
            loss = loss_of(imgs)
        loss.item()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return run


PEERS: dict[str, Callable[[Setting, str], Built]] = {
    "official": build_official,
    "arithmetic": build_arithmetic,
    "transformers": build_transformers,
    "lightly": build_lightly,
}

if __name__ == "__main__":
    main()
