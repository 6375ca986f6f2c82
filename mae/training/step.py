"""One optimiser step: forward, backward and update in the wanted precision (Paper: Appendix A.1)."""

from __future__ import annotations

import ctypes
import sys

import torch
from torch import Tensor

from mae.data.normalise import normalise
from mae.device import autocast
from mae.mae import MaskedAutoencoder
from mae.training.optim import make_optimizer


class TrainingStep:
    """Gradients of as many batches as wanted, then one update.

    Args:
        model: On its device.
        precision: "fp32", or "bf16" or "fp16" for matrix products; weights, norms and the loss stay in fp32.
        lr: Learning rate, until ``update`` is given another.
        betas, weight_decay: AdamW's.
    """

    def __init__(
        self,
        model: MaskedAutoencoder,
        precision: str,
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.precision = precision
        self.optimizer = make_optimizer(model, lr=lr, betas=betas, weight_decay=weight_decay)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        if self.device.type == "cpu":
            keep_freed_memory()

    def loss(self, images: Tensor, mask_ratio: float, noise: Tensor) -> Tensor:
        """The loss of pictures (B, C, H, W) uint8 under the masks that ``noise`` (B, L) draws."""
        imgs = normalise(images.to(self.device, non_blocking=True))
        noise = noise.to(self.device, non_blocking=True)
        with autocast(self.device, self.precision):
            return self.model.pretraining_loss(imgs, mask_ratio, noise)

    def backward(self, images: Tensor, mask_ratio: float, noise: Tensor, share: float = 1.0) -> Tensor:
        """Add the gradient of ``share`` times the loss, and return the loss without waiting for it."""
        loss = self.loss(images, mask_ratio, noise)
        self.scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def update(self, lr: float | None = None) -> None:
        """Step along the gradients and forget them."""
        if lr is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next step.

    It would hand the activations back to the kernel after every step and fault them in again: a third of the
    time of a step of ViT-B on a CPU. Does nothing where the C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: large blocks come from the heap too
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap's end is never given back
