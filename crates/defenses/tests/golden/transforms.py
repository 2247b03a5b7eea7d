"""Golden values for the transformations of BaRT and the other ones of the released code.

    pip install torch kornia scikit-image pillow scipy
    python transforms.py

Writes transforms.json beside this script: for each case the name of a defense, what it would draw, an image, the image
transformed by an independent program, and, where that program differentiates, the gradient of sum(upstream * output)
with respect to the image. All in double precision.
"""

import io
import json
from pathlib import Path

import kornia
import numpy as np
import scipy.fft
import skimage.transform
import skimage.util
import torch
from PIL import Image

CASES = []


def numbers(values):
    return [round(float(v), 15) for v in np.asarray(values).ravel()]


def record(name, params, image, output, upstream=(), gradient=()):
    channels, height, width = image.shape
    params = {key: numbers(value) for key, value in params.items()}
    CASES.append(
        {"name": name, "channels": channels, "height": height, "width": width, "params": params}
        | {"image": numbers(image), "output": numbers(output), "upstream": numbers(upstream), "gradient": numbers(gradient)}
    )


def image(seed, *shape):
    return np.random.default_rng(seed).random(shape).round(9)


def differentiate(name, params, x, function):
    """Records a differentiable torch function of a (1, c, h, w) tensor."""
    tensor = torch.tensor(x)[None].requires_grad_()
    out = function(tensor)
    upstream = torch.tensor(np.random.default_rng(x.size).normal(size=tuple(out.shape)).round(9))
    (out * upstream).sum().backward()
    record(name, params, x, out.detach()[0], upstream, tensor.grad)


def gaussian_blur():
    for seed, (shape, kernel, sigma) in enumerate(
        [((2, 9, 11), (3, 5), (0.3, 2.0)), ((1, 8, 20), (13, 7), (3.0, 0.1)), ((1, 7, 40), (5, 13), (1.0, 2.5))]
    ):
        blur = lambda x: kornia.filters.gaussian_blur2d(x, kernel, sigma, border_type="reflect", separable=False)
        differentiate("gaussian-blur", {"kernel": kernel, "sigma": sigma}, image(seed, *shape), blur)


def median_blur():
    for seed, (shape, kernel) in enumerate([((2, 9, 11), (3, 5)), ((1, 5, 7), (13, 3)), ((1, 12, 6), (7, 13))]):
        x = image(seed, *shape)
        # The releases of 2022 knew no other border; later ones reflect unless told.
        out = kornia.filters.median_blur(torch.tensor(x)[None], kernel, border_type="constant")[0]
        record("median-blur", {"kernel": kernel}, x, out)


def swirl():
    # Strength, radius, centre column and row; the last centre is outside the image.
    for seed, (shape, drawn) in enumerate(
        [((2, 16, 12), (2.0, 60, 5, 9)), ((1, 9, 14), (0.3, 200, 1, 3)), ((1, 10, 10), (1.9, 150, 40, 25))]
    ):
        x, (strength, radius, *center) = image(seed, *shape), drawn
        out = skimage.transform.swirl(x.transpose(1, 2, 0), center=center, strength=strength, radius=radius)
        record("swirl", {"swirl": drawn}, x, out.transpose(2, 0, 1))


def quantisation():
    x, scale = image(3, 3, 8, 8), np.array([8, 100, 199])
    record("quantisation", {"scale": scale}, x, np.round(x * scale[:, None, None]) / scale[:, None, None])


def poisson_noise():
    """What scikit-image divides a Poisson count by."""
    for seed, levels in enumerate([2, 3, 33, 64, 128, 129]):
        x = np.round(image(seed, 1, 12, 12) * (levels - 1)) / (levels - 1)
        x.ravel()[:levels] = np.arange(levels) / (levels - 1)
        rates = []

        class Watched(np.random.Generator):
            def poisson(self, rate):
                rates.append(rate)
                return rate

        skimage.util.random_noise(x, "poisson", rng=Watched(np.random.PCG64()))
        record("poisson-noise", {"scale": [rates[0].max() / x.max()]}, x, ())


def fft():
    for seed, (shape, fraction) in enumerate(
        [((3, 8, 8), (0.01, 0.3, 0.7)), ((2, 9, 14), (0.2, 0.4)), ((1, 15, 7), (0.45,)), ((2, 1, 6), (0.3, 0.2))]
    ):
        x, (_, h, w) = image(seed, *shape), shape
        field = np.random.default_rng(99).uniform(0.5, 1.5, (h, w)).round(9)
        planes = []
        for plane, f in zip(x, fraction):
            spectrum = scipy.fft.fft2(plane)
            spectrum[int(h * f) : int(h * (1 - f))] = 0
            spectrum[:, int(w * f) : int(w * (1 - f))] = 0
            planes.append(np.clip(scipy.fft.ifft2(spectrum * field).real, 0, 1))
        record("fft", {"fraction": fraction, "field": field}, x, planes)


def crop_resize():
    for seed, (shape, size, start) in enumerate([((2, 12, 15), 4, (0.5, 0.1)), ((1, 9, 9), 9, (0.0, 0.0)), ((1, 20, 7), 6, (0.65, 0.05))]):
        _, h, w = shape
        # TensorFlow's crop_and_resize reads at start * (side - 1) + i * share * (side - 1) / (size - 1).
        rows, columns = [s + np.arange(size) * size / side / (size - 1) for s, side in zip(start, (h, w))]
        grid = torch.tensor(np.stack(np.meshgrid(columns, rows), -1) * 2 - 1)[None]
        crop = lambda x: torch.nn.functional.grid_sample(x, grid, align_corners=True, padding_mode="border")
        differentiate("crop-resize", {"size": size, "start": start}, image(seed, *shape), crop)


def resize_pad():
    for seed, (shape, side, padded, corner, fill, corners) in enumerate(
        [((2, 7, 7), 9, 12, (1, 2), 0.5, 0), ((1, 6, 8), 10, 10, (0, 0), 0.0, 0), ((1, 8, 8), 5, 9, (3, 0), 0.25, 1)]
    ):

        def function(x):
            x = torch.nn.functional.interpolate(x, size=(side, side), mode="bilinear", align_corners=bool(corners))
            top, left = corner
            return torch.nn.functional.pad(x, (left, padded - side - left, top, padded - side - top), value=fill)

        params = {"side": side, "padded": padded, "corner": corner, "fill": fill, "corners": corners}
        differentiate("resize-pad", params, image(seed, *shape), function)


def jpeg():
    for seed, (shape, quality) in enumerate([((3, 32, 32), 55), ((3, 24, 40), 74), ((3, 19, 21), 60), ((1, 16, 16), 65)]):
        # Smooth with some noise, as photographs are; bytes exactly.
        _, h, w = shape
        waves = np.sin(np.arange(h)[:, None] / 5 + np.arange(shape[0])[:, None, None]) * np.cos(np.arange(w) / 7) / 3 + 0.5
        x = np.round(255 * np.clip(waves + 0.1 * (image(seed, *shape) - 0.5), 0, 1)).astype(np.uint8)
        pixels, buffer = x.transpose(1, 2, 0), io.BytesIO()
        Image.fromarray(pixels if shape[0] == 3 else pixels[..., 0]).save(buffer, "JPEG", quality=quality)
        out = np.asarray(Image.open(buffer)).reshape(pixels.shape).transpose(2, 0, 1)
        record("jpeg", {"quality": quality}, x / 255, out / 255)


def block_dct():
    x, table = image(5, 2, 16, 24), np.full((8, 8), 30.0)
    table[:4, :4] = 25
    out = np.zeros_like(x)
    for c, i, j in np.ndindex(2, 2, 3):
        block = (c, slice(8 * i, 8 * i + 8), slice(8 * j, 8 * j + 8))
        spectrum = np.round(scipy.fft.dctn(255 * x[block], norm="ortho") / table) * table
        out[block] = np.clip(scipy.fft.idctn(spectrum, norm="ortho") / 255, 0, 1)
    record("block-dct", {}, x, out)


def main():
    gaussian_blur()
    median_blur()
    swirl()
    quantisation()
    fft()
    poisson_noise()
    crop_resize()
    resize_pad()
    jpeg()
    block_dct()
    lines = ",\n".join(json.dumps(case) for case in CASES)
    Path(__file__).with_name("transforms.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
