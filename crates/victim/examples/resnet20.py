"""The published ResNet-20 for CIFAR-10 in PyTorch: behind Gaussian noise, by itself, or the noise alone.

    python3 crates/victim/examples/resnet20.py WEIGHTS.safetensors [defended|network|noise]

WEIGHTS are those of akamaster/pytorch_resnet_cifar10, as `pipelines/sources/cifar10.toml` names them.
"""

import json
import pathlib
import sys

import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))  # or: pip install ./crates/victim
import victim

SIGMA = 0.1
MEAN = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
STD = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.pad = stride, (outputs - inputs) // 2

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y + x)


class ResNet20(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        sides = (16, 16), (16, 32), (32, 64)
        for i, (inputs, outputs) in enumerate(sides, 1):
            first = Block(inputs, outputs, 1 if i == 1 else 2)
            setattr(self, f"layer{i}", nn.Sequential(first, Block(outputs, outputs, 1), Block(outputs, outputs, 1)))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


def weights(path):
    """The tensors of a safetensors file."""
    data = bytearray(pathlib.Path(path).read_bytes())
    head = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:head])
    kinds = {"F32": torch.float32, "I64": torch.int64}
    tensors = {}
    for name, about in header.items():
        if name != "__metadata__":
            begin, end = (head + offset for offset in about["data_offsets"])
            tensors[name] = torch.frombuffer(data[begin:end], dtype=kinds[about["dtype"]]).view(about["shape"])
    return tensors


net = ResNet20().eval().requires_grad_(False)
missing = net.load_state_dict(weights(sys.argv[1]), strict=False)
assert not missing.unexpected_keys and all("num_batches" in name for name in missing.missing_keys), missing


def noisy(x, rng):
    return x + SIGMA * rng.normal(x.shape)


def network(x):
    return net((x - MEAN) / STD)


part = sys.argv[2] if len(sys.argv) > 2 else "defended"
if part == "noise":
    victim.serve_transformation(noisy)
elif part == "network":
    victim.serve(network, shape=(3, 32, 32), classes=10, random=False, weights=sys.argv[1:2])
else:
    victim.serve(lambda x, rng: network(noisy(x, rng)), shape=(3, 32, 32), classes=10, weights=sys.argv[1:2])
