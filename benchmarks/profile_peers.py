"""Results and cost of other profilers for the same encoders: ``python benchmarks/profile_peers.py``.

Every profiler counts the multiply-accumulates of the whole unmasked encoder at 224 px for one image. It runs
in its own process, whose time and peak memory are measured. Also needs:
``pip install fvcore ptflops torchinfo calflops timm``. Writes benchmarks/results/profile_peers.json.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "profile_peers.json"
SIZES = {
    "vit_base": "vit_base_patch16_224.mae",
    "vit_large": "vit_large_patch16_224.mae",
    "vit_huge": "vit_huge_patch14_224.mae",
}
# Multiply-accumulates of the published table of timm's models, in units of 10^9.
PUBLISHED_GMACS = {"vit_base": 17.58, "vit_large": 61.60, "vit_huge": 167.40}
Answer = dict[str, Any]


def ours(size: str) -> Answer:
    """The closed form: no torch, no weights."""
    from mae.models import variant_config
    from mae.models.parameters import count_parameters
    from mae.profiling.flops import encoder_compute, total

    config = variant_config(size)
    compute = encoder_compute(config, embedded=config.num_patches, encoded=config.num_patches)
    return {"macs": total(compute).forward // 2, "parameters": count_parameters(config).encoder}


def flop_counter(size: str) -> Answer:
    """torch.utils.flop_counter on the meta device."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model, imgs = encoder(size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.to("meta")(imgs.to("meta"))
    return {"macs": counter.get_total_flops() // 2, "parameters": trained(model)}


def fvcore(size: str) -> Answer:
    """fvcore, whose "flops" are multiply-accumulates."""
    from fvcore.nn import FlopCountAnalysis, parameter_count

    model, imgs = encoder(size)
    analysis = FlopCountAnalysis(model, imgs).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return {
        "macs": int(analysis.total()),
        "parameters": parameter_count(model)[""],
        "not_counted": sorted(analysis.unsupported_ops()),
    }


def ptflops(size: str) -> Answer:
    """What ptflops says with its default backend."""
    from ptflops import get_model_complexity_info

    model, imgs = encoder(size)
    macs, parameters = get_model_complexity_info(
        model, tuple(imgs.shape[1:]), as_strings=False, print_per_layer_stat=False
    )
    return {"macs": int(macs), "parameters": int(parameters)}


def torchinfo(size: str) -> Answer:
    """The mult-adds of torchinfo."""
    from torchinfo import summary

    model, imgs = encoder(size)
    found = summary(model, input_data=imgs, verbose=0)
    return {"macs": int(found.total_mult_adds), "parameters": int(found.total_params)}


def calflops(size: str) -> Answer:
    """The MACs of calflops."""
    from calflops import calculate_flops

    model, imgs = encoder(size)
    _, macs, parameters = calculate_flops(
        model, input_shape=tuple(imgs.shape), print_results=False, output_as_string=False
    )
    return {"macs": int(macs), "parameters": int(parameters)}


def timm(size: str) -> Answer:
    """The model of that name in timm, counted by fvcore as timm's benchmark script does."""
    import timm as library
    import torch
    from fvcore.nn import FlopCountAnalysis, parameter_count

    model = library.create_model(SIZES[size], pretrained=False, num_classes=0).eval()
    analysis = FlopCountAnalysis(model, torch.rand(1, 3, 224, 224)).unsupported_ops_warnings(False)
    return {
        "macs": int(analysis.total()),
        "parameters": parameter_count(model)[""],
        "not_counted": sorted(analysis.unsupported_ops()),
    }


PEERS: dict[str, tuple[Callable[[str], Answer], str | None]] = {
    "maecli": (ours, None),
    "FlopCounterMode": (flop_counter, "torch"),
    "fvcore": (fvcore, "fvcore"),
    "ptflops": (ptflops, "ptflops"),
    "torchinfo": (torchinfo, "torchinfo"),
    "calflops": (calflops, "calflops"),
    "timm + fvcore": (timm, "timm"),
}


def encoder(size: str) -> Any:
    """Our encoder for whole images as a module, without the decoder, and one image."""
    import torch

    from mae.models import create_model, variant_config

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mae = create_model(variant_config(size))
            del self.mae.decoder

        def forward(self, imgs: torch.Tensor) -> torch.Tensor:
            return self.mae.encode(imgs)

    return Encoder().eval(), torch.rand(1, 3, 224, 224)


def trained(model: Any) -> int:
    """Parameters, position tables left out."""
    return sum(parameter.numel() for parameter in model.parameters())


def answer_one(peer: str, size: str) -> None:
    """In a process of its own: one profiler's answer as JSON on the last line."""
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(io.StringIO()):
        answer = PEERS[peer][0](size)
    print(json.dumps(answer))


def measure(peer: str, size: str) -> Answer:
    """One profiler on one size: what it says, its seconds and its peak resident bytes."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, __file__, "--peer", peer, "--size", size],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    lines = out.strip().splitlines()
    answer: Answer = (
        json.loads(lines[-1])
        if process.returncode == 0 and lines
        else {"error": (err.strip().splitlines() or [""])[-1]}
    )
    rss = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"peer": peer, "size": size, "seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime} | (
        {"peak_rss_bytes": rss} | answer
    )


def explain(row: Answer, exact: int, attention: int) -> str:
    """What the difference to the exact count consists of, as far as its size tells."""
    if "macs" not in row:
        return str(row["error"])
    gap = exact - row["macs"]
    if gap == 0:
        return "nothing"
    if abs(row["macs"] - row.get("parameters", 0)) < 0.02 * row["macs"]:
        return "all tokens but one: counts every weight once"
    words, rest = ("attention's two products", gap - attention) if gap > attention / 2 else ("nothing", gap)
    amount = f"{abs(rest) / 1e9:.3f}"
    return f"{words}; and {amount} more" if rest > 0 else f"{words}; adds {amount} of other operations"


def exact_parts(size: str) -> tuple[int, int]:
    """MACs of the whole encoder, and of its attention products."""
    from mae.models import variant_config
    from mae.profiling.flops import encoder_compute, total

    config = variant_config(size)
    modules = encoder_compute(config, embedded=config.num_patches, encoded=config.num_patches)
    attention = sum(compute.forward for name, compute in modules.items() if name.endswith("attn.products"))
    return total(modules).forward // 2, attention // 2


def version(package: str | None) -> str | None:
    """Of an installed package; None where there is none."""
    if package is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def hardware() -> dict[str, Any]:
    """The processor and its cores."""
    model = platform.processor()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.platform()}


def main() -> None:
    """Run all profilers on all sizes, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", choices=PEERS)
    parser.add_argument("--size", choices=SIZES)
    chosen = parser.parse_args()
    if chosen.peer and chosen.size:
        answer_one(chosen.peer, chosen.size)
        return
    sys.path.insert(0, str(ROOT))
    rows = []
    print(f"{'':<10} {'':<16} {'GMACs':>8} {'seconds':>8} {'peak MB':>8}  left out")
    for size in [chosen.size] if chosen.size else SIZES:
        exact, attention = exact_parts(size)
        for peer in [chosen.peer] if chosen.peer else PEERS:
            row = measure(peer, size)
            row["left_out"] = explain(row, exact, attention)
            row["published_gmacs"] = PUBLISHED_GMACS[size]
            rows.append(row)
            value = f"{row['macs'] / 1e9:.3f}" if "macs" in row else "-"
            print(
                f"{size:<10} {peer:<16} {value:>8} {row['seconds']:>8.2f} {row['peak_rss_bytes'] / 1e6:>8.0f}  "
                f"{row['left_out']}",
                flush=True,
            )
    packages = sorted({package for _, package in PEERS.values() if package} | {"torch"})
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps(
            {
                "command": "python benchmarks/profile_peers.py",
                "hardware": hardware(),
                "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
                "rows": rows,
            },
            indent=2,
        )
        + "\n"
    )
    print(f"wrote {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
