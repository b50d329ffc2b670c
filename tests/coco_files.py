"""Small data sets in COCO's format, and a detector as small."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

#: Options of a very small detector, which learns from such images.
SMALL = {
    "dims": [8, 16, 32, 64],
    "depths": [1, 1, 1, 1],
    "neck": {"out_channels": 16},
    "rpn": {"feat_channels": 16, "nms_pre": 50, "nms_pre_train": 50, "max_per_image": 20, "samples": 32},
    "box_head": {"fc_out_channels": 32, "samples": 16, "score_threshold": 0.01},
    "mask_head": {"conv_out_channels": 16, "num_convs": 1},
}


def rectangle(x, y, w, h):
    """A polygon."""
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def annotation(number, image, category, box, **rest):
    """One of a rectangle, unless ``rest`` says otherwise."""
    return {"id": number, "image_id": image, "category_id": category, "bbox": list(box), "iscrowd": 0,
            "area": box[2] * box[3], "segmentation": rectangle(*box), **rest}  # fmt: skip


def content(count=4, size=(40, 50)):
    """Two categories with numbers 3 and 7, the larger one first; a red or green rectangle an image."""
    images = [{"id": i, "file_name": f"{i:03d}.png", "height": size[0], "width": size[1]} for i in range(1, count + 1)]
    rows = [annotation(10 + i, i, (7, 3)[i % 2], (5 + i, 6, 20, 18)) for i in range(1, count + 1)]
    return {"images": images, "annotations": rows, "categories": [{"id": 7, "name": "b"}, {"id": 3, "name": "a"}]}


def write(root: Path, values, word="default", folder="images"):
    """The file and its images."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / folder).mkdir(parents=True, exist_ok=True)
    text = values if isinstance(values, str) else json.dumps(values)
    (root / f"annotations/instances_{word}.json").write_text(text)
    # Files that are wrong on purpose have no pictures, or dull ones.
    for image in [] if isinstance(values, str) else values["images"]:
        pixels = np.full((image.get("height", 40), image["width"], 3), 60, np.uint8)
        for row in values["annotations"]:
            if row["image_id"] == image["id"] and len(row["bbox"]) == 4:
                x, y, w, h = (int(v) for v in row["bbox"])
                pixels[max(y, 0) : y + h, max(x, 0) : x + w, row["category_id"] % 3] = 220
        Image.fromarray(pixels).save(root / folder / image["file_name"])
    return root
