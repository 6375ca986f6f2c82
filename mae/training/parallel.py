"""The model on several processes: replicated with averaged gradients (DDP), or sharded (FSDP2)."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable

from torch import Tensor, nn

from mae.mae import MaskedAutoencoder
from mae.system.distributed import Ranks
from mae.transformer import Block

LossFunction = Callable[..., Tensor]


class PretrainingLoss(nn.Module):
    """``pretraining_loss`` as a module's forward pass, as DDP and torch.compile need it."""

    def __init__(self, model: MaskedAutoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, imgs: Tensor, mask_ratio: float, noise: Tensor) -> Tensor:
        """The loss of a batch: images (B, C, H, W) and noise (B, L) -> scalar."""
        return self.model.pretraining_loss(imgs, mask_ratio, noise)


class ParallelModel:
    """A model that is replicated on, or sharded over, the processes of a run.

    Args:
        model: On this process's device, with the same weights everywhere.
        ranks: The processes.
        shard: Shard weights, gradients and optimiser state (FSDP2) instead of replicating them (DDP).
        loss: The loss as a module; ``PretrainingLoss`` by default.
    """

    def __init__(self, model: nn.Module, ranks: Ranks, *, shard: bool = False, loss: nn.Module | None = None) -> None:
        self.model = model
        self.sharded = shard and not ranks.alone
        if self.sharded:
            _shard(model, ranks)
        if loss is None:
            assert isinstance(model, MaskedAutoencoder)
            loss = PretrainingLoss(model)
        self.loss: LossFunction = loss
        self._ddp: nn.parallel.DistributedDataParallel | None = None
        if not ranks.alone and not self.sharded:
            with warnings.catch_warnings():
                # The argument that replaces it does not exist in all supported versions of torch.
                warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
                # The graph is the same at every step, the buffers are constant, and gradients are views of the buckets.
                self.loss = self._ddp = nn.parallel.DistributedDataParallel(
                    self.loss,
                    static_graph=True,
                    broadcast_buffers=False,
                    gradient_as_bucket_view=True,
                )
        self._seen = False

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """A context manager for one batch of a step; processes average gradients after the last batch only."""
        if self.sharded:
            self.model.set_requires_gradient_sync(last)  # type: ignore[operator]
        if self._ddp is None or last or not self._seen:
            # DDP records the static graph in its first backward pass and needs the synchronisation there; one more
            # averaging of gradients changes nothing.
            self._seen = True
            return contextlib.nullcontext()
        return self._ddp.no_sync()


def _shard(model: nn.Module, ranks: Ranks) -> None:
    """Shard each block as a group whose parameters are gathered when needed, and the other parameters as one group."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # Without a mesh FSDP would use the machine's GPUs even if the model is on the CPU.
    mesh = init_device_mesh(next(model.parameters()).device.type, (ranks.size,))
    for module in model.modules():
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh)
            register_fsdp_forward_method(module, "forward_shared")
    fully_shard(model, mesh=mesh)
    for method in ("pretraining_loss", "encode", "encode_visible", "forward_decoder"):
        if hasattr(model, method):
            register_fsdp_forward_method(model, method)


def is_sharded(model: nn.Module) -> bool:
    """Whether a model is sharded, so that all processes must run each forward and backward pass together."""
    return any(is_shard(parameter) for parameter in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a shard, or the tensor itself if it is not sharded; every process must call this."""
    return tensor.full_tensor() if is_shard(tensor) else tensor  # type: ignore[attr-defined]


def distribute_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Shard a full tensor as ``like`` is sharded."""
    if not is_shard(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)  # type: ignore[attr-defined]


def is_shard(tensor: Tensor) -> bool:
    """Whether a tensor is a ``DTensor``, without importing ``torch.distributed.tensor`` (which takes 1 s)."""
    return hasattr(tensor, "placements")
