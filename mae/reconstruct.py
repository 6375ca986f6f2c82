"""Reconstruct masked photographs and draw what came of it (Paper: Figures 2, 3 and 4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from mae.checkpoints import Checkpoint, build_model, load_checkpoint
from mae.config import DEFAULT_CHECKPOINT, ReconstructConfig, num_kept
from mae.data.formats import PictureError
from mae.data.geometry import crop_to, whole_size
from mae.data.normalise import normalise, picture_to_tensor, tensor_to_picture
from mae.data.picture import check_channels, load_picture
from mae.data.scan import scan_pictures
from mae.device import resolve_device
from mae.download import obeys_offline
from mae.errors import CheckpointError, ConfigError, DataError
from mae.figure import Row, draw_grid, write_picture
from mae.files import refuse_place, shown
from mae.mae import MaskedAutoencoder, patch_statistics
from mae.masking import Masking, masking_from_order, random_masking, take_patches
from mae.panels import Panels, make_panels, predict

NORM_PIX_NOTE = (
    "These weights predict normalised patches: each patch's brightness and contrast are taken from the original, "
    "removed patches' too."
)


@dataclasses.dataclass(frozen=True)
class PictureResult:
    """One picture under one mask.

    Attributes:
        image_size: The frame that the model saw, (rows, columns).
        mask_ratio: The share of patches that was really removed.
        loss: The training loss on this picture's removed patches.
        psnr: On the removed patches, dB.
    """

    path: Path
    image_size: tuple[int, int]
    mask_ratio: float
    loss: float
    psnr: float


@dataclasses.dataclass(frozen=True)
class ReconstructResult:
    """What was written, and the numbers of every picture.

    Attributes:
        norm_pix: Whether the predictions were un-normalised with the original patches' statistics.
        norm_pix_source: Why: ``option``, ``checkpoint`` or ``inferred``.
        skipped: Files of the given folders that could not be read, with the reasons.
        notes: What else the user should know.
    """

    out: Path
    checkpoint: Path
    variant: str | None
    norm_pix: bool
    norm_pix_source: str
    pictures: tuple[PictureResult, ...]
    skipped: tuple[tuple[Path, str], ...]
    separate: tuple[Path, ...]
    notes: tuple[str, ...]


@obeys_offline
def reconstruct(
    config: ReconstructConfig, on_picture: Callable[[int, int], None] = lambda done, total: None
) -> ReconstructResult:
    """Mask pictures, reconstruct them and write a grid of panels.

    Args:
        config: What to do.
        on_picture: Called with the number of pictures done and their total.

    Raises:
        ConfigError: Options that do not fit the weights.
        DataError: A picture cannot be read.
        CheckpointError: The weights cannot be used; in particular they have no decoder.
    """
    refuse_place(config.out, "--out")
    if config.separate is not None:
        refuse_place(config.separate, "--separate", folder=True)
    device = resolve_device(config.device)
    checkpoint = _load(config.checkpoint)
    check_channels(checkpoint.config.in_chans)
    studio = _Studio(config, checkpoint, device)
    paths, skipped = _find(config.images)
    rows: list[Row] = []
    pictures: list[PictureResult] = []
    separate: list[Path] = []
    for number, path in enumerate(paths):
        try:
            picture = studio.frame(load_picture(path, checkpoint.config.in_chans, studio.notes.append))
        except PictureError as error:
            if path in config.images:  # asked for by name, not found in a folder
                raise
            skipped.append((path, error.reason))
            continue
        shots = [studio.shoot(picture, masking) for masking in studio.maskings(picture)]
        results = [
            PictureResult(path, picture.img_size, shot.removed_share, shot.panels.loss, shot.panels.psnr)
            for shot in shots
        ]
        pictures += results
        rows.append(Row(_pictures_of(shots), _caption(path, results)))
        if config.separate is not None:
            separate += _write_separate(config.separate, f"{number + 1:03d}-{path.stem}", shots)
        on_picture(number + 1, len(paths))
    if not rows:
        raise DataError("none of the pictures can be decoded", hint=f"{shown(skipped[0][0])}: {skipped[0][1]}")
    page = draw_grid(_titles(shots), rows, NORM_PIX_NOTE if studio.norm_pix else "")
    write_picture(config.out, page)
    return ReconstructResult(
        out=config.out,
        checkpoint=checkpoint.path,
        variant=checkpoint.variant,
        norm_pix=bool(studio.norm_pix),
        norm_pix_source=studio.norm_pix_source,
        pictures=tuple(pictures),
        skipped=tuple(skipped),
        separate=tuple(separate),
        notes=(*checkpoint.notes, *studio.notes, *([NORM_PIX_NOTE] if studio.norm_pix else [])),
    )


@dataclasses.dataclass(frozen=True)
class _Framed:
    """A picture in the model's frame: (1, C, H, W) normalised, the model for that frame, and what was cut off."""

    imgs: Tensor
    model: MaskedAutoencoder
    source_size: tuple[int, int]

    @property
    def img_size(self) -> tuple[int, int]:
        return self.model.config.img_size


@dataclasses.dataclass(frozen=True)
class _Shot:
    """A picture's panels under one mask."""

    panels: Panels
    removed_share: float


class _Studio:
    """The model, the frame and the masks that all pictures of one command share."""

    def __init__(self, config: ReconstructConfig, checkpoint: Checkpoint, device: torch.device) -> None:
        self.config = config
        self.checkpoint = checkpoint
        self.device = device
        self.notes: list[str] = []
        self.mask = None if config.mask is None else load_picture(config.mask, 1)
        self.norm_pix: bool | None = {"on": True, "off": False, "auto": checkpoint.norm_pix_loss}[config.norm_pix]
        self.norm_pix_source = "option" if config.norm_pix != "auto" else "checkpoint"
        self._models: dict[tuple[int, int], MaskedAutoencoder] = {}
        for ratio in config.mask_ratio:
            num_kept(self.model_for(config.image_size).config.num_patches, ratio)

    def model_for(self, size: tuple[int, int] | None) -> MaskedAutoencoder:
        """The model with position tables for a frame, built once for each."""
        size = size or self.checkpoint.config.img_size
        if size not in self._models:
            model, notes = build_model(self.checkpoint, img_size=size)
            self.notes += [note for note in notes if note not in self.notes]
            self._models[size] = model.to(self.device).eval()
        return self._models[size]

    def frame(self, picture: Image.Image) -> _Framed:
        """Crop the picture to the frame, or choose a frame of the picture's shape."""
        size = self.config.image_size or self.checkpoint.config.img_size
        if self.config.resize:
            size = whole_size(picture, size, self.checkpoint.config.patch_size)
            framed = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)
        else:
            framed = crop_to(picture, size)
        imgs = normalise(picture_to_tensor(framed))[None].to(self.device)
        return _Framed(imgs, self.model_for(size), picture.size)

    def maskings(self, picture: _Framed) -> list[Masking]:
        """The masks for one picture: the user's own, or one per ratio from the seed.

        Drawn on the CPU, anew for every picture, so a picture's mask depends neither on the device nor on
        the pictures before it.
        """
        patches = picture.model.config.num_patches
        if self.mask is not None:
            return [self._own_masking(picture, self.mask)]
        noise = torch.rand(1, patches, generator=torch.Generator().manual_seed(self.config.seed))
        return [random_masking(noise.to(self.device), ratio) for ratio in self.config.mask_ratio]

    def _own_masking(self, picture: _Framed, mask: Image.Image) -> Masking:
        """A patch is removed where more than half of it is white; a mask of the picture's size is framed like it."""
        size = picture.img_size
        if mask.size == picture.source_size and not self.config.resize:
            mask = crop_to(mask, size)
        rows, columns = picture.model.config.grid
        shares = picture_to_tensor(mask.resize((columns, rows), Image.Resampling.BOX)).float().flatten(1) / 255
        removed = (shares > 0.5).float()  # (1, L)
        kept = int((removed == 0).sum())
        if kept == 0:
            raise DataError(f"{self.config.mask}: the mask removes every patch", hint="white is removed, black is kept")
        if kept == removed.shape[1]:
            raise DataError(f"{self.config.mask}: the mask removes no patch", hint="white is removed, black is kept")
        return masking_from_order(removed.to(self.device), kept)

    def shoot(self, picture: _Framed, masking: Masking) -> _Shot:
        """Predict the removed patches and make the panels."""
        model = picture.model
        pred = predict(model, picture.imgs, masking)
        if self.norm_pix is None:
            self.norm_pix = _looks_normalised(model, picture.imgs, masking, pred)
            self.norm_pix_source = "inferred"
            kind = "normalised patches" if self.norm_pix else "raw pixels"
            self.notes.append(
                f"the file does not say what its decoder predicts; these predictions fit {kind} better "
                "(--norm-pix on or off overrides)"
            )
        (panels,) = make_panels(model, picture.imgs, masking, pred, norm_pix=self.norm_pix)
        return _Shot(panels, masking.ids_removed.shape[1] / masking.ids_restore.shape[1])


def _load(path: Path) -> Checkpoint:
    if path == DEFAULT_CHECKPOINT and not path.exists():
        raise CheckpointError(
            f"no weights: --checkpoint is not given and there is no {path} here",
            hint="train your own (maecli pretrain FOLDER), or give an official file with a decoder or its name, for "
            "instance --checkpoint mae_visualize_vit_base (448 MB, CC BY-NC 4.0)",
        )
    return load_checkpoint(path)


def _find(sources: Sequence[Path]) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Pictures in the order given; a folder's in sorted order, less the unreadable ones."""
    paths: list[Path] = []
    skipped: list[tuple[Path, str]] = []
    for source in sources:
        if source.is_dir():
            scan = scan_pictures([source])
            paths += [scan.pictures.name(index) for index in range(len(scan.pictures))]
            skipped += [(bad.path, bad.reason) for bad in scan.unreadable]
        else:
            paths.append(source)
    return paths, skipped


def _looks_normalised(model: MaskedAutoencoder, imgs: Tensor, masking: Masking, pred: Tensor) -> bool:
    """Whether predictions are nearer to normalised patches than to pixels, each in units of its own variance."""
    patches = take_patches(model.patchify(imgs), masking.ids_removed)
    pred = take_patches(pred, masking.ids_removed)
    mean, deviation = patch_statistics(patches)
    normalised = (patches - mean) / deviation
    raw_error = (pred - patches).square().mean() / patches.var()
    return bool((pred - normalised).square().mean() / normalised.var() < raw_error)


def _pictures_of(shots: Sequence[_Shot]) -> list[Image.Image]:
    """One mask: original, masked, reconstruction, with visible. Several: original, then pairs, as in Figure 4."""
    panels = [shot.panels for shot in shots]
    views = [panels[0].original]
    for one in panels:
        views += [one.masked, *([one.reconstruction] if len(panels) == 1 else []), one.with_visible]
    return [tensor_to_picture(view) for view in views]


def _titles(shots: Sequence[_Shot]) -> list[str]:
    if len(shots) == 1:
        return ["original", f"masked {shots[0].removed_share:.0%}", "reconstruction", "with visible"]
    return ["original", *(f"{word} {shot.removed_share:.0%}" for shot in shots for word in ("masked", "with visible"))]


def _caption(path: Path, results: Sequence[PictureResult]) -> str:
    numbers = [
        (f"{one.mask_ratio:.0%}: " if len(results) > 1 else "") + f"loss {one.loss:.3f}, PSNR {one.psnr:.1f} dB"
        for one in results
    ]
    return f"{shown(path.name)}   {'; '.join(numbers)}"


def _write_separate(folder: Path, stem: str, shots: Sequence[_Shot]) -> list[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--separate {folder}: {error.strerror}") from None
    views = {"original": shots[0].panels.original}
    for shot in shots:
        share = f"-{shot.removed_share:.0%}".rstrip("%") if len(shots) > 1 else ""
        views[f"masked{share}"] = shot.panels.masked
        views[f"reconstruction{share}"] = shot.panels.reconstruction
        views[f"with-visible{share}"] = shot.panels.with_visible
    paths = {folder / f"{stem}-{name}.png": view for name, view in views.items()}
    for path, view in paths.items():
        write_picture(path, tensor_to_picture(view))
    return list(paths)
