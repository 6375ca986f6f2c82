"""The augmentation of fine-tuning: timm's if installed, seeded by the image, without side effects."""

from __future__ import annotations

import io
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mae.data.augment import Augmentation
from mae.data.classifier_augment import (
    ClassifierAugmentation,
    _make_erasing,
    _make_timm,
    _make_torchvision,
    resolve_augmenter,
)
from mae.data.transforms import normalise
from mae.errors import ConfigError
from mae.system.seeding import derive_seed

POLICY = "rand-m9-mstd0.5-inc1"


def png() -> io.BytesIO:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    file.seek(0)
    return file


def augmented(seed: int, **settings: object) -> Tensor:
    return ClassifierAugmentation((32, 24), 3, **settings)(png(), "a.png", seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("augmenter", ["torchvision", pytest.param("timm", marks=pytest.mark.parity)])
def test_an_image_has_its_own_seed_and_the_global_streams_are_as_before(augmenter: str) -> None:
    if augmenter == "timm":
        pytest.importorskip("timm")
    settings = {"policy": POLICY, "reprob": 1.0, "augmenter": augmenter}
    before = random.random(), float(np.random.rand()), float(torch.rand(()))
    random.seed(1)
    np.random.seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = augmented(5, **settings)
        following = random.random(), float(np.random.rand()), float(torch.rand(()))
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        assert following == (random.random(), float(np.random.rand()), float(torch.rand(())))
        assert following != before
    assert first.shape == (32, 24, 3)
    assert first.dtype == torch.float32
    assert torch.equal(first, augmented(5, **settings))
    assert not torch.equal(first, augmented(6, **settings))


def test_without_operations_it_is_the_crop_of_pre_training() -> None:
    crop = Augmentation((32, 24), 3, (0.08, 1.0))(png(), "a.png", 5)
    assert torch.equal(augmented(5), crop)
    erased = augmented(5, reprob=1.0)
    same = (erased == normalise(crop.permute(2, 0, 1)).permute(1, 2, 0)).all(dim=2)
    share = 1 - float(same.float().mean())
    assert 0.01 < share < 0.4
    rows, columns = torch.nonzero(~same, as_tuple=True)
    assert len(rows) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)


@pytest.mark.parity
def test_timms_operations_are_those_of_its_own_training_transform() -> None:
    """The transform of timm's create_transform with the same crop and seed."""
    timm = pytest.importorskip("timm.data")
    theirs = timm.create_transform(
        (3, 32, 24), is_training=True, auto_augment=POLICY, interpolation="bicubic", color_jitter=None, re_prob=1.0,
        re_mode="pixel", re_count=1, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    ).transforms  # fmt: skip
    for seed in range(6):
        crop = Augmentation((32, 24), 3, (0.08, 1.0))(png(), "a.png", seed)
        operations = derive_seed(seed, "operations")
        random.seed(operations)
        np.random.seed(operations % 2**32)
        with torch.random.fork_rng():
            torch.manual_seed(operations)
            wanted = Image.fromarray(crop.numpy())
            for one in theirs[2:]:  # after its crop and flip
                wanted = one(wanted)
        ours = augmented(seed, policy=POLICY, reprob=1.0, augmenter="timm")
        assert torch.allclose(ours, wanted.permute(1, 2, 0), atol=1e-5)


@pytest.mark.parametrize("kind", ["", "-inc1"])
@pytest.mark.parametrize("magnitude", [0, 10])
def test_every_operation_takes_the_ends_of_the_range(magnitude: int, kind: str) -> None:
    """Magnitudes vary from image to image and are clipped to 0 and 10; for instance 0 bits of colour are black."""
    pytest.importorskip("timm")
    image = Image.effect_noise((32, 24), 90).convert("RGB")
    made = _make_timm(f"rand-m{magnitude}{kind}", (32, 24))
    darkest = 255
    for operation in made.ops:  # type: ignore[attr-defined]
        operation.prob = 1.0
        changed = np.array(operation(image))
        assert changed.shape == (24, 32, 3), operation
        if operation.name.startswith("Posterize"):
            darkest = int(changed.max())
    assert (darkest == 0) == (magnitude == (10 if kind else 0))


def test_torchvision_takes_a_higher_magnitude_for_the_highest_as_timm_does() -> None:
    policies = ("rand-m10-n8", "rand-m15-n8")
    highest, higher = (augmented(3, policy=policy, augmenter="torchvision") for policy in policies)
    assert torch.equal(highest, higher)


@pytest.mark.parametrize(("policy", "operations", "magnitude"), [(POLICY, 2, 27), ("rand-n4-m2", 4, 6)])
def test_what_torchvision_is_asked_for(policy: str, operations: int, magnitude: int) -> None:
    """The policy's operations and magnitude in 31 steps; what a shift uncovers has ImageNet's mean colour."""
    made: Any = _make_torchvision(policy, (32, 24))
    assert (made.num_ops, made.magnitude, made.num_magnitude_bins) == (operations, magnitude, 31)
    assert set(map(tuple, made._fill.values())) == {(124, 116, 104)}
    erasing: Any = _make_erasing("torchvision", 0.25)
    assert (erasing.p, erasing.scale, erasing.value) == (0.25, (0.02, 1 / 3), None)
    assert erasing.ratio == pytest.approx((0.3, 1 / 0.3))


def test_loader_processes_make_their_own_operations() -> None:
    augmentation = ClassifierAugmentation((32, 24), 3, policy=POLICY, augmenter="torchvision")
    wanted = augmentation(png(), "a.png", 3)
    again = pickle.loads(pickle.dumps(augmentation))
    assert again._rand_augment is None
    assert torch.equal(again(png(), "a.png", 3), wanted)


def test_what_is_not_installed_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert resolve_augmenter("auto") == "torchvision"
    with pytest.raises(ConfigError, match=r"--augmenter timm: timm is not installed"):
        resolve_augmenter("timm")
