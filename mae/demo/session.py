"""The model of the demo page: images that were added, their reconstructions, and similar images."""

from __future__ import annotations

import base64
import contextlib
import io
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mae.checkpoints import Checkpoint, load_checkpoint_or_default
from mae.checkpoints.build import build_encoder
from mae.config import DEFAULT_MASK_RATIO, format_size
from mae.data.decoding.formats import ImageError
from mae.data.decoding.image import check_channels, decode_image
from mae.data.eval_transform import EvalTransform
from mae.data.sources.base import ImageSource
from mae.data.sources.scan import scan_images
from mae.data.transforms import image_to_tensor, tensor_to_image
from mae.demo.config import USUAL_LIMIT, DemoConfig
from mae.errors import DataError
from mae.evaluation.frozen import FrozenEncoder, View
from mae.io.download import obeys_offline
from mae.io.text import shown as escaped
from mae.io.urls import public_name
from mae.masking import masking_from_order
from mae.reconstruction.config import ReconstructConfig
from mae.reconstruction.run import NORM_PIX_NOTE, FramedImage, Reconstructor
from mae.system.device import Computing, resolve_device

KEPT_IMAGES = 16  # newest images that are kept in memory
NEIGHBOURS = 6
BATCH = 32
_THUMBNAIL = 128
_VIEW = View("mean", "final")


@obeys_offline
def start_session(config: DemoConfig, on_image: Callable[[int, int], None] = lambda done, total: None) -> DemoSession:
    """Create a session, without downloads if ``config.offline`` is set. Args, Raises: As ``DemoSession``."""
    return DemoSession(config, on_image)


class DemoSession:
    """A model and the images that the page has added; its methods are thread-safe.

    Args:
        config: All settings.
        on_image: Called with the number of images of ``config.data`` that were read, and their total.

    Attributes:
        notes: Messages for the user.

    Raises:
        CheckpointError: The weights cannot be used, for instance because they have no decoder.
        DataError: There are no images at ``config.data``.
    """

    def __init__(self, config: DemoConfig, on_image: Callable[[int, int], None] = lambda done, total: None) -> None:
        self._lock = threading.Lock()
        self._device = resolve_device(config.device)
        self.checkpoint = load_checkpoint_or_default(config.checkpoint)
        check_channels(self.checkpoint.config.in_chans)
        frame = ReconstructConfig(images=(), out=None)
        self._reconstructor = Reconstructor(frame, self.checkpoint, self._device)
        self._images: OrderedDict[int, tuple[Image.Image, FramedImage]] = OrderedDict()
        self._given = 0
        self._gallery = None if config.data is None else _Gallery(config, self.checkpoint, self._device, on_image)
        self.notes = (*self.checkpoint.notes, *self._reconstructor.notes)

    def describe(self) -> dict[str, Any]:
        """The description of the model for the page."""
        config = self.checkpoint.config
        name = "the built-in weights" if self.checkpoint.is_builtin else self.checkpoint.variant or "a model"
        return {
            "model": f"{name}: images of about {format_size(config.img_size)} pixels, patches of {config.patch_size}",
            "mask_ratio": DEFAULT_MASK_RATIO,
            "gallery": 0 if self._gallery is None else len(self._gallery),
        }

    def add(self, content: bytes, seed: int) -> dict[str, Any]:
        """Decode and keep an image.

        Returns:
            Its number, its cropped pixels, its grid of patches, and their order in a mask of this seed, see ``order``.

        Raises:
            DataError: The content cannot be read as an image.
        """
        image = decode_image(io.BytesIO(content), "the image", self.checkpoint.config.in_chans)
        with self._lock:
            framed = self._reconstructor.frame(image, Path("the image"))
            self._given += 1
            number = self._given
            self._images[number] = image, framed
            if len(self._images) > KEPT_IMAGES:
                self._images.popitem(last=False)
        rows, columns = framed.config.grid
        return {
            "image": number,
            "original": _data_uri(tensor_to_image(framed.original)),
            "rows": rows,
            "columns": columns,
            "order": self.order(rows * columns, seed),
        }

    def order(self, patches: int, seed: int) -> list[int]:
        """Patch numbers by ascending noise; a mask takes the last ones. Same masks as ``reconstruct --seed``."""
        noise = torch.rand(1, patches, generator=torch.Generator().manual_seed(seed))
        return torch.argsort(noise[0], stable=True).tolist()

    def reconstruct(self, number: int, masked: Sequence[int]) -> dict[str, Any]:
        """Predict the masked patches.

        Args:
            number: From ``add``.
            masked: Patches in reading order, counted from 0.

        Raises:
            DataError: The image is no longer kept, a patch does not exist, or no patch is visible.
        """
        with self._lock:
            _, framed = self._get(number)
            patches = framed.config.num_patches
            if not all(0 <= patch < patches for patch in masked):
                raise DataError(f"the image has patches 0 to {patches - 1}")
            mask = torch.zeros(1, patches, device=self._device)
            mask[0, list(masked)] = 1
            kept = int((mask == 0).sum())
            if kept == 0:
                raise DataError("at least one patch must be visible")
            panels = self._reconstructor.reconstruct(framed, masking_from_order(mask, kept)).panels
        return {
            "reconstruction": _data_uri(tensor_to_image(panels.with_visible)),
            "psnr": None if math.isnan(panels.psnr) else panels.psnr,
            "note": NORM_PIX_NOTE if self._reconstructor.norm_pix else "",
        }

    def similar(self, number: int) -> list[dict[str, str]]:
        """The most similar images of the folder, nearest first: name, similarity and thumbnail."""
        with self._lock:
            image, _ = self._get(number)
            return [] if self._gallery is None else self._gallery.similar(image)

    def _get(self, number: int) -> tuple[Image.Image, FramedImage]:
        if number not in self._images:
            raise DataError("this image is no longer in memory: add it to the page again")
        return self._images[number]


class _Gallery:
    """The images of a folder and their features."""

    def __init__(
        self,
        config: DemoConfig,
        checkpoint: Checkpoint,
        device: torch.device,
        on_image: Callable[[int, int], None],
    ) -> None:
        assert config.data is not None
        self._source: ImageSource = scan_images([config.data]).images
        self._in_chans = checkpoint.config.in_chans
        self._encoder = FrozenEncoder("demo", build_encoder(checkpoint)[0], Computing(device, "fp32"))
        self._frame = EvalTransform(checkpoint.config.img_size)
        self._numbers: list[int] = []
        features, batch = [], []
        total = min(config.limit or USUAL_LIMIT, len(self._source))
        for index in range(total):
            with contextlib.suppress(ImageError):
                batch.append(self._frame(self._source.load(index, self._in_chans)))
                self._numbers.append(index)
            if len(batch) == BATCH:
                features.append(self._features(batch))
                batch = []
            on_image(index + 1, total)
        if batch:
            features.append(self._features(batch))
        if not features:
            raise DataError(f"{escaped(public_name(config.data))}: none of the images can be decoded")
        self._all = torch.cat(features)

    def __len__(self) -> int:
        return len(self._numbers)

    def _features(self, images: list[Tensor]) -> Tensor:
        """Features of images, (N, D), normalised to length 1."""
        return F.normalize(self._encoder.views(torch.stack(images), [_VIEW])[_VIEW].cpu(), dim=1)

    def similar(self, image: Image.Image) -> list[dict[str, str]]:
        """The most similar images by the cosine of their features, nearest first."""
        likeness = self._all @ self._features([self._frame(image)])[0]  # (N,)
        nearest = likeness.topk(min(NEIGHBOURS, len(likeness)))
        found = []
        for value, row in zip(nearest.values.tolist(), nearest.indices.tolist(), strict=True):
            index = self._numbers[row]
            try:
                shown = self._source.load(index, self._in_chans)
            except ImageError:  # the file was removed or changed after its features were computed
                continue
            shown.thumbnail((_THUMBNAIL, _THUMBNAIL))
            name = self._source.name(index).name
            found.append({"name": name, "similarity": f"{value:.2f}", "image": _data_uri(_plain(shown))})
        return found


def _plain(image: Image.Image) -> Image.Image:
    """An image without its alpha channel, as L or RGB."""
    return tensor_to_image(image_to_tensor(image)[: 3 if len(image.getbands()) >= 3 else 1].float() / 255)


def _data_uri(image: Image.Image) -> str:
    file = io.BytesIO()
    _plain(image).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
