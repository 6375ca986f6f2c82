"""The test result of a classifier, and its file in the run's folder. Standard library only."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from mae.evaluation.results import Accuracy, ClassAccuracy
from mae.training.failures import write_in_run
from mae.training.run_folder import RESULT_FILE


@dataclasses.dataclass(frozen=True)
class TestResult:
    """Test metrics of the classifier of the chosen epoch.

    Attributes:
        epochs: Finished epochs of the run when it was tested.
        chosen_epoch: Epoch of the weights, from 1.
        test_images: Number of readable test images.
        top1, top5: Top-1 and top-5 accuracy; top-5 is None for five classes or fewer.
        loss: Mean cross-entropy.
        mean_class_accuracy: Mean of the accuracies of the classes.
        classes: Name and accuracy of each class, in order.
        confusion: Number of images by [true class][predicted class]; empty for more than 1,000 classes.
        skipped: (name, reason) of test images that could not be read.
        untested: Classes without readable test images; not part of the means.
    """

    __test__ = False  # else pytest would collect the class as a test, because of its name

    epochs: int
    chosen_epoch: int
    test_images: int
    top1: Accuracy
    top5: Accuracy | None
    loss: float
    mean_class_accuracy: float
    classes: tuple[ClassAccuracy, ...]
    confusion: tuple[tuple[int, ...], ...]
    skipped: tuple[tuple[str, str], ...]
    untested: tuple[str, ...] = ()


def write_test_result(folder: Path, result: TestResult) -> None:
    """Write the test result into a run's folder."""
    text = json.dumps(dataclasses.asdict(result), indent=1) + "\n"
    write_in_run(folder / RESULT_FILE, lambda file: file.write(text.encode()))


def read_test_result(folder: Path) -> TestResult | None:
    """Read the test result of a run's folder; None if it is missing or unreadable."""
    try:
        values: Any = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        return TestResult(
            **{
                **values,
                "top1": Accuracy(**values["top1"]),
                "top5": Accuracy(**values["top5"]) if values["top5"] else None,
                "classes": tuple(
                    ClassAccuracy(one["name"], one["test_images"], Accuracy(**one["test"])) for one in values["classes"]
                ),
                "confusion": tuple(tuple(row) for row in values["confusion"]),
                "skipped": tuple((name, reason) for name, reason in values["skipped"]),
                "untested": tuple(values.get("untested", ())),
            }
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None
