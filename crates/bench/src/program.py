"""A published network behind Gaussian noise, as a user would serve it."""

import sys

import victim
from torch_server import Normalised, loaded

net = Normalised(loaded("cifar-resnet-20", 32, sys.argv[1]).requires_grad_(False)).eval()


def model(x, rng):
    return net(x + 0.25 * rng.normal(x.shape))


victim.serve(model, shape=(3, 32, 32), classes=10, weights=[sys.argv[1]])
