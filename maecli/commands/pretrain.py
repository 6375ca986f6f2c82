"""``maecli pretrain DATA``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mae.checkpoints.run_states import run_states
from mae.training.config import PretrainConfig, settings_of_resumed
from mae.training.presets import PRESETS
from maecli.options import command_from
from maecli.output import Output

if TYPE_CHECKING:
    from mae.training.classifier_config import ClassifierConfig

SWITCHES = {"dry_run": "Print the plan of the run with warnings, and stop; nothing is written."}


def written_config(config: PretrainConfig | ClassifierConfig) -> Path | None:
    """The config.toml that a new run writes; None for a resumed run, which has it already."""
    resumed = config.resume or (config.auto_resume and run_states(config.out))
    return None if resumed else config.out / "config.toml"


@command_from(
    PretrainConfig, toml=True, saved=settings_of_resumed, written=written_config, presets=PRESETS, switches=SWITCHES
)
def pretrain(config: PretrainConfig, output: Output, *, dry_run: bool) -> None:
    """Train a masked autoencoder on a folder of images; labels are not needed.

    Examples:
      maecli pretrain sample_images --preset small --dry-run

      maecli pretrain photos --preset small --out runs/small

      maecli pretrain photos scans --batch-size 64 --accum-iter 8 --out runs/base

      maecli pretrain --resume runs/base
    """
    from mae.training.pretrain import PRETRAINING
    from mae.training.pretrain import pretrain as use_case
    from maecli.views.training import run_training, show_pretraining

    run_training(config, output, use_case, PRETRAINING if dry_run else None, show_pretraining)
