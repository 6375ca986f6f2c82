"""The user's clone of the official repository as a reference, run in a separate process.

The official code is under CC BY-NC 4.0 and not part of this package: it is imported from the user's clone. It was
written for timm 0.3.2 and numpy 1.19; two names that newer versions have removed are added again for it.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mae.checkpoints import Checkpoint, load_checkpoint
from mae.comparison.libraries import why_not
from mae.comparison.stages import watch
from mae.config import LAYER_NORM_EPS, MAEConfig
from mae.errors import ConfigError

MODULE = "models_mae"
PACKAGE_HOME = str(Path(__file__).parents[2])


def check_clone(path: Path, checkpoint: Checkpoint) -> None:
    """Check that a folder is a clone, and that its model supports the checkpoint.

    Raises:
        ConfigError: The folder holds no ``models_mae.py``, or the clone does not support the checkpoint.
    """
    reason = why_not("the clone", checkpoint)
    if reason:
        raise ConfigError(f"--reference {path}: {reason}", hint="--reference paper is always available")
    if not (path / f"{MODULE}.py").is_file():
        raise ConfigError(
            f"--reference {path}: no clone of the official repository (it has no {MODULE}.py)",
            hint="give auto, paper, transformers, timm, or the folder of a clone of facebookresearch/mae",
        )


def run_clone(path: Path, checkpoint: Checkpoint, imgs: Tensor, noise: Tensor, mask_ratio: float) -> dict[str, Tensor]:
    """Run the clone's model in float64 in a child process, and return the outputs of its stages by name.

    Raises:
        ConfigError: The clone cannot run; the message has the last line of its error output.
    """
    config = checkpoint.config
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder, "request.pt"), Path(folder, "answer.pt")
        heads = {"num_heads": config.num_heads, "decoder_num_heads": config.decoder_num_heads}
        torch.save({"imgs": imgs, "noise": noise, "mask_ratio": mask_ratio, "heads": heads}, request)
        command = [sys.executable, "-m", "mae.comparison.clone", *map(str, (path, checkpoint.path, request, answer))]
        search = os.pathsep.join(filter(None, [PACKAGE_HOME, os.environ.get("PYTHONPATH")]))
        # Without PYTHONSAFEPATH a mae.py in the working folder would come before this package.
        environment = os.environ | {"PYTHONPATH": search, "PYTHONSAFEPATH": "1"}
        run = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
        if run.returncode:
            last = (run.stderr.strip().splitlines() or ["it ended without a message"])[-1]
            raise ConfigError(f"--reference {path}: the clone's model cannot run: {last}")
        stages: dict[str, Tensor] = torch.load(answer, weights_only=True)
        return stages


@torch.no_grad()
def _run(path: Path, checkpoint: Checkpoint, imgs: Tensor, noise: Tensor, mask_ratio: float) -> dict[str, Tensor]:
    config = checkpoint.config
    _prepare_process(path)
    model = _build(importlib.import_module(MODULE).MaskedAutoencoderViT, config)
    model.load_state_dict({key: checkpoint.state[key] for key in model.state_dict()})
    model = model.eval().double()
    outputs = {"patch embedding": model.patch_embed}
    outputs |= {f"encoder block {number}": block for number, block in enumerate(model.blocks)}
    outputs |= {"encoder norm": model.norm, "decoder embedding": model.decoder_embed}
    outputs |= {f"decoder block {number}": block for number, block in enumerate(model.decoder_blocks)}
    outputs |= {"decoder norm": model.decoder_norm}
    # The official model draws its noise with torch.rand and accepts no other.
    torch.rand = lambda *size, **options: noise.clone()
    with watch(outputs, {"visible tokens": model.blocks[0], "decoder tokens": model.decoder_blocks[0]}) as seen:
        latent, mask, ids_restore = model.forward_encoder(imgs.double(), mask_ratio)
        pred = seen["prediction"] = model.forward_decoder(latent, ids_restore)
    if config.in_chans == 3:  # its loss supports only three channels
        for name, norm_pix_loss in (("loss, pixels", False), ("loss, normalised", True)):
            model.norm_pix_loss = norm_pix_loss
            seen[name] = model.forward_loss(imgs.double(), pred, mask)
    return seen


def _build(model_class: Any, config: MAEConfig) -> Any:
    return model_class(
        img_size=config.img_size[0],
        patch_size=config.patch_size,
        in_chans=config.in_chans,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        decoder_embed_dim=config.decoder_embed_dim,
        decoder_depth=config.decoder_depth,
        decoder_num_heads=config.decoder_num_heads,
        mlp_ratio=config.mlp_ratio,
        norm_layer=partial(nn.LayerNorm, eps=LAYER_NORM_EPS),
    )


def _prepare_process(path: Path) -> None:
    """Put the clone's folder first on the path, and add ``numpy.float`` and ``qk_scale`` of timm's block again.

    Nothing is restored, because the process ends after the run.
    """
    import numpy as np
    from timm.models import vision_transformer

    timm: Any = vision_transformer

    class Block(timm.Block):  # type: ignore[misc]
        def __init__(self, *args: Any, qk_scale: float | None = None, **options: Any) -> None:
            super().__init__(*args, **options)

    timm.Block = Block
    if not hasattr(np, "float"):
        np.float = float  # type: ignore[attr-defined]
    sys.path.insert(0, str(path))


def _child(clone: str, checkpoint: str, request: str, answer: str) -> None:
    asked = torch.load(request, weights_only=True)
    stages = _run(
        Path(clone), load_checkpoint(checkpoint, **asked["heads"]), asked["imgs"], asked["noise"], asked["mask_ratio"]
    )
    torch.save({name: stage.contiguous() for name, stage in stages.items()}, answer)


if __name__ == "__main__":
    _child(*sys.argv[1:])
