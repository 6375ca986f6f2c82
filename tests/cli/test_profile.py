"""``maecli profile``: tables, JSON, CSV and errors."""

from __future__ import annotations

import csv
import io
import json
import re
import resource
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from mae.models import VARIANTS
from mae.profiling.config import ProfileConfig
from mae.profiling.measured import Measured, MeasuredDevice, Timing
from mae.profiling.run import ProfileResult, profile
from maecli.app import app
from maecli.streams import ERRORS
from maecli.views.profile import show_profile
from tests.processes import environment, finish, run_forked, start_python

ROOT = Path(__file__).parents[2]


def maecli(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``maecli profile`` run in this process."""
    result = CliRunner(env={"COLUMNS": "100"}).invoke(app, ["profile", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def document(*arguments: object) -> dict[str, Any]:
    code, out, err = maecli(*arguments, "--json")
    assert code == 0, err
    return dict(json.loads(out))


def drawn(result: ProfileResult, width: int, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=ERRORS, newline="")
    show_profile(Console(file=stream, width=width, highlight=False), result)
    stream.seek(0)
    return stream.read()


def test_the_documents_example_is_what_is_printed() -> None:
    shown = (ROOT / "docs" / "profile.md").read_text().split("```text\n")[1].split("```")[0]
    printed = maecli("--gpu", "h100", "--gpus", 8)[1]
    assert [line.rstrip() for line in printed.strip().splitlines()] == shown.strip().splitlines()


def test_the_published_figures() -> None:
    (large,) = document("--variant", "vit_large")["variants"]
    assert large["parameters"] == {
        "encoder": 303301632,
        "decoder": 26240256,
        "total": 329541888,
        "trainable": 329239296,
    }
    compute = large["compute_per_image"]
    assert compute["forward"] == {"flops": 41511567360, "macs": 20755783680, "gflops": 41.512, "gmacs": 20.756}
    assert compute["training_step"]["gflops"] == 124.226
    assert compute["whole_encoder"]["gmacs"] == 61.554
    assert compute["own_training_step"]["flops"] < compute["training_step"]["flops"]
    assert round(compute["saving"], 2) == 3.22
    assert (large["patches"], large["visible_patches"]) == (196, 49)
    assert large["fit"] is large["plan"] is large["measured"] is None
    assert large["modules"] == []


def test_all_variants_side_by_side() -> None:
    everything = document()
    assert [one["variant"] for one in everything["variants"]] == list(VARIANTS)
    assert {key: everything[key] for key in everything if key != "variants"} == {
        "image_size": [224, 224],
        "in_chans": 3,
        "mask_ratio": 0.75,
        "batch_size": 64,
        "precision": "bf16",
        "device": "cuda",
        "machine": None,
        "notes": [],
    }


def test_order_and_names_are_the_users() -> None:
    named = document("--variant", "mae_vit_huge_patch14", "--variant", "vit_tiny", "--variant", "vit_huge")
    assert [one["variant"] for one in named["variants"]] == ["vit_huge", "vit_tiny"]


def test_variants_that_do_not_fit_the_image_are_left_out_unless_named() -> None:
    code, out, err = maecli("--image-size", "160x288", "--json")
    assert code == 0
    assert [one["variant"] for one in json.loads(out)["variants"]] == list(VARIANTS)[:-1]
    assert "note: skipped vit_huge: an image of 160x288 pixels is not a whole number of patches of 14" in err
    code, _, err = maecli("--image-size", "160x288", "--variant", "vit_base", "--variant", "vit_huge")
    assert code == 2
    assert "error: an image of 160x288" in err


def test_modules_add_up() -> None:
    for depth in (1, 2, 3, 4):
        (base,) = document("--variant", "vit_base", "--depth", depth)["variants"]
        modules = base["modules"]
        assert sum(module["parameters"] for module in modules) == base["parameters"]["total"]
        for what in ("forward", "training_step"):
            assert sum(module[what]["flops"] for module in modules) == base["compute_per_image"][what]["flops"]
        assert len({module["name"] for module in modules}) == len(modules)
    (base,) = document("--variant", "vit_base", "--depth", 1)["variants"]
    assert [module["name"] for module in base["modules"]] == [
        "cls_token",
        "pos_embed",
        "patch_embed",
        "encoder",
        "decoder",
    ]


def test_fit_and_plan() -> None:
    (base,) = document(
        "--variant", "vit_base", "--fit", "24GB", "--gpu", "RTX 4090", "--gpus", 2, "--price", 0.5, "--epochs", 100
    )["variants"]
    assert base["fit"]["memory_bytes"] == 24 * 10**9
    assert base["fit"]["batch_size"] * base["fit"]["accum_iter"] * 2 == base["fit"]["effective_batch"] == 4096
    assert base["checkpointed_fit"]["largest_batch"] > base["fit"]["largest_batch"]
    plan = base["plan"]
    own = base["compute_per_image"]["own_training_step"]["flops"]
    assert plan["images_per_second"] == pytest.approx(165.2e12 * 0.3 / own)
    assert plan["gpu_hours"] == pytest.approx(1281167 * 100 / plan["images_per_second"] / 3600)
    assert plan["cost"] == pytest.approx(plan["gpu_hours"] * 0.5)
    assert plan["energy_kwh"] == pytest.approx(plan["gpu_hours"] * 0.45)
    (base,) = document("--variant", "vit_base", "--gpu", "h100")["variants"]
    assert base["fit"]["memory_bytes"] == 80 * 10**9


def test_a_card_without_bf16_is_planned_as_pretrain_would_train_on_it() -> None:
    code, out, err = maecli("--variant", "vit_base", "--gpu", "v100", "--json")
    assert code == 0
    result = json.loads(out)
    assert result["precision"] == result["variants"][0]["plan"]["precision"] == "fp32"
    (note,) = result["notes"]
    assert "pretrain takes fp32 there (15.7 TFLOP/s at most): --precision fp16 plans for its 125" in note
    assert note in err
    fp16 = document("--variant", "vit_base", "--gpu", "v100", "--precision", "fp16")
    assert fp16["notes"] == []
    rates = [one["variants"][0]["plan"]["images_per_second"] for one in (fp16, result)]
    assert rates[0] / rates[1] == pytest.approx(125 / 15.7)


def test_what_is_planned_in_does_not_depend_on_what_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The precision of this machine's CPU does not matter: the H100 is planned in bf16."""
    measured_stand_in(monkeypatch, "cpu", Measured(TIMING, TIMING, TIMING, TIMING, 10**9, 2 * 10**9, 3 * 10**9, ()))
    (base,) = document("--variant", "vit_base", "--measure", "--gpu", "h100")["variants"]
    assert (base["plan"]["source"], base["plan"]["precision"]) == ("flops", "bf16")


def test_figures_that_nobody_checked_are_marked() -> None:
    _, out, err = maecli("--variant", "vit_base", "--gpu", "b200", "--json")
    plan = json.loads(out)["variants"][0]["plan"]
    assert (plan["figures"], plan["figures_source"]) == ("unverified", "NVIDIA HGX B200 data sheet, per GPU")
    assert "note: NVIDIA B200: its rates, memory and power are not verified" in err
    _, out, err = maecli("--variant", "vit_base", "--gpu", "a100-40gb", "--json")
    assert json.loads(out)["variants"][0]["plan"]["figures"] == "document"
    assert err == ""


def test_fit_says_whether_the_recipe_or_memory_ends_it() -> None:
    result = document("--variant", "vit_tiny", "--variant", "vit_huge", "--gpu", "h100")
    assert [one["fit"]["limited_by"] for one in result["variants"]] == ["recipe", "memory"]
    _, out, _ = maecli("--variant", "vit_tiny", "--variant", "vit_huge", "--gpu", "h100")
    lines = [line.split() for line in out.splitlines() if line.strip().startswith("limited by")]
    assert lines == [["limited", "by", "4096", "memory"], ["limited", "by", "4096", "memory"]]


def test_the_process_is_a_row_of_a_cpus_estimate() -> None:
    (tiny,) = document("--variant", "vit_tiny", "--device", "cpu", "--precision", "fp32", "--batch-size", 8)["variants"]
    assert 1.0e9 < tiny["memory"]["training_process_bytes"] < 1.2e9  # 1.07 GB was measured
    _, out, _ = maecli("--variant", "vit_tiny", "--device", "cpu", "--precision", "fp32", "--batch-size", 8)
    assert re.search(r"process, kept heap +0\.8\d\n", out)
    assert re.search(r"whole process +1\.0\d\n", out)
    (tiny,) = document("--variant", "vit_tiny")["variants"]
    assert tiny["memory"]["training_process_bytes"] is None
    assert "process" not in maecli("--variant", "vit_tiny")[1]


def test_csv_has_a_row_for_each_variant() -> None:
    code, out, err = maecli("--csv", "--fit", "24GB", "--depth", 2)
    assert (code, err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["variant"] for row in rows] == list(VARIANTS)
    assert rows[3]["parameters.total"] == "329541888"
    assert rows[3]["compute_per_image.forward.flops"] == "41511567360"
    assert rows[3]["fit.effective_batch"] == "4096"
    assert not any("modules" in column for column in rows[0])


def test_quiet_is_the_training_step() -> None:
    assert maecli("--variant", "vit_base", "--quiet") == (0, "58455588864\n", "")


@pytest.mark.parametrize("width", [100, 80])
def test_tables_fit(width: int) -> None:
    config = ProfileConfig(gpu="h100", gpus=8, price=2.0, depth=5)
    text = drawn(profile(config), width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "…" not in text
    for figure in ("329.54", "41.51", "61.55", "290.99", "657.07", "█"):
        assert figure in text
    assert "encoder.blocks.0-23.attn.products" in text


def test_without_unicode_bars_are_plain() -> None:
    text = drawn(profile(ProfileConfig(variant=("vit_base",))), 80, "ascii")
    assert "####====" in text
    assert "vit_base" in text


def test_bars_are_drawn_to_scale() -> None:
    text = drawn(profile(ProfileConfig(variant=("vit_large",))), 100)
    (bar,) = [line for line in text.splitlines() if "74/26%" in line]
    assert (bar.count("█"), bar.count("▓")) == (44, 16)


def measured_stand_in(monkeypatch: pytest.MonkeyPatch, device: str, measured: Measured) -> None:
    from mae.profiling import measured as module

    machine = MeasuredDevice(device, "fp32" if device == "cpu" else "bf16", f"some {device}", 2, "2.11", 2e11)
    monkeypatch.setattr(module, "measure_machine", lambda device, precision: machine)
    monkeypatch.setattr(module, "measure_model", lambda config, machine, **conditions: measured)


TIMING = Timing(8, 5, 0.5, 0.45, 0.55, 16.0, 1e11, 0.5)


def test_measured_stands_beside_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    measured_stand_in(monkeypatch, "cpu", Measured(TIMING, TIMING, TIMING, TIMING, 10**9, 2 * 10**9, 3 * 10**9, ()))
    result = document("--variant", "vit_base", "--measure")
    assert (result["device"], result["precision"], result["batch_size"]) == ("cpu", "fp32", 8)
    assert result["machine"]["matmul_flops"] == 2e11
    (base,) = result["variants"]
    assert base["measured"]["training_step"]["images_per_second"] == 16
    assert base["memory"]["training_peak_bytes"] > 10**9
    assert (base["plan"]["source"], base["plan"]["images_per_second"]) == ("measured", 16)
    _, out, _ = maecli("--variant", "vit_base", "--measure")
    for figure in ("500.0 (±10%)", "16 (±10%)", "100 (50%)", "2.00 (", "measured on some cpu, 2 threads"):
        assert figure in out


def test_a_cpus_rate_is_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = Measured(TIMING, TIMING, TIMING, TIMING, 10**9, 2 * 10**9, 3 * 10**9, ())
    measured_stand_in(monkeypatch, "cpu", fine)
    (base,) = document("--variant", "vit_base", "--measure", "--gpu", "h100", "--precision", "bf16")["variants"]
    assert base["plan"]["source"] == "flops"
    measured_stand_in(monkeypatch, "cuda", fine)
    (base,) = document("--variant", "vit_base", "--measure", "--gpu", "h100")["variants"]
    assert (base["plan"]["source"], base["plan"]["accelerator"]) == ("measured", "some cuda")
    assert base["plan"]["energy_kwh"] == pytest.approx(base["plan"]["gpu_hours"] * 0.7)


def test_out_of_memory_leaves_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = Measured(TIMING, None, None, None, None, None, None, ("training time: out of memory (too much)",))
    measured_stand_in(monkeypatch, "cpu", failed)
    code, out, err = maecli("--variant", "vit_huge", "--measure")
    assert code == 0
    assert "warning: vit_huge: training time: out of memory (too much); only the estimate is shown" in err
    assert "290.99" in out
    assert "training, images/s" not in out


SMALL_PRODUCTS = "from mae.profiling import measuring\nmeasuring._MATMUL_SIDES['cpu'] = (256,)\nmeasuring.main()"


def test_really_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """In separate processes, with smaller matrix products than usual, of which a hundred would take seconds."""
    monkeypatch.setattr(subprocess, "run", lambda command, **how: run_forked([command[0], "-c", SMALL_PRODUCTS], **how))
    result = document(
        *("--variant", "vit_tiny", "--image-size", 32, "--batch-size", 2, "--measure", "--device", "cpu"),
        *("--repeats", 2, "--images", 100, "--epochs", 1),
    )
    assert result["machine"]["device"] == "cpu"
    assert result["machine"]["matmul_flops"] > 1e9
    (tiny,) = result["variants"]
    assert tiny["measured"]["failures"] == []
    assert tiny["measured"]["training_peak_bytes"] > 10**6
    assert tiny["plan"]["source"] == "measured"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mask-ratio", "1"], "--mask-ratio must be above 0 and below 1; got 1"),
        (["--mask-ratio", "0.999"], "leaves none of 196 patches visible"),
        (["--mask-ratio", "0"], "--mask-ratio must be above 0 and below 1; got 0"),
        (["--mask-ratio", "nan"], "--mask-ratio must be a finite number"),
        (["--image-size", "225"], "an image of 225x225 pixels is not a whole number of patches of 16"),
        (["--image-size", "big"], "--image-size: wanted pixels as S or HxW"),
        (["--batch-size", "0"], "--batch-size must be at least 1; got 0"),
        (["--patch-size", "0"], "--patch-size must be at least 1"),
        (["--depth", "0"], "--depth must be at least 1"),
        (["--variant", "vit_bas"], "unknown variant 'vit_bas'"),
        (["--gpu", "h10"], "--gpu h10: not in the table"),
        (["--gpu", "v100", "--precision", "bf16"], "NVIDIA V100 SXM2 32GB has no bf16 matrix units"),
        (["--precision", "fp8"], "--precision must be one of"),
        (["--precision", "fp16", "--device", "cpu"], "--precision fp16 needs a GPU"),
        (["--device", "tpu"], "--device must be one of"),
        (["--fit", "a lot"], "--fit: wanted memory as 24GB"),
        (["--fit", "24"], "--fit: 24 is 24 bytes, less than any model needs; for gigabytes write 24GB"),
        (["--mfu", "0"], "--mfu must be above 0"),
        (["--gpus", "0"], "--gpus must be at least 1"),
        (["--price", "1"], "--price needs --gpu or --measure"),
        (["--csv", "--json"], "--csv and --json: choose one"),
        (["--mask-ratio", "1e-17"], "--mask-ratio 1e-17 masks none of the 196 patches of vit_tiny"),
    ],
)
def test_nonsense_is_one_line(arguments: list[str], message: str) -> None:
    code, out, err = maecli(*arguments)
    assert (code, out) == (2, "")
    lines = [line for line in err.splitlines() if not line.startswith("hint: ")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", run_forked)
    code, out, err = maecli("--variant", "vit_tiny", "--measure", "--device", "mps")
    assert (code, out) == (2, "")
    assert err.startswith("error: --device mps: torch ")


def started(*arguments: str) -> tuple[float, int, str]:
    """CPU seconds, exit code and stdout of a separate process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = finish(start_python(*arguments, env=environment(COLUMNS="100")))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.returncode, done.stdout


def test_neither_torch_nor_numpy_is_loaded() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from maecli.app import app\n"
        "for rest in (['--gpu', 'h100', '--depth', '3'], ['--json'], ['--csv'], ['--mask-ratio', '1']):\n"
        "    CliRunner().invoke(app, ['profile', *rest])\n"
        "print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    assert started("-c", code)[1:] == (0, "[]\n")


@pytest.mark.slow
def test_it_answers_about_as_fast_as_help() -> None:
    """A timing test, which is skipped on noisy machines."""
    seconds: dict[str, list[float]] = {"--help": [], "profile": []}
    for _ in range(7):
        for command, times in seconds.items():
            times.append(started("-m", "maecli", command)[0])
    assert min(seconds["profile"]) <= 1.5 * min(seconds["--help"])


def test_it_needs_little_memory() -> None:
    code = (
        "from maecli.app import app\n"
        "try: app(['profile'])\n"
        "except SystemExit: pass\n"
        # Not ru_maxrss, which a child inherits from its parent.
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    if Path("/proc/self/status").exists():
        assert int(started("-c", code)[2].splitlines()[-1]) < 120_000
