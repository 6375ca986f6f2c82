"""Every setting of a pre-training run. Standard library only."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from mae.config import MAEConfig, shared_option
from mae.errors import ConfigError
from mae.io.text import shown, typed
from mae.io.toml import read_toml
from mae.io.urls import public_url, url_of
from mae.models import variant_config
from mae.options import option, option_of, refuse_without_effect

CONFIG_FILE = "config.toml"
TRACKERS = ("tensorboard", "wandb", "mlflow")
SIZES = (
    "embed_dim", "depth", "num_heads", "decoder_embed_dim", "decoder_depth", "decoder_num_heads", "mlp_ratio",
)  # fmt: skip

_MODEL = "Model"
_ARCHITECTURE = "Architecture, where it is not the variant's"
_RECIPE = "Recipe"
_DATA = "Data"
_PROBES = "Measured as it learns"
_RUN = "Run"


def _names(value: Any) -> tuple[str, ...]:
    """Parse names, given as a list or as a string separated by commas or spaces."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise ValueError(f"wanted names; got {value!r}")
    return tuple(dict.fromkeys(word for item in items for word in item.replace(",", " ").split()))


def _size(help: str, **bounds: float) -> Any:
    """The option of a size of the architecture."""
    return option(None, help, default_text="the variant's", panel=_ARCHITECTURE, **bounds)


class RunSettings:
    """Base class of the settings of all training runs; the subclasses declare the options."""

    command: ClassVar[str]
    least_batch: ClassVar[int] = 1  # images of a batch in each process
    data: tuple[Path, ...]
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    lr: float | None
    min_lr: float
    init: Path | None
    compile: bool
    precision: str
    tensorboard: bool
    log_to: tuple[str, ...]

    @property
    def shard(self) -> bool:
        """Whether to shard the model; no option of a linear probe, which trains only a small head."""
        return False

    @property
    def activation_checkpointing(self) -> bool:
        """Whether to use activation checkpointing; no option of a linear probe, whose encoder keeps no activations."""
        return False

    def check(self) -> None:
        """Check settings against each other.

        Raises:
            ConfigError: Two of them contradict each other.
        """
        for flag, (low, high) in (("--crop-scale", self.crop_scale), ("--crop-ratio", self.crop_ratio)):
            if low > high:
                raise ConfigError(f"{flag} {low:g} {high:g}: the first number must not be above the second")
        if self.lr is not None and self.min_lr > self.lr:
            raise ConfigError(f"--min-lr {self.min_lr:g} is above --lr {self.lr:g}")
        if self.shard and self.precision == "fp16":
            raise ConfigError("--shard cannot be combined with --precision fp16", hint="use --precision bf16")
        if self.shard and self.compile:
            raise ConfigError("--shard cannot be combined with --compile", hint="drop one of them")

    def images_read(self) -> tuple[Path, ...]:
        """Every folder, file and URL whose images the run reads, for training or for measuring."""
        return self.data

    def trackers(self) -> tuple[str, ...]:
        """The trackers that the run is logged to, beside ``log.jsonl``."""
        return tuple(dict.fromkeys((*(("tensorboard",) if self.tensorboard else ()), *self.log_to)))

    def as_plain(self) -> dict[str, Any]:
        """Every setting by name, as TOML values; paths are made absolute, to be valid in any working folder."""
        fields = [field for field in dataclasses.fields(self) if not option_of(field).typed_only]  # type: ignore[arg-type]
        values = {field.name: _plain(getattr(self, field.name)) for field in fields}
        if self.init is not None and not self.init.exists():  # the name of a released file
            values["init"] = str(self.init)
        return values


@dataclasses.dataclass(frozen=True)
class PretrainConfig(RunSettings):
    """The documented recipe (Paper: Appendix A.1, Table 8; the official PRETRAIN.md) as defaults."""

    command: ClassVar[str] = "pretrain"

    data: tuple[Path, ...] = option(
        dataclasses.MISSING,
        "Folders of images, archives (.tar, .zip), Parquet files, or URLs of these; labels are not needed.",
        positional=True,
        metavar="DATA",
        official=("data_path",),
    )

    variant: str = option(
        "vit_base", "vit_tiny, vit_small, vit_base, vit_large or vit_huge.", panel=_MODEL, official=("model",)
    )
    image_size: tuple[int, int] = shared_option(
        "image_size",
        default=(224, 224),
        help="Size of the training crops in pixels, S or HxW (height first).",
        default_text="224",
        panel=_MODEL,
    )
    patch_size: int | None = shared_option("patch_size", panel=_MODEL)
    in_chans: int = option(
        3, "Input channels: 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha.", low=1, high=4, panel=_MODEL
    )
    norm_pix_loss: bool = option(
        True, "Target: pixels normalised by each patch's mean and std (off in the official script).", panel=_MODEL
    )
    init: Path | None = option(
        None, "Initialise the weights from a checkpoint file, run folder, builtin or released name.", panel=_MODEL
    )

    embed_dim: int | None = _size("Encoder width.", low=4)
    depth: int | None = _size("Encoder blocks.", low=1)
    num_heads: int | None = _size("Encoder attention heads.", low=1)
    decoder_embed_dim: int | None = _size("Decoder width.", low=4)
    decoder_depth: int | None = _size("Decoder blocks.", low=1)
    decoder_num_heads: int | None = _size("Decoder attention heads.", low=1)
    mlp_ratio: float | None = _size("Hidden width of a block's MLP over the block's width.", above=0)

    mask_ratio: float = option(0.75, "Fraction of the patches that is masked.", above=0, below=1, panel=_RECIPE)
    epochs: int = option(800, "Total number of epochs (400 in the official script).", low=1, panel=_RECIPE)
    warmup_epochs: float = option(40.0, "Epochs of linear learning rate warm-up from 0.", low=0, panel=_RECIPE)
    batch_size: int = option(64, "Images per batch, in each process.", low=1, panel=_RECIPE)
    accum_iter: int = option(1, "Batches whose gradients are accumulated for one optimiser step.", low=1, panel=_RECIPE)
    base_lr: float = option(
        1.5e-4,
        "Learning rate per 256 images: lr = base-lr x effective batch / 256 (1e-3 in the official script).",
        above=0,
        panel=_RECIPE,
        official=("blr",),
    )
    lr: float | None = option(
        None,
        "Peak learning rate, used as given instead of base-lr.",
        above=0,
        default_text="from base-lr",
        panel=_RECIPE,
        instead_of="base_lr",
    )
    min_lr: float = option(0.0, "Final learning rate of the cosine schedule.", low=0, panel=_RECIPE)
    weight_decay: float = option(0.05, "AdamW's weight decay; not applied to biases and norms.", low=0, panel=_RECIPE)
    betas: tuple[float, float] = option((0.9, 0.95), "AdamW's beta1 and beta2.", low=0, below=1, panel=_RECIPE)

    crop_scale: tuple[float, float] = option(
        (0.2, 1.0),
        "Smallest and largest area of a random crop, as a fraction of the image.",
        above=0,
        high=1,
        panel=_DATA,
    )
    crop_ratio: tuple[float, float] = option(
        (3 / 4, 4 / 3), "Smallest and largest aspect ratio of a random crop, width / height.", above=0, panel=_DATA
    )
    hflip: bool = option(True, "Flip crops horizontally with probability 0.5.", panel=_DATA)
    workers: int | None = shared_option("workers", panel=_DATA)
    decoder: str = option(
        "auto",
        "JPEG decoder; auto is simplejpeg if it is installed (about twice as fast).",
        choices=("auto", "pillow", "simplejpeg"),
        panel=_DATA,
    )
    cache: int = option(
        0,
        "MiB of memory for caching decoded images, shared by all processes of a machine; 0 disables it.",
        low=0,
        panel=_DATA,
    )
    cache_disk: int = option(
        20,
        "GB of disk for caching what is read by URL; least recently used out first.",
        low=1,
        panel=_DATA,
    )
    max_unreadable: float = option(
        0.1, "Stop if more than this fraction of the images is unreadable.", low=0, high=1, panel=_DATA
    )

    val: Path | None = option(
        None,
        "Held-out images, a folder or a file: their loss under fixed masks is logged, and the previews show them.",
        default_text="no loss; previews of 4 images of DATA",
        panel=_PROBES,
    )
    probe: Path | None = option(
        None,
        "Class folders or an archive of them: k-NN and linear accuracy and RankMe of the encoder are logged.",
        panel=_PROBES,
    )
    probe_every: int = option(
        20, "Probe every so many epochs, and before the first and after the last.", low=1, panel=_PROBES
    )
    probe_images: int = option(
        3000, "Use at most so many images of --probe, kept in memory; about two thirds train.", low=4, panel=_PROBES
    )

    activation_checkpointing: bool = option(
        False,
        "Recompute activations in the backward pass: far less memory, about a third slower.",
        panel=_RUN,
        aliases=("recompute",),
    )
    compile: bool = option(False, "Use torch.compile if it is measured to be faster on this machine.", panel=_RUN)
    shard: bool = option(
        False, "Shard the model over the processes (FSDP2) instead of replicating it (DDP).", panel=_RUN
    )
    out: Path = option(Path("run"), "Folder to write the run to.", panel=_RUN, official=("output_dir",))
    resume: Path | None = option(
        None,
        "Resume the run in this folder, exactly as if it had not stopped.",
        metavar="RUN",
        typed_only=True,
        panel=_RUN,
    )
    auto_resume: bool = option(
        False, "Resume the run in --out if there is one, else start it: for jobs that a scheduler restarts.", panel=_RUN
    )
    seed: int = option(0, "Seed of weights, order, crops, flips and masks.", low=0, panel=_RUN)
    device: str = shared_option("device", panel=_RUN)
    precision: str = shared_option("precision", panel=_RUN)
    save_every: int = option(20, "Keep a checkpoint every so many epochs.", low=1, panel=_RUN)
    save_minutes: float = option(
        5.0, "Save the state every so many minutes; 0 saves after every step.", low=0, panel=_RUN
    )
    keep_last: int = option(
        2, "How many of the newest states to keep, in case one is damaged.", low=1, high=100, panel=_RUN
    )
    nan_limit: int = option(
        3,
        "Consecutive skipped steps (non-finite loss or gradient) after which the run stops or rolls back.",
        low=1,
        panel=_RUN,
    )
    on_nan: str = option(
        "stop",
        "At --nan-limit: stop, or roll back to the last saved state and continue with another image order.",
        choices=("stop", "rollback"),
        panel=_RUN,
    )
    preview_every: int = option(20, "Draw reconstructions every so many epochs; 0 disables it.", low=0, panel=_RUN)
    log_every: int = option(20, "Write a line to log.jsonl every so many steps; 0 for epochs only.", low=0, panel=_RUN)
    offline: bool = shared_option("offline", panel=_RUN)
    tensorboard: bool = option(
        False, "Also write TensorBoard events into the run's folder.", panel=_RUN, official=("log_dir",)
    )
    log_to: tuple[str, ...] = option(
        (),
        "Also log to trackers: tensorboard, wandb, mlflow; several as wandb,mlflow.",
        choices=TRACKERS,
        parse=_names,
        metavar="TRACKER",
        panel=_RUN,
    )

    def __post_init__(self) -> None:
        model = self.model_config()
        if model.num_kept(self.mask_ratio) == model.num_patches:
            raise ConfigError(f"--mask-ratio {self.mask_ratio:g} masks no patch, so there is no loss to train on")
        if self.resume is None and self.probe is None:  # a run that was begun with them goes on
            for name in ("probe_every", "probe_images"):
                refuse_without_effect(self, name, "without --probe")
        self.check()

    def images_read(self) -> tuple[Path, ...]:
        """As for any run, with held-out and labelled images."""
        return (*self.data, *(path for path in (self.val, self.probe) if path is not None))

    def model_config(self) -> MAEConfig:
        """The architecture that these settings describe."""
        named = (*SIZES, "patch_size")
        changes = {name: getattr(self, name) for name in named if getattr(self, name) is not None}
        return variant_config(
            self.variant, img_size=self.image_size, in_chans=self.in_chans, norm_pix_loss=self.norm_pix_loss, **changes
        )

    def changed_sizes(self) -> dict[str, Any]:
        """Sizes of encoder and decoder that were set and override the variant's."""
        own, variant = self.model_config(), variant_config(self.variant)
        return {name: getattr(own, name) for name in SIZES if getattr(own, name) != getattr(variant, name)}


# Each setting exists for one command only: setting -> command.
_TELLING = {"mask_ratio": "pretrain", "layer_decay": "finetune", "trust_coefficient": "linprobe"}


def is_run_config(path: Path) -> bool:
    """Whether a file holds the settings of a run of any training command."""
    try:
        settings = read_toml(path, "--out")
    except ConfigError:
        return False
    return "data" in settings and any(name in settings for name in _TELLING)


def settings_of_resumed(given: Mapping[str, Any], command: str = "pretrain") -> dict[str, Any]:
    """The settings in the folder of a resumed run; {} for a new run.

    Args:
        given: Settings from the command line by name.
        command: Command that must have started the run.

    Raises:
        ConfigError: The folder has no readable settings, or ``out`` is another folder.
    """
    if not given.get("resume"):
        return {}
    run = Path(given["resume"])
    if given.get("out") and os.path.realpath(given["out"]) != os.path.realpath(run):
        raise ConfigError(
            f"--resume {shown(run)} continues in its own folder, not in --out {shown(given['out'])}",
            hint=f"omit --out; --init {typed(run / 'checkpoint-last.pth')} starts a new run from the weights",
        )
    return read_run_settings(run, command)


def read_run_settings(run: Path, command: str) -> dict[str, Any]:
    """The settings in a run's folder, by name.

    Raises:
        ConfigError: The folder has no readable settings, or another command started the run.
    """
    if run.is_file():
        beside = f"--resume {typed(run.parent)} resumes the run in it; " if (run.parent / CONFIG_FILE).is_file() else ""
        raise ConfigError(
            f"--resume {shown(run)} is a file; wanted the folder of a run",
            hint=f"{beside}--init {typed(run)} starts a new run from its weights",
        )
    try:
        settings = read_toml(run / CONFIG_FILE, "--resume")
    except ConfigError as error:
        raise ConfigError(error.message, hint=error.hint or "--resume takes the folder of a run") from None
    whose = next((other for name, other in _TELLING.items() if name in settings), command)
    if whose != command:
        raise ConfigError(
            f"{shown(run)} holds a run of maecli {whose}, not of maecli {command}",
            hint=f"maecli {whose} --resume {typed(run)} resumes it; --out starts another run elsewhere",
        )
    return settings


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        url = url_of(value)
        return str(value.absolute()) if url is None else public_url(url)  # no signature is written anywhere
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


@dataclasses.dataclass(frozen=True)
class ReplayConfig:
    """Settings of ``replay``, which re-runs a step with a non-finite loss or gradient."""

    file: Path = option(dataclasses.MISSING, "The replay.pth in the run's folder.", positional=True, metavar="FILE")
    device: str = shared_option("device")
    precision: str = shared_option(
        "precision", help="Precision to re-run in; auto is the run's, and fp32 for comparison."
    )
