"""Writes the fixtures of tests/it/oracle.rs and tests/it/weights.rs: python make.py (torch, safetensors, numpy).

Two small CIFAR ResNets in f64: weights, logits, input gradient, and three AdamW steps in training mode.
"""

import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

HERE = pathlib.Path(__file__).parent


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride, option):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.added = outputs - inputs
        self.stride = stride
        if stride != 1 and option == "B":
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if hasattr(self, "shortcut"):
            x = self.shortcut(x)
        elif self.stride != 1:
            x = x[:, :, ::2, ::2]
            x = F.pad(x, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
        return F.relu(out + x)


class Net(nn.Module):
    def __init__(self, width, classes, option):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(Block(width, width, 1, option))
        self.layer2 = nn.Sequential(Block(width, 2 * width, 2, option))
        self.layer3 = nn.Sequential(Block(2 * width, 4 * width, 2, option))
        self.linear = nn.Linear(4 * width, classes)

    def forward(self, x):
        x = (x - torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(1, 3, 1, 1)) / torch.tensor(
            [0.229, 0.224, 0.225], dtype=torch.float64
        ).view(1, 3, 1, 1)
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def state(net, prefix=""):
    entries = net.state_dict().items()
    return {prefix + name: t.clone() for name, t in entries if "num_batches" not in name}


for name, option, seed in [("cifar-a", "A", 1), ("cifar-b", "B", 2)]:
    torch.manual_seed(seed)
    net = Net(3, 4, option).double()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
    fixture = state(net)
    x = torch.rand(5, 3, 11, 14).double()
    upstream = torch.randn(5, 4).double()
    net.eval()
    probe = x.clone().requires_grad_()
    logits = net(probe)
    (logits * upstream).sum().backward()
    labels = torch.tensor([0, 3, 1, 2, 3])
    if option == "A":
        # Checkpoints as torch writes them: nested, prefixed, with half precision and integers beside.
        single = Net(3, 4, option).float()
        single.load_state_dict(net.state_dict())
        torch.save({"epoch": 3, "state_dict": nn.DataParallel(single).state_dict()}, HERE / "nested.pth")
        torch.save(single.half().state_dict(), HERE / "half.pt")
    net.train()
    net.zero_grad()
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)
    losses = []
    for _ in range(3):
        optimiser.zero_grad()
        loss = F.cross_entropy(net(x), labels)
        losses.append(loss.item())
        loss.backward()
        optimiser.step()
    fixture |= state(net, "after.") | {
        "fixture.x": x,
        "fixture.upstream": upstream,
        "fixture.logits": logits.detach(),
        "fixture.gradient": probe.grad,
        "fixture.labels": labels,
        "fixture.losses": torch.tensor(losses, dtype=torch.float64),
    }
    save_file({name: tensor.contiguous() for name, tensor in fixture.items()}, HERE / f"{name}.safetensors")
