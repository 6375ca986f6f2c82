"""Mixup, CutMix and drop path against plain loops and against timm."""

from __future__ import annotations

import math

import pytest
import torch

from mae.training.mixing import Mix, draw_mix, drop_path_scales, mix_images, targets


def draw(number: int, **changes: float) -> Mix:
    return draw_mix(
        (8, 6), 0, "mix", number, **({"mixup": 0.8, "cutmix": 1.0, "prob": 1.0, "switch_prob": 0.5} | changes)
    )


def test_mixed_targets_are_sums_over_classes_by_hand() -> None:
    labels, smoothing, share = [2, 0, 1], 0.1, 0.3
    found = targets(torch.tensor(labels), 4, smoothing, torch.tensor(share))
    for image, other in enumerate((1, 0, 2)):  # the last of an odd number has no neighbour
        for name in range(4):
            own, others = (
                1 - smoothing + smoothing / 4 if labels[i] == name else smoothing / 4 for i in (image, other)
            )
            assert float(found[image, name]) == pytest.approx(share * own + (1 - share) * others)
    assert torch.allclose(found.sum(dim=1), torch.ones(3))


def test_a_cut_rectangle_comes_from_the_neighbour_and_its_area_is_the_labels_share() -> None:
    imgs = torch.arange(4.0)[:, None, None, None].expand(4, 1, 8, 6)
    shares = []
    for number in range(40):
        mix = draw(number, mixup=0.0)
        mixed = mix_images(imgs, mix)
        for image, other in enumerate((1, 0, 3, 2)):
            own = mixed[image, 0] == image
            assert bool((own | (mixed[image, 0] == other)).all())
            assert float(mix.share) == pytest.approx(float(own.float().mean()))
        rows, columns = torch.nonzero(mix.keep == 0, as_tuple=True)
        if len(rows):
            box = (int(rows.max() - rows.min()) + 1) * (int(columns.max() - columns.min()) + 1)
            assert box == len(rows)
        shares.append(float(mix.share))
    assert min(shares) <= 0.5 < max(shares)


@pytest.mark.parametrize("size", [(8, 6), (6, 8)])
def test_a_cut_rectangle_has_about_one_minus_lam_of_the_area_and_lies_anywhere(size: tuple[int, int]) -> None:
    """With a lam of 0.5 the rectangle has 0.7 of each side: 5 of 8 pixels and 4 of 6, made even."""
    keeps = [draw_mix(size, 0, number, mixup=0, cutmix=1e6, prob=1, switch_prob=1).keep for number in range(100)]
    assert max(int((keep == 0).sum()) for keep in keeps) == 16
    assert float(torch.stack(keeps).amin(dim=0).max()) == 0


def test_mixup_keeps_one_share_of_every_pixel() -> None:
    shares = []
    for number in range(200):
        mix = draw(number, cutmix=0.0)
        assert bool((mix.keep == mix.share).all())
        shares.append(float(mix.share))
    # Beta(0.8, 0.8) has mean 1/2 and variance 1 / (4 (2 a + 1)).
    assert sum(shares) / 200 == pytest.approx(0.5, abs=0.07)
    assert torch.tensor(shares).var() == pytest.approx(1 / (4 * 2.6), abs=0.02)
    imgs = torch.randn(4, 3, 8, 6)
    mix = Mix(torch.full((8, 6), 0.25), torch.tensor(0.25))
    assert torch.allclose(mix_images(imgs, mix)[2], 0.25 * imgs[2] + 0.75 * imgs[3])


def test_a_batch_is_mixed_as_often_and_as_asked() -> None:
    cuts = [bool(((mix := draw(number)).keep == 0).any()) and mix.share not in (0, 1) for number in range(200)]
    assert 60 < sum(cuts) < 120
    untouched = [float(draw(number, prob=0.25).share) == 1 for number in range(200)]
    assert 130 < sum(untouched) < 170
    assert all(float(draw(number, mixup=0.0, cutmix=0.0).share) == 1 for number in range(5))
    assert torch.equal(draw(7).keep, draw(7).keep)


@pytest.mark.parity
@pytest.mark.parametrize("cut", [False, True])
def test_timm_mixes_alike(cut: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Timm mixes an image with the one at the other end of the batch; we mix it with its neighbour."""
    timm = pytest.importorskip("timm.data.mixup")
    imgs, labels = torch.randn(4, 3, 8, 6), torch.tensor([0, 2, 1, 1])
    order = [0, 2, 3, 1]  # our pairs 0-1 and 2-3 are timm's first-last pair and the middle pair
    theirs = timm.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=3)
    monkeypatch.setattr(theirs, "_params_per_batch", lambda: (0.35, cut))
    box = (1, 5, 2, 6)
    share = 1 - 16 / 48 if cut else 0.35
    monkeypatch.setattr(timm, "cutmix_bbox_and_lam", lambda *_, **__: (box, share))
    wanted_imgs, wanted_targets = theirs(imgs[order].clone(), labels[order])
    keep = torch.ones(8, 6)
    if cut:
        keep[1:5, 2:6] = 0
    else:
        keep *= share
    back = [order.index(number) for number in range(4)]
    mix = Mix(keep, torch.tensor(share))
    assert torch.allclose(mix_images(imgs, mix), wanted_imgs[back], atol=1e-6)
    assert torch.allclose(targets(labels, 3, 0.1, mix.share), wanted_targets[back], atol=1e-6)


def test_drop_path_scales_keep_the_mean_and_drop_more_in_later_blocks() -> None:
    scales = drop_path_scales(0.3, 20_000, 4, torch.Generator().manual_seed(0))
    assert scales is not None
    for block in range(4):
        rate = 0.3 * block / 3
        kept = scales[:, block]
        assert torch.allclose(kept[kept > 0], torch.tensor(1 / (1 - rate)))
        assert float((kept == 0).float().mean()) == pytest.approx(rate, abs=4 * math.sqrt(0.25 / 40_000))
        assert float(kept.mean()) == pytest.approx(1.0, abs=0.02)
    assert drop_path_scales(0.0, 2, 4, torch.Generator()) is None
