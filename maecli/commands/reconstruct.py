"""``maecli reconstruct IMAGE...``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mae.io.text import shown
from mae.reconstruction.config import ReconstructConfig
from maecli.loading import without_collections
from maecli.options import command_from
from maecli.output import Output, as_document, fitted, plain_table, print_line, warn_skipped

if TYPE_CHECKING:
    from rich.console import Console

    from mae.reconstruction.run import ReconstructResult


@command_from(ReconstructConfig)
def reconstruct(config: ReconstructConfig, output: Output) -> None:
    """Mask images, reconstruct them, and draw original, masked and reconstruction side by side.

    Examples:
      maecli reconstruct cat.jpg --out grid.png

      maecli reconstruct photos --mask-ratio 0.75 --mask-ratio 0.9 --out grid.png

      maecli reconstruct cat.jpg --mask hole.png --resize --out filled.webp
    """
    with without_collections():
        from mae.checkpoints.hub import announce_downloads
        from mae.reconstruction.run import reconstruct as use_case

    if config.to_stream:
        output.check_takes_file()
    with announce_downloads(output.download):
        result = use_case(config, lambda done, total: output.count(done, total, "images"))
    if result.page is None:
        output.show(result, _show, result.out, _document)
        return
    for note in result.notes:
        output.note(note)
    warn_skipped(output, result.skipped)
    output.file(result.page, lambda console: _show(console, result))


def _document(result: ReconstructResult) -> dict[str, Any]:
    document = as_document(result)
    del document["image"], document["page"]
    for one in document["images"]:
        one["psnr_db"] = one.pop("psnr")
    return document


def _show(console: Console, result: ReconstructResult) -> None:
    from rich.text import Text

    table = plain_table("image", right=("pixels", "masked", "loss", "PSNR dB"))
    for one in result.images:
        table.add_row(
            Text(shown(one.path.name)),
            f"{one.image_size[0]}x{one.image_size[1]}",
            f"{one.mask_ratio:.0%}",
            "-" if one.loss is None else f"{one.loss:.4f}",
            "-" if one.psnr is None else f"{one.psnr:.2f}",
        )
    console.print(fitted(console, table))
    target = "normalised patches" if result.norm_pix else "raw pixels"
    taken = "is taken to predict" if result.norm_pix_source == "option" else "predicts"
    console.print(f"{result.variant or 'model'} {taken} {target}; loss and PSNR are over masked patches")
    place = "the image to standard output" if result.page is not None else shown(str(result.out))
    print_line(console, f"wrote {place}")
    if result.animation is not None:
        print_line(console, f"wrote {shown(str(result.animation))}")
