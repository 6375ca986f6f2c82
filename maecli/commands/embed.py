"""``maecli embed DATA``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mae.evaluation.config import EmbedConfig
from mae.io.text import counted, shown
from maecli.options import command_from
from maecli.output import Output, print_line

if TYPE_CHECKING:
    from rich.console import Console

    from mae.evaluation.embed import EmbedResult


@command_from(EmbedConfig)
def embed(config: EmbedConfig, output: Output) -> None:
    """Write the encoder's features of unmasked images to a file, with file names and class labels.

    Examples:
      maecli embed photos --checkpoint run/checkpoint-last.pth --out features.npz

      maecli embed photos --pool cls --feature-norm none --out features.csv

      maecli embed photos --pool patches --dtype float16 --out patches.pt
    """
    from mae.checkpoints.hub import announce_downloads
    from mae.evaluation.embed import embed as use_case
    from maecli.views.counting import CountingView

    with announce_downloads(output.download), CountingView(output) as view:
        result = use_case(config, view)
    if result is None:  # not rank 0, which alone prints
        return
    output.show(result, _show, result.out)


def _show(console: Console, result: EmbedResult) -> None:
    labels = f", {counted(len(result.classes), 'class', 'classes')}" if result.classes else ", no class folders"
    numbers = f"{' x '.join(f'{side:,}' for side in result.shape)} numbers each, {result.dtype}"
    print_line(console, f"{counted(result.images, 'image')}{labels}; {numbers}")
    print_line(console, f"wrote {shown(result.out)}: {result.size_bytes / 1e6:,.1f} MB")
