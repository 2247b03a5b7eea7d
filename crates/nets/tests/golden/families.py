"""Writes the fixture of tests/it/families.rs: python families.py (torch, torchvision, timm, safetensors, numpy).

Logits and input gradients in f64 of networks from torchvision (DenseNet, VGG) and timm (EfficientNet-Lite), and of the
CIFAR networks of papers on robustness, which no package has and which are written here. Weights and images follow from
names by the formula of table2.py, so that millions of them need no file.
"""

import math
import pathlib

import numpy as np
import timm
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


def fill(net, named=lambda name: name):
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            name, shape = named(name), tuple(tensor.shape)
            if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
                tensor.copy_(0.5 + unit(name, shape))
            elif len(shape) == 1:
                tensor.copy_(0.3 * signed(name, shape))
            else:
                tensor.copy_(signed(name, shape) * math.sqrt(6 / math.prod(shape[1:])))
    return net.eval()


fixture = {}


def record(name, net, shape, mean, std, named=lambda name: name):
    """Logits, and of the gradient of their product with fixed numbers the norms of each image and every 101st number."""
    channel = lambda numbers: torch.tensor(numbers).view(1, 3, 1, 1)
    fill(net, named)
    x = unit(f"{name}.x", shape).requires_grad_()
    logits = net((x - channel(mean)) / channel(std))
    (logits * signed(f"{name}.upstream", tuple(logits.shape))).sum().backward()
    fixture[f"{name}.out"] = logits.detach()
    fixture[f"{name}.norms"] = torch.stack([x.grad.abs().sum((1, 2, 3)), x.grad.flatten(1).norm(dim=1)])
    fixture[f"{name}.some"] = x.grad.flatten()[::101]
    print(name, sum(p.numel() for p in net.parameters()), logits.abs().max().item(), x.grad.abs().max().item())


IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CIFAR = [0.4914, 0.4822, 0.4465], [0.2471, 0.2435, 0.2616]
PLAIN = [0.0] * 3, [1.0] * 3
LITE = [127 / 255] * 3, [128 / 255] * 3


# EfficientNet-Lite: timm's networks under the names of efficientnet-lite-pytorch.
def lite_names(net):
    places = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    number = 0
    for stage, blocks in enumerate(net.blocks):
        for block, module in enumerate(blocks):
            first = not hasattr(module, "conv_pwl")
            parts = {"conv_dw": "_depthwise_conv"}
            parts |= {"conv_pw": "_project_conv", "bn1": "_bn1", "bn2": "_bn2"} if first else {}
            if not first:
                parts |= {"conv_pw": "_expand_conv", "conv_pwl": "_project_conv"}
                parts |= {"bn1": "_bn0", "bn2": "_bn1", "bn3": "_bn2"}
            for theirs, ours in parts.items():
                places[f"blocks.{stage}.{block}.{theirs}"] = f"_blocks.{number}.{ours}"
            number += 1

    def named(name):
        layer, part = name.rsplit(".", 1)
        return f"{places[layer]}.{part}"

    return named


for variant, side in [(0, (64, 75)), (1, (71, 60)), (2, (65, 66)), (4, (33, 64))]:
    net = timm.create_model(f"tf_efficientnet_lite{variant}", num_classes=10)
    record(f"efficientnet-lite-{variant}", net, (2, 3, *side), *LITE, lite_names(net))
# Padded by half the kernel.
net = timm.create_model("efficientnet_lite0", num_classes=10)
for module in net.modules():
    if isinstance(module, nn.BatchNorm2d):
        module.eps = 1e-3
record("efficientnet-lite-0-symmetric", net, (2, 3, 64, 75), *LITE, lite_names(net))

for depth, side in [(121, (64, 70)), (161, (33, 48))]:
    net = getattr(torchvision.models, f"densenet{depth}")(num_classes=10)
    record(f"densenet-{depth}", net, (2, 3, *side), *IMAGENET)


def vgg(model, hidden, classes):
    net = getattr(torchvision.models, model)(num_classes=classes, init_weights=False)
    for place, inputs, outputs in [(0, 512 * 49, hidden), (3, hidden, hidden), (6, hidden, classes)]:
        net.classifier[place] = nn.Linear(inputs, outputs)
    return net


for model, side in [("vgg11", (64, 70)), ("vgg13_bn", (32, 75)), ("vgg16", (224, 230))]:
    record(model, vgg(model, 20, 10), (1, 3, *side), *IMAGENET)


class CifarVgg(nn.Module):
    """After kuangliu/pytorch-cifar."""

    def __init__(self, layers, classes):
        super().__init__()
        net, inputs = [], 3
        for outputs in layers:
            if outputs == "M":
                net.append(nn.MaxPool2d(2, 2))
                continue
            net += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        self.features = nn.Sequential(*net, nn.AvgPool2d(1, 1))
        self.classifier = nn.Linear(512, classes)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


layers = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]
record("cifar-vgg-16", CifarVgg(layers, 10), (2, 3, 32, 32), *IMAGENET)


class DenseLayer(nn.Module):
    def __init__(self, inputs, growth):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x):
        h = self.conv1(F.relu(self.bn1(x)))
        return torch.cat([x, self.conv2(F.relu(self.bn2(h)))], 1)


class Transition(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, inputs // 2, 1, bias=False)

    def forward(self, x):
        return F.avg_pool2d(self.conv1(F.relu(self.bn1(x))), 2)


class CifarDensenet(nn.Module):
    """After andreasveit/densenet-pytorch."""

    def __init__(self, depth, growth, classes):
        super().__init__()
        channels, layers = 2 * growth, (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        for block in (1, 2, 3):
            module = nn.Module()
            module.layer = nn.Sequential(*(DenseLayer(channels + i * growth, growth) for i in range(layers)))
            setattr(self, f"block{block}", module)
            channels += layers * growth
            if block < 3:
                setattr(self, f"trans{block}", Transition(channels))
                channels //= 2
        self.bn1, self.fc = nn.BatchNorm2d(channels), nn.Linear(channels, classes)

    def forward(self, x):
        x = self.trans1(self.block1.layer(self.conv1(x)))
        x = self.block3.layer(self.trans2(self.block2.layer(x)))
        return self.fc(F.avg_pool2d(F.relu(self.bn1(x)), 8).flatten(1))


record("cifar-densenet-40", CifarDensenet(40, 12, 10), (2, 3, 32, 32), *CIFAR)


class WideUnit(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.convShortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        active = F.relu(self.bn1(x))
        h = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return h + (x if self.convShortcut is None else self.convShortcut(active))


class Wrn(nn.Module):
    """After yaodongyu/TRADES, without the group that it computes nothing with."""

    def __init__(self, depth, width, classes):
        super().__init__()
        units, inputs = (depth - 4) // 6, 16
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        for group in range(3):
            module, outputs, layers = nn.Module(), 16 * width * 2**group, []
            for number in range(units):
                layers.append(WideUnit(inputs, outputs, 2 if group and number == 0 else 1))
                inputs = outputs
            module.layer = nn.Sequential(*layers)
            setattr(self, f"block{group + 1}", module)
        self.bn1, self.fc = nn.BatchNorm2d(inputs), nn.Linear(inputs, classes)

    def forward(self, x):
        x = self.conv1(x)
        for block in (self.block1, self.block2, self.block3):
            x = block.layer(x)
        return self.fc(F.avg_pool2d(F.relu(self.bn1(x)), 8).flatten(1))


record("wrn-16-2", Wrn(16, 2, 10), (2, 3, 32, 32), *PLAIN)
record("wrn-10-1", Wrn(10, 1, 10), (2, 3, 32, 32), *CIFAR)


class PreactBlock(nn.Module):
    def __init__(self, inputs, inner, stride, bottleneck, activated):
        super().__init__()
        outputs, self.activated = inner * (4 if bottleneck else 1), activated
        sizes = [(inner, 1, 1), (inner, 3, stride), (outputs, 1, 1)] if bottleneck else [(inner, 3, stride), (inner, 3, 1)]
        self.layers, channels = len(sizes), inputs
        for number, (width, kernel, step) in enumerate(sizes, start=1):
            setattr(self, f"bn{number}", nn.BatchNorm2d(channels))
            setattr(self, f"conv{number}", nn.Conv2d(channels, width, kernel, step, kernel // 2, bias=False))
            channels = width
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x):
        h, shortcut = x, x
        for number in range(1, self.layers + 1):
            h = F.relu(getattr(self, f"bn{number}")(h))
            if number == 1 and hasattr(self, "shortcut"):
                shortcut = self.shortcut(h if self.activated else x)
            h = getattr(self, f"conv{number}")(h)
        return h + shortcut


class PreactResnet(nn.Module):
    """After kuangliu/pytorch-cifar, with the options of RobustBench."""

    def __init__(self, blocks, bottleneck, activated, norm, classes):
        super().__init__()
        self.conv1, inputs = nn.Conv2d(3, 64, 3, 1, 1, bias=False), 64
        for stage, count in enumerate(blocks):
            layer = []
            for number in range(count):
                stride = 2 if stage and number == 0 else 1
                layer.append(PreactBlock(inputs, 64 * 2**stage, stride, bottleneck, activated))
                inputs = 64 * 2**stage * (4 if bottleneck else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layer))
        if norm:
            self.bn = nn.BatchNorm2d(inputs)
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x):
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        x = F.relu(self.bn(x)) if hasattr(self, "bn") else x
        return self.linear(F.avg_pool2d(x, 4).flatten(1))


record("preact-rice", PreactResnet([2, 2, 2, 2], False, True, True, 10), (2, 3, 32, 32), *CIFAR)
record("preact-kuangliu", PreactResnet([2, 2, 2, 2], False, True, False, 10), (2, 3, 32, 32), *CIFAR)
record("preact-wong", PreactResnet([2, 2, 2, 2], False, False, False, 10), (2, 3, 32, 32), *CIFAR)
record("preact-50", PreactResnet([3, 4, 6, 3], True, True, True, 10), (2, 3, 32, 32), *CIFAR)

save_file({name: tensor.contiguous() for name, tensor in fixture.items()}, HERE / "families.safetensors")
