"""``maecli profile``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mae.errors import ConfigError
from mae.profiling.config import ProfileConfig
from maecli.options import command_from
from maecli.output import Output

if TYPE_CHECKING:
    from mae.profiling.run import ProfileResult, VariantProfile


@command_from(ProfileConfig)
def profile(config: ProfileConfig, output: Output) -> None:
    """Estimate what a model costs before you train it: parameters, FLOPs, memory, time, price.

    Examples:
      maecli profile

      maecli profile --variant vit_large --gpu h100 --gpus 8 --price 2.5

      maecli profile --variant vit_base --fit 24GB --depth 2

      maecli profile --variant vit_tiny --measure
    """
    from mae.profiling.run import profile as use_case

    if config.csv and output.as_json:
        raise ConfigError("--csv and --json: choose one")
    result = use_case(config)
    for note in result.notes:
        output.note(note)
    for one in result.variants:
        for failure in one.measured.failures if one.measured else ():
            output.warn(f"{one.variant}: {failure}; only the estimate is shown")
    if config.csv:
        output.text(_csv(result))
        return
    steps = "\n".join(str(one.compute.training_step) for one in result.variants)  # FLOPs for an image, a line each
    output.result(lambda: _document(result), lambda console: _show(console, result), steps)


def _show(console: Any, result: ProfileResult) -> None:
    from maecli.views.profile import show_profile

    show_profile(console, result)


def _document(result: ProfileResult) -> dict[str, Any]:
    import dataclasses

    return {
        "image_size": list(result.image_size),
        "in_chans": result.in_chans,
        "mask_ratio": result.mask_ratio,
        "batch_size": result.batch_size,
        "precision": result.precision,
        "device": result.device,
        "machine": dataclasses.asdict(result.machine) if result.machine else None,
        "variants": [_variant(one) for one in result.variants],
        "notes": list(result.notes),
    }


def _variant(one: VariantProfile) -> dict[str, Any]:
    import dataclasses

    compute, training, activation_checkpointing = one.compute, one.training, one.checkpointed_training
    parts = {name: _operations(flops) for name, flops in dataclasses.asdict(compute).items()}
    return {
        "variant": one.variant,
        "patch_size": one.model.patch_size,
        "patches": one.model.num_patches,
        "visible_patches": one.kept,
        "parameters": dataclasses.asdict(one.parameters),
        "compute_per_image": parts | {"saving": compute.saving},
        "memory": {
            "weights_bytes": training.weights,
            "gradients_bytes": training.gradients,
            "optimizer_bytes": training.optimizer,
            "images_bytes": training.images,
            "activations_bytes": training.activations,
            "training_peak_bytes": training.peak,
            "training_process_bytes": one.training_process,
            "checkpointed_activations_bytes": activation_checkpointing.activations,
            "checkpointed_training_peak_bytes": activation_checkpointing.peak,
            "inference_peak_bytes": one.inference_peak,
        },
        "fit": dataclasses.asdict(one.fit) if one.fit else None,
        "checkpointed_fit": dataclasses.asdict(one.checkpointed_fit) if one.checkpointed_fit else None,
        "plan": dataclasses.asdict(one.plan) if one.plan else None,
        "measured": dataclasses.asdict(one.measured) if one.measured else None,
        "modules": [
            {
                "name": module.name,
                "parameters": module.parameters,
                "forward": _operations(module.forward),
                "training_step": _operations(module.training_step),
            }
            for module in one.modules
        ],
    }


def _operations(flops: int) -> dict[str, int | float]:
    """An operation count in FLOPs and in MACs (1 MAC = 2 FLOPs)."""
    macs = flops // 2
    return {"flops": flops, "macs": macs, "gflops": round(flops / 1e9, 3), "gmacs": round(macs / 1e9, 3)}


def _csv(result: ProfileResult) -> str:
    """The variants of the JSON document as CSV rows; nested names are joined by dots."""
    import csv
    import io

    rows = [_flat({key: value for key, value in _variant(one).items() if key != "modules"}) for one in result.variants]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = "; ".join(value) if isinstance(value, list | tuple) else value
    return flat
