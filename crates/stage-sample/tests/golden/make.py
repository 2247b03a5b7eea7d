"""Writes the pictures and what PIL and torchvision make of them: python make.py (in this folder).

Made with Pillow 13.0.0, torchvision 0.29.2 and numpy, none of which the tests need.
"""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

HERE = Path(__file__).parent
CHANCE = np.random.default_rng(0)

# Name: rows, columns. Odd sizes, so that offsets are halves; both longer sides.
SIZES = {"wide": (23, 37), "tall": (41, 18), "square": (29, 29)}
# Shorter side, crop: down, up, the same, odd offsets that round up and down, and a crop beyond the image.
CASES = [(16, None), (35, None), (29, 24), (None, 15), (None, 16), (20, 31)]


def ramp(rows, columns):
    """A smooth picture with an edge."""
    y, x = np.mgrid[0:rows, 0:columns]
    red, green = 255 * x / (columns - 1), 255 * y / (rows - 1)
    blue = np.where(x + y < (rows + columns) // 2, 30, 220)
    return np.stack([red, green, blue], -1).astype(np.uint8)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def wide_png(path, values):
    """16 bits a channel, which PIL does not write for colour; values is (rows, columns, channels)."""
    rows, columns, channels = values.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    header = struct.pack(">IIBBBBB", columns, rows, 16, colour, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
    )


def geometry():
    for name, (rows, columns) in SIZES.items():
        noise = CHANCE.integers(0, 256, (rows, columns, 3), dtype=np.uint8)
        image = Image.fromarray(noise if name == "square" else ramp(rows, columns) // 2 + noise // 2)
        image.save(HERE / f"{name}.png")
        for resize, crop in CASES:
            steps = [Resize(resize)] if resize else []
            steps += [CenterCrop(crop)] if crop else []
            Compose(steps)(image).save(HERE / f"{name}.{resize or 0}.{crop or 0}.png")


def modes():
    image = Image.fromarray(ramp(9, 12))
    alpha = Image.fromarray(CHANCE.integers(0, 256, (9, 12), dtype=np.uint8))
    grey = image.convert("L")
    palette = image.quantize(16)
    both = Image.merge("LA", (grey, alpha))
    with_alpha = image.copy()
    with_alpha.putalpha(alpha)
    grey.save(HERE / "mode-grey.png")
    both.save(HERE / "mode-grey-alpha.png")
    with_alpha.save(HERE / "mode-alpha.png")
    palette.save(HERE / "mode-palette.png")
    palette.save(HERE / "mode-palette-transparent.png", transparency=3)
    image.save(HERE / "mode-transparent.png", transparency=image.getpixel((2, 3)))
    image.convert("1").save(HERE / "mode-bit.png")
    for name, channels in [("grey", 1), ("grey-alpha", 2), ("rgb", 3), ("alpha", 4)]:
        wide_png(HERE / f"mode-{name}-16.png", CHANCE.integers(0, 1 << 16, (9, 12, channels)))
    image.save(HERE / "mode-rgb.jpg", quality=90, subsampling=0)
    image.save(HERE / "mode-half.jpg", quality=90, subsampling=2)
    grey.save(HERE / "mode-grey.jpg", quality=90)
    image.convert("CMYK").save(HERE / "mode-cmyk.jpg", quality=90)
    for path in sorted(HERE.glob("mode-*")):
        image = Image.open(path)
        if image.mode == "I;16":  # PIL clips these at 255, all but black becoming white; the upper 8 bits are meant
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        image.convert("RGB").save(path.with_name(path.name + ".rgb.png"))


if __name__ == "__main__":
    for old in [*HERE.glob("*.png"), *HERE.glob("*.jpg")]:
        old.unlink()
    geometry()
    modes()
