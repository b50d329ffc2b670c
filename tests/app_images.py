"""Image files as people have them, and files that are none."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def written(folder: Path) -> dict[str, Path]:
    """Each kind of file by name. Those that can be read are red, and their upper half is black."""
    pixels = np.zeros((24, 32, 3), np.uint8)
    pixels[12:, :, 0] = 220
    red = Image.fromarray(pixels)
    paths = {}

    def at(name: str) -> Path:
        return paths.setdefault(name, folder / name)

    red.save(at("plain.png"))
    at("text.jpg").write_text("this is no image")
    at("empty.png").write_bytes(b"")
    at("huge.png").write_bytes(png_header(20000, 20000))
    red.save(at("animated.gif"), save_all=True, append_images=[red.rotate(90, expand=False)], duration=50)
    red.convert("CMYK").save(at("cmyk.jpg"), quality=95)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90°
    red.rotate(90, expand=True).save(at("turned.jpg"), exif=turned, quality=95)
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(at("sixteen.png"))
    return paths


def png_header(width: int, height: int) -> bytes:
    """The start of a PNG file of that size, and an end."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
