"""Many files: their names in arrays, which of them are decoded first, and damaged ones that are met later."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from vmamba.data import DataConfig, TransformedImages, load_splits
from vmamba.data.reading import file_images as module
from vmamba.data.reading.file_images import FileImages, find_faults
from vmamba.data.reading.files import FileList, list_folders, spread
from vmamba.data.types import MOST_SKIPPED, NO_LABEL
from vmamba.errors import DataError


def tree(root: Path, count: int = 20, damaged: tuple[str, ...] = ()) -> Path:
    """Two classes; each image has its number's brightness."""
    for label in "ab":
        (root / label).mkdir(parents=True)
        for i in range(count):
            path = root / label / f"{i:02d}.png"
            if f"{label}/{path.name}" in damaged:
                path.write_bytes(b"junk")
            else:
                Image.new("L", (4, 4), i).save(path)
    return root


def listed(root: Path) -> FileImages:
    files, counts = list_folders(root, ["a", "b"])
    return FileImages(files, np.repeat([0, 1], counts), in_chans=1, skip=True)


def value(image: Image.Image) -> torch.Tensor:
    return torch.tensor(int(np.asarray(image)[0, 0]))


def test_a_list_holds_the_names_in_order_and_choices_share_them(tmp_path: Path) -> None:
    names = [b"a/1.png", "b/ü x.png".encode(), b"b/\xff.png", b""]
    files = FileList.of(tmp_path, names)
    assert [files.name(i) for i in range(len(files))] == names
    assert files[1] == tmp_path / "b/ü x.png"
    assert os.fsencode(files[2]) == os.fsencode(tmp_path) + b"/b/\xff.png"
    chosen = files.take(np.array([2, 0])).take(np.array([1, 0, 1]))
    assert [chosen.name(i) for i in range(3)] == [names[0], names[2], names[0]]
    assert chosen._text is files._text
    assert len(FileList.of(tmp_path, [])) == 0
    again = pickle.loads(pickle.dumps(files))
    assert [again[i] for i in range(4)] == [files[i] for i in range(4)]


def test_folders_are_listed_through_and_through_in_order(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/10.jpg", "b/1/x/y.webp", "a/.hidden.png", "a/n.txt", "a/z.bmp", "c/not.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    files, counts = list_folders(tmp_path, ["b", "a"])
    assert [files.name(i) for i in range(len(files))] == [b"b/1/x/y.webp", b"b/10.jpg", b"b/2.PNG", b"a/z.bmp"]
    assert counts.tolist() == [3, 1]


def test_the_fingerprint_is_that_of_earlier_versions(tmp_path: Path) -> None:
    images = listed(tree(tmp_path, 2))
    digest = hashlib.sha256()
    for i in range(4):
        path, target = images.files[i], images.targets[i]
        digest.update(f"{path.relative_to(tmp_path).as_posix()}\0{path.stat().st_size}\0{target}\n".encode())
    assert images.fingerprint() == digest.hexdigest()[:16]
    images.files[3].unlink()
    assert images.fingerprint() != digest.hexdigest()[:16]


def test_of_many_files_the_sizes_of_some_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmamba.data.reading.files.SIZES_SEEN", 3)
    images = listed(tree(tmp_path, 5))
    looked: list[str] = []
    plain = Path.stat

    def stat(path: Path, **how: Any) -> os.stat_result:
        looked.append(path.name)
        return plain(path, **how)

    monkeypatch.setattr(Path, "stat", stat)
    before = images.fingerprint()
    assert looked == ["00.png", "04.png", "04.png"]
    images.targets[2] = 1  # labels and names count for all
    assert images.fingerprint() != before


def test_spread_is_even_and_the_same_each_time() -> None:
    assert spread(3, 5).tolist() == [0, 1, 2]
    assert spread(101, 5).tolist() == [0, 25, 50, 75, 100]
    assert spread(0, 5).tolist() == []


def test_a_sample_is_verified_and_what_it_misses_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = listed(tree(tmp_path, damaged=("a/00.png", "a/01.png", "b/19.png")))
    monkeypatch.setattr(module, "VERIFIED", 4)
    assert list(find_faults(images.files, "sample")) == [0, 39]
    assert list(find_faults(images.files, "all")) == [0, 1, 39]
    assert find_faults(images.files, "none") == {}
    monkeypatch.setattr(module, "_BLOCK", 7)
    assert list(find_faults(images.files, "all")) == [0, 1, 39]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_file_is_replaced_and_noted(tmp_path: Path, workers: int) -> None:
    images = listed(tree(tmp_path, damaged=("a/03.png", "a/04.png", "b/19.png")))
    for _ in range(2):  # the same each time, and noted once
        loader = DataLoader(TransformedImages(images, value, replace=True), 10, num_workers=workers)
        pixels, labels = (torch.cat(part) for part in zip(*loader, strict=True))
        want = [0, 1, 2, 5, 5, *range(5, 20), *range(19), 0]  # the first follows the last
        assert pixels.tolist() == want
        assert labels.tolist() == [0] * 20 + [1] * 19 + [0]
        assert [Path(name).name for name in images.faults.names()] == ["03.png", "04.png", "19.png"]
    measured = TransformedImages(images, value)
    assert [measured[i][1] for i in (2, 3, 4, 5, 39)] == [0, NO_LABEL, NO_LABEL, 0, NO_LABEL]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_stops_by_its_name_in_one_line(tmp_path: Path, workers: int) -> None:
    images = listed(tree(tmp_path, 4, damaged=("a/01.png",)))
    images.skip = False
    with pytest.raises(DataError) as caught:
        list(DataLoader(TransformedImages(images, value, replace=True), 2, num_workers=workers))
    assert str(caught.value) == (
        f"cannot read image {tmp_path}/a/01.png: not an image that Pillow knows; "
        "leave such images out with unreadable=skip"
    )


def test_a_disk_that_is_gone_is_told_soon(tmp_path: Path) -> None:
    images = listed(tree(tmp_path, MOST_SKIPPED))
    for i in range(len(images)):
        images.files[i].unlink()
    with pytest.raises(DataError, match=rf"{MOST_SKIPPED} images in a row cannot be read; the last: .*no such file"):
        TransformedImages(images, value, replace=True)[0]
    assert len(images.faults.names()) == MOST_SKIPPED


def test_a_set_sent_to_another_process_notes_faults_of_its_own(tmp_path: Path) -> None:
    root = tree(tmp_path, 10, damaged=("a/03.png",))
    splits = load_splits(DataConfig("folder", root, in_chans=1, unreadable="skip", verify="none"))
    there = pickle.loads(pickle.dumps(splits))
    for part in (there.train, there.val, there.test):
        list(DataLoader(TransformedImages(part, value), 5, num_workers=1))
    assert [Path(name).name for name in there.skipped] == ["03.png"]
    assert splits.skipped == ()
    assert load_splits(DataConfig("folder", root, in_chans=1, unreadable="skip")).skipped == there.skipped


@pytest.mark.parametrize(("given", "means"), [(True, "all"), (False, "none"), ("all", "all"), ("none", "none")])
def test_verify_was_a_switch_once(given: Any, means: str) -> None:
    assert DataConfig(verify=given).verify == means
    assert DataConfig().verify == "sample"
