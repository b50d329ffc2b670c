"""Data sets: what is read, how it is split, and what is refused with which words."""

from __future__ import annotations

import gzip
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vmamba.data import (
    DATASETS,
    Augmentation,
    DataConfig,
    Preprocessing,
    TransformedImages,
    load_splits,
    read_image,
    stratified_split,
)
from vmamba.data.datasets.fashion_mnist import read_idx
from vmamba.data.datasets.marks import GAP, MARK, make_marks
from vmamba.data.reading.images import convert
from vmamba.errors import ConfigError, DataError

RED = np.array([200, 30, 40])


def patch(colour: tuple[int, ...], mode: str) -> Image.Image:
    return Image.new(mode, (6, 4), colour if len(colour) > 1 else colour[0])


# --- images of every mode


@pytest.mark.parametrize(
    ("image", "rgb"),
    [
        (patch((200, 30, 40), "RGB"), (200, 30, 40)),
        (patch((90,), "L"), (90, 90, 90)),
        (patch((1,), "1"), (255, 255, 255)),
        (patch((200, 30, 40, 255), "RGBA"), (200, 30, 40)),
        (patch((200, 30, 40, 0), "RGBA"), (255, 255, 255)),  # hidden colour does not shine through
        (patch((0, 128), "LA"), (127, 127, 127)),
        (patch((200, 30, 40), "RGB").quantize(4), (200, 30, 40)),
        (patch((0, 255, 255, 0), "CMYK"), (255, 0, 0)),
        (Image.fromarray(np.full((4, 6), 0x8000, np.uint16)), (128, 128, 128)),
        (Image.fromarray(np.full((4, 6), 0x8000, np.int32)), (128, 128, 128)),
        (Image.fromarray(np.full((4, 6), 77, np.int32)), (77, 77, 77)),
        (Image.fromarray(np.full((4, 6), 0.5, np.float32)), (128, 128, 128)),
        (Image.fromarray(np.full((4, 6), 50.0, np.float32)), (50, 50, 50)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_convert_every_mode(image: Image.Image, rgb: tuple[int, int, int]) -> None:
    converted = convert(image, 3)
    assert (converted.mode, converted.size) == ("RGB", (6, 4))
    np.testing.assert_allclose(np.asarray(converted)[0, 0], rgb, atol=1)
    assert convert(image, 1).mode == "L"


def test_palette_transparency_is_laid_over_white() -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8), mode=None)
    image = image.convert("P")
    image.putpalette([10, 20, 30, 200, 30, 40])
    image.info["transparency"] = 0
    assert np.asarray(convert(image, 3))[0].tolist() == [[255, 255, 255], [200, 30, 40]]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    patch((1, 2, 3), "RGB").save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg", 3).size == (4, 6)


def test_only_one_or_three_channels() -> None:
    with pytest.raises(ConfigError, match=r"in_chans=4.*1 channel \(grey\) or 3"):
        convert(patch((0,), "L"), 4)


def test_unreadable_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.png: not an image"):
        read_image(tmp_path / "bad.png", 3)
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        read_image(tmp_path / "gone.png", 3)


# --- preprocessing


def test_eval_transform_is_resize_crop_normalise() -> None:
    preprocessing = Preprocessing(8, 3, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
    tensor = preprocessing.eval_transform()(patch((200, 30, 40, 255), "RGBA"))
    want = (torch.tensor([200, 30, 40]) / 255 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.25, 0.5])
    assert tensor.shape == (3, 8, 8)
    torch.testing.assert_close(tensor[:, 3, 3], want)


def test_crop_pct_keeps_the_centre() -> None:
    pixels = np.zeros((16, 16), np.uint8)
    pixels[4:12, 4:12] = 255
    preprocessing = Preprocessing(8, 1, (0.0,), (1.0,), interpolation="nearest", crop_pct=0.5)
    assert preprocessing.eval_transform()(Image.fromarray(pixels)).min() == 1.0


def test_preprocessing_travels_as_plain_values() -> None:
    preprocessing = Preprocessing(32, 3, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), "bilinear", 0.9)
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing
    with pytest.raises(ConfigError, match="preprocessing has fields"):
        Preprocessing.from_dict({"image_size": 3})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": 0}, "image_size=0"),
        ({"mean": (0.5,)}, "in_chans=3 values"),
        ({"std": (1.0, 0.0, 1.0)}, "above 0"),
        ({"crop_pct": 1.5}, "crop_pct=1.5"),
        ({"interpolation": "bicubc"}, "did you mean 'bicubic'"),
        ({"in_chans": 2}, "in_chans=2"),
    ],
)
def test_preprocessing_refuses(changes: dict[str, object], words: str) -> None:
    values = {"image_size": 8, "in_chans": 3, "mean": (0.5,) * 3, "std": (0.5,) * 3, **changes}
    with pytest.raises(ConfigError, match=words):
        Preprocessing(**values)  # type: ignore[arg-type]


def test_augmentation_changes_training_images_only_by_the_generators() -> None:
    preprocessing = Preprocessing(16, 3, (0.5,) * 3, (0.5,) * 3)
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (20, 20, 3)).astype(np.uint8))
    transform = preprocessing.train_transform(Augmentation((0.5, 1.0), hflip=0.5, color_jitter=0.4))
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        import random

        random.seed(seed)
        draws.append(transform(image))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_no_augmentation_is_the_eval_transform() -> None:
    preprocessing = Preprocessing(16, 1, (0.5,), (0.5,))
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (20, 20)).astype(np.uint8))
    assert torch.equal(preprocessing.train_transform()(image), preprocessing.eval_transform()(image))


def test_unknown_policy_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="auto_augment='rnd' is not a timm policy"):
        Preprocessing(16, 1, (0.5,), (0.5,)).train_transform(Augmentation(auto_augment="rnd"))


@pytest.mark.parametrize(
    "fields", [{"hflip": 1.5}, {"color_jitter": -1}, {"crop_scale": (0.5, 2.0)}, {"crop_ratio": (2, 1)}]
)
def test_augmentation_refuses(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        Augmentation(**fields)  # type: ignore[arg-type]


# --- splitting


@settings(max_examples=50, deadline=None)
@given(counts=st.lists(st.integers(3, 40), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_stratified_split_is_a_partition_in_proportion(counts: list[int], seed: int) -> None:
    targets = [label for label, count in enumerate(counts) for _ in range(count)]
    parts = stratified_split(targets, (0.6, 0.2, 0.2), seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(targets)))
    for part, fraction in zip(parts, (0.6, 0.2, 0.2), strict=True):
        got = Counter(targets[i] for i in part)
        for label, count in enumerate(counts):
            assert got[label] >= 1
            assert abs(got[label] - fraction * count) <= 1 + 1e-9


def test_stratified_split_refuses_tiny_classes() -> None:
    with pytest.raises(DataError, match="class 1 has 2 image"):
        stratified_split([0, 0, 0, 1, 1], (0.6, 0.2, 0.2), 0)


def test_digits_are_split_60_20_20_by_class() -> None:
    splits = load_splits(DataConfig())
    assert splits.test is not None
    sizes = [len(splits.train), len(splits.val), len(splits.test)]
    assert sum(sizes) == 1797
    np.testing.assert_allclose(np.array(sizes) / 1797, [0.6, 0.2, 0.2], atol=0.002)
    for part in (splits.train, splits.val, splits.test):
        shares = np.bincount(part.targets) / len(part)
        assert shares.min() > 0.09
        assert shares.max() < 0.11
    image, label = splits.train[0]
    assert (image.mode, image.size, label) == ("L", (8, 8), splits.train.targets[0])
    assert splits.classes == tuple("0123456789")

    again, other = load_splits(DataConfig()), load_splits(DataConfig(seed=1))
    assert splits.fingerprint() == again.fingerprint()
    assert splits.fingerprint()["test"] != other.fingerprint()["test"]


def test_digits_are_normalised() -> None:
    splits = load_splits(DataConfig())
    transform = splits.preprocessing.eval_transform()
    data = torch.stack([transform(splits.train[i][0]) for i in range(0, len(splits.train), 4)])
    assert data.shape[1:] == (1, 32, 32)
    assert abs(data.mean().item()) < 0.05
    assert abs(data.std().item() - 1) < 0.05


def test_channels_can_be_changed() -> None:
    grey = load_splits(DataConfig()).preprocessing
    colour = load_splits(DataConfig(in_chans=3, image_size=16)).preprocessing
    assert (colour.in_chans, colour.image_size, colour.mean) == (3, 16, grey.mean * 3)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dataset": "digit"}, "unknown; legal: digits, .*did you mean 'digits'"),
        ({"dataset": "/tmp"}, 'give dataset="folder" and data_dir="/tmp"'),
        ({"dataset": "folder"}, "needs data_dir"),
        ({"data_dir": Path("/tmp")}, "has no data_dir"),
        ({"image_size": 0}, "image_size=0"),
        ({"in_chans": 2}, "in_chans=2"),
        ({"seed": -1}, "seed=-1"),
        ({"unreadable": "ignore"}, "want 'stop' or 'skip'"),
        ({"verify": "some"}, "verify='some': want sample, all or none"),
    ],
)
def test_data_config_refuses(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DataConfig(**fields)  # type: ignore[arg-type]


def test_every_row_of_the_table_can_be_configured(tmp_path: Path) -> None:
    for name, row in DATASETS.items():
        config = DataConfig(name, tmp_path if row.needs_dir else None)
        assert config.defaults is row


# --- Fashion-MNIST


def write_idx(path: Path, array: np.ndarray) -> None:
    data = (
        bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    )
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def fashion_files(place: Path, suffix: str = "") -> Path:
    place.mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(0)
    for name, count in (("train", 120), ("t10k", 20)):
        write_idx(place / f"{name}-images-idx3-ubyte{suffix}", random.randint(0, 256, (count, 28, 28)))
        write_idx(place / f"{name}-labels-idx1-ubyte{suffix}", np.arange(count) % 10)
    return place


@pytest.mark.parametrize(("under", "suffix"), [("", ""), ("", ".gz"), ("FashionMNIST/raw", ""), ("raw", ".gz")])
def test_fashion_mnist_from_a_directory(tmp_path: Path, under: str, suffix: str) -> None:
    fashion_files(tmp_path / under, suffix)
    splits = load_splits(DataConfig("fashion-mnist", tmp_path))
    assert splits.test is not None
    assert [len(splits.train), len(splits.val), len(splits.test)] == [110, 10, 20]
    assert splits.classes[9] == "Ankle boot"
    assert splits.train[0][0].size == (28, 28)
    random = np.random.RandomState(0)
    random.randint(0, 256, (120, 28, 28))
    np.testing.assert_array_equal(np.asarray(splits.test[3][0]), random.randint(0, 256, (20, 28, 28))[3])
    assert splits.test[3][1] == 3


def test_fashion_mnist_files_are_checked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no train-images-idx3-ubyte or train-images-idx3-ubyte\.gz"):
        load_splits(DataConfig("fashion-mnist", tmp_path))
    with pytest.raises(DataError, match="is not a directory"):
        load_splits(DataConfig("fashion-mnist", tmp_path / "gone"))
    fashion_files(tmp_path)
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    labels.unlink()
    with pytest.raises(DataError, match="no t10k-labels-idx1-ubyte"):
        load_splits(DataConfig("fashion-mnist", tmp_path))
    write_idx(labels, np.full(20, 11))
    with pytest.raises(DataError, match=r"labels go from 0 to 9, found \[11\]"):
        load_splits(DataConfig("fashion-mnist", tmp_path))
    write_idx(labels, np.zeros(3))
    with pytest.raises(DataError, match=r"\(20, 28, 28\), \(3,\)"):
        load_splits(DataConfig("fashion-mnist", tmp_path))


def test_broken_idx_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    write_idx(path, np.zeros((3, 4)))
    assert read_idx(path).shape == (3, 4)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"a\.gz"):
        read_idx(path)
    write_idx(tmp_path / "b", np.zeros((3, 4)))
    (tmp_path / "b").write_bytes((tmp_path / "b").read_bytes()[:-1])
    with pytest.raises(DataError, match=r"b holds 11 bytes, its header says 12"):
        read_idx(tmp_path / "b")
    (tmp_path / "c").write_bytes(b"<html>")
    with pytest.raises(DataError, match="not an IDX file"):
        read_idx(tmp_path / "c")


# --- folders


def make_tree(root: Path, classes: dict[str, int]) -> Path:
    random = np.random.RandomState(0)
    for name, count in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.fromarray(random.randint(0, 256, (10, 12, 3)).astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def folder(root: Path, **fields: object) -> DataConfig:
    return DataConfig("folder", root, **fields)  # type: ignore[arg-type]


def test_bare_tree_is_split_by_class(tmp_path: Path) -> None:
    make_tree(tmp_path, {"cat": 10, "ant": 5})
    (tmp_path / ".cache").mkdir()
    (tmp_path / "ant" / "notes.txt").write_text("not an image")
    splits = load_splits(folder(tmp_path))
    assert splits.classes == ("ant", "cat")
    assert splits.test is not None
    assert [Counter(p.targets) for p in (splits.train, splits.val, splits.test)] == [
        {0: 3, 1: 6},
        {0: 1, 1: 2},
        {0: 1, 1: 2},
    ]
    tensor, label = TransformedImages(splits.val, splits.preprocessing.eval_transform())[0]
    assert (tensor.shape, label) == ((3, 224, 224), 0)


def test_train_val_test_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    for part, count in (("train", 4), ("val", 2), ("test", 1)):
        make_tree(tmp_path / part, {"a": count, "b": count})
    splits = load_splits(folder(tmp_path))
    assert splits.test is not None
    assert [len(splits.train), len(splits.val), len(splits.test)] == [8, 4, 2]


def test_without_test_there_is_none_and_without_val_it_comes_from_train(tmp_path: Path) -> None:
    make_tree(tmp_path / "train", {"a": 10, "b": 10})
    splits = load_splits(folder(tmp_path))
    assert (len(splits.train), len(splits.val), splits.test) == (16, 4, None)
    make_tree(tmp_path / "valid", {"a": 1, "b": 1})
    splits = load_splits(folder(tmp_path))
    assert (len(splits.train), len(splits.val), splits.test) == (20, 2, None)


def test_nested_folders_belong_to_their_class(tmp_path: Path) -> None:
    make_tree(tmp_path, {"a": 3, "b/inner": 2, "b": 1})
    assert Counter(load_splits(folder(tmp_path)).train.targets) == {0: 1, 1: 1}


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ({}, "no class folders in"),
        ({"a": 3, "b": 0}, r"without an image in .*\['b'\]"),
        ({"a": 0, "b": 0}, "no images in .*none of its 2 folders"),
        ({"a": 5}, "only one class folder, 'a'"),
        ({"a": 5, "b": 2}, "class folder 'b' .* has 2 image.*too few to split into 3"),
    ],
)
def test_folder_refuses(tmp_path: Path, classes: dict[str, int], words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_splits(folder(make_tree(tmp_path, classes)))


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone does not exist"):
        load_splits(folder(tmp_path / "gone"))
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file, not a directory"):
        load_splits(folder(tmp_path / "file"))
    patch((0,), "L").save(tmp_path / "loose.png")
    with pytest.raises(DataError, match="one folder for each class"):
        load_splits(folder(tmp_path))


def test_different_classes_in_train_and_val(tmp_path: Path) -> None:
    make_tree(tmp_path / "train", {"a": 3, "b": 3})
    make_tree(tmp_path / "val", {"a": 3, "c": 3})
    with pytest.raises(DataError, match=r"different classes: .*lacks \['b'\].*has \['c'\]"):
        load_splits(folder(tmp_path))


def test_unreadable_images_stop_or_are_counted(tmp_path: Path) -> None:
    make_tree(tmp_path, {"a": 6, "b": 6})
    (tmp_path / "a" / "2.png").write_bytes(b"junk")
    big = Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8))
    big.save(tmp_path / "b" / "cut.jpg")
    whole = (tmp_path / "b" / "cut.jpg").read_bytes()
    (tmp_path / "b" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"2 unreadable image\(s\): .*2\.png.*cut\.jpg.*unreadable=\"skip\""):
        load_splits(folder(tmp_path))
    splits = load_splits(folder(tmp_path, unreadable="skip"))
    assert sorted(Path(path).name for path in splits.skipped) == ["2.png", "cut.jpg"]
    assert splits.test is not None
    assert len(splits.train) + len(splits.val) + len(splits.test) == 11
    late = load_splits(folder(tmp_path, verify=False))
    parts = [part for part in (late.train, late.val, late.test) if part is not None]
    with pytest.raises(DataError, match=r"2\.png|cut\.jpg"):
        _ = [part[i] for part in parts for i in range(len(part))]


def test_folder_fingerprint_sees_changed_files(tmp_path: Path) -> None:
    make_tree(tmp_path, {"a": 5, "b": 5})
    before = load_splits(folder(tmp_path)).fingerprint()
    assert before == load_splits(folder(tmp_path)).fingerprint()
    patch((1, 2, 3), "RGB").save(tmp_path / "a" / "0.png")
    assert before != load_splits(folder(tmp_path)).fingerprint()


# --- marks


def test_marks_need_both_ends_of_the_image() -> None:
    pixels, labels = make_marks(120, 7)
    again, _ = make_marks(120, 7)
    np.testing.assert_array_equal(pixels, again)
    coloured = np.ptp(pixels.astype(int), axis=-1) > 0  # noise is grey
    pairs: Counter[tuple[int, int]] = Counter()
    for image, where, label in zip(pixels, coloured, labels, strict=True):
        rows, columns = np.nonzero(where)
        assert len(rows) == 2 * MARK * MARK
        # From the last pixel of one mark to the first of the other, along the axis where they lie farther apart.
        along = max((rows, columns), key=lambda place: int(np.diff(np.unique(place)).max()))
        places = np.unique(along)
        assert np.diff(places).max() > GAP
        first = along <= places[MARK - 1]
        red = [bool(image[rows[mask], columns[mask]].mean(0).argmax() == 0) for mask in (first, ~first)]
        assert (red[0] == red[1]) == bool(label)
        pairs[sum(red), int(label)] += 1
    # One mark's colour says nothing about the label: among images with a red mark half are "same".
    assert pairs == {(0, 1): 30, (1, 0): 60, (2, 1): 30}
