"""AdamW with the official parameter groups (Paper: Appendix A.1, Table 8)."""

from __future__ import annotations

from typing import Any

import torch

from mae.mae import MaskedAutoencoder


def parameter_groups(model: MaskedAutoencoder, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups, without and with weight decay, in the official order.

    Biases and other 1-D parameters have no weight decay; the class token and the mask token, which are 3-D, have.
    The order of groups and parameters is the official one, so that optimiser states are exchangeable.
    """
    without: list[torch.nn.Parameter] = []
    with_decay: list[torch.nn.Parameter] = []
    for name, parameter in model.official_parameters():
        group = without if parameter.ndim == 1 or name.endswith(".bias") else with_decay
        group.append(parameter)
    return [{"params": without, "weight_decay": 0.0}, {"params": with_decay, "weight_decay": weight_decay}]


def make_optimizer(
    model: MaskedAutoencoder, *, lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over the groups of ``parameter_groups``."""
    return adamw(parameter_groups(model, weight_decay), lr=lr, betas=betas)


def adamw(groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW; fused if torch has a fused kernel for the parameters' device.

    The moments are allocated here and not, as torch does it, in the first step: among the activations that the step has
    just freed they would leave gaps in the heap, where those of the next step do not fit.
    """
    fused = groups[0]["params"][0].device.type in ("cuda", "cpu")
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device if fused else "cpu"),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer
