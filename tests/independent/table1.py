#!/usr/bin/env python3
"""Table 1 on CIFAR-10, again, in PyTorch: nothing here is shared with the Rust programs but the files of images and weights.

    python tests/independent/table1.py DATA_ROOT [--images 200] [--votes 100] [--seed 0] > torch-table1.json

ResNet-20 (option A shortcuts), rotation by an angle uniform in +-degrees (bilinear, zeros outside, same size), PGD in the
8/255 l-inf ball with k x m = 50 gradients, sign of the mean gradient over m draws, start at the image, last iterate. The
success rate counts, among images whose vote did not satisfy the goal before the attack, those whose fresh vote does after.
Prints one JSON object a cell. Needs torch, numpy, pyarrow, pillow, safetensors.
"""
import argparse
import io
import json
import math

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file


class ResNet20:
    def __init__(self, path):
        w = {k.removeprefix("module."): v for k, v in load_file(path).items()}
        self.w = {k: v.float().contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v for k, v in w.items()}
        self.mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
        self.std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)

    def conv_bn(self, x, conv, bn, stride=1):
        x = F.conv2d(x, self.w[f"{conv}.weight"], stride=stride, padding=1)
        return F.batch_norm(x, self.w[f"{bn}.running_mean"], self.w[f"{bn}.running_var"], self.w[f"{bn}.weight"], self.w[f"{bn}.bias"])

    def __call__(self, x):
        x = (x - self.mean) / self.std
        x = F.relu(self.conv_bn(x.contiguous(memory_format=torch.channels_last), "conv1", "bn1"))
        for stage, planes in enumerate([16, 32, 64], start=1):
            for block in range(3):
                name = f"layer{stage}.{block}"
                stride = 2 if stage > 1 and block == 0 else 1
                y = F.relu(self.conv_bn(x, f"{name}.conv1", f"{name}.bn1", stride))
                y = self.conv_bn(y, f"{name}.conv2", f"{name}.bn2")
                if stride == 2:
                    x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, planes // 4, planes // 4))
                x = F.relu(x + y)
        return F.linear(x.mean((2, 3)), self.w["linear.weight"], self.w["linear.bias"])


def rotate(x, degrees, generator):
    angle = (torch.rand(len(x), generator=generator) * 2 - 1) * math.radians(degrees)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(len(x))
    theta = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=True)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def stable_loss(logits, classes):
    # In double precision the label's probability minus one keeps its sign long after single precision loses it.
    return F.cross_entropy(logits.double(), classes, reduction="none")


def attack(net, x0, classes, direction, degrees, k, m, alpha, eps, generator):
    x = x0.clone()
    for _ in range(k):
        v = x.clone().requires_grad_(True)
        draws = rotate(v.repeat_interleave(m, 0), degrees, generator)
        loss = stable_loss(net(draws), classes.repeat_interleave(m)).sum() * 2.0**20
        (g,) = torch.autograd.grad(loss, v)
        x = torch.clamp(x + direction * alpha * g.sign(), 0, 1)
        x = x0 + torch.clamp(x - x0, -eps, eps)
    return x


@torch.no_grad()
def vote(net, x, degrees, n, generator):
    counts = torch.zeros(len(x), 10, dtype=torch.int64)
    for _ in range(n):
        counts.scatter_add_(1, net(rotate(x, degrees, generator)).argmax(1, keepdim=True), torch.ones(len(x), 1, dtype=torch.int64))
    return torch.from_numpy(counts.numpy().argmax(1))  # numpy takes the first maximum: the smallest class


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("data_root")
    arguments.add_argument("--images", type=int, default=200)
    arguments.add_argument("--votes", type=int, default=100)
    arguments.add_argument("--seed", type=int, default=0)
    arguments = arguments.parse_args()
    table = pq.read_table(f"{arguments.data_root}/images/cifar10-test-1000.parquet").slice(0, arguments.images)
    pixels = [np.asarray(Image.open(io.BytesIO(i["bytes"])).convert("RGB")) for i in table["image"].to_pylist()]
    x0 = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    y = torch.tensor(table["label"].to_pylist())
    net = ResNet20(f"{arguments.data_root}/weights/cifar10-resnet20.safetensors")
    generator = torch.Generator().manual_seed(arguments.seed)
    for degrees in (90, 45):
        before = vote(net, x0, degrees, arguments.votes, generator)
        for goal, target in (("untargeted", None), ("targeted", 9)):
            classes = y if target is None else torch.full_like(y, target)
            open_before = before == y if target is None else before != target
            for k, m in ((50, 1), (10, 5)):
                for alpha in (1, 2):
                    direction = 1 if target is None else -1
                    x = attack(net, x0, classes, direction, degrees, k, m, alpha / 255, 8 / 255, generator)
                    after = vote(net, x, degrees, arguments.votes, generator)
                    won = (after != y if target is None else after == target) & open_before
                    row = dict(degrees=degrees, goal=goal, steps=k, eot=m, step_size=f"{alpha}/255",
                               benign_accuracy=(before == y).float().mean().item(),
                               numerator=int(won.sum()), denominator=int(open_before.sum()))
                    row["value"] = row["numerator"] / row["denominator"]
                    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
