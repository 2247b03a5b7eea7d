"""Programs in Python for the tests: what the first argument names."""

import pathlib
import sys

import numpy as np
import torch

sys.path.append(str(pathlib.Path(__file__).parents[2]))
import victim

what = sys.argv[1]
print("printed", what, flush=True)
torch.manual_seed(0)
weight = torch.randn(48, 10)


def quadratic(x):
    z = x.flatten(1) @ weight
    return z + 0.1 * z * z


if what == "draws":
    # What is drawn, in the place of images: normal numbers, uniform ones, more normal ones, and a child's.
    def draws(x, rng):
        n, size = len(x), 13
        parts = [rng.normal((n, size)), rng.uniform((n, size)), rng.normal((n, 2)), rng.child(5).normal((n, size))]
        parts += [rng.integers(-3, 7, (n, size)).float(), rng.child(1 << 40).uniform((n, size), -1, 1)]
        return torch.cat(parts, 1)[:, None, None].expand(n, x.shape[1], 1, 67)

    victim.serve_transformation(draws)
elif what == "noise":
    victim.serve_transformation(lambda x, rng: x + 0.25 * rng.normal(x.shape))
elif what == "rng":
    victim.serve(lambda x, rng: quadratic(x + 0.1 * rng.normal(x.shape)), shape=(3, 4, 4), classes=10)
elif what == "row":
    # Whichever generator a program uses, and a layer that draws.
    drop = torch.nn.Dropout(0.3)
    victim.serve(lambda x: quadratic(drop(x + 0.1 * torch.randn_like(x)) + np.random.rand()), classes=10)
elif what == "batch":
    victim.serve(lambda x: quadratic(x + 0.1 * torch.randn_like(x)), classes=10, draws="batch")
elif what == "module":
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 10))
    victim.serve(net.eval(), classes=10, random=False, batch=5)
elif what == "bpda":
    step = victim.bpda(lambda x, rng: torch.round(x * 8) / 8)
    soft = victim.bpda(surrogate=lambda x, rng: x * x)(lambda x, rng: torch.round(x))
    victim.serve(lambda x, rng: quadratic(step(x, rng) + soft(x, rng)), classes=10)
elif what == "cut":
    victim.serve(lambda x, rng: quadratic(torch.round(x.detach())), classes=10)
elif what == "wrong":
    victim.serve(lambda x, rng: quadratic(x)[:1], classes=10)
elif what == "error":
    victim.serve(lambda x, rng: {}["no such key"], classes=10)
