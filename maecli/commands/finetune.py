"""``maecli finetune DATA``."""

from __future__ import annotations

import functools

from mae.training.classifier_config import FINETUNE_PRESETS, FinetuneConfig
from mae.training.config import settings_of_resumed
from maecli.commands.pretrain import SWITCHES, written_config
from maecli.options import command_from
from maecli.output import Output


@command_from(
    FinetuneConfig,
    toml=True,
    saved=functools.partial(settings_of_resumed, command="finetune"),
    written=written_config,
    presets=FINETUNE_PRESETS,
    switches=SWITCHES,
)
def finetune(config: FinetuneConfig, output: Output, *, dry_run: bool) -> None:
    """Fine-tune an encoder with a classification head on labelled images, and test the best epoch once.

    Examples:
      maecli finetune flowers --init run --preset small --out finetuned

      maecli finetune flowers --from-scratch --variant vit_tiny --image-size 64 --preset small --out scratch

      maecli finetune --resume finetuned
    """
    from mae.training.finetune import FINETUNING
    from mae.training.finetune import finetune as use_case
    from maecli.views.training import run_training, show_classifier

    run_training(config, output, use_case, FINETUNING if dry_run else None, show_classifier)
