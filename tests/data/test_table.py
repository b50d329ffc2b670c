"""Labels from a CSV file: what it may look like, how its images are divided, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vmamba.data import DataConfig, load_splits
from vmamba.data.datasets.table import read_table
from vmamba.errors import ConfigError, DataError


def table(folder: Path, text: str) -> Path:
    path = folder / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return path


def images(folder: Path, *names: str) -> None:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), i).save(folder / name)


def test_one_label_an_image(tmp_path: Path) -> None:
    read = read_table(table(tmp_path, "\ufeffFile,Label\nb.png,10\nx/a.png,2\nc.png,10\n"))
    assert read.files == ("b.png", "x/a.png", "c.png")
    assert read.classes == ("2", "10")  # numbers by their size
    assert read.targets.tolist() == [1, 0, 1]
    assert read.parts == ()


@pytest.mark.parametrize(
    "text",
    [
        "file,labels\na.png,cat;dog\nb.png,\nc.png,dog | cat\nd.png,dog\n",
        "file,labels\na.png,cat\na.png,dog\nb.png,\nc.png,dog\nc.png,cat\nd.png,dog\n",
        "file,cat,dog\na.png,1,1\nb.png,0,0\nc.png,1,1\nd.png,0, 1\n",
    ],
    ids=["several in a cell", "several lines", "columns"],
)
def test_several_labels_an_image(tmp_path: Path, text: str) -> None:
    read = read_table(table(tmp_path, text))
    assert (read.files, read.classes) == (("a.png", "b.png", "c.png", "d.png"), ("cat", "dog"))
    assert read.targets.tolist() == [[1, 1], [0, 0], [1, 1], [0, 1]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"has columns \[\]: want 'file'"),
        ("name,label\na,b\n", "want 'file', and 'label'"),
        ("file,label\n", "a header but no line"),
        ("file,label\na.png\n", "line 2: 2 cells wanted"),
        ("file,label\na.png,x,y\n", "line 2: 2 cells wanted"),
        ("file,label\na.png,\n", "line 2: a.png has no label"),
        ("file,label\na.png,x\nb.png,x\n", r"knows the classes \['x'\] alone"),
        ("file,cat,age\na.png,1,37\n", "line 2: column 'age' holds '37'; want 0 or 1"),
        ("file,label,split\na.png,x,here\nb.png,y,train\n", "line 2: split is 'here'; want train, val or test"),
        ("file,labels,split\na.png,x,test\na.png,y,train\n", "line 3: a.png is in train here, in test before"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_table(table(tmp_path, text))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read labels .*none\.csv"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "x.csv").write_bytes(b"file,label\n\xff,a\n")
    with pytest.raises(DataError, match=r"x\.csv.*UTF-8"):
        read_table(tmp_path / "x.csv")


def config(root: Path, text: str, **fields: object) -> DataConfig:
    return DataConfig("folder", root, in_chans=1, labels=table(root, text), **fields)  # type: ignore[arg-type]


def test_parts_come_from_the_table_the_folders_or_by_lot(tmp_path: Path) -> None:
    names = [f"{part}/{i}.png" for part in ("train", "val") for i in range(6)]
    images(tmp_path, *names)
    lines = "".join(f"{name},{'ab'[i % 2]}\n" for i, name in enumerate(names))
    splits = load_splits(config(tmp_path, f"file,label\n{lines}"))
    assert (len(splits.train), len(splits.val), splits.test) == (6, 6, None)
    assert splits.val.name(0).endswith("val/0.png")
    pixels, label = splits.val[1]
    assert (np.asarray(pixels)[0, 0], label) == (7, 1)

    lines = "".join(f"{name},{'ab'[i % 2]},{'test' if i < 4 else 'training'}\n" for i, name in enumerate(names))
    splits = load_splits(config(tmp_path, f"file,label,split\n{lines}"))
    assert splits.test is not None
    assert (len(splits.train), len(splits.val), len(splits.test)) == (6, 2, 4)
    assert sorted(splits.val.targets) == [0, 1]  # class by class
    with pytest.raises(DataError, match=r"no image to train on: its split column says \['test'\]"):
        load_splits(config(tmp_path, "file,label,split\ntrain/0.png,a,test\ntrain/1.png,b,test\n"))

    images(tmp_path, *(f"{i}.png" for i in range(20)))
    lines = "".join(f"{i}.png,{i % 2},{i % 3 and 1}\n" for i in range(20))
    splits = load_splits(config(tmp_path, f"file,odd,three\n{lines}", train_images=5))
    assert splits.test is not None
    assert (len(splits.train), len(splits.val), len(splits.test)) == (5, 4, 4)
    assert splits.val.targets.shape == (4, 2)
    number = int(Path(splits.val.name(2)).stem)
    assert splits.val[2][1].tolist() == [number % 2, int(number % 3 > 0)]
    before = splits.fingerprint()
    flipped = f"file,odd,three\n{lines}".replace(f"{number}.png,{number % 2}", f"{number}.png,{1 - number % 2}")
    assert load_splits(config(tmp_path, flipped, train_images=5)).fingerprint() != before


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    images(tmp_path, *(f"{i}.png" for i in range(9)))
    text = "file,label\ngone.png,a\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(9))
    with pytest.raises(
        DataError, match=r"1 of the files .* first: .*gone\.png: no such file; names count from data_dir"
    ):
        load_splits(config(tmp_path, text))
    splits = load_splits(config(tmp_path, text, unreadable="skip"))
    assert [Path(name).name for name in splits.skipped] == ["gone.png"]
    with pytest.raises(ConfigError, match='dataset="digits" brings its own'):
        DataConfig("digits", labels=tmp_path / "labels.csv")
