"""Tar archives: what is in them, how it is read from any place, and what is refused."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from vmamba.data import DataConfig, TransformedImages, load_splits, read_image
from vmamba.data.reading import tar_index as module
from vmamba.data.reading.tar_index import index_tar
from vmamba.errors import ConfigError, DataError
from vmamba.evaluate.predict import find_images


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of indices lies in a place of its own."""
    place = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(place))
    module._index.cache_clear()
    return place


def pack(path: Path, files: dict[str, bytes], mode: Any = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4), value).save(file, "png")
    return file.getvalue()


def samples(first: int, count: int, classes: int = 2) -> dict[str, bytes]:
    """Images of the brightness of their number, whose class is its remainder."""
    return {
        name: data
        for i in range(first, first + count)
        for name, data in ((f"x/{i:03d}.png", png(i)), (f"x/{i:03d}.cls", str(i % classes).encode()))
    }


def shards(root: Path) -> Path:
    pack(root / "train-000.tar", samples(0, 7))
    pack(root / "train-001.tar", samples(7, 6))
    pack(root / "val-000.tar", samples(20, 5))
    return root


def config(root: Path, **fields: Any) -> DataConfig:
    return DataConfig("shards", root, **{"in_chans": 1, **fields})


def value(image: Image.Image) -> torch.Tensor:
    return torch.tensor(int(np.asarray(image)[0, 0]))


def test_all_archives_are_one_set(tmp_path: Path) -> None:
    splits = load_splits(config(shards(tmp_path)))
    assert (len(splits.train), len(splits.val), splits.test) == (13, 5, None)
    assert splits.classes == ("0", "1")
    assert splits.train.targets.tolist() == [i % 2 for i in range(13)]
    assert splits.train.name(8) == f"{tmp_path}/train-001.tar/x/008.png"
    order = [12, 0, 7, 3, 11, 6, 1]
    again = pickle.loads(pickle.dumps(splits.train))
    loader = DataLoader(TransformedImages(again, value), 2, sampler=order, num_workers=2)
    assert [int(v) for pixels, _ in loader for v in pixels] == order
    assert load_splits(config(tmp_path)).fingerprint() == splits.fingerprint()
    pack(tmp_path / "val-000.tar", samples(21, 5))
    assert load_splits(config(tmp_path)).fingerprint()["val"] != splits.fingerprint()["val"]


def test_val_is_taken_from_train_where_there_is_none(tmp_path: Path) -> None:
    pack(tmp_path / "train.tar", samples(0, 20))
    pack(tmp_path / "test-0.tar", samples(20, 4))
    splits = load_splits(config(tmp_path))
    assert splits.test is not None
    assert (len(splits.train), len(splits.val), len(splits.test)) == (16, 4, 4)
    both = [int(value(part[i][0])) for part in (splits.train, splits.val) for i in range(len(part))]
    assert sorted(both) == list(range(20))
    assert sorted(splits.val.targets) == [0, 0, 1, 1]


def test_labels_may_be_words_lists_and_have_names(tmp_path: Path) -> None:
    said = [{"label": "dog"}, {"label": "cat"}, {"label": "dog", "age": 3}]
    files = {f"{i}.png": png(i) for i in range(3)} | {f"{i}.json": json.dumps(s).encode() for i, s in enumerate(said)}
    pack(tmp_path / "words/train-0.tar", files)
    pack(tmp_path / "words/val-0.tar", files)
    splits = load_splits(config(tmp_path / "words"))
    assert (splits.classes, splits.train.targets.tolist()) == (("cat", "dog"), [1, 0, 1])

    files |= {"0.json": b'{"labels": ["dog", "cat"]}', "2.json": b'{"labels": []}'}
    pack(tmp_path / "lists/train-0.tar", files)
    pack(tmp_path / "lists/val-0.tar", files)
    assert load_splits(config(tmp_path / "lists")).val.targets.tolist() == [[1, 1], [1, 0], [0, 0]]

    root = shards(tmp_path / "named")
    (root / "classes.txt").write_text("even\nodd\nneither\n")
    splits = load_splits(config(root))
    assert (splits.classes, splits.train.targets[:3].tolist()) == (("even", "odd", "neither"), [0, 1, 0])
    (root / "classes.txt").write_text("even\nneither\n")
    pack(root / "val-000.tar", samples(20, 5, classes=3))
    with pytest.raises(DataError, match=r"the label 2, but there are 2 classes \(even, neither…\)"):
        load_splits(config(root))


def test_the_index_is_kept_and_made_anew_for_another_file(tmp_path: Path, home: Path, monkeypatch: Any) -> None:
    path = pack(tmp_path / "a.tar", {"./x/ü.png": png(3), "x/.hidden": b"1", **samples(0, 1)})
    found = index_tar(path)
    assert list(found) == ["x/ü.png", "x/000.png", "x/000.cls"]
    data = path.read_bytes()
    assert data[found["x/ü.png"].offset :][: found["x/ü.png"].size] == png(3)
    (kept,) = (home / ".cache/vmamba/shards").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(module.tarfile, "open", lambda *_: pytest.fail("the archive is read again"))
        assert index_tar(path) == found
    kept.write_bytes(b"junk")
    assert index_tar(path) == found
    pack(path, samples(0, 2))
    assert len(index_tar(path)) == 4


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.png": png(1)}, r"train-0\.tar: a has \.png, but neither \.cls nor \.json"),
        ({"a.cls": b"1"}, r"train-0\.tar: a has \.cls, but no image"),
        ({"a.png": png(1), "a.json": b"{}"}, r"a\.json is no label"),
        ({"a.png": png(1), "a.json": b"{"}, r"a\.json is no label"),
        ({"a.png": png(1), "a.cls": b"0"}, "alone; want two or more"),
        ({"a.png": b"junk", "a.cls": b"1"}, r"1 unreadable image.*train-0\.tar/a\.png: not an image"),
    ],
)
def test_archives_that_cannot_be_used(tmp_path: Path, files: dict[str, bytes], words: str) -> None:
    pack(tmp_path / "train-0.tar", files)
    with pytest.raises(DataError, match=words):
        load_splits(config(tmp_path))


def test_what_is_no_archive_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no train-\*\.tar in"):
        load_splits(config(tmp_path))
    pack(tmp_path / "train-0.tar", samples(0, 2), "w:gz")
    with pytest.raises(DataError, match=r"train-0\.tar.*want a whole, uncompressed tar archive"):
        load_splits(config(tmp_path))
    whole = pack(tmp_path / "train-0.tar", {"a.cls": b"0", "a.png": png(0) * 50}).read_bytes()
    (tmp_path / "train-0.tar").write_bytes(whole[:2000])
    with pytest.raises(DataError, match=r"cut short|want a whole"):
        load_splits(config(tmp_path))
    with pytest.raises(ConfigError, match="the directory that holds the archives"):
        DataConfig("shards")


def test_damaged_images_are_left_out_by_name(tmp_path: Path) -> None:
    root = shards(tmp_path)
    pack(root / "train-001.tar", {**samples(7, 6), "x/009.png": b"junk"})
    splits = load_splits(config(root, unreadable="skip", verify="none"))
    data = TransformedImages(splits.train, value, replace=True)
    assert [int(data[i][0]) for i in (8, 9, 10)] == [8, 10, 10]
    assert splits.skipped == (f"{root}/train-001.tar/x/009.png",)
    splits = load_splits(config(root, verify="none"))
    with pytest.raises(DataError, match=r"cannot read image .*train-001\.tar/x/009\.png: not an image"):
        splits.train[9]


def test_images_inside_archives_are_found_and_read(tmp_path: Path) -> None:
    root = shards(tmp_path)
    found = find_images([root / "val-000.tar"])
    assert found == [root / "val-000.tar" / "x" / f"{i:03d}.png" for i in range(20, 25)]
    assert value(read_image(found[3], 1)) == 23
    with pytest.raises(DataError, match=r"val-000\.tar/none\.png: no such file"):
        read_image(root / "val-000.tar/none.png", 1)
    pack(tmp_path / "empty.tar", {"a.txt": b""})
    with pytest.raises(DataError, match=r"no images in .*empty\.tar"):
        find_images([tmp_path / "empty.tar"])


def test_a_run_from_archives(tmp_path: Path) -> None:
    from vmamba.evaluate.predict import PredictConfig, predict
    from vmamba.train.run import train
    from vmamba.train.settings.config import TrainConfig

    for part, count in (("train", 40), ("val", 8)):
        files = samples(0, count)
        pack(
            tmp_path / f"s/{part}-0.tar",
            {name: png(250 * (i // 2 % 2)) if i % 2 == 0 else data for i, (name, data) in enumerate(files.items())},
        )
    result = train(
        TrainConfig(
            model_options={"dims": [8, 16], "depths": [1, 1]}, data=config(tmp_path / "s", image_size=8), epochs=2,
            batch_size=4, lr=1e-2, num_workers=1, device="cpu", output=tmp_path / "run",
        )
    )  # fmt: skip
    assert result.best_val["accuracy"] == 1.0
    answers = predict(PredictConfig((tmp_path / "s/val-0.tar",), tmp_path / "run", output=tmp_path / "o", device="cpu"))
    assert [answer.classes[0] for answer in answers] == ["0", "1"] * 4
    assert (tmp_path / "o" / "contact_sheet.png").is_file()
