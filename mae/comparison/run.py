"""Check a checkpoint, and this implementation, against a reference implementation stage by stage."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae.checkpoints import Checkpoint, load_checkpoint
from mae.checkpoints.build import build_usable, is_decoder
from mae.checkpoints.classifiers import build_classifier, folded, has_head, pool_of
from mae.comparison.clone import check_clone, run_clone
from mae.comparison.config import CompareConfig
from mae.comparison.files import FilesReport, compare_files
from mae.comparison.libraries import LIBRARIES, timm_logits, why_not
from mae.comparison.reference import Sizes, run_classifier, run_reference
from mae.comparison.side_by_side import draw_side_by_side
from mae.comparison.stages import TOLERANCES, StageDifference, compare_stages, first_beyond, own_stages
from mae.comparison.weights import WeightsReport, inspect_weights
from mae.config import format_size
from mae.data.decoding.image import check_channels, load_image
from mae.data.transforms import crop_to, image_to_tensor, normalise
from mae.errors import ConfigError
from mae.io.download import obeys_offline
from mae.io.files import refuse_input, refuse_place
from mae.io.notebook import DrawnPage, Table
from mae.io.text import a_few, short_names
from mae.mae import MaskedAutoencoder


@dataclasses.dataclass(frozen=True)
class Computation:
    """Our model compared with one reference.

    Attributes:
        reference: Name of the reference.
        precision: Precision of our model; the reference always computes in float64.
        tolerance: Largest relative difference of a correct computation.
        stages: Difference at every stage.
        first_beyond: The first stage beyond the tolerance; None if all are within it.
    """

    reference: str
    precision: str
    tolerance: float
    stages: tuple[StageDifference, ...]
    first_beyond: str | None

    @property
    def largest(self) -> float:
        """The largest relative difference of any stage."""
        return max(stage.relative for stage in self.stages)


@dataclasses.dataclass(frozen=True)
class FileReport:
    """Properties of one checkpoint file.

    Attributes:
        name: Name of the file, with as many folders as tell it from the other file.
        target: Target of its decoder: "raw pixels", "normalised patches", "unknown" or "nothing".
        weights: Findings about its tensors.
        assumed: Sizes that the file does not give, with the assumed values.
    """

    path: Path
    name: str
    kind: str
    dialect: str
    variant: str | None
    encoder: str
    decoder: str | None
    image_size: tuple[int, int]
    patch_size: int
    in_chans: int
    target: str
    parameters: int
    weights: WeightsReport
    notes: tuple[str, ...]
    assumed: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class CompareResult(DrawnPage):
    """The result of a comparison; a notebook shows the verdict and the largest differences.

    Attributes:
        official: The examined file.
        checkpoint: The second file; None if none was given.
        computations: Comparison of our model, with the examined file's weights, with each reference.
        files: Comparison of the two files, tensor by tensor.
        between: Comparison of our model with the first file's weights and with the second's.
        out: The drawn image; None if none was requested.
        problems: Errors, the most serious first; the check fails if there is any.
        warnings: Unusual properties of the weights; the check does not fail.
        verdict: Problems and warnings summarised in one line.
        notes: Further messages for the user.
    """

    official: FileReport
    checkpoint: FileReport | None
    computations: tuple[Computation, ...]
    files: FilesReport | None
    between: Computation | None
    out: Path | None
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    verdict: str
    notes: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def _table(self) -> Table:
        reports = [report for report in (self.official, self.checkpoint) if report]
        rows: list[tuple[object, ...]] = [
            ("kind", *(f"{one.kind}, {one.dialect} names" for one in reports)),
            ("variant", *(one.variant for one in reports)),
            ("encoder, width/blocks/heads", *(one.encoder for one in reports)),
            ("decoder", *(one.decoder for one in reports)),
            ("predicts", *(one.target for one in reports)),
            ("parameters", *(one.parameters for one in reports)),
        ]
        computations = [(f"against {one.reference}, {one.precision}", one) for one in self.computations]
        computations += [("the files against each other", self.between)] if self.between else []
        rows += [
            (label, f"largest relative difference {one.largest:.1e} (tolerance {one.tolerance:.0e})")
            for label, one in computations
        ]
        rows += [("problem", problem) for problem in self.problems]
        return Table(self.verdict, rows, ("file", *(one.name for one in reports)))


@obeys_offline
def compare(config: CompareConfig, on_step: Callable[[str], None] = lambda step: None) -> CompareResult:
    """Examine a checkpoint's weights, then its computation against every reference asked for.

    Args:
        config: All settings.
        on_step: Called with the name of each step.

    Raises:
        CheckpointError: A file cannot be read; errors in a readable file are in the result instead.
        ConfigError: A reference is not available or cannot run.
        DataError: The image cannot be read.
    """
    if config.out is not None:
        refuse_place(config.out, "--out")
    on_step("reading")
    read = functools.partial(load_checkpoint, num_heads=config.num_heads, decoder_num_heads=config.decoder_num_heads)
    first = read(config.official)
    second = read(config.checkpoint) if config.checkpoint else None
    checkpoints = [one for one in (first, second) if one]
    if config.out is not None:
        read_from = [one.path for one in checkpoints]
        inputs = {"the checkpoint": read_from, "the image": [config.image] if config.image else []}
        refuse_input(config.out, "--out", inputs, folders=[*read_from, Path(config.reference)])
    names = short_names([one.path for one in checkpoints])
    reports = [_report(checkpoint, name) for checkpoint, name in zip(checkpoints, names, strict=True)]
    problems = [f"{report.name}: {problem}" for report in reports for problem in report.weights.problems]
    warnings = [f"{report.name}: {warning}" for report in reports for warning in report.weights.warnings]
    scene = _Scene(config, first)
    notes: list[str] = []

    computations: tuple[Computation, ...] = ()
    if _can_compute(reports[0].weights):
        references, notes = _references(config.reference, first)
        computations, lost = _computations(references, first, scene, on_step)
        problems += [f"not in our model as in the file: {a_few(lost)} ({len(lost)} tensors)"] if lost else []
        problems += [
            f"computation differs from {one.reference} from {one.first_beyond!r} on ({one.precision})"
            for one in computations
            if one.first_beyond
        ]
    files, between, out = None, None, None
    if second is not None:
        on_step("comparing the files")
        files = compare_files(first, second)
        differing = _differing_fields(first, second)
        problems += _file_problems(files, differing)
        notes += _unknown_target(checkpoints, names)
        same_sizes = all(name == "norm_pix_loss" for name, *_ in differing)
        if same_sizes and all(_can_compute(report.weights) for report in reports):
            between = _between(first, second, scene, {report.weights.precision.split(",")[0] for report in reports})
            problems += [f"the files compute differently from {between.first_beyond!r} on"] * bool(between.first_beyond)
            if config.out is not None and first.has_decoder and second.has_decoder:
                out = draw_side_by_side(config.out, checkpoints, names, scene.imgs, scene.noise, config.mask_ratio)
                notes += [
                    f"{name} does not say what its decoder predicts: drawn as raw pixels"
                    for one, name in zip(checkpoints, names, strict=True)
                    if one.norm_pix_loss is None
                ]
    return CompareResult(
        official=reports[0],
        checkpoint=reports[1] if second else None,
        computations=computations,
        files=files,
        between=between,
        out=out,
        problems=tuple(problems),
        warnings=tuple(warnings),
        verdict=_verdict(reports, computations, files, problems, warnings),
        notes=tuple(notes),
    )


class _Scene:
    """The image and the mask that all computations use."""

    def __init__(self, config: CompareConfig, checkpoint: Checkpoint) -> None:
        sizes = checkpoint.config
        stream = torch.Generator().manual_seed(config.seed)
        self.noise = torch.rand(1, sizes.num_patches, generator=stream)
        self.mask_ratio = config.mask_ratio
        if sizes.num_kept(config.mask_ratio) == sizes.num_patches:
            raise ConfigError(f"--mask-ratio {config.mask_ratio:g} masks no patch, so there is no loss to compare")
        if config.image is None:
            self.imgs = torch.randn(1, sizes.in_chans, *sizes.img_size, generator=stream)
        else:
            check_channels(sizes.in_chans)
            image = crop_to(load_image(config.image, sizes.in_chans), sizes.img_size)
            self.imgs = normalise(image_to_tensor(image))[None]


def _can_compute(weights: WeightsReport) -> bool:
    """Whether all tensors exist, have the right shapes and are finite; suspicious values can still be computed with."""
    return not (weights.missing or weights.misshapen or weights.not_finite)


def _computations(
    names: list[str], checkpoint: Checkpoint, scene: _Scene, on_step: Callable[[str], None]
) -> tuple[tuple[Computation, ...], list[str]]:
    """Compare our model with each reference; also the tensors that differ between our model and the file."""
    sizes = checkpoint.config
    on_step("computing in float32")
    model = build_usable(checkpoint)
    loaded = model.state_dict()
    known = {key: tensor for key, tensor in checkpoint.state.items() if key in loaded}
    there = [key for key in known if not loaded[key].is_meta]
    lost = [key for key in there if not torch.equal(known[key].float(), loaded[key])]
    del loaded
    single = _own(model, checkpoint, scene)
    on_step("computing in float64")
    double = _own(model.double(), checkpoint, scene)
    del model  # frees memory for the references
    found = []
    for name in names:
        on_step(f"computing with {name}")
        if name == "paper":
            heads = Sizes(sizes.patch_size, sizes.num_heads, sizes.decoder_num_heads)
            stages = run_reference(known, heads, scene.imgs, scene.noise, scene.mask_ratio)
            if has_head(checkpoint):
                state = folded(checkpoint.state)
                stages["logits"] = run_classifier(state, heads, scene.imgs, pool_of(checkpoint))
        elif name in LIBRARIES:
            stages = LIBRARIES[name](known, sizes, scene.imgs, scene.noise, scene.mask_ratio)
            if name == "timm" and has_head(checkpoint):
                stages["logits"] = timm_logits(checkpoint, scene.imgs)
        else:
            stages = run_clone(Path(name), checkpoint, scene.imgs, scene.noise, scene.mask_ratio)
        label = name if name in ("paper", *LIBRARIES) else "the clone"
        found.append(_computation(label, "float64", double, stages))
        if name == "paper":
            found.append(_computation(label, "float32", single, stages))
    return tuple(found), lost


def _own(model: MaskedAutoencoder, checkpoint: Checkpoint, scene: _Scene) -> dict[str, Tensor]:
    """The stages of our model; without the final encoder norm if the file, being fine-tuned, has none."""
    stages = own_stages(model, scene.imgs, scene.noise, scene.mask_ratio, decode=checkpoint.has_decoder)
    if "norm.weight" not in checkpoint.state:
        del stages["encoder norm"]
    if has_head(checkpoint):
        with torch.no_grad():
            classifier = build_classifier(checkpoint)[0].to(model.cls_token.dtype)
            stages["logits"] = classifier(scene.imgs.to(model.cls_token.dtype))
    return stages


def _references(asked: str, checkpoint: Checkpoint) -> tuple[list[str], list[str]]:
    """The references to run, and notes on those that are not available."""
    reasons = {library: why_not(library, checkpoint) for library in LIBRARIES if asked in ("auto", library)}
    if reasons.get(asked):
        raise ConfigError(f"--reference {asked}: {reasons[asked]}", hint="--reference paper is always available")
    if asked == "auto":
        notes = [f"not compared with {library}: {reason}" for library, reason in reasons.items() if reason]
        return ["paper", *(library for library, reason in reasons.items() if not reason)], notes
    if asked not in ("paper", *LIBRARIES):
        check_clone(Path(asked), checkpoint)
    return [asked], []


def _computation(reference: str, precision: str, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> Computation:
    stages = compare_stages(ours, theirs)
    tolerance = TOLERANCES[precision]
    return Computation(reference, precision, tolerance, stages, first_beyond(stages, tolerance))


def _between(first: Checkpoint, second: Checkpoint, scene: _Scene, precisions: set[str]) -> Computation:
    theirs, ours = (_own(build_usable(one).double(), one, scene) for one in (first, second))
    # Two files of different types may differ by the rounding of the weights.
    tolerance = TOLERANCES["float64"]
    if len(precisions) > 1:
        tolerance = max(TOLERANCES[name] for name in precisions if name in TOLERANCES)
    found = compare_stages(ours, theirs)
    return Computation("the first file", "float64", tolerance, found, first_beyond(found, tolerance))


def _differing_fields(first: Checkpoint, second: Checkpoint) -> list[tuple[str, Any, Any]]:
    """The fields in which two files' models differ; fields that a file does not give are not compared."""
    one_untold = None in (first.norm_pix_loss, second.norm_pix_loss)
    without_decoder = not (first.has_decoder and second.has_decoder)
    return [
        (name, *values)
        for name, *values in first.config.differences(second.config)
        if not (name == "norm_pix_loss" and one_untold) and not (without_decoder and is_decoder(name))
    ]


def _unknown_target(checkpoints: Sequence[Checkpoint], names: Sequence[str]) -> list[str]:
    """A note if only one of two files gives its decoder's target, which is then not compared."""
    targets = {name: one.norm_pix_loss for one, name in zip(checkpoints, names, strict=True) if one.has_decoder}
    told = [name for name, target in targets.items() if target is not None]
    untold = [name for name, target in targets.items() if target is None]
    if not (told and untold):
        return []
    known = str(targets[told[0]]).lower()
    return [f"norm_pix_loss is {known} in {told[0]}; {untold[0]} does not say, so it is not compared"]


def _file_problems(files: FilesReport, differing_fields: list[tuple[str, Any, Any]]) -> list[str]:
    sizes = [f"{name} is {one} and {other}" for name, one, other in differing_fields if name != "norm_pix_loss"]
    problems = [f"the files' sizes differ: {'; '.join(sizes)}"] if sizes else []
    problems += [
        f"the files' decoders predict different targets: {name} is {str(one).lower()} and {str(other).lower()}"
        for name, one, other in differing_fields
        if name == "norm_pix_loss"
    ]
    differing = [tensor for tensor in files.differing if not tensor.rounding]
    if differing:
        worst = differing[0]
        problems.append(
            f"{len(differing)} tensors differ between the files, most of all {worst.name} "
            f"(relative {worst.relative:.2g})"
        )
    for alone, which in ((files.only_first, "first"), (files.only_second, "second")):
        if alone:
            problems.append(f"only in the {which} file: {a_few(alone)} ({len(alone)} tensors)")
    return problems


def _report(checkpoint: Checkpoint, name: str) -> FileReport:
    config = checkpoint.config
    targets = {True: "normalised patches", False: "raw pixels", None: "unknown"}
    decoder = f"{config.decoder_embed_dim}/{config.decoder_depth}/{config.decoder_num_heads}"
    return FileReport(
        path=checkpoint.path,
        name=name,
        kind=checkpoint.kind,
        dialect=checkpoint.dialect,
        variant=checkpoint.variant,
        encoder=f"{config.embed_dim}/{config.depth}/{config.num_heads}",
        decoder=decoder if checkpoint.has_decoder else None,
        image_size=config.img_size,
        patch_size=config.patch_size,
        in_chans=config.in_chans,
        target=targets[checkpoint.norm_pix_loss] if checkpoint.has_decoder else "nothing: it has no decoder",
        parameters=checkpoint.num_parameters,
        weights=inspect_weights(checkpoint),
        notes=checkpoint.notes,
        assumed={name: getattr(config, name) for name in checkpoint.assumed},
    )


def _verdict(
    reports: list[FileReport],
    computations: tuple[Computation, ...],
    files: FilesReport | None,
    problems: list[str],
    warnings: list[str],
) -> str:
    report = reports[0]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return f"different: {problems[0]}{more}"
    name = report.variant or f"a model of {report.encoder} at {format_size(report.image_size)}"
    exact = [one for one in computations if one.precision == "float64"]
    names = ", ".join(one.reference for one in exact)
    largest = max(one.largest for one in exact)
    second = "; both files hold the same weights" if files is not None else ""
    if files is not None and files.differing:
        second = "; the files differ by rounding alone"
    more = f" (and {len(warnings) - 1} more)" if len(warnings) > 1 else ""
    suspicious = f"; suspicious: {warnings[0]}{more}" if warnings else ""
    return (
        f"equal: {name}, {report.kind}, {report.weights.matched} tensors, computes as {names}{_assumption(reports)} "
        f"(largest relative difference {largest:.1e} in float64, tolerance {TOLERANCES['float64']:.0e})"
        f"{second}{suspicious}"
    )


def _assumption(reports: list[FileReport]) -> str:
    """Text about assumed numbers of heads, which the comparison cannot verify: all references use the same numbers."""
    assumed = {name: heads for report in reports for name, heads in report.assumed.items()}
    parts = {"num_heads": "encoder", "decoder_num_heads": "decoder"}
    told = [f"{heads} heads assumed in the {parts[name]}" for name, heads in assumed.items()]
    return f", as far as can be told with {' and '.join(told)}" if told else ""
