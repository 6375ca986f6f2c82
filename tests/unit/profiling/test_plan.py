"""Plans by hand and against the published run; the table of accelerators."""

from __future__ import annotations

import pytest

from mae.errors import ConfigError
from mae.models import variant_config
from mae.profiling.accelerators import ACCELERATORS, find_accelerator
from mae.profiling.config import ProfileConfig, parse_bytes
from mae.profiling.flops import official_compute, total
from mae.profiling.plan import plan_from_flops, plan_from_rate
from tests.e2e.documents import ROOT


def test_a_plan_by_hand() -> None:
    config = ProfileConfig(gpu="a100", gpus=4, images=1000, epochs=36, mfu=0.5, price=2.0)
    # 156 TFLOP/s reached, 15.6 TFLOPs an image: 10 images a second, 3600 seconds for 36,000 images.
    plan = plan_from_flops(15.6e12, find_accelerator("a100"), "bf16", config)
    assert plan.images_per_second == pytest.approx(10)
    assert plan.gpu_hours == pytest.approx(1)
    assert (plan.hours, plan.days) == (pytest.approx(1 / 4), pytest.approx(1 / 96))
    assert plan.energy_kwh == pytest.approx(0.4)
    assert plan.cost == pytest.approx(2)
    assert (plan.source, plan.mfu, plan.precision) == ("flops", 0.5, "bf16")
    assert (plan.figures, plan.figures_source) == ("quoted", "NVIDIA A100 Tensor Core GPU data sheet")


def test_a_plan_from_a_measured_rate() -> None:
    plan = plan_from_rate(5.0, "some CPU", "fp32", ProfileConfig(images=18_000, epochs=2, gpus=2), accelerator=None)
    assert (plan.gpu_hours, plan.hours) == (pytest.approx(2), pytest.approx(1))
    assert (plan.source, plan.mfu, plan.energy_kwh, plan.cost) == ("measured", None, None, None)
    assert (plan.precision, plan.figures, plan.figures_source) == ("fp32", None, None)


def test_the_published_run() -> None:
    """ViT-L, 800 epochs, about 42 hours on 64 V100: 106 images a second each, a tenth of the peak rate."""
    large = variant_config("vit_large")
    step = total(official_compute(large, large.num_kept(0.75))).step
    v100 = find_accelerator("v100")
    mfu = 106 * step / v100.peak_flops("fp16")
    assert mfu == pytest.approx(0.105, abs=0.001)
    plan = plan_from_flops(step, v100, "fp16", ProfileConfig(gpu="v100", gpus=64, mfu=mfu))
    assert plan.images_per_second == pytest.approx(106)
    assert plan.hours == pytest.approx(42, abs=0.1)


@pytest.mark.parametrize(
    ("typed", "known"),
    [
        ("h100", "h100"),
        ("H100 SXM", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("Tesla V100", "v100"),
        ("RTX 4090", "rtx4090"),
        ("GeForce RTX 3090", "rtx3090"),
        ("5090", "rtx5090"),
        ("A100 40GB", "a100-40gb"),
        ("A100-80GB", "a100"),
        ("amd mi300x", "mi300x"),
    ],
)
def test_names(typed: str, known: str) -> None:
    assert find_accelerator(typed).name == known


def test_unknown_accelerators_are_refused_with_near_names() -> None:
    with pytest.raises(ConfigError, match="--gpu h10: not in the table; there are v100") as caught:
        find_accelerator("h10")
    assert caught.value.hint is not None
    assert "h100" in caught.value.hint
    with pytest.raises(ConfigError) as caught:
        find_accelerator("abacus")
    assert caught.value.hint is None
    for nothing in ("", "nvidia", "--"):
        with pytest.raises(ConfigError):
            find_accelerator(nothing)


def test_precisions_that_are_not_there() -> None:
    for name in ("v100", "t4"):
        with pytest.raises(ConfigError, match="no bf16"):
            find_accelerator(name).peak_flops("bf16")
        assert ProfileConfig(gpu=name).assumed_precision == "fp32"  # as pretrain takes it there
        assert ProfileConfig(gpu=name, precision="fp16").assumed_precision == "fp16"
    assert find_accelerator("h100").peak_flops("bf16") == 989e12
    with pytest.raises(ConfigError, match="--gpu h100 and --device cpu") as refused:
        ProfileConfig(gpu="h100", device="cpu")  # pretrain may take another precision there
    assert "--measure" in (refused.value.hint or "")
    assert ProfileConfig(gpu="h100", device="cpu", measure=True).gpu == "h100"
    assert find_accelerator("h100").peak_flops("fp32") == 67e12


def test_the_table_is_plausible() -> None:
    for accelerator in ACCELERATORS.values():
        assert find_accelerator(accelerator.title) is accelerator
        assert accelerator.fp32 <= (accelerator.tf32 or accelerator.fp16) <= accelerator.fp16 <= 2500
        assert accelerator.bf16 in (None, accelerator.fp16)
        assert 16 <= accelerator.memory_gb <= 192
        assert 50 < accelerator.watts <= 1000
        assert accelerator.source


def test_the_documents_table_is_the_code_s() -> None:
    """Figures, how they were checked, and the document that holds them, line by line."""
    page = (ROOT / "docs" / "profile.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    wanted = [
        [
            f"`{one.name}`",
            one.title,
            *("-" if rate is None else f"{rate:g}" for rate in (one.bf16, one.fp16, one.tf32, one.fp32)),
            str(one.memory_gb),
            str(one.watts),
            str(one.check),
            one.source,
        ]
        for one in ACCELERATORS.values()
    ]
    assert [row for row in table if row[0].strip("`") in ACCELERATORS] == wanted


@pytest.mark.parametrize(
    ("typed", "amount"),
    [
        ("24GB", 24 * 10**9),
        ("24 gb", 24 * 10**9),
        ("24G", 24 * 10**9),
        ("24GiB", 24 * 2**30),
        ("0.5TB", 5 * 10**11),
        (24_000_000, 24_000_000),
    ],
)
def test_amounts_of_memory(typed: object, amount: int) -> None:
    assert parse_bytes(typed) == amount


@pytest.mark.parametrize("typed", ["", "much", "24 GiBs", "-1GB", "0", "24I", "nan"])
def test_amounts_that_are_none(typed: str) -> None:
    with pytest.raises(ValueError, match="wanted memory"):
        parse_bytes(typed)
