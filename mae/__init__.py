"""Masked autoencoders (He et al. 2021, arXiv 2111.06377): the model, its training, its cost, its images.

Each command is also a function here, with the options' names as keywords and a result that a notebook displays:
``mae.pretrain("photos", epochs=100)``, ``mae.reconstruct("cat.jpg", checkpoint="run")``.

Importing this package loads no torch; the names below load what they need on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mae.checkpoints import from_pretrained as from_pretrained
    from mae.checkpoints import load_checkpoint as load_checkpoint
    from mae.comparison.config import CompareConfig
    from mae.comparison.run import compare as _compare
    from mae.config import MAEConfig as MAEConfig
    from mae.data.image_transform import transforms as transforms
    from mae.decoder import MAEDecoder as MAEDecoder
    from mae.encoder import MAEEncoder as MAEEncoder
    from mae.errors import MaeError as MaeError
    from mae.evaluation.config import EmbedConfig, EvaluateConfig, PredictConfig
    from mae.evaluation.embed import embed as _embed
    from mae.evaluation.evaluate import evaluate as _evaluate
    from mae.evaluation.predict import predict as _predict
    from mae.exporting.config import ExportConfig
    from mae.exporting.run import export as _export
    from mae.inspection.config import InspectConfig
    from mae.inspection.run import inspect as _inspect
    from mae.mae import MaskedAutoencoder as MaskedAutoencoder
    from mae.models import VARIANTS as VARIANTS
    from mae.models import create_model as create_model
    from mae.models import mae_vit_base_patch16 as mae_vit_base_patch16
    from mae.models import mae_vit_huge_patch14 as mae_vit_huge_patch14
    from mae.models import mae_vit_large_patch16 as mae_vit_large_patch16
    from mae.models import mae_vit_small_patch16 as mae_vit_small_patch16
    from mae.models import mae_vit_tiny_patch16 as mae_vit_tiny_patch16
    from mae.models import variant_config as variant_config
    from mae.options import plain_call
    from mae.profiling.config import ProfileConfig
    from mae.profiling.run import profile as _profile
    from mae.reconstruction.config import ReconstructConfig
    from mae.reconstruction.run import reconstruct as _reconstruct
    from mae.reporting.config import ReportConfig, RunsConfig
    from mae.reporting.run import report as _report
    from mae.reporting.runs import runs as _runs
    from mae.training.classifier_config import FinetuneConfig, LinprobeConfig
    from mae.training.config import PretrainConfig, ReplayConfig
    from mae.training.finetune import finetune as _finetune
    from mae.training.linprobe import linprobe as _linprobe
    from mae.training.pretrain import pretrain as _pretrain
    from mae.training.replay import replay as _replay

    compare = plain_call(CompareConfig, _compare)
    embed = plain_call(EmbedConfig, _embed)
    evaluate = plain_call(EvaluateConfig, _evaluate)
    export = plain_call(ExportConfig, _export)
    inspect = plain_call(InspectConfig, _inspect)
    finetune = plain_call(FinetuneConfig, _finetune)
    linprobe = plain_call(LinprobeConfig, _linprobe)
    predict = plain_call(PredictConfig, _predict)
    pretrain = plain_call(PretrainConfig, _pretrain)
    profile = plain_call(ProfileConfig, _profile)
    reconstruct = plain_call(ReconstructConfig, _reconstruct)
    replay = plain_call(ReplayConfig, _replay)
    report = plain_call(ReportConfig, _report)
    runs = plain_call(RunsConfig, _runs)

__version__ = "0.1.0"

_HOMES = {
    "mae.config": ("MAEConfig",),
    "mae.errors": ("MaeError",),
    "mae.encoder": ("MAEEncoder",),
    "mae.decoder": ("MAEDecoder",),
    "mae.mae": ("MaskedAutoencoder",),
    "mae.models": (
        "VARIANTS",
        "create_model",
        "mae_vit_base_patch16",
        "mae_vit_huge_patch14",
        "mae_vit_large_patch16",
        "mae_vit_small_patch16",
        "mae_vit_tiny_patch16",
        "variant_config",
    ),
    "mae.checkpoints": ("from_pretrained", "load_checkpoint"),
    "mae.data.image_transform": ("transforms",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

# Functions with plain arguments: module of each use case, and the config that its arguments fill.
_CALLS = {
    "compare": ("mae.comparison.run", "mae.comparison.config", "CompareConfig"),
    "embed": ("mae.evaluation.embed", "mae.evaluation.config", "EmbedConfig"),
    "evaluate": ("mae.evaluation.evaluate", "mae.evaluation.config", "EvaluateConfig"),
    "export": ("mae.exporting.run", "mae.exporting.config", "ExportConfig"),
    "inspect": ("mae.inspection.run", "mae.inspection.config", "InspectConfig"),
    "finetune": ("mae.training.finetune", "mae.training.classifier_config", "FinetuneConfig"),
    "linprobe": ("mae.training.linprobe", "mae.training.classifier_config", "LinprobeConfig"),
    "predict": ("mae.evaluation.predict", "mae.evaluation.config", "PredictConfig"),
    "pretrain": ("mae.training.pretrain", "mae.training.config", "PretrainConfig"),
    "profile": ("mae.profiling.run", "mae.profiling.config", "ProfileConfig"),
    "reconstruct": ("mae.reconstruction.run", "mae.reconstruction.config", "ReconstructConfig"),
    "replay": ("mae.training.replay", "mae.training.config", "ReplayConfig"),
    "report": ("mae.reporting.run", "mae.reporting.config", "ReportConfig"),
    "runs": ("mae.reporting.runs", "mae.reporting.config", "RunsConfig"),
}
__all__ = ["__version__", *_HOME_OF, *_CALLS]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _CALLS:
        from mae.options import plain_call

        home, config_home, config_class = _CALLS[name]
        use_case = getattr(importlib.import_module(home), name)
        config = getattr(importlib.import_module(config_home), config_class)
        globals()[name] = plain_call(config, use_case, **_call_details(name))
    elif name in _HOME_OF:
        globals()[name] = getattr(importlib.import_module(_HOME_OF[name]), name)
    else:
        raise AttributeError(f"module 'mae' has no attribute {name!r}")
    return globals()[name]


def _call_details(name: str) -> dict[str, Any]:
    if name == "reconstruct":
        return {"defaults": {"out": None}}  # a notebook shows the drawing; a file is written only on request
    if name == "pretrain":
        from mae.training.config import settings_of_resumed
        from mae.training.presets import PRESETS

        return {"presets": PRESETS, "saved": settings_of_resumed}
    if name in ("finetune", "linprobe"):
        import functools

        from mae.training.classifier_config import FINETUNE_PRESETS, LINPROBE_PRESETS
        from mae.training.config import settings_of_resumed

        presets = FINETUNE_PRESETS if name == "finetune" else LINPROBE_PRESETS
        return {"presets": presets, "saved": functools.partial(settings_of_resumed, command=name)}
    return {}


def __dir__() -> list[str]:
    return sorted(__all__)
