"""Golden values for the odds test, from PyTorch in double precision.

    pip install torch numpy
    python odds.py

Writes odds.json beside this script. Features `phi` and weights `w` of the last layer are apart here, and the statistic is
computed as the paper has it, (phi(x) - phi(x + noise)) . (w_p - w_z), not from logits. The noise is that of the keys
root(seed).at(image).at(draw): Philox4x32-10 (Salmon et al. 2011) and the Box-Muller transform, written anew.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch

SEED, DRAWS, SIGMA, RATE = 11, 5, 30 / 255, 0.2
CLASSES, SIDE, TRAIN, TEST = 4, 6, 24, 12


def philox(counter, key):
    counter, key = list(counter), list(key)
    for turn in range(10):
        if turn:
            key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [b >> 32 ^ counter[1] ^ key[0], b % 2**32, a >> 32 ^ counter[3] ^ key[1], a % 2**32]
    return counter


class Key:
    def __init__(self, low, high):
        self.low, self.high = low, high

    def child(self, index):
        words = philox([index, 1 << 31, *self.high], self.low)
        return Key(words[:2], words[2:])

    def normals(self, count):
        out = []
        for block in range((count + 3) // 4):
            words = philox([block, 0, *self.high], self.low)
            for a, b in (words[:2], words[2:]):
                radius = math.sqrt(-2 * math.log((a + 0.5) / 2**32))
                turn = 2 * math.pi * b / 2**32
                out += [radius * math.cos(turn), radius * math.sin(turn)]
        return np.array(out[:count])


def wave(count, speed, shift):
    return np.sin(speed * np.arange(count) + shift)


def images(first, count):
    size = 3 * SIDE * SIDE
    pixels = [0.5 + 0.5 * wave(size, 0.05 + 0.37 * i, 0.9 * i) * (0.3 + 0.7 * (i % 5) / 4) for i in range(first, first + count)]
    return torch.tensor(np.stack(pixels)).reshape(count, 3, SIDE, SIDE)


KERNEL = torch.tensor(wave(8 * 3 * 9, 1.3, 0.1)).reshape(8, 3, 3, 3) * 0.7
WEIGHT = torch.tensor(wave(CLASSES * 8, 2.1, 0.4)).reshape(CLASSES, 8) * 3
BIAS = torch.tensor([-0.1748, 0.1173, 0.0667, -0.1838], dtype=torch.float64)


def features(x):
    return torch.relu(torch.nn.functional.conv2d(x, KERNEL, padding=1)).mean((2, 3))


def erosion(x, key):
    phi = features(x[None])[0]
    p = int((WEIGHT @ phi + BIAS).argmax())
    a = torch.zeros(CLASSES, dtype=torch.float64)
    for draw in range(DRAWS):
        noise = torch.tensor(key.child(draw).normals(x.numel())).reshape(x.shape)
        noisy = (x + SIGMA * noise).clamp(0, 1)
        a += (WEIGHT[p] - WEIGHT) @ (phi - features(noisy[None])[0])
    return p, (a / DRAWS).tolist()


if __name__ == "__main__":
    root = Key([SEED, 0], [0, 0])
    every = [erosion(x, root.child(i)) for i, x in enumerate(images(0, TRAIN + TEST))]
    train, test = every[:TRAIN], every[TRAIN:]
    pairs, scores = [], []
    for p in range(CLASSES):
        of = np.array([a for predicted, a in train if predicted == p])
        for z in range(CLASSES):
            if z != p:
                known = [of[:, z].mean(), of[:, z].std()] if len(of) else [None, None]
                pairs.append([p, z, len(of), *known])
    stats = {(p, z): (n, mean, sd) for p, z, n, mean, sd in pairs}
    for p, a in test:
        tests = [(a[z] - stats[p, z][1]) / stats[p, z][2] for z in range(CLASSES) if z != p and stats[p, z][0] >= 3]
        scores.append(max(tests) if tests else None)
    cutoff = -torch.special.ndtri(torch.tensor(RATE, dtype=torch.float64)).item()
    golden = {
        "seed": SEED, "draws": DRAWS, "sigma": "30/255", "rate": RATE, "classes": CLASSES, "side": SIDE, "train": TRAIN,
        "predicted": [p for p, _ in every], "margins": [a for _, a in every], "pairs": pairs, "scores": scores,
        "flags": [score is not None and bool(score > cutoff) for score in scores],
    }
    print("predicted", np.bincount(golden["predicted"][:TRAIN], minlength=CLASSES), scores, cutoff)
    Path(__file__).with_name("odds.json").write_text(json.dumps(golden).replace('], "', '],\n"') + "\n")
