"""LARS (You et al. 2017) as in the official linear probe: 1-D parameters are neither decayed nor scaled."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class LARS(torch.optim.Optimizer):
    r"""Momentum SGD with layer-wise adaptive rates: the update of each matrix is scaled in proportion to its norm.

    .. math:: u = g + \lambda w; \quad u \leftarrow u \, \eta \|w\| / \|u\|; \quad m \leftarrow \mu m + u; \quad
        w \leftarrow w - \gamma m

    Args:
        params: The parameters.
        lr: :math:`\gamma`.
        momentum: :math:`\mu`.
        weight_decay: :math:`\lambda`, of parameters with two dimensions and more.
        trust_coefficient: :math:`\eta`; where a norm is 0 the update is not scaled.

    Attributes:
        found_inf: Scalar on the device; if it is 1, ``step`` changes nothing, without a transfer to the host.
    """

    found_inf: Tensor | None = None
    # With this flag torch's GradScaler passes ``found_inf`` and ``grad_scale`` as tensors instead of reading them.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.0,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "fused": True,  # as torch's fused optimisers, it reads ``found_inf`` on the device
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of all parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        scale: Tensor | None = getattr(self, "grad_scale", None)  # loss scale of the gradients
        update = parameter.grad if scale is None else parameter.grad / scale
        if parameter.ndim > 1:
            update = update + group["weight_decay"] * parameter
            norm, update_norm = parameter.norm(), update.norm()
            trust = group["trust_coefficient"] * norm / update_norm
            update = update * torch.where((norm > 0) & (update_norm > 0), trust, torch.ones_like(trust))
        state = self.state[parameter]
        if "mu" not in state:
            state["mu"] = torch.zeros_like(parameter)
        momentum = state["mu"] * group["momentum"] + update
        moved = parameter - group["lr"] * momentum
        if self.found_inf is not None:
            skip = self.found_inf > 0
            momentum, moved = torch.where(skip, state["mu"], momentum), torch.where(skip, parameter, moved)
        state["mu"].copy_(momentum)
        parameter.copy_(moved)
