"""Draws docs/images/erf.png: receptive fields of vmamba_nano, fresh and trained, a ResNet, and a Swin of its size.

    python tools/erf_picture.py RUN IMAGES

RUN is of vmamba_nano at 224 pixels, IMAGES a folder. What was drawn: a run of 260 updates of 16 images
(`vmamba train --model vmamba_nano --data.dataset fashion-mnist --data.image_size 224 --epochs 1 --epoch_updates 260
--batch_size 16 --schedule poly --warmup_epochs 0 --warmup_updates 40 --lr 2e-3`) on 48 of Fashion-MNIST's test images.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from vmamba.analysis.erf import receptive_field, timm_features
from vmamba.analysis.figures import receptive_fields_figure
from vmamba.analysis.look import pixels_of
from vmamba.data import Preprocessing
from vmamba.evaluate.pictures import save_figure
from vmamba.evaluate.predict import find_images
from vmamba.tasks.trained import load_trained

#: Swin with a quarter of its channels and as many blocks as vmamba_nano: 1.4 M parameters.
SMALL_SWIN = {"embed_dim": 24, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)}


def draw(run: Path, images: Path) -> None:
    """Measure all four on the same images; print the areas and write the picture."""
    trained = load_trained(run)
    paths = find_images([images])
    torch.manual_seed(0)
    own = [pixels_of(path, trained.preprocessing)[None] for path in paths]
    grey = trained.preprocessing
    colour = Preprocessing(grey.height, 3, grey.mean * 3, grey.std * 3, grey.interpolation, grey.crop_pct)
    others = [pixels_of(path, colour)[None] for path in paths]
    fields = [
        receptive_field(trained.task.rebuild(trained.task.metadata(trained.model)), own, "vmamba_nano, fresh"),
        receptive_field(trained.model, own, "vmamba_nano, trained"),
        receptive_field(timm_features("resnet10t"), others, "resnet10t, fresh"),
        receptive_field(
            timm_features("swin_tiny_patch4_window7_224", image_size=224, **SMALL_SWIN), others, "Swin, 1.4 M, fresh"
        ),
    ]
    for field in fields:
        print(field.name, *(f"{100 * area:.1f} %" for area in field.areas().values()))
    save_figure(
        receptive_fields_figure(fields, f"Effective receptive fields, {len(paths)} images"), Path("docs/images/erf.png")
    )


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
