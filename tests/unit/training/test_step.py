"""One optimiser step: how its inputs come to the device."""

from __future__ import annotations

import unittest.mock
from types import SimpleNamespace
from typing import Any

import torch

from mae.training.step import TrainingStep


def test_a_copy_to_an_apple_gpu_is_done_before_its_source_is_freed() -> None:
    """The noise of a batch lives no longer than the call; torch's copy that does not wait would read freed memory."""
    noise: Any = unittest.mock.Mock()
    step: Any = SimpleNamespace(device=torch.device("mps", 0))
    assert TrainingStep._on_device(step, noise) is noise.to.return_value
    assert noise.mock_calls == [unittest.mock.call.to(step.device)]
