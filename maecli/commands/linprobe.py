"""``maecli linprobe DATA``."""

from __future__ import annotations

import functools

from mae.training.classifier_config import LINPROBE_PRESETS, LinprobeConfig
from mae.training.config import settings_of_resumed
from maecli.commands.pretrain import SWITCHES, written_config
from maecli.options import command_from
from maecli.output import Output


@command_from(
    LinprobeConfig,
    toml=True,
    saved=functools.partial(settings_of_resumed, command="linprobe"),
    written=written_config,
    presets=LINPROBE_PRESETS,
    switches=SWITCHES,
)
def linprobe(config: LinprobeConfig, output: Output, *, dry_run: bool) -> None:
    """Train a linear classifier on a frozen encoder by the official recipe, and test the best epoch once.

    Examples:
      maecli linprobe flowers --init run --preset small --out probed

      maecli linprobe flowers --init run --pool mean --out probed-mean

      maecli linprobe --resume probed
    """
    from mae.training.linprobe import PROBING
    from mae.training.linprobe import linprobe as use_case
    from maecli.views.training import run_training, show_classifier

    run_training(config, output, use_case, PROBING if dry_run else None, show_classifier)
