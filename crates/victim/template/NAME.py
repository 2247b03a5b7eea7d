"""NAME: a defense of your own. It is asked by the product; `python3 pipelines/NAME.py` asks it once by hand."""

import pathlib
import sys

import torch

sys.path.append(str(pathlib.Path(__file__).parents[1] / "crates/victim"))  # or: pip install ./crates/victim
import victim


def defend(x, rng):
    """Images (n, c, h, w) in [0, 1] to images: your transformation instead of this one.

    Everything random comes from `rng`, which draws for each row by itself: rng.normal(shape), rng.uniform(shape, low, high),
    rng.integers(low, high, shape), rng.bernoulli(p, shape), rng.permutation(k). Whatever torch can differentiate is
    differentiated; a step that it cannot (rounding, JPEG) is told by @victim.bpda.
    """
    strength = rng.uniform((len(x), 1, 1, 1), 0.0, 0.2)
    return (x + strength * rng.normal(x.shape)).clamp(0, 1)


victim.serve_transformation(defend)

# A defense inside a network, or in front of one of your own, is served whole. In NAME.toml write then
# `model = { name = "program", command = [..], files = ["mine.pt"] }` and `defense = { name = "none" }`.
#
# net = torch.load("mine.pt", weights_only=False).eval()
#
# def model(x, rng):
#     return net((defend(x, rng) - 0.5) / 0.5)        # normalise here: images arrive in [0, 1]
#
# victim.serve(model, shape=(3, 32, 32), classes=10, weights=["mine.pt"])
#
# A network that draws by itself (torch.randn, dropout) takes x alone. Rows are then computed one by one, each with torch
# seeded by its key: exact, and slow. With draws="batch" they are computed together, and every table says so.
