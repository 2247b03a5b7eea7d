"""Writes JPEGs of every common kind, and what Pillow makes of them, whole and cut: python make.py (in this folder).

Made with Pillow 12; the tests need no Python. `whole.tsv` has for each file the fewest of its bytes that Pillow reads.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
CHANCE = np.random.default_rng(1)
KINDS = {
    "444": dict(subsampling=0),
    "422": dict(subsampling=1),
    "420": dict(subsampling=2),
    "progressive": dict(subsampling=0, progressive=True),
    "progressive-420": dict(subsampling=2, progressive=True),
    "restarts": dict(subsampling=2, restart_marker_blocks=2),
    "progressive-restarts": dict(subsampling=2, progressive=True, restart_marker_rows=1),
    "optimised": dict(subsampling=2, optimize=True),
    "rgb": dict(keep_rgb=True),
    "exif": dict(subsampling=0, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
}


def picture(rows, columns):
    """Slopes, an edge and some noise."""
    y, x = np.mgrid[0:rows, 0:columns]
    red, green = 255 * x / max(columns - 1, 1), 255 * y / max(rows - 1, 1)
    blue = np.where(x + y < (rows + columns) // 2, 30, 220)
    smooth = np.stack([red, green, blue], -1)
    return Image.fromarray(np.clip(smooth + CHANCE.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8))


def reads(data):
    try:
        Image.open(io.BytesIO(data)).convert("RGB")
        return True
    except OSError:
        return False


def main():
    for old in [*HERE.glob("*.jpg"), *HERE.glob("*.png")]:
        old.unlink()
    sizes = {"": (24, 40), "-odd": (17, 31)}
    images = {}
    for kind, options in KINDS.items():
        for size, shape in sizes.items():
            images[kind + size] = (picture(*shape), options)
    images["grey"] = (picture(19, 21).convert("L"), {})
    images["grey-progressive"] = (picture(19, 21).convert("L"), dict(progressive=True))
    images["cmyk"] = (picture(19, 21).convert("CMYK"), {})
    images["one"] = (picture(1, 1), {})
    lines = []
    for name, (image, options) in images.items():
        path = HERE / f"{name}.jpg"
        image.save(path, quality=90, **options)
        data = path.read_bytes()
        Image.open(path).convert("RGB").save(HERE / f"{name}.png")
        fewest = next(length for length in range(len(data) + 1) if reads(data[:length]))
        assert reads(data + b"trailing \xff\xd8 garbage")
        lines.append(f"{name}\t{len(data)}\t{fewest}\n")
    (HERE / "whole.tsv").write_text("".join(lines))


if __name__ == "__main__":
    main()
