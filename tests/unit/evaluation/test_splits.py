"""Labels come from class folders; an unsuitable layout gives a one-line error that names the folder."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import numpy as np
import pytest

from mae.data.sources.scan import scan_images
from mae.errors import DataError
from mae.evaluation import splits
from mae.evaluation.splits import Split, by_label, make_split, read_labels, stratified
from tests.unit.evaluation.small import class_folders, image


def split_of(root: Path, *, test_share: float = 0.2, seed: int = 0) -> Split:
    scan = scan_images([root])
    labels = read_labels(scan.images, [root], [one.path for one in scan.unreadable], scan.looked_into)
    return make_split(scan.images, labels, root.name, seed=seed, test_share=test_share)


def test_train_and_test_folders(tmp_path: Path) -> None:
    class_folders(tmp_path / "d" / "train", 4)
    class_folders(tmp_path / "d" / "test", 2)
    split = split_of(tmp_path / "d", test_share=0.2)
    assert split.classes == ("blue", "green", "red")
    assert (len(split.train), len(split.test), split.notes) == (12, 6, ())
    told = split_of(tmp_path / "d", test_share=0.5).notes
    assert told == ("d has its own test images, so --test-share 0.5 has no effect",)
    source = scan_images([tmp_path / "d"]).images
    for part, images, labels in (("train", split.train, split.train_labels), ("test", split.test, split.test_labels)):
        for index, label in zip(images, labels, strict=True):
            parts = source.name(int(index)).parts
            assert parts[-3:-1] == (part, split.classes[label])


def test_val_stands_in_for_test_and_is_told_of_where_both_are(tmp_path: Path) -> None:
    for part in ("train", "val"):
        class_folders(tmp_path / "a" / part, 2)
    assert len(split_of(tmp_path / "a").test) == 6
    for part in ("train", "val", "test"):
        class_folders(tmp_path / "b" / part, 2)
    image(tmp_path / "b" / "val" / "amber" / "0.png", (0, 0, 0), 0)  # the first of all classes, of no part that is used
    split = split_of(tmp_path / "b")
    assert split.classes == ("blue", "green", "red")
    assert split.train_labels.tolist() == split.test_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert "val is not used" in split.notes[0]


def test_one_tree_is_split_by_the_seed_and_says_so(tmp_path: Path) -> None:
    class_folders(tmp_path / "d", 8)
    split = split_of(tmp_path / "d")
    assert np.bincount(split.test_labels).tolist() == [2, 2, 2]
    assert not set(split.train) & set(split.test)
    assert len(split.train) + len(split.test) == 24
    assert "20% of each class (6 of 24 images) are test images, drawn by --seed 0" in split.notes[0]
    assert np.array_equal(split_of(tmp_path / "d").test, split.test)
    assert not np.array_equal(split_of(tmp_path / "d", seed=1).test, split.test)


@pytest.mark.parametrize("test_share", [0.1, 0.9])
def test_every_class_is_in_both_parts_whatever_its_share(test_share: float, tmp_path: Path) -> None:
    class_folders(tmp_path / "d", 2)
    split = split_of(tmp_path / "d", test_share=test_share)
    assert np.bincount(split.train_labels).tolist() == np.bincount(split.test_labels).tolist() == [1, 1, 1]


def test_deeper_folders_belong_to_their_class_and_wrappers_are_looked_through(tmp_path: Path) -> None:
    for number in range(4):
        image(tmp_path / "d" / "wrap" / "cat" / "black" / f"{number}.png", (0, 0, 0), number)
        image(tmp_path / "d" / "wrap" / "dog" / f"{number}.png", (0, 0, 0), number + 9)
    assert split_of(tmp_path / "d").classes == ("cat", "dog")


def test_an_archive_has_folders_too(tmp_path: Path) -> None:
    class_folders(tmp_path / "d" / "train", 2)
    class_folders(tmp_path / "d" / "test", 2)
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for path in sorted((tmp_path / "d").rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path))
    split = split_of(tmp_path / "d.zip")
    assert (split.classes, len(split.train), len(split.test)) == (("blue", "green", "red"), 6, 6)


def none(root: Path) -> None:
    image(root / "a.png", (0, 0, 0), 0)
    image(root / "b.png", (0, 0, 0), 1)


def one(root: Path) -> None:
    class_folders(root, 3, names=("red",))


def one_and_an_empty_one(root: Path) -> None:
    class_folders(root, 3, names=("red",))
    (root / "rare").mkdir()


def loose(root: Path) -> None:
    class_folders(root, 3)
    image(root / "stray.png", (0, 0, 0), 0)


def loose_in_a_part(root: Path) -> None:
    for part in ("train", "test"):
        class_folders(root / part, 3)
    image(root / "test" / "stray.png", (0, 0, 0), 0)


def missing_in_test(root: Path) -> None:
    class_folders(root / "train", 3)
    class_folders(root / "test", 3, names=("blue", "red"))


def missing_in_train(root: Path) -> None:
    class_folders(root / "train", 3, names=("blue", "red"))
    class_folders(root / "test", 3)


def single(root: Path) -> None:
    class_folders(root, 3)
    image(root / "rare" / "0.png", (0, 0, 0), 0)


def flat_parts(root: Path) -> None:
    for part in ("train", "test"):
        image(root / part / "0.png", (0, 0, 0), 0)


def train_without_test(root: Path) -> None:
    for part in ("train", "dev"):
        class_folders(root / part, 2)


def no_train(root: Path) -> None:
    for part in ("test", "val"):
        class_folders(root / part, 2)


def unreadable_class(root: Path) -> None:
    class_folders(root, 3)
    (root / "rare").mkdir()
    (root / "rare" / "0.jpg").write_text("a text")


def unreadable_in_both(root: Path) -> None:
    for part in ("train", "test"):
        class_folders(root / part, 3)
        (root / part / "rare").mkdir()
        (root / part / "rare" / "0.jpg").write_bytes(b"")


def unreadable_test(root: Path) -> None:
    class_folders(root / "train", 3)
    class_folders(root / "test", 1)
    for path in (root / "test").rglob("*.png"):
        path.write_bytes(b"")


def broken_parts(root: Path) -> None:
    class_folders(root / "images" / "val", 2)
    for part in ("train", "test"):
        (root / "images" / part).mkdir()
        (root / "images" / part / "empty.png").touch()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (train_without_test, "d/train contains class folders, but there is no test/ or val/; next to it is dev"),
        (no_train, "d/test contains class folders, but there is no train/; next to it is val"),
        (unreadable_class, "d: no image of rare can be read"),
        (unreadable_in_both, "d: no image of test/rare, train/rare can be read"),
        (unreadable_test, "d: no image of test/blue, test/green, test/red can be read"),
        (none, "d: there are no class folders"),
        (one, "d: there is only one class, red; two are needed"),
        (one_and_an_empty_one, r"d: there is only one class, red \(no image in rare\); two are needed"),
        (loose, "stray.png is in no class folder"),
        (loose_in_a_part, "stray.png is in no class folder"),
        (missing_in_test, "d/test has no folder green with images, but d/train has"),
        (missing_in_train, "d/train has no folder green with images, but d/test has"),
        (single, "d/rare has only one image"),
        (flat_parts, "d: there are no class folders"),
        (broken_parts, "d: train and test hold no class with a readable image"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_does_not_fit_is_one_line(make: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    make(tmp_path / "d")
    with pytest.raises(DataError, match=words) as error:
        split_of(tmp_path / "d")
    assert error.value.hint
    assert "\n" not in error.value.message


def test_a_class_may_be_called_test_and_a_broken_image_is_no_lost_class(tmp_path: Path) -> None:
    class_folders(tmp_path / "d", 3)
    (tmp_path / "d" / "red").rename(tmp_path / "d" / "test")
    (tmp_path / "d" / "blue" / "broken.jpg").write_bytes(b"")
    (tmp_path / "d" / "loose.jpg").write_bytes(b"")
    assert split_of(tmp_path / "d").classes == ("blue", "green", "test")


def test_class_folders_without_an_image_are_named(tmp_path: Path) -> None:
    class_folders(tmp_path / "d", 3)
    (tmp_path / "d" / "rare" / "deeper").mkdir(parents=True)
    (tmp_path / "d" / "texts").mkdir()
    (tmp_path / "d" / "texts" / "a.txt").write_text("a text")
    (tmp_path / "d" / ".hidden").mkdir()
    (tmp_path / "d" / "red" / "more").mkdir()
    split = split_of(tmp_path / "d")
    assert split.classes == ("blue", "green", "red")
    assert split.notes[1:] == ("d: no image in rare, texts; left out",)


def test_class_folders_without_an_image_in_both_parts_are_named(tmp_path: Path) -> None:
    for part in ("train", "test", "val"):
        class_folders(tmp_path / "d" / "wrap" / part, 2)
        (tmp_path / "d" / "wrap" / part / "rare").mkdir()
    (tmp_path / "d" / "wrap" / "docs").mkdir()
    (tmp_path / "d" / "other" / "docs").mkdir(parents=True)
    assert split_of(tmp_path / "d").notes[1:] == ("d: no image in test/rare, train/rare; left out",)


@pytest.mark.parametrize("filled", [("train",), ("test",), ("train", "val")])
def test_parts_without_an_image_are_named(filled: tuple[str, ...], tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / "d" / part / "red").mkdir(parents=True)
    for part in filled:
        class_folders(tmp_path / "d" / part, 3)
    empty = "train" if filled == ("test",) else "test"
    assert split_of(tmp_path / "d").notes[-1] == f"d: no image in {empty}; left out"


def test_given_class_folders_without_an_image_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(tmp_path, 3)
    (tmp_path / "rare").mkdir()
    (tmp_path / "not given").mkdir()
    monkeypatch.chdir(tmp_path)
    roots = [Path(name) for name in ("blue", "red", "rare")]
    scan = scan_images(roots)
    assert read_labels(scan.images, roots, folders=scan.looked_into).empty == ("rare",)
    scan = scan_images([Path()])
    assert read_labels(scan.images, [Path()], folders=scan.looked_into).empty == ("not given", "rare")


def test_a_smaller_share_is_part_of_a_larger_one() -> None:
    labels = np.repeat(np.arange(3), (100, 50, 2))
    some, more = (stratified(labels, share, 0, "x") for share in (0.1, 0.5))
    assert np.bincount(labels[some]).tolist() == [10, 5, 1]
    assert np.bincount(labels[more]).tolist() == [50, 25, 1]
    assert set(some) <= set(more)
    assert not np.array_equal(some, stratified(labels, 0.1, 1, "x"))


def test_indices_by_label() -> None:
    labels = np.array([2, 0, 2, 5, 0, 2])
    assert [own.tolist() for own in by_label(labels)] == [[1, 4], [0, 2, 5], [3]]
    assert by_label(labels[:0]) == []


def test_folders_are_classes_on_windows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [PureWindowsPath(rf"C:\data\{part}\{name}\1.png") for part in ("test", "train") for name in ("cat", "dog")]
    monkeypatch.setattr(splits, "os", SimpleNamespace(sep="\\"))
    monkeypatch.setattr(splits, "Path", PureWindowsPath)
    monkeypatch.setattr(PureWindowsPath, "is_dir", lambda path: path.suffix == "", raising=False)

    class Source:
        def __len__(self) -> int:
            return len(names)

        def name(self, index: int) -> PureWindowsPath:
            return names[index]

    labels = read_labels(Source(), [PureWindowsPath(r"C:\data")])  # type: ignore[arg-type, list-item]
    assert labels.classes == ("cat", "dog")
    assert labels.parts == ("test", "train")
