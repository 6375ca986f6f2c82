"""The output of ``--version``: only what can be found quickly, without loading torch or asking a GPU."""

from __future__ import annotations


def version_lines() -> list[str]:
    """One line each about maecli, torch, the device and the processor."""
    import mae
    from mae.system.environment import cpu_features, graphics_at_a_glance, packages, processor_name, usable_cores

    torch = packages()["torch"] or "is not installed"
    device = graphics_at_a_glance() or "CPU, no GPU seen"
    cores = usable_cores()
    return [
        f"maecli {mae.__version__}",
        f"torch {torch}",
        f"device: {device} (detected without torch; maecli doctor asks torch)",
        f"processor: {processor_name()}, {f'{cores:g} cores' if cores else 'cores unknown'}"
        + "".join(f" {feature}" for feature in cpu_features()),
    ]
