"""Mask files of every kind, right or refused in one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vmamba.data import DataConfig
from vmamba.data.images import UnreadableImageError
from vmamba.data.segmentation.classes import PixelClasses, ade20k_classes, pixel_classes
from vmamba.data.segmentation.loading import MaskOptions, load_segmentation
from vmamba.data.segmentation.masks import MaskFormat
from vmamba.data.segmentation.pairs import find_pairs
from vmamba.errors import ConfigError, DataError

VALUES = np.array([[0, 1, 2], [2, 1, 255]])


def saved(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(array)
    if mode == "P":
        image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0] + [0] * 759)
    image.save(path)
    return path


def test_values_of_8_and_16_bits_palettes_and_arrays(tmp_path: Path) -> None:
    eight = VALUES.astype(np.uint8)
    files = [saved(tmp_path / "l.png", eight), saved(tmp_path / "i.png", VALUES.astype(np.uint16)),
             saved(tmp_path / "p.png", eight, "P"), saved(tmp_path / "rgb.png", np.stack([eight] * 3, -1)),
             saved(tmp_path / "rgba.png", np.stack([eight] * 3 + [np.full_like(eight, 255)], -1))]  # fmt: skip
    np.save(tmp_path / "a.npy", VALUES)
    for path in [*files, tmp_path / "a.npy"]:
        assert MaskFormat(3).read(path).tolist() == VALUES.tolist(), path


def test_one_bit(tmp_path: Path) -> None:
    path = tmp_path / "bit.png"
    Image.fromarray(np.array([[False, True]])).save(path)
    assert MaskFormat(2).read(path).tolist() == [[0, 1]]


def test_a_value_out_of_range_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.png", np.array([[0, 1, 7]], np.uint8))
    with pytest.raises(
        DataError, match=r"m\.png holds \[7\], which stand for no class: 3 classes are 0 to 2, and 255 is"
    ):
        MaskFormat(3).read(path)
    wide = saved(tmp_path / "w.png", np.array([[0, 300]], np.uint16))
    with pytest.raises(DataError, match=r"w\.png holds \[300\]"):
        MaskFormat(3).read(wide)
    assert MaskFormat(301, ignore_index=65535).read(wide).tolist() == [[0, 300]]


def test_zero_is_ignored_and_others_are_one_less(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.png", np.array([[0, 1, 150, 255]], np.uint8))
    assert MaskFormat(150, reduce_zero_label=True).read(path).tolist() == [[255, 0, 149, 255]]
    with pytest.raises(DataError, match=r"holds \[150\], which stand for no class: 20 classes are 1 to 20"):
        MaskFormat(20, reduce_zero_label=True).read(path)


def test_black_and_white(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.png", np.array([[0, 255]], np.uint8))
    assert MaskFormat(2, values=(0, 255)).read(path).tolist() == [[0, 1]]
    assert MaskFormat(2).read(path).tolist() == [[0, 255]]


def test_colours(tmp_path: Path) -> None:
    palette = ((120, 120, 120), (4, 200, 3), (80, 50, 50))
    colours = np.array([[palette[1], palette[0], (0, 0, 0), palette[2]]], np.uint8)
    path = saved(tmp_path / "m.png", colours)
    assert MaskFormat(3, palette=palette).read(path).tolist() == [[1, 0, 255, 2]]
    grey = saved(tmp_path / "grey.png", np.array([[palette[0]] * 2], np.uint8))
    assert MaskFormat(3, palette=palette).read(grey).tolist() == [[0, 0]], "a class's colour may be grey"
    with pytest.raises(
        DataError, match="is an RGB picture, and which colour is which class is not known: give a table"
    ):
        MaskFormat(3).read(path)
    with pytest.raises(DataError, match=r"holds the colour \[80, 50, 50\], which is none of the 2 classes'"):
        MaskFormat(2, palette=palette[:2]).read(path)


def test_what_is_no_mask(tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.zeros((2, 2), np.float32))
    with pytest.raises(DataError, match="holds float32"):
        MaskFormat(2).read(tmp_path / "f.npy")
    np.save(tmp_path / "n.npy", np.array([[-1]]))
    with pytest.raises(DataError, match="numbers from -1 to -1"):
        MaskFormat(2).read(tmp_path / "n.npy")
    (tmp_path / "x.png").write_bytes(b"nothing")
    with pytest.raises(UnreadableImageError, match=r"cannot read mask .*not an image"):
        MaskFormat(2).read(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"count": 300}, "ignore_index=255 with 300 classes"),
        ({"count": 2, "ignore_index": 1}, "ignore_index=1 with 2 classes"),
        ({"count": 2, "values": (0,)}, r"mask_values=\[0\]: want one value of its own for each of 2"),
        ({"count": 2, "values": (0, 70000)}, "numbers from 0 to 65535"),
    ],
)
def test_formats_that_make_no_sense(values: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        MaskFormat(**values)


def test_ade20k() -> None:
    classes = ade20k_classes()
    assert len(classes) == 150
    assert (classes.names[0], classes.palette[0], classes.names[149], classes.palette[149]) == (
        "wall", (120, 120, 120), "flag", (92, 0, 255),
    )  # fmt: skip


def test_classes_from_files(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("background\ncell\n")
    found = pixel_classes(tmp_path / "names.txt")
    assert (found.names, found.palette[0], found.made_up) == (("background", "cell"), (0, 0, 0), True)
    (tmp_path / "names.csv").write_text("name,red,green,blue\nroad,1,2,3\nsky,4,5,6\n")
    assert pixel_classes(str(tmp_path / "names.csv")) == PixelClasses(("road", "sky"), ((1, 2, 3), (4, 5, 6)))
    (tmp_path / "bad.csv").write_text("name,red,green,blue\nroad,1,2,300\nsky,4,5,6\n")
    for given, said in ((["a", "a"], "a name of its own"), (tmp_path / "no", "neither ade20k nor a file"), (3, "want"),
                        (tmp_path / "bad.csv", "beyond 0 to 255")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            pixel_classes(given)
    assert len(set(PixelClasses.of([str(i) for i in range(40)]).palette)) == 40


def folder(root: Path, count: int = 10, images: str = "images", masks: str = "masks", size: int = 12) -> Path:
    random = np.random.RandomState(0)
    for place in (images, masks):
        (root / place).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        labels = random.randint(0, 3, (size, size)).astype(np.uint8)
        saved(root / images / f"{index}.jpg", random.randint(0, 255, (size, size, 3)).astype(np.uint8))
        saved(root / masks / f"{index}.png", labels)
    return root


def load(root: Path, options: MaskOptions | None = None, **fields: object) -> Any:
    return load_segmentation(DataConfig("masks", root, **fields), options or MaskOptions())  # type: ignore[arg-type]


def test_an_undivided_folder_is_split(tmp_path: Path) -> None:
    splits = load(folder(tmp_path))
    parts = [splits.train, splits.val, splits.test]
    assert [len(part) for part in parts] == [6, 2, 2]
    names = [part.name(i) for part in parts for i in range(len(part))]
    assert len(set(names)) == 10
    assert splits.classes.names == ("class 0", "class 1", "class 2")
    assert load(tmp_path).fingerprint() == splits.fingerprint()
    assert load(tmp_path, seed=1).fingerprint() != splits.fingerprint()
    assert len(load(tmp_path, train_images=3).train) == 3


def test_ade20ks_layout_and_parts_above(tmp_path: Path) -> None:
    ade, above = tmp_path / "ade", tmp_path / "above"
    for part in ("training", "validation"):
        folder(ade, 3, f"images/{part}", f"annotations/{part}")
    assert {part: len(pairs) for part, pairs in find_pairs(ade).items()} == {"train": 3, "val": 3}
    for part in ("train", "val", "test"):
        folder(above, 2, f"{part}/images", f"{part}/labels")
    assert {part: len(pairs) for part, pairs in find_pairs(above).items()} == {"train": 2, "val": 2, "test": 2}
    folder(tmp_path / "one", 5, "images/train", "masks/train")
    splits = load(tmp_path / "one")
    assert (len(splits.train), len(splits.val), splits.test) == (4, 1, None)


def test_folds_hold_each_image_once(tmp_path: Path) -> None:
    folder(tmp_path)
    held: list[str] = []
    for fold in range(4):
        splits = load(tmp_path, folds=4, fold=fold)
        val = [splits.val.name(i) for i in range(len(splits.val))]
        train = [splits.train.name(i) for i in range(len(splits.train))]
        assert len(val) + len(train) == 10
        assert not set(val) & set(train)
        assert splits.test is None
        held += val
    assert len(set(held)) == len(held) == 10
    with pytest.raises(ConfigError, match="folds=4, fold=4: want two folds or more"):
        DataConfig("masks", tmp_path, folds=4, fold=4)
    with pytest.raises(ConfigError, match='folds=2 is for dataset="masks"'):
        DataConfig("digits", folds=2)
    with pytest.raises(DataError, match="folds=11, but there are 10 images"):
        load(tmp_path, folds=11)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        find_pairs(tmp_path / "nowhere")
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"has no folder of masks \(masks, mask, annotations"):
        find_pairs(tmp_path)
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match=r"no images in .*images: no file in it ends in \.bmp"):
        find_pairs(tmp_path)
    folder(tmp_path)
    (tmp_path / "masks/3.png").unlink()
    (tmp_path / "images/5.jpg").unlink()
    said = (
        r"1 image\(s\) in .*images have no mask in .*masks: 3\.jpg; 1 mask\(s\) in .*masks have no image in .*: 5\.png"
    )
    with pytest.raises(DataError, match=said):
        find_pairs(tmp_path)


def test_endings_of_masks_and_doubled_names(tmp_path: Path) -> None:
    folder(tmp_path, 2)
    (tmp_path / "masks/0.png").rename(tmp_path / "masks/0_mask.png")
    assert [pair.mask.name for pair in find_pairs(tmp_path)[""]] == ["0_mask.png", "1.png"]
    saved(tmp_path / "images/1.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(DataError, match=r"1\.jpg and .*1\.png have one name but for the ending"):
        find_pairs(tmp_path)


def test_masks_that_do_not_go_with_their_images(tmp_path: Path) -> None:
    folder(tmp_path)
    saved(tmp_path / "masks/4.png", np.zeros((12, 9), np.uint8))
    with pytest.raises(DataError, match=r"4\.jpg is 12×12 pixels, its mask .*4\.png 9×12"):
        load(tmp_path)
    with pytest.raises(DataError, match=r"holds \[2\], which stand for no class: 2 classes are 0 to 1"):
        load(tmp_path, MaskOptions(classes=["no", "yes"]))


def test_masks_of_one_class(tmp_path: Path) -> None:
    folder(tmp_path, 3)
    for index in range(3):
        saved(tmp_path / f"masks/{index}.png", np.zeros((12, 12), np.uint8))
    with pytest.raises(DataError, match=r"show one class alone \(\[0\]\): there is nothing to tell apart"):
        load(tmp_path)
    assert len(load(tmp_path, MaskOptions(classes=["no", "yes"])).train) == 1
    saved(tmp_path / "masks/0.png", np.full((12, 12), 255, np.uint8))
    with pytest.raises(DataError, match=r"hold 0 and 255 alone, .*task_options\.mask_values=\[0, 255\]"):
        load(tmp_path)
    splits = load(tmp_path, MaskOptions(mask_values=(0, 255)))
    assert splits.classes.names == ("class 0", "class 1")


def test_a_damaged_file_stops_or_is_left_out(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "images/2.jpg").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"1 pair\(s\) cannot be read, the first: cannot read image .*2\.jpg"):
        load(tmp_path)
    splits = load(tmp_path, unreadable="skip")
    assert [Path(name).name for name in splits.skipped] == ["2.jpg"]
    assert len(splits.train) + len(splits.val) + len(splits.test) == 9


def test_other_data_sets_have_no_masks(colour_images: Path) -> None:
    with pytest.raises(DataError, match='"digits" has no class for each pixel; segmentation learns from "shapes"'):
        load_segmentation(DataConfig("digits"), MaskOptions())
    with pytest.raises(ConfigError, match='are for dataset="masks"'):
        load_segmentation(DataConfig("shapes"), MaskOptions(reduce_zero_label=True))
    with pytest.raises(
        ConfigError, match=r'dataset="masks" needs data_dir: the directory that holds the folders images/'
    ):
        DataConfig("masks")


def test_images_of_many_channels(tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    for place in ("images", "masks"):
        (tmp_path / place).mkdir()
    for index in range(5):
        np.save(tmp_path / f"images/{index}.npy", random.rand(5, 16, 16).astype(np.float32))
        saved(tmp_path / f"masks/{index}.png", random.randint(0, 2, (16, 16)).astype(np.uint8))
    splits = load(tmp_path, in_chans=5)
    image, labels = splits.train[0]
    assert image.shape == (5, 16, 16)
    assert labels.shape == (16, 16)
    assert splits.preprocessing.full_depth
    assert splits.preprocessing.mean == pytest.approx([0.5] * 5, abs=0.05)
