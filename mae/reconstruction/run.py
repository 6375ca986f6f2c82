"""Reconstruct masked images and draw the result (Paper: Figures 2, 3 and 4)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from mae.checkpoints import Checkpoint, build_model, load_checkpoint_or_default
from mae.checkpoints.build import learnt_tables
from mae.config import DEFAULT_MASK_RATIO, MAEConfig, num_kept
from mae.data.decoding.image import check_channels, load_image
from mae.data.sources.given import GivenImages
from mae.data.transforms import (
    LONGEST_SHAPE,
    crop_to,
    denormalise,
    image_to_tensor,
    normalise,
    tensor_to_image,
    whole_size,
)
from mae.errors import ConfigError, DataError
from mae.io.download import obeys_offline
from mae.io.files import refuse_input, refuse_place
from mae.io.text import a_few, shown
from mae.mae import MaskedAutoencoder, patch_statistics
from mae.masking import Masking, masking_from_order, random_masking, take_patches
from mae.reconstruction.animation import write_animation
from mae.reconstruction.config import ReconstructConfig, check_suffix
from mae.reconstruction.grid import Row, draw_grid, encode_image, write_image
from mae.reconstruction.panels import FAINT_NOTE, TITLES, Panels, make_panels, predict
from mae.system.device import resolve_device

LONGEST_STEM = 220  # bytes; with the name of a panel, less than the 255 of usual file systems
ANIMATED_RATIOS = tuple(number / 20 for number in range(1, 20))
_MASK_HINT = "white patches are masked, black patches stay visible"
_OF_ORIGINAL = "the brightness and contrast of all patches, also of masked ones, are taken from the original."
NORM_PIX_NOTE = f"These weights predict normalised patches: {_OF_ORIGINAL}"
NORM_PIX_ON_NOTE = f"With --norm-pix on, {_OF_ORIGINAL}"
NOTHING_MASKED_NOTE = (
    "No patch was masked, so there is no loss and no PSNR. The reconstruction shows predictions of visible patches, "
    "which are not trained."
)


@dataclasses.dataclass(frozen=True)
class ImageResult:
    """One image under one mask.

    Attributes:
        image_size: Size of the model's input, (rows, columns).
        mask_ratio: Actual fraction of masked patches.
        loss: The training loss of this image, over its masked patches; None if no patch is masked.
        psnr: PSNR over the masked patches, dB; None if no patch is masked.
    """

    path: Path
    image_size: tuple[int, int]
    mask_ratio: float
    loss: float | None
    psnr: float | None


@dataclasses.dataclass(frozen=True)
class ReconstructResult:
    """The drawing, and the loss and PSNR of every image; a notebook shows the drawing.

    Attributes:
        out: The written file; None if none was requested.
        image: The drawing: rows of panels.
        page: The encoded drawing if it goes to standard output instead of a file; else None.
        norm_pix: Whether the predictions were un-normalised with the mean and std of the original patches.
        norm_pix_source: Origin of ``norm_pix``: ``option``, ``checkpoint`` or ``inferred``.
        skipped: Unreadable files in the given folders, with the reasons.
        animation: The written animation; None if none was requested.
        notes: Messages for the user.
    """

    out: Path | None
    checkpoint: Path
    variant: str | None
    norm_pix: bool
    norm_pix_source: str
    images: tuple[ImageResult, ...]
    skipped: tuple[tuple[Path, str], ...]
    separate: tuple[Path, ...]
    animation: Path | None
    notes: tuple[str, ...]
    image: Image.Image = dataclasses.field(repr=False)
    page: bytes | None = dataclasses.field(default=None, repr=False)

    def save(self, path: str | Path) -> Path:
        """Write the drawing as .png, .jpg or .webp, by the suffix of the path.

        Raises:
            ConfigError: The path has another suffix, or the file cannot be written.
        """
        path = Path(path)
        check_suffix(path, "path")
        write_image(path, self.image)
        return path

    def _repr_png_(self) -> bytes:
        return encode_image(self.image, "PNG", "the page")


@obeys_offline
def reconstruct(
    config: ReconstructConfig, on_image: Callable[[int, int], None] = lambda done, total: None
) -> ReconstructResult:
    """Mask images, reconstruct them and draw a grid of panels, written to ``config.out``.

    Args:
        config: All settings.
        on_image: Called with the number of reconstructed images and their total.

    Raises:
        ConfigError: The settings do not fit the weights.
        DataError: An image cannot be read.
        TypeError, ValueError: An image in memory has an unsupported type or shape.
        CheckpointError: The weights cannot be used, for instance because they have no decoder.
    """
    out = None if config.to_stream else config.out
    if out is not None:
        refuse_place(out, "--out")
    if config.separate is not None:
        refuse_place(config.separate, "--separate", folder=True)
    if config.animate is not None:
        refuse_place(config.animate, "--animate")
        if out is not None and out.resolve() == config.animate.resolve():
            raise ConfigError(f"--out and --animate are the same file, {shown(out)}", hint="give them different names")
    device = resolve_device(config.device)
    checkpoint = load_checkpoint_or_default(config.checkpoint)
    check_channels(checkpoint.config.in_chans)
    reconstructor = Reconstructor(config, checkpoint, device)
    given = GivenImages(config.images, config.limit)
    mask = [config.mask] if config.mask else []
    inputs = {"the image": given.files, "the mask": mask, "the checkpoint": [checkpoint.path]}
    folders = [*given.folders, checkpoint.path]
    if out is not None:
        refuse_input(out, "--out", inputs, folders=folders)
    if config.animate is not None:
        refuse_input(config.animate, "--animate", inputs, folders=folders)
    rows: list[Row] = []
    shares: list[list[float]] = []  # masked fractions of each image
    frames: list[list[Row]] = [[] for _ in ANIMATED_RATIOS]  # of the animation
    images: list[ImageResult] = []
    separate: dict[Path, Image.Image] = {}
    for number, (path, image) in enumerate(given.decode(checkpoint.config.in_chans), start=1):
        framed = reconstructor.frame(image, path)
        shots = [reconstructor.reconstruct(framed, masking) for masking in reconstructor.maskings(framed)]
        results = [_result(path, framed, shot) for shot in shots]
        images += results
        shares.append([shot.masked_share for shot in shots])
        rows.append(Row(_images_of(shots), _caption(path, results)))
        if config.animate is not None:
            for frame, ratio in zip(frames, ANIMATED_RATIOS, strict=True):
                frame.append(_animated(path, framed, reconstructor, ratio))
        if config.separate is not None:
            separate |= _separate(config.separate, f"{number:03d}-{path.stem}", shots)
        on_image(number, len(given))
    if not rows:
        raise DataError(
            "none of the images can be decoded", hint=f"{shown(given.skipped[0][0])}: {given.skipped[0][1]}"
        )
    original = NORM_PIX_ON_NOTE if reconstructor.norm_pix_source == "option" else NORM_PIX_NOTE
    notes = [*_notes(shares), *([original] if reconstructor.norm_pix else [])]
    page = draw_grid(_titles(shares), rows, " ".join(notes))
    content = encode_image(page, config.kind, "the page") if config.to_stream else None
    written = [path.resolve() for path in (out, config.animate) if path is not None]
    for file in separate:
        refuse_input(file, "--separate", inputs, folders=folders)
        if file.resolve() in written:
            raise ConfigError(f"{shown(file)} is a panel of --separate and another output", hint="give it another name")
    if config.separate is not None:
        _write_separate(config.separate, separate)
    if out is not None:
        write_image(out, page)
    if config.animate is not None:
        write_animation(config.animate, [draw_grid(TITLES, frame, " ".join(notes)) for frame in frames])
    return ReconstructResult(
        out=config.out,
        checkpoint=checkpoint.path,
        variant=checkpoint.variant,
        norm_pix=bool(reconstructor.norm_pix),
        norm_pix_source=reconstructor.norm_pix_source,
        images=tuple(images),
        skipped=tuple(given.skipped),
        separate=tuple(separate),
        animation=config.animate,
        notes=(*checkpoint.notes, *given.notes, *reconstructor.notes, *(note for note in notes if note != FAINT_NOTE)),
        image=page,
        page=content,
    )


@dataclasses.dataclass(frozen=True)
class FramedImage:
    """An image cropped or resized for the model.

    Attributes:
        imgs: (1, C, H, W), normalised.
        config: Sizes of the model for this image size.
        source_size: Size of the original image, (width, height).
    """

    imgs: Tensor
    config: MAEConfig
    source_size: tuple[int, int]

    @property
    def original(self) -> Tensor:
        """(C, H, W) in [0, 1]."""
        return denormalise(self.imgs[0]).cpu()

    @property
    def img_size(self) -> tuple[int, int]:
        return self.config.img_size


@dataclasses.dataclass(frozen=True)
class _Masked:
    """The panels of an image under one mask, and the fraction of masked patches."""

    panels: Panels
    masked_share: float


class Reconstructor:
    """The model, image size and masks for all images of one command."""

    def __init__(self, config: ReconstructConfig, checkpoint: Checkpoint, device: torch.device) -> None:
        self.config = config
        self.checkpoint = checkpoint
        self.device = device
        self.notes: list[str] = []
        self.mask = None if config.mask is None else load_image(config.mask, 1)
        self.norm_pix: bool | None = {"on": True, "off": False, "auto": checkpoint.norm_pix_loss}[config.norm_pix]
        self.norm_pix_source = "option" if config.norm_pix != "auto" else "checkpoint"
        stated = checkpoint.norm_pix_loss
        if stated is not None and stated != self.norm_pix:
            self.notes.append(
                f"the checkpoint says that it predicts {_target(stated)}; with --norm-pix {config.norm_pix} its "
                f"predictions are taken for {_target(not stated)}, and neither image nor PSNR is what it learnt"
            )
        self.size = config.image_size or checkpoint.config.img_size
        self.resizes = self._shows_whole_images() if config.resize is None else config.resize
        self._newest: tuple[tuple[int, int], MaskedAutoencoder] | None = None
        for ratio in config.ratios:
            num_kept(self.model_for(self.size).config.num_patches, ratio)

    def _shows_whole_images(self) -> bool:
        """The default of ``--resize/--crop``: resize, except for a given rectangle or learnt position embeddings."""
        if self.size[0] != self.size[1] and self.config.image_size is not None:
            return False
        learnt = learnt_tables(self.checkpoint)
        if learnt:
            self.notes.append(
                f"the centre of each image is shown, because {a_few(learnt)} of the checkpoint is learnt and fits only "
                "this image size; --resize shows whole images anyway"
            )
        return not learnt

    def model_for(self, size: tuple[int, int]) -> MaskedAutoencoder:
        """The model with position embeddings for an image size; the model of the last size is cached."""
        if self._newest is None or self._newest[0] != size:
            model, notes = build_model(self.checkpoint, img_size=size, scaled_positions=True)
            # Sine-cosine embeddings are computed for each image's shape, which needs no note.
            if size == self.size or learnt_tables(self.checkpoint):
                self.notes += [note for note in notes if note not in self.notes]
            self._newest = size, model.to(self.device).eval()
        return self._newest[1]

    def frame(self, image: Image.Image, path: Path) -> FramedImage:
        """Crop the image to the model's image size, or resize it to a size of about its own shape."""
        size = self.size
        if self.resizes:
            size = whole_size(image, size, self.checkpoint.config.patch_size)
            framed = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
            if max(image.size) > LONGEST_SHAPE * min(image.size):
                self.notes.append(
                    f"{shown(path)}: {image.width:,} x {image.height:,} pixels are shown as {size[1]:,} x "
                    f"{size[0]:,}, which is another shape: the longer side is at most {LONGEST_SHAPE} times the shorter"
                )
        else:
            framed = crop_to(image, size)
        imgs = normalise(image_to_tensor(framed))[None].to(self.device)
        return FramedImage(imgs, self.model_for(size).config, image.size)

    def maskings(self, image: FramedImage) -> list[Masking]:
        """The masks of an image: the one of ``--mask``, or one per mask ratio, drawn from the seed.

        Masks are drawn on the CPU and from the same seed for every image, so they depend neither on the device nor on
        other images.
        """
        if self.mask is not None:
            return [self._own_masking(image, self.mask)]
        return [random_masking(self.noise(image), ratio) for ratio in self.config.ratios]

    def noise(self, image: FramedImage) -> Tensor:
        """(1, L) uniform noise, from which the masks of all ratios are drawn."""
        patches = image.config.num_patches
        return torch.rand(1, patches, generator=torch.Generator().manual_seed(self.config.seed)).to(self.device)

    def _own_masking(self, image: FramedImage, mask: Image.Image) -> Masking:
        """The mask from an image: a patch is masked if more than half of it is white.

        If the image is cropped, a mask of the image's original size is cropped in the same way.
        """
        size = image.img_size
        if mask.size == image.source_size and not self.resizes:
            mask = crop_to(mask, size)
        rows, columns = image.config.grid
        shares = image_to_tensor(mask.resize((columns, rows), Image.Resampling.BOX)).float().flatten(1) / 255
        masked = (shares > 0.5).float()  # (1, L)
        kept = int((masked == 0).sum())
        if kept == 0:
            raise DataError(f"{self.config.mask} masks every patch", hint=_MASK_HINT)
        if kept == masked.shape[1]:
            raise DataError(f"{self.config.mask} masks no patch", hint=_MASK_HINT)
        return masking_from_order(masked.to(self.device), kept)

    def reconstruct(self, image: FramedImage, masking: Masking) -> _Masked:
        """Predict all patches and make the panels."""
        model = self.model_for(image.img_size)
        pred = predict(model, image.imgs, masking)
        if self.norm_pix is None:
            self.norm_pix = _looks_normalised(model, image.imgs, masking, pred)
            self.norm_pix_source = "inferred"
            self.notes.append(
                "the file does not say what its decoder predicts; its predictions are closer to "
                f"{_target(self.norm_pix)}, so these are assumed (--norm-pix on or off overrides this)"
            )
        (panels,) = make_panels(model, image.imgs, masking, pred, norm_pix=self.norm_pix)
        return _Masked(panels, masking.ids_masked.shape[1] / masking.ids_restore.shape[1])


def _looks_normalised(model: MaskedAutoencoder, imgs: Tensor, masking: Masking, pred: Tensor) -> bool:
    """Whether predictions are closer to normalised patches than to pixels, relative to the variance of each.

    Uses masked patches only; if there are none, some are masked for this test.
    """
    if not masking.ids_masked.shape[1]:
        noise = torch.rand(masking.ids_restore.shape, generator=torch.Generator().manual_seed(0))
        masking = random_masking(noise.to(imgs.device), DEFAULT_MASK_RATIO)
        pred = predict(model, imgs, masking)
    patches = take_patches(model.patchify(imgs), masking.ids_masked)
    pred = take_patches(pred, masking.ids_masked)
    mean, std = patch_statistics(patches)
    normalised = (patches - mean) / std
    raw_error = (pred - patches).square().mean() / patches.var()
    return bool((pred - normalised).square().mean() / normalised.var() < raw_error)


def _result(path: Path, framed: FramedImage, shot: _Masked) -> ImageResult:
    known = shot.masked_share > 0
    loss, psnr = (shot.panels.loss, shot.panels.psnr) if known else (None, None)
    return ImageResult(path, framed.img_size, shot.masked_share, loss, psnr)


def _animated(path: Path, framed: FramedImage, reconstructor: Reconstructor, ratio: float) -> Row:
    """One row of a frame of the animation; at least one patch stays visible, also in a small image."""
    kept = max(1, int(framed.config.num_patches * (1 - ratio)))
    shot = reconstructor.reconstruct(framed, masking_from_order(reconstructor.noise(framed), kept))
    caption = _caption(path, [_result(path, framed, shot)])
    return Row(_images_of([shot]), f"{caption}   masked {shot.masked_share:.0%}")


def _images_of(shots: Sequence[_Masked]) -> list[Image.Image]:
    """The panels to draw: for one mask all four, for several masks the original and then pairs, as in Figure 4."""
    panels = [shot.panels for shot in shots]
    views = [panels[0].original, *(view for one in panels for view in (one.masked, one.with_visible))]
    return [tensor_to_image(view) for view in (panels[0].views if len(panels) == 1 else views)]


def _titles(shares: Sequence[Sequence[float]]) -> list[str]:
    """Titles of the columns, from the masked fractions of each image; images of different frames may differ."""
    masked = [_percent(of_one_mask) for of_one_mask in zip(*shares, strict=True)]
    if len(masked) == 1:
        return [f"{title} {masked[0]}" if title == "masked" else title for title in TITLES]
    return ["original", *(f"{word} {share}" for share in masked for word in ("masked", "with visible"))]


def _percent(shares: Sequence[float]) -> str:
    low, high = (f"{100 * share:.0f}" for share in (min(shares), max(shares)))
    return f"{high}%" if low == high else f"{low} to {high}%"


def _target(norm_pix: bool) -> str:
    return "normalised patches" if norm_pix else "raw pixels"


def _notes(shares: Sequence[Sequence[float]]) -> list[str]:
    """The notes at the bottom of the page."""
    if len(shares[0]) > 1:
        return []
    return [FAINT_NOTE if any(share for (share,) in shares) else NOTHING_MASKED_NOTE]


def _caption(path: Path, results: Sequence[ImageResult]) -> str:
    numbers = [
        (f"{one.mask_ratio:.0%}: " if len(results) > 1 else "")
        + ("no patch masked" if one.psnr is None else f"loss {one.loss:.3f}, PSNR {one.psnr:.1f} dB")
        for one in results
    ]
    return f"{shown(path.name)}   {'; '.join(numbers)}"


def _separate(folder: Path, stem: str, shots: Sequence[_Masked]) -> dict[Path, Image.Image]:
    """The panels of an image by file path; a name that would be too long for the file system is cut."""
    while len(os.fsencode(stem)) > LONGEST_STEM:
        stem = stem[:-1]
    views = {"original": shots[0].panels.original}
    shares = [f"-{100 * shot.masked_share:.0f}" for shot in shots]
    if len(set(shares)) < len(shots):  # for instance of 0.75 and 0.752
        shares = [f"-{100 * shot.masked_share:.4g}" for shot in shots]
    for share, shot in zip(shares if len(shots) > 1 else [""], shots, strict=True):
        for title, view in zip(TITLES[1:], shot.panels.views[1:], strict=True):
            views[f"{title.replace(' ', '-')}{share}"] = view
    return {folder / f"{stem}-{name}.png": tensor_to_image(view) for name, view in views.items()}


def _write_separate(folder: Path, files: Mapping[Path, Image.Image]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--separate {folder}: {error.strerror}") from None
    for path, image in files.items():
        write_image(path, image)
