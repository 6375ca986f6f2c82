"""Options of the official command line are answered with the names of the options here."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import tomli_w

from mae.training.classifier_config import FinetuneConfig, LinprobeConfig
from mae.training.config import PretrainConfig
from tests.cli.at_terminal import run_at
from tests.processes import finish, start_python

OFFICIAL = {
    "--model": "--variant",
    "--input_size": "--image-size",
    "--mask_ratio": "--mask-ratio",
    "--norm_pix_loss": "--norm-pix-loss",
    "--batch_size": "--batch-size",
    "--accum_iter": "--accum-iter",
    "--warmup_epochs": "--warmup-epochs",
    "--blr": "--base-lr",
    "--min_lr": "--min-lr",
    "--weight_decay": "--weight-decay",
    "--data_path": "maecli pretrain DATA",
    "--output_dir": "--out",
    "--log_dir": "--tensorboard",
    "--num_workers": "--workers",
    "--pin_mem": "drop it: memory is pinned for CUDA",
    "--no_pin_mem": "drop it: memory is pinned for CUDA",
    "--start_epoch": "--resume RUN",
    "--world_size": "torchrun",
    "--local_rank": "torchrun",
    "--dist_on_itp": "torchrun",
    "--dist_url": "torchrun",
}


@pytest.mark.parametrize(("official", "ours"), OFFICIAL.items())
@pytest.mark.parametrize("form", ["{} 3", "{}=3"])
def test_every_official_option_of_pretraining(official: str, ours: str, form: str) -> None:
    seen = run_at("pretrain", "photos", *form.format(official).split())
    assert (seen.code, seen.out) == (2, "")
    error, hint = seen.err.splitlines()
    assert error == f"error: there is no option {official}"
    assert hint.startswith("hint: ")
    assert ours in hint.split()[3:] or ours in hint, hint


# Options of main_linprobe.py, and further ones of main_finetune.py.
PROBING = {name: ours for name, ours in OFFICIAL.items() if name not in ("--mask_ratio", "--norm_pix_loss")} | {
    "--data_path": "DATA",
    "--finetune": "--init",
    "--global_pool": "--pool",
    "--cls_token": "--pool",
    "--nb_classes": "the class folders tell",
    "--eval": "maecli predict",
    "--dist_eval": "share the images",
    "--shard": "the encoder is frozen",
}
FINETUNING = {name: ours for name, ours in PROBING.items() if name != "--shard"} | {
    "--drop_path": "--drop-path",
    "--clip_grad": "--clip-grad",
    "--layer_decay": "--layer-decay",
    "--color_jitter": "--aa",
    "--remode": "--reprob",
    "--recount": "--reprob",
    "--resplit": "--reprob",
    "--cutmix_minmax": "as in the official recipe",
    "--mixup_mode": "as in the official recipe",
    "--mixup_prob": "--mixup-prob",
    "--mixup_switch_prob": "--mixup-switch-prob",
}


@pytest.mark.parametrize(
    ("command", "official", "ours"),
    [("linprobe", *pair) for pair in PROBING.items()] + [("finetune", *pair) for pair in FINETUNING.items()],
)
def test_every_official_option_of_learning_classes(command: str, official: str, ours: str) -> None:
    seen = run_at(command, "photos", official, "3")
    assert (seen.code, seen.out) == (2, "")
    error, hint = seen.err.splitlines()
    assert error == f"error: there is no option {official}"
    assert hint.startswith("hint: ")
    assert ours in hint


@pytest.mark.parametrize(
    ("arguments", "ours"),
    [
        (["predict", "cat.jpg", "--nb_classes", "3"], "the class folders tell"),
        (["reconstruct", "cat.jpg", "--norm_pix_loss"], "--norm-pix here"),
        (["reconstruct", "cat.jpg", "--model", "mae_vit_base_patch16"], "--checkpoint here"),
        (["reconstruct", "--data_path", "photos"], "maecli reconstruct IMAGE"),
        (["profile", "--model", "mae_vit_large_patch16"], "--variant here"),
        (["profile", "--input_size", "224"], "--image-size here"),
        (["profile", "--world_size", "8"], "--gpus here"),
        (["compare", "--resume", "x.pth"], "--official here"),
        (["export", "--resume", "x.pth"], "maecli export CKPT"),
        (["embed", "photos", "--finetune", "x.pth"], "--checkpoint here"),
        (["embed", "--data_path", "photos"], "maecli embed DATA"),
        (["embed", "photos", "--output_dir", "features"], "--out here"),
        (["embed", "photos", "--batch_size", "8"], "--batch-size here"),
        (["embed", "photos", "--num_workers", "8"], "--workers here"),
        (["embed", "photos", "--input_size", "224"], "--image-size here"),
        (["embed", "photos", "--cls_token"], "--pool here"),
        (["embed", "photos", "--dist_url", "env://"], "torchrun --nproc-per-node 8 -m maecli embed"),
        (["evaluate", "--data_path", "flowers"], "maecli evaluate DATA"),
        (["evaluate", "flowers", "--model", "vit_base_patch16"], "--checkpoint here"),
        (["evaluate", "flowers", "--finetune", "x.pth"], "--checkpoint here"),
        (["evaluate", "flowers", "--batch_size", "8"], "--batch-size here"),
        (["evaluate", "flowers", "--nb_classes", "10"], "the class folders tell the number of classes"),
        (["evaluate", "flowers", "--global_pool"], "the class token and the mean of the patches"),
        (["evaluate", "flowers", "--blr", "0.1"], "choose their own settings"),
        (["evaluate", "flowers", "--eval"], "in one call"),
        (["evaluate", "flowers", "--world_size", "8"], "one process"),
    ],
)
def test_other_commands(arguments: list[str], ours: str) -> None:
    seen = run_at(*arguments)
    assert seen.code == 2
    assert ours in seen.err.splitlines()[1]


def test_names_of_neither_are_answered_as_before() -> None:
    seen = run_at("pretrain", "photos", "--colour", "3")
    assert seen.code == 2
    assert "No such option: --colour" in seen.err
    assert "hint: maecli pretrain --help" in seen.err
    assert "hint: maecli watch --help" in run_at("watch", "run", "--pin_mem").err


def test_a_file_with_the_official_names(tmp_path: Path) -> None:
    for name, ours in (("blr", "base_lr"), ("model", "variant"), ("num_workers", "workers")):
        (tmp_path / "settings.toml").write_text(f"{name} = 3\n")
        seen = run_at("pretrain", "photos", "--config", tmp_path / "settings.toml")
        assert seen.code == 2
        assert f"unknown option '{name}' in" in seen.err
        assert f"hint: the official {name} is {ours} here" in seen.err


RUNS = {
    "pretrain": (PretrainConfig(data=(Path("photos"),)), "in_chans"),
    "finetune": (FinetuneConfig(data=(Path("photos"),)), "layer_decay"),
    "linprobe": (LinprobeConfig(data=(Path("photos"),)), "momentum"),
}


@pytest.mark.parametrize(("of", "given_to"), list(itertools.permutations(RUNS, 2)))
def test_the_settings_of_another_training_command(of: str, given_to: str, tmp_path: Path) -> None:
    config, own = RUNS[of]
    file = tmp_path / "settings.toml"
    for settings in (config.as_plain(), {own: 1}):  # a run's file, and one line by hand
        file.write_text(tomli_w.dumps({name: value for name, value in settings.items() if value is not None}))
        seen = run_at(given_to, "photos", "--config", file)
        assert (seen.code, seen.out) == (2, "")
        error, hint = seen.err.splitlines()
        assert f"{file} holds settings of maecli {of}, which maecli {given_to} does not have: " in error
        assert hint.startswith(f"hint: type maecli {of} --config {file}, or remove them; --init RUN starts {given_to}")
    assert error.endswith(f": {own}")


def test_an_option_of_another_training_command() -> None:
    assert run_at("linprobe", "photos", "--betas", "0.9", "0.95").err.splitlines() == [
        "error: there is no option --betas",
        "hint: it is an option of maecli pretrain and maecli finetune",
    ]
    assert "option of maecli finetune" in run_at("pretrain", "photos", "--layer-decay", "0.75").err
    assert "option of maecli finetune" in run_at("evaluate", "photos", "--mixup", "0.8").err
    listed = "it is an option of maecli pretrain, maecli finetune and maecli linprobe"
    assert listed in run_at("reconstruct", "cat.jpg", "--epochs", "3").err


def test_no_torch_is_loaded_for_an_answer() -> None:
    code = (
        "import sys\nfrom maecli.app import app\n"
        "try:\n    app(sys.argv[1:])\nexcept SystemExit as stop:\n"
        "    print([name for name in ('torch', 'numpy', 'PIL') if name in sys.modules], stop.code)\n"
    )
    done = finish(start_python("-c", code, "pretrain", "photos", "--blr", "1e-3"))
    assert done.stdout == "[] 2\n"
    assert "--base-lr" in done.stderr


def test_one_learning_rate_at_a_time() -> None:
    seen = run_at("pretrain", "photos", "--lr", "1e-3", "--base-lr", "1.5e-4")
    assert (seen.code, seen.out) == (2, "")
    assert "error: --lr 0.001 and --base-lr 0.00015 set the same thing" in seen.err
    assert "hint: drop --base-lr to take --lr as it is, or drop --lr" in seen.err
