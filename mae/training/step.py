"""One optimiser step: forward, backward and update in the wanted precision (Paper: Appendix A.1)."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mae.data.transforms import normalise
from mae.system.device import autocast
from mae.system.distributed import Ranks
from mae.training.optim import make_optimizer
from mae.training.parallel import ParallelModel, distribute_like, whole


class TrainingStep:
    """Accumulates gradients over any number of batches, then takes one optimiser step.

    Args:
        model: The model, on its device.
        precision: "fp32", or "bf16" or "fp16" for matrix products; weights, norms and the loss stay in fp32.
        lr: Learning rate until ``update`` is called with another one.
        betas, weight_decay: Settings of AdamW, used if ``optimizer`` is None.
        ranks: The processes that share each step, each with its part of the batch; None for a single process.
        shard: Whether to shard the model over the processes (FSDP2).
        loss: The model's loss as a module; None for ``PretrainingLoss``.
        optimizer: Makes the optimiser, after the model was sharded; a group's ``lr_scale`` multiplies its
            learning rate.
        clip_grad: Largest gradient norm; larger gradients are scaled down to it. None disables clipping.

    Attributes:
        loss_scale: Loss scale of the last step, a scalar on the device; 1 except in fp16.
    """

    def __init__(
        self,
        model: Any,
        precision: str,
        *,
        lr: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        ranks: Ranks | None = None,
        shard: bool = False,
        loss: nn.Module | None = None,
        optimizer: Callable[[], torch.optim.Optimizer] | None = None,
        clip_grad: float | None = None,
    ) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.precision = precision
        self.ranks = ranks or Ranks()
        self.parallel = ParallelModel(model, self.ranks, shard=shard, loss=loss)
        if optimizer is None:
            self.optimizer: torch.optim.Optimizer = make_optimizer(model, lr=lr, betas=betas, weight_decay=weight_decay)
        else:
            self.optimizer = optimizer()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.loss_scale = torch.ones((), device=self.device)
        self.clip_grad = clip_grad
        if self.device.type == "cpu":
            keep_freed_memory()

    def loss(self, images: Tensor, *inputs: Any) -> Tensor:
        """The loss of images (B, C, H, W), uint8 or normalised, and the task's other inputs, such as masks."""
        imgs = self._on_device(images)
        if not imgs.is_floating_point():  # floating-point images were normalised by the augmentation
            imgs = normalise(imgs)
        there = [self._on_device(value) if isinstance(value, Tensor) else value for value in inputs]
        with autocast(self.device, self.precision):
            return self.parallel.loss(imgs, *there)

    def backward(self, images: Tensor, *inputs: Any, share: float = 1.0, last: bool = True) -> Tensor:
        """Add the gradient of ``share`` times the loss, and return the loss without waiting for it.

        Args:
            images, inputs: Images and other inputs, as for ``loss``.
            share: Weight of the batch in the step's gradient.
            last: Whether it is the step's last batch, after which several processes average their gradients.
        """
        with self.parallel.accumulating(last):
            loss = self.loss(images, *inputs)
            self.scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def update(self, lr: float | None = None) -> Tensor:
        """Take an optimiser step unless a gradient is non-finite, and clear the gradients.

        Returns:
            Gradient norm before clipping, a scalar on the device. If it is non-finite, weights and moments are
            unchanged.
        """
        if lr is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)
        self.scaler.unscale_(self.optimizer)
        norm = self._gradient_norm()
        if self.clip_grad is not None:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.clip_grad, norm)
        if self.scaler.is_enabled():
            self.loss_scale = self.scaler.scale(torch.ones_like(self.loss_scale))
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif self.optimizer.defaults.get("fused"):
            # The fused kernel reads the flag on the device, so the host does not wait for the norm.
            self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif norm.isfinite():
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _on_device(self, tensor: Tensor) -> Tensor:
        """Copy a tensor to the model's device, on CUDA without waiting for the device's earlier work.

        A copy from pageable memory would wait for the whole queue of the GPU; one from pinned memory does not. On other
        devices the copy waits: torch's copy to an Apple GPU would read a tensor that was freed meanwhile.
        """
        if self.device.type != "cuda":
            return tensor.to(self.device)
        if tensor.device.type == "cpu" and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _gradient_norm(self) -> Tensor:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return whole(torch.nn.utils.get_total_norm(gradients, foreach=self.device.type != "mps")).detach()

    def state(self) -> dict[str, Any]:
        """State dicts of model, optimiser and scaler, sharded as the model is."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, model: dict[str, Tensor], optimizer: dict[str, Any], scaler: dict[str, Any]) -> None:
        """Copy a state of full tensors into the model and the optimiser, sharded as these are."""
        with torch.no_grad():
            for key, tensor in self.model.state_dict().items():
                tensor.copy_(distribute_like(model[key], tensor))
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state = {
            number: {
                name: _of_its_own(value, parameters[number]) if isinstance(value, Tensor) else value
                for name, value in entry.items()
            }
            for number, entry in optimizer.get("state", {}).items()
        }
        if optimizer:
            # Whether the kernel is fused follows from the device, which may be another one now.
            pairs = zip(optimizer["param_groups"], self.optimizer.param_groups, strict=True)
            groups = [{**saved, "fused": own["fused"]} for saved, own in pairs]
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        if scaler:  # only fp16 has a loss scale
            self.scaler.load_state_dict(scaler)


def _of_its_own(value: Tensor, parameter: Tensor) -> Tensor:
    """A copy of a moment, sharded as its parameter is; the original's memory is mapped from the file."""
    return distribute_like(value.to(parameter.device, copy=True), parameter) if value.ndim else value.clone()


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next step.

    By default glibc returns the activations to the kernel after every step, and the page faults of the next step take a
    third of its time (ViT-B on a CPU). Does nothing with another C library.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: large blocks come from the heap too
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: the end of the heap is never returned to the kernel
