"""How a classifier did on the test images, as the run's folder keeps it. Standard library only."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from mae.evaluation.results import Accuracy, ClassAccuracy
from mae.training.run_folder import RESULT_FILE, write_in_run


@dataclasses.dataclass(frozen=True)
class TestResult:
    """The answers of the chosen epoch's classifier.

    Attributes:
        epochs: That the run had when it was tested.
        chosen_epoch: Whose weights, counted from 1.
        test_images: That could be read.
        top1, top5: Accuracy; top-5 with more than five classes only.
        loss: Mean cross-entropy.
        mean_class_accuracy: Mean of the accuracies of the classes.
        classes: Each with its accuracy, in order.
        confusion: [true class][named class], counts.
        skipped: (name, reason) of test images that could not be read.
        untested: Classes of which none could be read; they are in no mean.
    """

    __test__ = False  # pytest takes a class of such a name for a test

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
    """Write it into a run's folder."""
    text = json.dumps(dataclasses.asdict(result), indent=1) + "\n"
    write_in_run(folder / RESULT_FILE, lambda file: file.write(text.encode()))


def read_test_result(folder: Path) -> TestResult | None:
    """What a run's folder keeps; None where there is nothing that can be read."""
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
