"""Write the features of images to a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mae.checkpoints.builtin import DEFAULT_RUN
from mae.data.eval_loader import EvalDataset
from mae.data.eval_transform import EvalTransform
from mae.data.sources.scan import scan_images
from mae.errors import ConfigError
from mae.evaluation.config import EmbedConfig
from mae.evaluation.extract import Job, Progress, ViewExtractor, check_unreadable, extract
from mae.evaluation.frozen import View, load_encoder
from mae.evaluation.splits import read_labels
from mae.evaluation.store import PartStore, content_digest, part_images
from mae.evaluation.writing import Embedding, check_writable, write_embedding
from mae.io.download import obeys_offline
from mae.io.files import refuse_input, refuse_place
from mae.io.notebook import Drawn, Table
from mae.io.text import shown, unfolded
from mae.system.device import Computing, settle
from mae.system.distributed import Ranks, ranks_from_environment


@dataclasses.dataclass(frozen=True)
class EmbedResult(Drawn):
    """Result of ``embed``: the written file and its contents.

    Attributes:
        out: The written file.
        size_bytes: Size of the file.
        images: Number of rows of the file.
        shape: Shape of one image's features: (D,), or (L, D) for patches.
        dtype: Number format of the features.
        classes: Names of the class folders; empty if there are none.
        kept: Number of images whose features were already on the disk from an interrupted command.
        skipped: (name, reason) of images that could not be read.
        notes: Messages for the user.
    """

    out: Path
    size_bytes: int
    images: int
    shape: tuple[int, ...]
    dtype: str
    classes: tuple[str, ...]
    kept: int
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    def _table(self) -> Table:
        return Table(
            "features of images",
            [
                ("file", self.out),
                ("images", self.images),
                ("of an image", f"{' x '.join(str(side) for side in self.shape)} {self.dtype}"),
                ("classes", len(self.classes)),
                ("skipped", len(self.skipped)),
            ],
        )


@obeys_offline
def embed(config: EmbedConfig, on_progress: Callable[[Progress], None] = lambda progress: None) -> EmbedResult | None:
    """Compute the features of whole images, unmasked, and write them with names and labels.

    Parts are kept in a folder beside the file until it is complete, so an interrupted command resumes.
    Processes that torchrun starts share the parts.

    Args:
        config: All settings.
        on_progress: Called with the progress, in the first process.

    Returns:
        The result in the first process, None in the others.

    Raises:
        ConfigError: Settings that cannot be used.
        DataError: No images, or too many of them unreadable.
        CheckpointError: The weights cannot be used.
    """
    refuse_place(config.out, "--out")
    check_writable(config.out)
    refuse_input(config.out, "--out", {"the checkpoint": [config.checkpoint or DEFAULT_RUN], "the data": config.data})
    ranks = ranks_from_environment()
    computing = settle(config.device, config.precision, ranks)
    result = _embed(config, computing, ranks, on_progress if ranks.first else lambda progress: None)
    ranks.leave()
    return result


def _embed(
    config: EmbedConfig, computing: Computing, ranks: Ranks, on_progress: Callable[[Progress], None]
) -> EmbedResult | None:
    encoder = load_encoder(
        config.checkpoint, computing, image_size=config.image_size, layer=config.layer, last_blocks=config.last_blocks
    )
    view = View(config.pool, config.feature_norm)
    if not encoder.has(view):
        raise ConfigError(
            f"--feature-norm final with --pool {config.pool}: {encoder.name} was fine-tuned on the mean of "
            "patches and has a norm for that alone",
            hint="use --pool mean, or --feature-norm none",
        )
    scan = scan_images(config.data, lambda files: on_progress(Progress("looking at files", files, 0)))
    transform = EvalTransform(encoder.config.img_size, config.crop_pct)
    dataset = EvalDataset(scan.images, transform, encoder.config.in_chans)
    extractor = ViewExtractor(encoder, {view: config.dtype})
    settings: dict[str, Any] = {
        **encoder.settings,
        "checkpoint": str(config.checkpoint or encoder.name),
        "pool": config.pool,
        "feature_norm": config.feature_norm,
        "dtype": config.dtype,
        "crop_pct": transform.crop_pct,
        "data": content_digest(scan.images),
    }
    store = PartStore(parts_folder(config.out), settings, len(dataset), part_images(extractor.row_bytes))
    ranks.check_same("the images", settings["data"])
    if ranks.first:
        store.open("--out")
    # The first process lists the missing parts, and no process writes one before that.
    missing = ranks.gather(store.missing(dataset.is_readable) if ranks.first else [])[0]
    mine = missing[ranks.rank :: ranks.size]
    kept = len(dataset) - sum(len(store.indices(part)) for part in missing)
    extract(
        dataset,
        [Job(extractor, store, mine)],
        computing,
        batch_size=config.batch_size,
        workers=config.workers,
        on_progress=on_progress,
        stage="embedding" if ranks.alone else f"embedding, one of {ranks.size} shares",
        kept=kept if ranks.alone else 0,
    )
    ranks.wait()
    if not ranks.first:
        return None
    skipped = [(unfolded(one.path), one.reason) for one in scan.unreadable]
    skipped += [(unfolded(scan.images.name(index)), reason) for index, reason in store.unreadable()]
    check_unreadable(skipped, len(dataset) + len(scan.unreadable), config.max_unreadable)
    labels = read_labels(scan.images, config.data)
    readable = store.readable()
    shape = encoder.shape(view)
    embedding = Embedding(
        store=store,
        array=view.name,
        shape=shape,
        dtype=config.dtype,
        rows=len(readable),
        name=lambda row: unfolded(scan.images.name(int(readable[row]))),
        labels=labels.label[readable],
        classes=labels.classes,
        settings=settings,
    )
    try:
        write_embedding(config.out, embedding)
    except OSError as error:
        raise ConfigError(
            f"--out {shown(config.out)}: {error.strerror}", hint=f"the parts are kept in {shown(store.folder)}"
        ) from None
    store.remove()
    return EmbedResult(
        out=config.out,
        size_bytes=config.out.stat().st_size,
        images=len(readable),
        shape=shape,
        dtype=config.dtype,
        classes=labels.classes,
        kept=kept,
        skipped=tuple(skipped),
        notes=(*encoder.notes, *scan.images.warnings),
    )


def parts_folder(out: Path) -> Path:
    """Folder that holds the parts of a file until it is complete."""
    return out.with_name(f"{out.name}.parts")
