"""Every setting of ``finetune`` and ``linprobe``. Standard library only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from mae.config import shared_option
from mae.errors import ConfigError
from mae.io.text import a_few, shown, typed
from mae.options import Preset, option, option_of, refuse_without_effect
from mae.reconstruction.config import CHECKPOINT_DEFAULT_TEXT
from mae.training.config import PretrainConfig, RunSettings

HEAD_POOLS = ("mean", "cls")
_MODEL = "Model"
_RECIPE = "Recipe"
_REGULARISATION = "Augmentation and regularisation"
_DATA = "Data"
_CHOICE = "Choosing and testing"


def _as_in_pretraining(name: str, **changes: Any) -> Any:
    """The option of this name as ``pretrain`` declares it; ``changes`` replace its default, help and so on."""
    (field,) = (one for one in dataclasses.fields(PretrainConfig) if one.name == name)
    default = changes.pop("default", field.default)
    return dataclasses.field(default=default, metadata={"option": dataclasses.replace(option_of(field), **changes)})


@dataclasses.dataclass(frozen=True)
class ClassifierConfig(RunSettings):
    """Common settings of ``finetune`` and ``linprobe``: labelled images, initial encoder, recipe and run folder."""

    data: tuple[Path, ...] = option(
        dataclasses.MISSING,
        "Class folders or an archive of them, below train/ and test/ (or val/), or without a split.",
        positional=True,
        metavar="DATA",
        official=("data_path",),
    )

    init: Path | None = option(
        None,
        "Pre-trained weights: a checkpoint file, a run folder, builtin or a released name.",
        default_text=CHECKPOINT_DEFAULT_TEXT,
        panel=_MODEL,
        official=("finetune",),
    )
    from_scratch: bool = option(
        False,
        "Start from fresh weights: --variant's sizes, else those of --init.",
        flags="--from-scratch",
        panel=_MODEL,
    )
    variant: str | None = option(
        None,
        "With --from-scratch: vit_tiny, vit_small, vit_base, vit_large or vit_huge.",
        default_text="--init's sizes",
        panel=_MODEL,
        official=("model",),
    )
    image_size: tuple[int, int] | None = shared_option(
        "image_size", help="Image size in pixels, S or HxW; position embeddings are adapted.", panel=_MODEL
    )
    patch_size: int | None = shared_option("patch_size", help="With --variant: patch size in pixels.", panel=_MODEL)
    num_heads: int | None = shared_option("num_heads", panel=_MODEL)
    pool: str = option(
        "mean",
        "Input of the head: the mean of the patch tokens (then fc_norm), or the class token (after norm).",
        choices=HEAD_POOLS,
        panel=_MODEL,
        official=("global_pool", "cls_token"),
    )

    epochs: int = _as_in_pretraining("epochs", help="Total number of epochs.")
    warmup_epochs: float = _as_in_pretraining("warmup_epochs")
    batch_size: int = _as_in_pretraining("batch_size")
    accum_iter: int = _as_in_pretraining("accum_iter")
    base_lr: float = _as_in_pretraining(
        "base_lr", help="Learning rate per 256 images: lr = base-lr x effective batch / 256."
    )
    lr: float | None = _as_in_pretraining("lr")
    min_lr: float = _as_in_pretraining("min_lr")
    weight_decay: float = _as_in_pretraining("weight_decay")

    crop_scale: tuple[float, float] = _as_in_pretraining("crop_scale", default=(0.08, 1.0))
    crop_ratio: tuple[float, float] = _as_in_pretraining("crop_ratio")
    hflip: bool = _as_in_pretraining("hflip")
    crop_pct: float | None = option(
        None,
        "Fraction of each side that the centre crop of held-out and test images keeps.",
        above=0,
        high=1,
        default_text="224/256 up to 224 px, 1 above",
        panel=_DATA,
    )
    label_fraction: float = option(
        1.0, "Fraction of the training labels to use, per class.", above=0, high=1, panel=_DATA
    )
    workers: int | None = shared_option("workers", panel=_DATA)
    decoder: str = _as_in_pretraining("decoder")
    cache: int = _as_in_pretraining("cache")
    cache_disk: int = _as_in_pretraining("cache_disk")
    max_unreadable: float = _as_in_pretraining("max_unreadable")

    select: str = option(
        "best",
        "Which epoch is tested: the best on held-out training images, or the last, with none held out.",
        choices=("best", "last"),
        panel=_CHOICE,
    )
    val_share: float = option(
        0.1, "Fraction of each class's training images that is held out to choose the epoch.", above=0, below=1,
        panel=_CHOICE,
    )  # fmt: skip
    test_share: float = option(
        0.2, "Fraction of each class to test on if DATA has no test/ or val/.", above=0, below=1, panel=_CHOICE
    )

    compile: bool = _as_in_pretraining("compile")
    out: Path = _as_in_pretraining("out")
    resume: Path | None = _as_in_pretraining("resume")
    auto_resume: bool = _as_in_pretraining("auto_resume")
    seed: int = _as_in_pretraining("seed", help="Seed of splits, fresh weights, order, crops and augmentation.")
    device: str = shared_option("device", panel="Run")
    precision: str = shared_option("precision", panel="Run")
    save_every: int = _as_in_pretraining("save_every")
    save_minutes: float = _as_in_pretraining("save_minutes")
    keep_last: int = _as_in_pretraining("keep_last")
    nan_limit: int = _as_in_pretraining("nan_limit")
    on_nan: str = _as_in_pretraining("on_nan")
    log_every: int = _as_in_pretraining("log_every")
    offline: bool = shared_option("offline", panel="Run")
    tensorboard: bool = _as_in_pretraining("tensorboard")
    log_to: tuple[str, ...] = _as_in_pretraining("log_to")

    def __post_init__(self) -> None:
        if self.variant is not None and not self.from_scratch:
            raise ConfigError(
                f"--variant {self.variant} needs --from-scratch: pre-trained weights already have their own sizes",
                hint="add --from-scratch to train that variant from fresh weights, or drop --variant",
            )
        if self.variant is not None and self.init is not None:
            raise ConfigError("--variant and --init both set the sizes of the model", hint="drop one of them")
        if self.patch_size is not None and self.variant is None:
            raise ConfigError("--patch-size needs --from-scratch and --variant", hint="drop it")
        if self.resume is None and self.select == "last":  # a run that was begun with both goes on
            refuse_without_effect(self, "val_share", "with --select last, which holds no images out")
        self.check()


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(ClassifierConfig):
    """The official recipe for ViT-B as defaults (Paper: Appendix A.1, Table 9; the official FINETUNE.md)."""

    command: ClassVar[str] = "finetune"

    epochs: int = _as_in_pretraining("epochs", default=100, help="Total number of epochs (50 for ViT-L and ViT-H).")
    warmup_epochs: float = _as_in_pretraining("warmup_epochs", default=5.0)
    base_lr: float = _as_in_pretraining(
        "base_lr",
        default=5e-4,
        help="Learning rate per 256 images: lr = base-lr x effective batch / 256 (1e-3 for ViT-L and ViT-H).",
    )
    min_lr: float = _as_in_pretraining("min_lr", default=1e-6)
    out: Path = _as_in_pretraining("out", default=Path("finetuned"))
    weight_decay: float = _as_in_pretraining(
        "weight_decay", help="AdamW's weight decay; not applied to biases, norms, positions and the class token."
    )
    betas: tuple[float, float] = _as_in_pretraining("betas", default=(0.9, 0.999))
    layer_decay: float = option(
        0.65,
        "Each block learns at this multiple of the rate of the block above it (0.75 for ViT-L and ViT-H).",
        above=0,
        high=1,
        panel=_RECIPE,
    )
    clip_grad: float | None = option(
        None, "Scale gradients down to this norm.", above=0, default_text="never", panel=_RECIPE
    )

    drop_path: float = option(
        0.1,
        "Probability of dropping a residual branch in the last block, rising linearly from 0 in the first.",
        low=0,
        below=1,
        panel=_REGULARISATION,
    )
    mixup: float = option(0.8, "Alpha of mixup's Beta distribution; 0 disables it.", low=0, panel=_REGULARISATION)
    cutmix: float = option(1.0, "Alpha of CutMix's Beta distribution; 0 disables it.", low=0, panel=_REGULARISATION)
    mixup_prob: float = option(1.0, "Probability that a batch is mixed at all.", low=0, high=1, panel=_REGULARISATION)
    mixup_switch_prob: float = option(
        0.5, "Probability of CutMix in place of mixup, where both are on.", low=0, high=1, panel=_REGULARISATION
    )
    smoothing: float = option(0.1, "Label smoothing.", low=0, below=1, panel=_REGULARISATION)
    aa: str = option(
        "rand-m9-mstd0.5-inc1",
        "RandAugment policy in timm's notation; none disables it.",
        metavar="POLICY",
        panel=_REGULARISATION,
    )
    reprob: float = option(
        0.25, "Probability of random erasing (one rectangle of noise).", low=0, high=1, panel=_REGULARISATION
    )
    augmenter: str = option(
        "auto",
        "Whose RandAugment and random erasing: timm's, as the official recipe, or torchvision's; auto is timm's if it "
        "is installed.",
        choices=("auto", "timm", "torchvision"),
        panel=_REGULARISATION,
    )
    activation_checkpointing: bool = _as_in_pretraining("activation_checkpointing")
    shard: bool = _as_in_pretraining("shard")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume is None and not self.mixup and not self.cutmix:
            refuse_without_effect(self, "mixup_prob", "with --mixup 0 and --cutmix 0")
        if self.resume is None and (not self.mixup or not self.cutmix):
            refuse_without_effect(self, "mixup_switch_prob", "unless both --mixup and --cutmix are above 0")


@dataclasses.dataclass(frozen=True)
class LinprobeConfig(ClassifierConfig):
    """The official recipe as defaults (Paper: Appendix A.1, Table 10; the official FINETUNE.md)."""

    command: ClassVar[str] = "linprobe"
    least_batch: ClassVar[int] = 2

    pool: str = option(
        "cls",
        "Input of the head: the class token (official) or the mean of the patch tokens, after the encoder's norm.",
        choices=HEAD_POOLS,
        panel=_MODEL,
        official=("global_pool", "cls_token"),
    )
    epochs: int = _as_in_pretraining("epochs", default=90, help="Total number of epochs.")
    warmup_epochs: float = _as_in_pretraining("warmup_epochs", default=10.0)
    batch_size: int = _as_in_pretraining(
        "batch_size", low=least_batch, help="Images per batch, in each process; at least 2, for the batch norm."
    )
    base_lr: float = _as_in_pretraining(
        "base_lr", default=0.1, help="Learning rate per 256 images: lr = base-lr x effective batch / 256."
    )
    weight_decay: float = option(0.0, "LARS's weight decay of the head's weight.", low=0, panel=_RECIPE)
    momentum: float = option(0.9, "LARS's momentum.", low=0, below=1, panel=_RECIPE)
    trust_coefficient: float = option(0.001, "LARS's trust coefficient.", above=0, panel=_RECIPE)
    out: Path = _as_in_pretraining("out", default=Path("probed"))


RunConfig = PretrainConfig | ClassifierConfig  # the settings of a run of any command
_CONFIGS = (PretrainConfig, FinetuneConfig, LinprobeConfig)


def commands_with(names: Iterable[str]) -> list[str]:
    """The training commands that have all of these settings, such as ``["maecli finetune"]``."""
    wanted = set(names)
    return [f"maecli {one.command}" for one in _CONFIGS if wanted <= {field.name for field in dataclasses.fields(one)}]


def refuse_other_command(settings: Mapping[str, Any], file: Path, command: str) -> None:
    """Check that the settings in a file are not those of another training command.

    Raises:
        ConfigError: This command lacks some of them, and another one has them all.
    """
    (own,) = ({field.name for field in dataclasses.fields(one)} for one in _CONFIGS if one.command == command)
    foreign = [name for name in settings if name not in own]
    if foreign and (others := commands_with(settings)):
        raise ConfigError(
            f"{shown(file)} holds settings of {' or '.join(others)}, which maecli {command} does not have: "
            f"{a_few(foreign)}",
            hint=f"type {others[0]} --config {typed(file)}, or remove them; "
            f"--init RUN starts {command} from the weights of another run",
        )


# Both presets were chosen by short runs, see docs/finetune.md.
FINETUNE_PRESETS: dict[str, Preset] = {
    "small": Preset(
        "hundreds to thousands of images",
        {
            "epochs": 30,
            "warmup_epochs": 3.0,
            "batch_size": 32,
            "lr": 1e-3,
            "layer_decay": 0.9,
            "crop_scale": (0.3, 1.0),
            "drop_path": 0.0,
            "mixup": 0.0,
            "cutmix": 0.0,
            "aa": "none",
            "reprob": 0.0,
        },
    ),
}
LINPROBE_PRESETS: dict[str, Preset] = {
    "small": Preset(
        "hundreds to thousands of images",
        {"pool": "mean", "epochs": 50, "warmup_epochs": 5.0, "batch_size": 64, "lr": 10.0, "crop_scale": (0.3, 1.0)},
    ),
}
