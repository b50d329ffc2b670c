"""Commands that look inside a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vmamba.cli.frame import Command, add_paths, build, console

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from vmamba.cli.parsing import CommandParser


_IMAGES = "Image files and folders to average over; by default noise."


def _scanmap_options(parser: CommandParser) -> None:
    from vmamba.analysis.look import ScanMapConfig

    add_paths(parser, "image", "IMAGE", "Image file.")
    parser.add_group(ScanMapConfig, skip={"image"})


def _scanmap(values: Namespace) -> int:
    from vmamba.analysis.look import ScanMapConfig, look_at_scan

    look_at_scan(build(ScanMapConfig, values), console())
    return 0


def _cam_options(parser: CommandParser) -> None:
    from vmamba.analysis.look import CamConfig

    add_paths(parser, "image", "IMAGE", "Image file.")
    parser.add_group(CamConfig, skip={"image"})


def _cam(values: Namespace) -> int:
    from vmamba.analysis.look import CamConfig, look_at_class

    look_at_class(build(CamConfig, values), console())
    return 0


def _erf_options(parser: CommandParser) -> None:
    from vmamba.analysis.look import ErfConfig

    parser.add_argument(
        "models", nargs="+", metavar="MODEL_OR_RUN", help="Names of ours or timm's, runs, weight files."
    )
    parser.add_argument("--images", type=Path, nargs="+", default=[], metavar="IMAGE_OR_FOLDER", help=_IMAGES)
    parser.add_group(ErfConfig, skip={"models", "images"})


def _erf(values: Namespace) -> int:
    from vmamba.analysis.look import ErfConfig, look_at_fields

    values.models, values.images = tuple(values.models), tuple(values.images)
    look_at_fields(build(ErfConfig, values), console())
    return 0


def _flops_options(parser: CommandParser) -> None:
    from vmamba.analysis.flops import FlopsConfig

    text = "Name of a model, run folder, weight file, or file of `vmamba export`."
    parser.add_argument("model", metavar="MODEL_OR_FILE", help=text)
    parser.add_group(FlopsConfig, skip={"model"})


def _flops(values: Namespace) -> int:
    from vmamba.analysis.flops import FlopsConfig, count_model

    count_model(build(FlopsConfig, values), console())
    return 0


SCANMAP = Command("Draw which places of an image a layer's scan looks at.", _scanmap_options, _scanmap)
CAM = Command("Draw which places of an image speak for a class.", _cam_options, _cam)
ERF = Command("Draw and measure effective receptive fields.", _erf_options, _erf)
FLOPS = Command("Count parameters, multiply-adds, operations and activations by module.", _flops_options, _flops)
