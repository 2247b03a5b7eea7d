"""The engine's benchmark beside PyTorch's, alternating in one session.

Build the engine's first: cargo bench -p engine --no-run. Then: torch_bench.py BINARY [--rounds N] [--compile] [FILTER...].
Prints one row a work: images per second of the engine and of each PyTorch variant (medians over the rounds), and the
ratio to the best of them. Frozen weights; a gradient query is forward + gradient with respect to the input.
"""

import argparse
import statistics
import subprocess
import time

import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision
from torch.fx.experimental.optimization import fuse

WORK = """gradient cifar-resnet-20 32 100 1
gradient cifar-resnet-56 32 100 1
gradient resnet-18 32 32 1
gradient resnet-34 224 8 1
gradient resnet-50 224 8 1
gradient mobilenet-v2 224 8 1
logits cifar-resnet-20 32 500 1
logits cifar-resnet-56 32 100 1
logits resnet-18 32 32 1
logits resnet-34 224 8 1
logits resnet-50 224 8 1
logits mobilenet-v2 224 8 1
gradient cifar-resnet-20 32 100 4
gradient resnet-34 224 8 4""".splitlines()
SECONDS = 0.5


class Basic(nn.Module):
    """A basic block with the parameterless shortcut (He et al. 2016, option A)."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.pad = stride, (outputs - inputs) // 2

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y + x)


class CifarResnet(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        blocks, inputs = [], 16
        for outputs in (16, 32, 64):
            for _ in range((depth - 2) // 6):
                blocks.append(Basic(inputs, outputs, 1 if inputs == outputs else 2))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        return self.linear(self.blocks(F.relu(self.bn1(self.conv1(x)))).mean((2, 3)))


class Normalised(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, x):
        return self.net((x - self.mean) / self.std)


def network(model, side):
    if model.startswith("cifar-resnet"):
        net = CifarResnet(int(model.rsplit("-", 1)[1]))
    elif model == "mobilenet-v2":
        net = torchvision.models.mobilenet_v2()
    else:
        net = getattr(torchvision.models, model.replace("-", ""))(num_classes=10 if side < 64 else 1000)
        if side < 64:
            net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return net.eval().requires_grad_(False)


def variants(model, side, compiled):
    last = torch.channels_last
    yield "eager", Normalised(network(model, side)), torch.contiguous_format
    yield "channels_last", Normalised(network(model, side)).to(memory_format=last), last
    yield "folded", Normalised(fuse(network(model, side))), torch.contiguous_format
    yield "folded, channels_last", Normalised(fuse(network(model, side))).to(memory_format=last), last
    if compiled:
        yield "folded, channels_last, compiled", torch.compile(
            Normalised(fuse(network(model, side))).to(memory_format=last)
        ), last


def rate(net, x, work):
    def query():
        if work == "logits":
            with torch.inference_mode():
                return net(x)
        y = x.detach().requires_grad_()
        return torch.autograd.grad(net(y).sum(), y)[0]

    # One thread's processor time is fairer than the wall on a shared machine; the engine's benchmark does the same.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    query()
    start, count = clock(), 0
    while count == 0 or clock() - start < SECONDS:
        query()
        count += 1
    return count * len(x) / (clock() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("filter", nargs="*")
    args = parser.parse_intermixed_args()
    engine = subprocess.Popen([args.binary, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for request in WORK:
        if not all(word in request for word in args.filter):
            continue
        work, model, side, batch, threads = request.split()
        torch.set_num_threads(int(threads))
        x = torch.rand(int(batch), 3, int(side), int(side))
        nets = [(name, net, x.contiguous(memory_format=form)) for name, net, form in variants(model, int(side), args.compile)]
        rates = {name: [] for name, _, _ in nets}
        ours, seconds = [], 0.0
        for _ in range(args.rounds):
            print(request, file=engine.stdin, flush=True)
            answer, seconds = map(float, engine.stdout.readline().split())
            ours.append(answer)
            for name, net, images in nets:
                rates[name].append(rate(net, images, work))
        medians = {name: statistics.median(r) for name, r in rates.items()}
        best = max(medians, key=medians.get)
        mine = statistics.median(ours)
        rest = ", ".join(f"{name} {r:.1f}" for name, r in medians.items())
        print(f"{request}: engine {mine:.1f}, best {medians[best]:.1f} ({best}), ratio {mine / medians[best]:.2f};"
              f" compiled in {1e3 * seconds:.0f} ms; {rest}", flush=True)
    engine.stdin.close()
    engine.wait()


if __name__ == "__main__":
    main()
