"""The official evaluation transform: scale the shorter side, crop the centre; nothing is random."""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from mae.data.transforms import LONGEST_SHAPE, crop_to, image_to_tensor

OFFICIAL_CROP_PCT = 224 / 256
LARGEST_CROPPED = 224  # pixels; for larger image sizes the official transform does not crop


class EvalTransform:
    """Resize and crop an image to the model's image size as in the official validation.

    The image is scaled (bicubic) until it covers the image size divided by ``crop_pct``, and the centre is cropped:
    for 224 pixels the shorter side becomes 256. An image that is not larger than the image size is scaled to cover the
    image size itself, without a margin; one of exactly that size is not changed.

    Args:
        image_size: Size of the result in pixels, (rows, columns).
        crop_pct: Fraction of each side that is kept; None for the official rule: 224/256 up to 224 pixels, 1 above.
    """

    def __init__(self, image_size: tuple[int, int], crop_pct: float | None = None) -> None:
        self.image_size = image_size
        self.crop_pct = crop_pct or (OFFICIAL_CROP_PCT if max(image_size) <= LARGEST_CROPPED else 1.0)

    def __call__(self, image: Image.Image) -> Tensor:
        """Transform a decoded image -> uint8 (C, rows, columns)."""
        rows, columns = self.image_size
        if (image.height, image.width) != self.image_size:
            image = self._cropped(image, rows, columns)
        return image_to_tensor(image)

    def _cropped(self, image: Image.Image, rows: int, columns: int) -> Image.Image:
        crop_pct = 1.0 if image.height <= rows and image.width <= columns else self.crop_pct
        least = int(rows / crop_pct), int(columns / crop_pct)
        height, width = _covering(image.size, *least)
        if height * width > LONGEST_SHAPE * least[0] * least[1]:  # the whole of a hairline could take gigabytes
            (height, width), image = least, crop_to(image, least)
        else:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        top, left = round((height - rows) / 2), round((width - columns) / 2)
        return image.crop((left, top, left + columns, top + rows))


def _covering(size: tuple[int, int], rows: int, columns: int) -> tuple[int, int]:
    """(height, width) of an image, given as (width, height), scaled until it just covers (rows, columns)."""
    width, height = size
    if columns * height >= rows * width:  # the width limits the scale
        return max(rows, columns * height // width), columns
    return rows, max(columns, rows * width // height)
