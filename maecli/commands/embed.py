"""``maecli embed DATA``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mae.evaluation.config import EmbedConfig
from mae.io.text import shown
from maecli.options import command_from
from maecli.output import Output, as_document, warn_skipped

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
    for note in result.notes:
        output.note(note)
    warn_skipped(output, result.skipped)
    output.result(lambda: _document(result), lambda console: _show(console, result), result.out)


def _document(result: EmbedResult) -> dict[str, Any]:
    return {
        **as_document(result),
        "skipped": [{"path": name, "reason": reason} for name, reason in result.skipped],
    }


def _show(console: Console, result: EmbedResult) -> None:
    labels = f", {len(result.classes):,} classes" if result.classes else ", no class folders"
    console.print(
        f"{result.images:,} images{labels}; {' x '.join(f'{side:,}' for side in result.shape)} numbers each, "
        f"{result.dtype}",
        soft_wrap=True,
    )
    console.print(f"wrote {shown(result.out)}: {result.size_bytes / 1e6:,.1f} MB", soft_wrap=True, markup=False)
