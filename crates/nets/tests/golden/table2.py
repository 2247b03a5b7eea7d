"""Writes the fixture of tests/it/table2.rs: python table2.py (torch, torchvision, safetensors, numpy).

The layers of the defenses inside a network, one by one, and four networks whole: Inception-v3 from torchvision, and the
wide ResNet, the same pruned, and the sparse ResNet-18 written here. All in f64. Weights and images follow from names by a
formula that the tests know too, so that millions of them need no file.
"""

import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import nn

HERE = pathlib.Path(__file__).parent
U64 = np.uint64
torch.set_default_dtype(torch.float64)


# Numbers by name: FNV-1a of the name starts a SplitMix64, whose top 53 bits are taken.
def unit(name, shape):
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = (state ^ byte) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        z = U64(state) + np.arange(1, math.prod(shape) + 1, dtype=U64) * U64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> U64(30))) * U64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> U64(27))) * U64(0x94D049BB133111EB)
        z = z ^ (z >> U64(31))
    return torch.from_numpy((z >> U64(11)).astype(np.float64) * 2.0**-53).reshape(shape)


def signed(name, shape):
    return 2 * unit(name, shape) - 1


def fill(net):
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            shape = tuple(tensor.shape)
            if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
                tensor.copy_(0.5 + unit(name, shape))
            elif len(shape) == 1:
                tensor.copy_(0.3 * signed(name, shape))
            else:
                tensor.copy_(signed(name, shape) * math.sqrt(6 / math.prod(shape[1:])))
    return net.eval()


# The project's keys: Philox4x32-10 (Salmon et al. 2011), with one bit of the counter for derivation.
def philox(counter, key):
    counter, key = [np.asarray(word, U64) for word in counter], list(key)
    low = U64(0xFFFFFFFF)
    for turn in range(10):
        if turn:
            key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
        a, b = U64(0xD2511F53) * counter[0], U64(0xCD9E8D57) * counter[2]
        counter = [
            (b >> U64(32)) ^ counter[1] ^ U64(key[0]),
            b & low,
            (a >> U64(32)) ^ counter[3] ^ U64(key[1]),
            a & low,
        ]
    return counter


class Key:
    def __init__(self, seed):
        self.key, self.high = [seed % 2**32, seed >> 32], [0, 0]

    def at(self, index):
        child = Key(0)
        words = philox([index, 1 << 31, *self.high], self.key)
        child.key, child.high = [int(word) for word in words[:2]], [int(word) for word in words[2:]]
        return child

    def uniform(self, shape):
        blocks = np.arange(-(-math.prod(shape) // 4), dtype=U64)
        high = [np.full_like(blocks, word) for word in self.high]
        words = np.stack(philox([blocks, np.zeros_like(blocks), *high], self.key), 1).reshape(-1)
        return torch.from_numpy((words[: math.prod(shape)] >> U64(8)).astype(np.float64) * 2.0**-24).reshape(shape)


def keep_probability(r, samples=2):
    p = r.abs() / r.abs().sum((1, 2, 3), keepdim=True)
    return 1 - torch.exp(-samples * r[0].numel() * p)


def prune(r, keys, samples=2):
    """The pruning of Athalye et al.: the mask is constant, the quotient is differentiated."""
    q = keep_probability(r, samples)
    mask = torch.stack([key.uniform(r.shape[1:]) for key in keys]) < q.detach()
    return mask * r / (q + 1e-8)


def winners(x, share):
    """The mask of Xiao et al.: all that reach the k-th largest."""
    flat = x.flatten(1)
    threshold = flat.topk(int(share * flat.shape[1]), 1).values[:, -1:]
    return (flat >= threshold).reshape(x.shape)


def standardise(x):
    """TensorFlow's per_image_standardization."""
    count = x[0].numel()
    mean = x.mean((1, 2, 3), keepdim=True)
    deviation = ((x - mean) ** 2).mean((1, 2, 3), keepdim=True).sqrt()
    return (x - mean) / torch.maximum(deviation, torch.tensor(1 / math.sqrt(count)))


class Unit(nn.Module):
    def __init__(self, inputs, outputs, stride, first, after):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs, eps=1e-3)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 0, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, eps=1e-3)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.stride, self.first, self.added, self.after = stride, first, outputs - inputs, after

    def forward(self, x):
        h = F.leaky_relu(self.bn1(x), 0.1)
        if self.first:
            x = h
        # TensorFlow's SAME: of the two pixels that stride 2 needs less, those before.
        h = F.pad(h, (1, 1, 1, 1) if self.stride == 1 else (0, 1, 0, 1))
        h = self.after(self.conv1(h))
        h = self.after(self.conv2(F.leaky_relu(self.bn2(h), 0.1)))
        if self.added:
            x = F.avg_pool2d(x, self.stride, self.stride)
            x = F.pad(x, (0, 0, 0, 0, self.added // 2, self.added // 2))
        return h + x


class WideResnet(nn.Module):
    """After MadryLab/cifar10_challenge, with what comes after every convolution as an argument."""

    def __init__(self, units, width, classes, after=lambda h: h):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        channels = 16
        for group in range(3):
            layer, outputs = [], 16 * width * 2**group
            for unit_ in range(units):
                stride = 2 if group > 0 and unit_ == 0 else 1
                layer.append(Unit(channels, outputs, stride, group == 0 and unit_ == 0, after))
                channels = outputs
            block = nn.Module()
            block.layer = nn.Sequential(*layer)
            setattr(self, f"block{group + 1}", block)
        self.bn1 = nn.BatchNorm2d(channels, eps=1e-3)
        self.fc = nn.Linear(channels, classes)
        self.after = after

    def forward(self, x):
        x = self.after(self.conv1(standardise(x * 255)))
        for block in (self.block1, self.block2, self.block3):
            x = block.layer(x)
        return self.fc(F.leaky_relu(self.bn1(x), 0.1).mean((2, 3)))


class SparseBlock(nn.Module):
    def __init__(self, inputs, outputs, stride, share):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.share = share
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        h = self.bn1(self.conv1(x))
        h = self.bn2(self.conv2(h * winners(h, self.share))) + self.shortcut(x)
        return h * winners(h, self.share)


class SparseResnet18(nn.Module):
    """After a554b554/kWTA-Activation."""

    def __init__(self, classes, share):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for stage, outputs in enumerate([64, 128, 256, 512]):
            blocks = [SparseBlock(inputs, outputs, 2 if stage else 1, share), SparseBlock(outputs, outputs, 1, share)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            inputs = outputs
        self.linear = nn.Linear(512, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.linear(x.mean((2, 3)))


fixture = {}


def record(name, x, f):
    """The value, and the gradient of its product with fixed numbers."""
    x = x.clone().requires_grad_()
    out = f(x)
    (out * signed(f"{name}.upstream", tuple(out.shape))).sum().backward()
    fixture[f"{name}.out"], fixture[f"{name}.gradient"] = out.detach(), x.grad


x = signed("layers.x", (3, 4, 5, 6)) ** 3
keys = [Key(3).at(image).at(7) for image in range(3)]
fixture["prune.keep"] = keep_probability(x)
fixture["prune.uniform"] = torch.stack([key.uniform(x.shape[1:]) for key in keys])
record("prune", x, lambda x: prune(x, keys))
record("prune-half", x, lambda x: prune(x, keys, 0.5))
# Values that tie at the threshold, in one image above zero and in another below.
ties = (x * 4).round() / 4
ties[1] = -ties[1].abs() - 1
record("winners", ties, lambda x: x * winners(x, 0.2))
fixture["winners.mask"] = winners(ties, 0.2).to(torch.float64)
record("standardise", x, standardise)
record("standardise-flat", x * 1e-2, standardise)
record("average-pool", x, lambda x: F.avg_pool2d(x, 3, 1, 1))
record("average-pool-2", x, lambda x: F.avg_pool2d(x, 2, 2))
record("leaky-relu", x, lambda x: F.leaky_relu(x, 0.1))

wide = fill(WideResnet(2, 2, 10))
record("wide-resnet", unit("wide-resnet.x", (2, 3, 16, 12)), wide)


class Prunings:
    """One pruning after the other, in order of evaluation."""

    def __init__(self, keys):
        self.keys, self.index = keys, 0

    def __call__(self, h):
        out = prune(h, [key.at(self.index) for key in self.keys])
        self.index += 1
        return out


after = Prunings([Key(5).at(0), Key(5).at(1)])
record("pruned", unit("wide-resnet.x", (2, 3, 16, 12)), fill(WideResnet(2, 2, 10, after)))
assert after.index == 13
record("sparse", unit("sparse.x", (2, 3, 16, 16)), fill(SparseResnet18(10, 0.1)))

inception = torchvision.models.inception_v3(num_classes=10, aux_logits=False, transform_input=False, init_weights=False)
record("inception", unit("inception.x", (2, 3, 75, 83)), lambda x: fill(inception)((x - 0.5) / 0.5))
gradient = fixture.pop("inception.gradient")
fixture["inception.norms"] = torch.stack([gradient.abs().sum((1, 2, 3)), gradient.flatten(1).norm(dim=1)])
fixture["inception.some"] = gradient.flatten()[::101]

save_file({name: tensor.contiguous() for name, tensor in fixture.items()}, HERE / "table2.safetensors")
for name, tensor in fixture.items():
    print(name, tuple(tensor.shape), tensor.abs().max().item())
