"""COCO's format: what is read of good files, and one clear line for each mistake in others."""

import numpy as np
import pytest
from coco_files import annotation, content, write
from pycocotools import mask as masks

from vmamba.data import DataConfig
from vmamba.data.detection.categories import coco_categories
from vmamba.data.detection.coco import read_coco
from vmamba.data.detection.loading import load_detection
from vmamba.errors import DataError


def load(root, **options):
    return load_detection(DataConfig("coco", root, **options))


def one(tmp_path, *rows):
    """The images of a file with one image, 40×50, of these annotations."""
    values = content(1)
    values["annotations"] = list(rows)
    write(tmp_path, values)
    _, images = read_coco(tmp_path / "annotations/instances_default.json")
    from vmamba.data.detection.sets import CocoImages

    return CocoImages(tmp_path / "images", images)


def test_cocos_categories():
    known = coco_categories()
    assert (len(known), known.names[0], known.names[-1]) == (80, "person", "toothbrush")
    assert (known.ids[0], known.ids[11], known.ids[-1]) == (1, 13, 90)
    assert known.names[known.label_of[62]] == "chair"


def test_categories_are_ordered_by_number(tmp_path):
    splits = load(write(tmp_path, content(10)))
    assert splits.categories.names == ("a", "b")
    assert splits.categories.ids == (3, 7)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (6, 2, 2)
    labels = {label for i in range(6) for label in splits.train.objects(i).labels.tolist()}
    assert labels == {0, 1}


def test_parts_are_found_by_name(tmp_path):
    write(tmp_path, content(5), "train2017", "train2017")
    write(tmp_path, content(3), "val2017", "val2017")
    splits = load(tmp_path)
    assert (len(splits.train), len(splits.val), splits.test) == (5, 3, None)
    assert len(load(tmp_path, train_images=2).train) == 2
    assert splits.fingerprint() == load(tmp_path).fingerprint()


def test_polygons_and_runs_are_the_same_mask(tmp_path):
    mask = np.zeros((40, 50), np.uint8)
    mask[10:20, 5:30] = 1
    packed = masks.encode(np.asfortranarray(mask))
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]])))
    counts = np.diff(np.concatenate([[0], edges, [len(flat)]])).tolist()
    box = (5, 10, 25, 10)
    images = one(
        tmp_path,
        annotation(1, 1, 3, box),
        annotation(2, 1, 3, box, segmentation={"size": [40, 50], "counts": packed["counts"].decode()}),
        annotation(3, 1, 3, box, segmentation={"size": [40, 50], "counts": counts}),
    )
    objects = images.objects(0)
    assert objects.masks.shape == (3, 40, 50)
    for found in objects.masks:
        assert np.array_equal(found, mask.astype(bool))
    assert [row["segmentation"]["counts"] for row in images.truth(0)] == [packed["counts"]] * 3


def test_boxes_are_cut_at_the_border_and_those_of_nothing_left_out(tmp_path):
    images = one(
        tmp_path,
        annotation(1, 1, 3, (-5, -5, 15, 15)),
        annotation(2, 1, 7, (45, 35, 100, 100)),
        annotation(3, 1, 7, (60, 10, 5, 5)),  # outside
        annotation(4, 1, 7, (10, 10, 0, 5)),  # no area
    )
    objects = images.objects(0)
    assert objects.boxes.tolist() == [[0, 0, 10, 10], [45, 35, 50, 40]]
    assert objects.labels.tolist() == [0, 1]
    assert len(images.truth(0)) == 4  # as COCO's tool reads the file


def test_crowds_are_not_learnt_but_measured_as_such(tmp_path):
    images = one(tmp_path, annotation(1, 1, 3, (5, 5, 10, 10)), annotation(2, 1, 3, (20, 20, 10, 10), iscrowd=1))
    assert len(images.objects(0).boxes) == 1
    assert [row["iscrowd"] for row in images.truth(0)] == [0, 1]


def test_an_image_without_objects(tmp_path):
    images = one(tmp_path)
    objects = images.objects(0)
    assert (objects.boxes.shape, objects.labels.shape, objects.masks.shape) == ((0, 4), (0,), (0, 40, 50))
    assert images.truth(0) == []


def changed(change):
    values = content(4)
    change(values)
    return values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ('{"images": [', "is not JSON: .*; get it, or write it, again"),
        ("[]", "is not in COCO's format, which has the lists images, annotations, categories"),
        (changed(lambda v: v.pop("categories")), "is not in COCO's format"),
        (changed(lambda v: v["categories"].clear()), "has no categories"),
        (changed(lambda v: v["images"].append(v["images"][0])), r"1 id\(s\) of images occur twice, the first: 1"),
        (changed(lambda v: v["annotations"].append(v["annotations"][0])), "of annotations occur twice, the first: 11"),
        (changed(lambda v: v["categories"].append({"id": 3, "name": "c"})), "of categories occur twice, the first: 3"),
        (
            changed(lambda v: v["annotations"][0].update(category_id=5)),
            "annotation 11 is of category 5, which the file",
        ),
        (changed(lambda v: v["annotations"][0].update(image_id=50)), "annotation 11 is of image 50, which the file"),
        (changed(lambda v: v["annotations"][0].update(bbox=[1, 2, 3])), r"bbox \[1, 2, 3\] is not x, y, width, height"),
        (changed(lambda v: v["annotations"][0].pop("segmentation")), "annotation 11 has no segmentation"),
        (changed(lambda v: v["images"][0].pop("height")), "an entry lacks, or has a wrong, 'height'"),
        (changed(lambda v: v["annotations"].clear()), "none of the 1 validation images has an object"),
    ],
)
def test_wrong_files(tmp_path, values, message):
    with pytest.raises(DataError, match=message):
        load(write(tmp_path, values))


def test_missing_images(tmp_path):
    write(tmp_path, content(8))
    (tmp_path / "images/003.png").unlink()
    with pytest.raises(DataError, match=r"1 of 8 images are missing in .*, the first: 003.png; .*unreadable="):
        load(tmp_path)
    splits = load(tmp_path, unreadable="skip")
    assert [name.rsplit("/")[-1] for name in splits.skipped] == ["003.png"]
    assert len(splits.train) + len(splits.val) + len(splits.test) == 7


def test_missing_folders(tmp_path):
    with pytest.raises(DataError, match="has no folder annotations"):
        load(tmp_path)
    (tmp_path / "annotations").mkdir()
    with pytest.raises(DataError, match=r"has no instances_\*.json"):
        load(tmp_path)
    write(tmp_path, content(4), "train")
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"the images of instances_train\.json are missing: no folder"):
        load(tmp_path)


def test_an_image_of_another_size_than_its_annotations(tmp_path):
    values = content(4)
    write(tmp_path, values)
    values["images"][0]["height"] = 41
    (tmp_path / "annotations/instances_default.json").write_text(__import__("json").dumps(values))
    _, images = read_coco(tmp_path / "annotations/instances_default.json")
    from vmamba.data.detection.sets import CocoImages

    with pytest.raises(DataError, match="is 50×40 pixels, but its annotations are for 50×41"):
        CocoImages(tmp_path / "images", images).image(0)


@pytest.mark.parametrize(
    "segmentation", [{"size": [9, 9], "counts": [81]}, [[1, 2, 3]], {"size": [40, 50]}, [["a", 1, 2, 3, 4, 5]]]
)
def test_wrong_masks(tmp_path, segmentation):
    images = one(tmp_path, annotation(6, 1, 3, (5, 5, 10, 10), segmentation=segmentation))
    with pytest.raises(DataError, match="annotation 6: its segmentation is no mask of an image of 50×40 pixels"):
        images.objects(0)
