"""The estimate of training memory against measured peaks: ``python benchmarks/profile_memory.py``.

On a CPU this is the growth of the resident memory of a separate process, on CUDA the allocator's peak. With
``--device cuda``, base, large and huge are measured. Writes benchmarks/results/profile_memory_<device>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mae.errors import TrainingError  # noqa: E402
from mae.models import variant_config  # noqa: E402
from mae.profiling.measured import measure_machine, measure_training_peak  # noqa: E402
from mae.profiling.memory import training_memory  # noqa: E402

MASK_RATIO = 0.75
CASES = {
    "cpu": (("vit_tiny", "vit_small", "vit_base"), (8, 32)),
    "cuda": (("vit_base", "vit_large", "vit_huge"), (32, 128)),
}


def main() -> None:
    """Measure every case, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=CASES, default="cpu")
    device = parser.parse_args().device
    variants, batches = CASES[device]
    rows, machine = [], None
    print(f"{'':<10} {'batch':>5} {'':<5} {'':<11} {'measured':>9} {'estimated':>9} {'off by':>7}  (MB)")
    for precision in ("fp32", "bf16"):
        machine = measure_machine(device, precision)
        for name in variants:
            config = variant_config(name)
            kept = config.num_kept(MASK_RATIO)
            for batch in batches:
                for activation_checkpointing in (False, True):
                    conditions = {
                        "mask_ratio": MASK_RATIO,
                        "batch": batch,
                        "activation_checkpointing": activation_checkpointing,
                    }
                    try:
                        peak = measure_training_peak(config, machine, **conditions)  # type: ignore[arg-type]
                    except TrainingError as error:
                        print(f"{name:<10} {batch:>5} {precision:<5} {error.message}")
                        continue
                    estimate = training_memory(
                        config, kept, batch, precision, device, activation_checkpointing=activation_checkpointing
                    ).peak
                    assert peak is not None
                    off = estimate / peak - 1
                    rows.append(
                        {"variant": name, "precision": precision, "measured_bytes": peak, "estimated_bytes": estimate}
                        | conditions
                        | {"off_by": round(off, 4)}
                    )
                    how = "checkpointing" if activation_checkpointing else ""
                    print(
                        f"{name:<10} {batch:>5} {precision:<5} {how:<13} "
                        f"{peak / 1e6:>9,.0f} {estimate / 1e6:>9,.0f} {off:>+7.1%}",
                        flush=True,
                    )
    assert machine is not None
    results = ROOT / "benchmarks" / "results" / f"profile_memory_{device}.json"
    results.parent.mkdir(exist_ok=True)
    hardware = {"device": machine.name, "cores": os.cpu_count(), "system": platform.platform()}
    document = {
        "command": f"python benchmarks/profile_memory.py --device {device}",
        "hardware": hardware,
        "versions": {"python": platform.python_version(), "torch": machine.torch},
        "rows": rows,
    }
    results.write_text(json.dumps(document, indent=2) + "\n")
    print(f"wrote {results.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
