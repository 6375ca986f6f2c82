"""Draws the documents' images that show photographs; the model was not trained on any of them.

    python benchmarks/readme_images.py --run runs/builtin

- docs/images/reconstruction.jpg: the output of the README's first command, with the built-in weights;
- docs/images/report.png: the report of the run that made them, whose previews are of held-out photographs (with --run;
  needs Chromium).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

import mae

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
NAMES = ("coffee", "cat", "coast")  # as in the README
REPORT_WIDTH = 870
UP_TO_EPOCHS = """(() => {
    let one = [...document.querySelectorAll('h2')].find(title => title.textContent === 'Epochs');
    while (one) { const next = one.nextElementSibling; one.remove(); one = next; }
})()"""


def main() -> None:
    """Draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="The run's folder.")
    options = parser.parse_args()
    photographs = [ROOT / "sample_images" / f"{name}.jpg" for name in NAMES]
    result = mae.reconstruct(*photographs, checkpoint="builtin", out=IMAGES / "reconstruction.jpg")
    for one in result.images:
        print(f"{one.path.name}: {one.psnr:.2f} dB")
    if options.run:
        draw_report(options.run, IMAGES / "report.png")


def draw_report(run: Path, out: Path) -> None:
    """The page as a browser shows it."""
    sys.path.insert(0, str(ROOT))
    from tests.browser.chromium import Chromium, find_chromium

    browser = find_chromium()
    if browser is None:
        raise SystemExit("no Chromium found: install one, or name it in CHROMIUM")
    with tempfile.TemporaryDirectory() as folder:
        page, copy = Path(folder) / "report.html", Path(folder) / "builtin"
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("*.pth", ".*"))
        mae.report(copy, out=page)
        with Chromium(browser, Path(folder) / "profile") as window:
            window.show(width=REPORT_WIDTH)
            window.open(page)
            window.evaluate(UP_TO_EPOCHS)  # what follows names folders of one machine
            window.screenshot(out)
    with Image.open(out) as image:
        pixels = image.convert("RGB")
    empty = Image.new("RGB", pixels.size, pixels.getpixel((0, pixels.height - 1)))
    used = ImageChops.difference(pixels, empty).getbbox()  # the space of what was left out is below
    pixels = pixels.crop((0, 0, pixels.width, min(pixels.height, used[3] + 16 if used else pixels.height)))
    fewer = pixels.quantize(256, dither=Image.Dither.NONE)  # a third of the bytes
    fewer.save(out, optimize=True)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
