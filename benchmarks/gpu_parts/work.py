"""The input of a part: device, sizes, output file and time limit."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae.config import MAEConfig
from mae.io.files import write_atomically
from mae.models import variant_config

if TYPE_CHECKING:
    from torch import Tensor

    from gpu_parts.device import Host
    from mae.training.step import TrainingStep

ROOT = Path(__file__).resolve().parents[2]
MASK_RATIO = 0.75
SMALL = MAEConfig((32, 32), 8, 3, 32, 1, 2, 32, 2, 2, norm_pix_loss=True)
VARIANTS = ("vit_base", "vit_large", "vit_huge")
SMALL_MEMORY = 8 * 10**9  # of a GPU that a rehearsal thinks of


@dataclasses.dataclass
class Work:
    """What a part is given.

    Attributes:
        device: "cuda" or "cpu".
        small: Whether this is a rehearsal: tiny models, few steps.
        official: A clone of the official code, or None.
        folder: A temporary one.
        result: Where what was measured is written.
        end: On the monotonic clock, when the part is ended.
    """

    device: str
    small: bool
    official: Path | None
    folder: Path
    result: Path
    end: float
    said: dict[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def on(self) -> Host:
        """The device."""
        from gpu_parts.device import open_device

        return open_device(self.device)

    def say(self, **values: Any) -> None:
        """Write what was measured, with all that was before."""
        self.said |= values
        text = json.dumps(self.said)
        write_atomically(self.result, lambda file: file.write(text.encode()))

    def left(self) -> float:
        """Seconds until the part is ended."""
        return self.end - time.monotonic()

    def require(self, good: bool, what: str) -> None:
        """Fail, after all that was measured is written.

        Raises:
            RuntimeError: It is not good.
        """
        if not good:
            raise RuntimeError(f"WRONG: {what}")

    @property
    def variants(self) -> tuple[str, ...]:
        """All; in a rehearsal they are all alike."""
        return VARIANTS[:1] if self.small else VARIANTS

    def config(self, variant: str) -> MAEConfig:
        """A variant's sizes with normalised patches; in a rehearsal tiny ones."""
        return SMALL if self.small else variant_config(variant).replace(norm_pix_loss=True)

    def batch(self, wanted: int) -> int:
        """A batch; in a rehearsal at most four."""
        return min(4, wanted) if self.small else wanted

    def images(self, config: MAEConfig, batch: int) -> tuple[Tensor, float, Tensor]:
        """A batch of smooth images, of which something can be learnt, and its masks' noise, on the device."""
        import torch

        stream = torch.Generator().manual_seed(0)
        coarse = torch.rand(batch, config.in_chans, 4, 4, generator=stream)
        fine = torch.nn.functional.interpolate(coarse, size=config.img_size, mode="bilinear")
        noise = torch.rand(batch, config.num_patches, generator=stream)
        return (fine * 255).to(torch.uint8).to(self.on.torch), MASK_RATIO, noise.to(self.on.torch)

    def step(self, config: MAEConfig, precision: str, **how: Any) -> TrainingStep:
        """A model with the same first weights every time, and its step."""
        import torch

        from mae.models import create_model
        from mae.training.step import TrainingStep

        torch.manual_seed(0)
        with torch.device(self.on.torch):  # a host takes seconds to fill in the weights of a large one
            model = create_model(config)
        return TrainingStep(model, precision, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, **how)


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
