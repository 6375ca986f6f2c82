"""Plans and training use the same precision, chosen by what the device supports."""

from __future__ import annotations

import types

import pytest
import torch

from mae.errors import ConfigError
from mae.profiling import config as profile_config
from mae.profiling.accelerators import ACCELERATORS
from mae.profiling.config import ProfileConfig
from mae.system.device import resolve_precision
from mae.system.precision import choose_precision, processor_has_bf16

MAJOR_CAPABILITY = {"v100": 7, "v100-pcie": 7, "t4": 7, "h100": 9, "h100-pcie": 9, "h200": 9, "b200": 10, "rtx5090": 12}


@pytest.mark.parametrize(
    ("wanted", "device", "native_bf16", "taken"),
    [
        ("auto", "cuda", True, "bf16"),
        ("auto", "cuda", False, "fp32"),
        ("auto", "cpu", True, "bf16"),
        ("auto", "cpu", False, "fp32"),
        ("auto", "mps", False, "fp32"),
        ("fp16", "cuda", True, "fp16"),
        ("bf16", "cpu", False, "bf16"),
        ("fp32", "cuda", True, "fp32"),
    ],
)
def test_the_decision(wanted: str, device: str, native_bf16: bool, taken: str) -> None:
    assert choose_precision(wanted, device, native_bf16=native_bf16) == taken


def test_fp16_on_a_processor_is_refused() -> None:
    with pytest.raises(ConfigError, match="--precision fp16 needs a GPU"):
        choose_precision("fp16", "cpu", native_bf16=True)


@pytest.mark.parametrize("name", [name for name in ACCELERATORS if name != "mi300x"])
def test_a_plan_takes_what_training_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the named card, torch is given its compute capability, the only property that it reads."""
    card = types.SimpleNamespace(major=MAJOR_CAPABILITY.get(name, 8), minor=0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: card)
    trained_in = resolve_precision("auto", torch.device("cuda", 0))
    assert ProfileConfig(gpu=name).assumed_precision == trained_in
    assert trained_in == ("bf16" if card.major >= 8 else "fp32")


def test_an_apple_gpu_is_planned_as_it_trains() -> None:
    assert ProfileConfig(device="mps").assumed_precision == resolve_precision("auto", torch.device("mps")) == "fp32"


def test_a_processors_features_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    for features, has in ((("avx2", "avx512f"), False), (("avx512f", "avx512_bf16"), True), (("amx_tile",), True)):
        assert processor_has_bf16(features) is has
        monkeypatch.setattr(profile_config, "cpu_features", lambda features=features: features)
        assert ProfileConfig(device="cpu").assumed_precision == ("bf16" if has else "fp32")
