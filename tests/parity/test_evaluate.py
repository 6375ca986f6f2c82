"""``evaluate`` of a file of the official trainer gives the results of timm and scikit-learn for the same file."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mae.data.eval_transform import EvalTransform
from mae.data.sources.scan import scan_images
from mae.data.transforms import normalise
from mae.evaluation.config import EvaluateConfig
from mae.evaluation.evaluate import evaluate
from mae.evaluation.results import EvaluateResult
from tests.golden import official
from tests.unit.evaluation.small import COLOURS, image

TINY = official.GOLDEN["golden_tiny"]
EACH = {"train": 12, "test": 8}


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes of similar colours, so that some images are classified wrongly."""
    root = tmp_path_factory.mktemp("parity") / "flowers"
    for number, part in enumerate(EACH):
        for place, name in enumerate(COLOURS):
            for count in range(EACH[part]):
                colour = (110 + 6 * place, 110, 110)
                image(root / part / name / f"{count:02d}.png", colour, 1000 * number + 100 * place + count)
    return root


@pytest.fixture(scope="module")
def evaluated(flowers: Path) -> EvaluateResult:
    path = flowers.parent / "checkpoint-799.pth"
    torch.save(official.checkpoint(TINY, "training"), path)
    return evaluate(
        EvaluateConfig(
            data=flowers, checkpoint=(path,), probe=("knn",), references=False, cache=flowers.parent / "cache",
            workers=0, device="cpu", precision="fp32",
        )
    )  # fmt: skip


def timm_features(folder: Path) -> dict[tuple[str, str], Tensor]:
    """The features by pool and norm, in the order of the images' names."""
    import timm

    model = timm.models.VisionTransformer(
        img_size=TINY.img_size, patch_size=TINY.patch_size, embed_dim=TINY.embed_dim, depth=TINY.depth,
        num_heads=TINY.num_heads, num_classes=0, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    ).eval()  # fmt: skip
    state = {
        key: value for key, value in official.weights(TINY).items() if "decoder" not in key and key != "mask_token"
    }
    model.load_state_dict(state)
    images = scan_images([folder]).images
    transform = EvalTransform(TINY.img_size)
    imgs = normalise(torch.stack([transform(images.load(number, 3)) for number in range(len(images))]))
    with torch.no_grad():
        normed = model.forward_features(imgs)
        model.norm = torch.nn.Identity()
        plain = model.forward_features(imgs)
    found = {}
    for norm, tokens in (("final", normed), ("none", plain)):
        found["cls", norm], found["mean", norm] = tokens[:, 0], tokens[:, 1:].mean(dim=1)
    return found


def test_its_numbers_are_those_of_timm_and_scikit_learn(flowers: Path, evaluated: EvaluateResult) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    train, test = (timm_features(flowers / part) for part in EACH)
    labels, truth = (np.repeat(np.arange(3), each) for each in EACH.values())
    seen = set()
    for row in evaluated.rows:
        assert row.pool is not None
        assert row.feature_norm is not None
        one, other = (found[row.pool, row.feature_norm].double().numpy() for found in (train, test))
        (scores,) = row.scores
        assert scores.knn is not None
        for k, measured in scores.knn.items():
            classifier = KNeighborsClassifier(
                k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
            )
            expected = (classifier.fit(one, labels).predict(other) == truth).mean()
            assert measured.value == pytest.approx(expected), (row.pool, row.feature_norm, k)
        shares = np.linalg.svd(one, compute_uv=False)
        shares = shares / shares.sum() + 1e-7
        assert row.rank_me == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-3)
        seen.add((row.pool, row.feature_norm))
    assert seen == set(train)
    best = [row.scores[0].knn for row in evaluated.rows]
    assert any(0 < value.value < 1 for one in best if one for value in one.values())  # the check is not trivial
