"""Golden values for BaRT from key to pixels: what a key draws, and what that makes of an image.

    pip install torch kornia scikit-image scipy
    python bart.py

Writes bart.json beside this script: an image, and for each case a defense's parameters, the key (seed, image, draw), and
the image transformed. The generator (Philox4x32-10, whose published test vector is checked first) and the derivation of
keys are written here again; the transformations are kornia's, scikit-image's, scipy's and numpy's. Poisson counts, which
every program draws in its own way, are left out: keys that would draw them are skipped.
"""

import json
from pathlib import Path

import kornia
import numpy as np
import scipy.fft
import skimage.transform
import skimage.util
import torch

DERIVE, SHARED, MASK = 1 << 31, (1 << 63) - 1, (1 << 32) - 1


def philox(counter, key):
    a, b, c, d = counter
    for turn in range(10):
        k0, k1 = (key[0] + turn * 0x9E3779B9) & MASK, (key[1] + turn * 0xBB67AE85) & MASK
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (right >> 32) ^ b ^ k0, right & MASK, (left >> 32) ^ d ^ k1, left & MASK
    return a, b, c, d


assert philox((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)) == (
    0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1,
)  # fmt: skip


def cipher(words, index, tag):
    return philox((index & MASK, index >> 32 | tag, words[2], words[3]), words[:2])


class Key:
    def __init__(self, own, common):
        self.own, self.common = own, common

    @classmethod
    def root(cls, seed):
        words = (seed & MASK, seed >> 32, 0, 0)
        return cls(words, words)

    def at(self, index):
        return Key(cipher(self.own, index, DERIVE), cipher(self.common, index, DERIVE))

    def image(self, index):
        return Key(cipher(self.own, index, DERIVE), self.common)

    def shared(self):
        return Key(cipher(self.common, SHARED, DERIVE), self.common)

    def bits(self):
        a, b, _, _ = cipher(self.own, 0, 0)
        return a << 32 | b

    def uniform(self, low, high):
        return low + (high - low) * ((self.bits() >> 11) / 2**53)

    def integer(self, low, high):
        return low + (self.bits() * (high - low + 1) >> 64)

    def permutation(self, n):
        order = list(range(n))
        for i in reversed(range(1, n)):
            j = self.at(i).integer(0, i)
            order[i], order[j] = order[j], order[i]
        return order

    def words(self, n):
        return np.array([cipher(self.own, i, 0) for i in range(-(-n // 4))], np.uint64).ravel()

    def uniforms(self, shape):
        n = int(np.prod(shape))
        return ((self.words(n)[:n] >> np.uint64(8)) / 2**24).reshape(shape)

    def normals(self, shape):
        """Box-Muller: a radius from the first word of a pair, an angle from the second."""
        n = int(np.prod(shape))
        first, second = self.words(n).reshape(-1, 2).T
        # Single precision rounds the word.
        radius = np.sqrt(-2 * np.log((first.astype(np.float32) + np.float32(0.5)) / np.float64(2**32)))
        angle = 2 * np.pi * second / 2**32
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).ravel()[:n].reshape(shape)


TYPES = ["gaussian", "poisson", "salt", "pepper", "s&p", "speckle"]
NAMES = ["gaussian", "poisson", "salt", "pepper", "salt-and-pepper", "speckle"]


def noise_injection(x, key, spec):
    types = spec.get("types", NAMES)
    mode = TYPES[NAMES.index(types[key.at(0).integer(0, len(types) - 1)])]
    if mode == "poisson":
        raise LookupError("drawn by rejection")
    std, amount, key = spec.get("std", 0.1), spec.get("amount", 0.05), key.at(1)

    class Draws(np.random.Generator):
        """What scikit-image asks for, drawn by the key: noise, which values are hit, and which of those are salted."""

        hits = None

        def normal(self, mean, std, size):
            return mean + std * key.normals(size)

        def random(self, size):
            if self.hits is None:
                self.hits = key.uniforms(size)
                return self.hits
            return self.hits / amount

    settings = {"var": std**2} if mode in ("gaussian", "speckle") else {"amount": amount}
    return skimage.util.random_noise(x, mode, rng=Draws(np.random.PCG64(0)), **settings)


def odd(key, spec):
    return key.integer(spec.get("kernel_min", 2), spec.get("kernel_max", 13)) | 1


def gaussian_blur(x, key, spec):
    kernel = tuple(odd(key.at(2 * axis), spec) for axis in (0, 1))
    low, high = spec.get("sigma_min", 0.1), spec.get("sigma_max", 3.1)
    sigma = tuple(key.at(2 * axis + 1).uniform(low, high) for axis in (0, 1))
    return kornia.filters.gaussian_blur2d(torch.tensor(x)[None], kernel, sigma, border_type="reflect")[0].numpy()


def median_blur(x, key, spec):
    kernel = tuple(odd(key.at(axis), spec) for axis in (0, 1))
    return kornia.filters.median_blur(torch.tensor(x)[None], kernel, border_type="constant")[0].numpy()


def swirl(x, key, spec):
    strength = key.at(0).uniform(spec.get("strength_min", 0.01), spec.get("strength_max", 2.0))
    radius = key.at(1).integer(spec.get("radius_min", 10), spec.get("radius_max", 200))
    center = [key.at(i).integer(spec.get("center_min", 1), spec.get("center_max", 200)) for i in (2, 3)]
    out = skimage.transform.swirl(x.transpose(1, 2, 0), center=center, strength=strength, radius=radius)
    return out.transpose(2, 0, 1)


def quantisation(x, key, spec):
    planes = []
    for channel, plane in enumerate(x):
        scale = key.at(channel).integer(spec.get("scale_min", 8), spec.get("scale_max", 199))
        planes.append(np.round(plane * scale) / scale)
    return np.stack(planes)


def fft(x, key, spec):
    # The field is drawn column by column.
    _, h, w = x.shape
    spread = spec.get("spread", 0.02)
    field = 1 - spread + 2 * spread * key.at(0).uniforms((w, h)).T
    planes = []
    for channel, plane in enumerate(x):
        f = key.at(1 + channel).uniform(0, spec.get("fraction_max", 0.95))
        spectrum = scipy.fft.fft2(plane)
        if spec.get("band", "as-coded") == "as-coded":
            spectrum[int(h * f) : int(h * (1 - f))] = 0
            spectrum[:, int(w * f) : int(w * (1 - f))] = 0
        else:
            kept = [np.abs(np.fft.fftfreq(n)) <= np.sqrt(1 - f) / 2 for n in (h, w)]
            spectrum *= np.outer(*kept)
        planes.append(np.clip(scipy.fft.ifft2(spectrum * field).real, 0, 1))
    return np.stack(planes)


def stack(x, key, spec):
    order = (key.shared() if spec["order"] == "shared" else key).at(0).permutation(len(spec["of"]))
    order = order[: spec.get("pick") or len(order)]
    for place in sorted(order) if spec["order"] == "fixed" else order:
        x = apply(spec["of"][place], x, key.at(1 + place))
    return x


def apply(spec, x, key):
    transformations = [noise_injection, gaussian_blur, median_blur, swirl, quantisation, fft, stack]
    return {f.__name__.replace("_", "-"): f for f in transformations}[spec["name"]](x, key, spec)


def specs():
    names = ["noise-injection", "gaussian-blur", "median-blur", "swirl", "quantisation", "fft"]
    # The image is small: centres that are near it, and a noise whose draws are the same bits everywhere.
    near = {"name": "swirl", "center_max": 12, "radius_min": 40}
    hits = {"name": "noise-injection", "types": ["salt", "pepper", "salt-and-pepper"]}
    bart = [{"name": name} for name in names]
    bart[3] = near
    for name in names:
        yield 5 if name == "noise-injection" else 2, {"name": name}
    yield 1, near
    yield 1, {"name": "fft", "band": "corrected", "spread": 0.3}
    for order, pick in [("fixed", 0), ("random", 0), ("shared", 0), ("shared", 0), ("random", 3), ("fixed", 4)]:
        yield 2, {"name": "stack", "of": bart if pick else [hits, *bart[1:]], "order": order, "pick": pick}
    yield 2, {"name": "stack", "of": bart[:2], "order": "shared"}


def main():
    x = np.random.default_rng(0).random((2, 13, 10)).round(6)
    cases, seed = [], 0
    for count, spec in specs():
        seed, image, modes = seed + 1, 0, set()
        while count:
            image += 1
            key = Key.root(seed).image(image).at(2)
            if spec["name"] == "noise-injection":
                mode = key.at(0).integer(0, 5)
                if mode in modes:
                    continue
                modes.add(mode)
            try:
                out = apply(spec, x, key)
            except LookupError:
                continue
            count -= 1
            numbers = [round(float(value), 12) for value in out.ravel()]
            cases.append({"spec": spec, "seed": seed, "image": image, "draw": 2, "output": numbers})
    head = json.dumps({"shape": x.shape, "pixels": x.ravel().tolist()})[:-1]
    lines = ",\n".join(json.dumps(case) for case in cases)
    Path(__file__).with_name("bart.json").write_text(f'{head}, "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
