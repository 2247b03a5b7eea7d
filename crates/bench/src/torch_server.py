"""PyTorch's side of the benchmark: answers requests on its input, one JSON object a line, so that rounds can alternate.

open     the work, model, side, batch, threads, whether to compile, and the files of weights, images, labels and
         gradients that both sides use: what variants there are, and which were left out and why
first    a variant and a file: writes what it answered first (logits and gradient, or a training step's loss), f32
rate     a variant and seconds: images per second (votes: images decided per second)
"""

import json
import os
import sys
import time

try:
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
    import torchvision
    from torch.fx.experimental.optimization import fuse
except ImportError as error:
    print(json.dumps({"error": f"{error}: install torch and torchvision, or name a Python that has them: make bench-torch PYTHON=..."}))
    sys.exit(0)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LAST = torch.channels_last


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
        inputs = 16
        for stage, outputs in enumerate((16, 32, 64)):
            blocks = []
            for _ in range((depth - 2) // 6):
                blocks.append(Basic(inputs, outputs, 1 if inputs == outputs else 2))
                inputs = outputs
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class LiteBlock(nn.Module):
    def __init__(self, inputs, outputs, expansion, kernel, stride):
        super().__init__()
        hidden, self.expands = inputs * expansion, expansion != 1
        if self.expands:
            self._expand_conv, self._bn0 = nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden, eps=1e-3)
        pad = kernel // 2 if stride == 1 else 0
        self._depthwise_conv = nn.Conv2d(hidden, hidden, kernel, stride, pad, groups=hidden, bias=False)
        self._bn1 = nn.BatchNorm2d(hidden, eps=1e-3)
        self._project_conv, self._bn2 = nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs, eps=1e-3)
        # TensorFlow's SAME of planes with even sides.
        self.edge = None if stride == 1 else ((kernel - 2) // 2, (kernel - 1) // 2) * 2
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x):
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = y if self.edge is None else F.pad(y, self.edge)
        y = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(y)))))
        return x + y if self.adds else y


class Lite0(nn.Module):
    """EfficientNet-Lite0 under the names of efficientnet-lite-pytorch."""

    def __init__(self):
        super().__init__()
        self._conv_stem, self._bn0 = nn.Conv2d(3, 32, 3, 2, bias=False), nn.BatchNorm2d(32, eps=1e-3)
        blocks, inputs = [], 32
        stages = [(1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5)]
        for expansion, outputs, count, stride, kernel in stages + [(6, 320, 1, 1, 3)]:
            for block in range(count):
                blocks.append(LiteBlock(inputs, outputs, expansion, kernel, 1 if block else stride))
                inputs = outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x):
        x = F.relu6(self._bn0(self._conv_stem(F.pad(x, (0, 1, 0, 1)))))
        x = F.relu6(self._bn1(self._conv_head(self._blocks(x))))
        return self._fc(x.mean((2, 3)))


class Normalised(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def forward(self, x):
        return self.net((x - self.mean) / self.std)


def tensors(path):
    """A safetensors file: a length, a JSON header, and the numbers."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = bytearray(file.read())
    header.pop("__metadata__", None)
    types = {"F32": torch.float32, "U32": torch.int32, "I64": torch.int64}
    return {
        name: torch.frombuffer(data[slice(*about["data_offsets"])], dtype=types[about["dtype"]]).reshape(about["shape"])
        for name, about in header.items()
    }


def network(model, side):
    if model.startswith("cifar-resnet"):
        return CifarResnet(int(model.rsplit("-", 1)[1]))
    if model == "mobilenet-v2":
        return torchvision.models.mobilenet_v2()
    if model == "efficientnet-lite0":
        return Lite0()
    net = getattr(torchvision.models, model.replace("-", ""))(num_classes=10 if side < 64 else 1000)
    if side < 64:
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return net


def loaded(model, side, weights):
    net = network(model, side)
    missing = net.load_state_dict(tensors(weights), strict=False)
    wrong = [name for name in missing.missing_keys if not name.endswith("num_batches_tracked")] + missing.unexpected_keys
    assert not wrong, f"{model}: weights do not fit: {wrong[:3]}"
    return net


class Work:
    """One request's networks and data."""

    def __init__(self, kind, model, side, batch, threads, weights, data, compile, draws):
        torch.set_num_threads(threads or os.cpu_count())
        self.kind, self.batch, self.draws = kind, batch, draws
        self.one = torch.get_num_threads() == 1
        self.data, self.skipped, self.nets, self.answers = tensors(data), {}, {}, {}
        self.attacked = self.data["images"]
        build = self.train_variants if kind == "train" else self.frozen_variants
        for name, make in build(model, side, weights):
            if "compiled" in name and compile is not True:
                self.skipped[name] = compile
                continue
            try:
                net, layout = make()
                x = self.data["images"].contiguous(memory_format=layout)
                self.nets[name] = net, x
                self.answers[name] = self.query(name)
            except Exception as error:  # A variant that does not run is no variant; the report says why.
                self.nets.pop(name, None)
                self.skipped[name] = str(error).strip().splitlines()[0][:200]

    def frozen_variants(self, model, side, weights):
        def net(folded, layout, compiled=False):
            plain = loaded(model, side, weights).eval().requires_grad_(False)
            whole = Normalised(fuse(plain) if folded else plain).to(memory_format=layout).eval()
            return (torch.compile(whole) if compiled else whole), layout

        yield "eager", lambda: net(False, torch.contiguous_format)
        if self.kind == "program":
            return  # The program's own: what differs is who attacks it.
        yield "channels_last", lambda: net(False, LAST)
        yield "folded", lambda: net(True, torch.contiguous_format)
        yield "folded, channels_last", lambda: net(True, LAST)
        yield "folded, channels_last, compiled", lambda: net(True, LAST, True)

    def train_variants(self, model, side, weights):
        def net(layout, compiled=False):
            whole = Normalised(loaded(model, side, weights)).to(memory_format=layout).train()
            step = torch.compile(whole) if compiled else whole
            return (step, torch.optim.AdamW(whole.parameters(), lr=1e-3, fused=True)), layout

        yield "eager", lambda: net(torch.contiguous_format)
        yield "channels_last", lambda: net(LAST)
        yield "channels_last, compiled", lambda: net(LAST, True)

    def query(self, name):
        """One evaluation of a batch; what it answers."""
        net, x = self.nets[name]
        if self.kind == "train":
            net, optimiser = net
            optimiser.zero_grad(set_to_none=True)
            loss = F.cross_entropy(net(x), self.data["labels"].long())
            loss.backward()
            optimiser.step()
            return loss.detach()
        if self.kind == "votes":
            return self.vote(net, x[:1])
        if self.kind == "program":
            return self.step(net, x)
        if self.kind == "logits":
            # Compiled code does not know inference mode's tensors; no_grad is as fast.
            with torch.no_grad():
                return net(x)
        y = x.detach().requires_grad_()
        logits = net(y)
        return logits.detach(), torch.autograd.grad(logits, y, self.data["upstream"])[0]

    def step(self, net, origin):
        """A step of PGD against Gaussian noise, as one writes it by hand."""
        x = self.attacked.detach().requires_grad_()
        loss = F.cross_entropy(net(x + 0.25 * torch.randn_like(x)), self.data["labels"].long(), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        with torch.no_grad():
            x = x + 2 / 255 * gradient.sign()
            self.attacked = torch.min(torch.max(x, origin - 8 / 255), origin + 8 / 255).clamp_(0, 1)
        return loss.detach()

    def vote(self, net, image):
        """The majority of every draw of Gaussian noise about one image, in batches."""
        layout = torch.contiguous_format if image.is_contiguous() else LAST
        classes = []
        with torch.no_grad():
            for start in range(0, self.draws, self.batch):
                shape = (min(self.batch, self.draws - start), *image.shape[1:])
                noise = torch.empty(shape, memory_format=layout).normal_(0, 0.1)
                classes.append(net(noise.add_(image).clamp_(0, 1)).argmax(1))
        return torch.cat(classes).bincount().argmax()

    def first(self, name, path):
        answer = self.answers[name]
        with open(path, "wb") as file:
            for tensor in answer if isinstance(answer, tuple) else (answer,):
                file.write(tensor.detach().float().contiguous().numpy().tobytes())
        return {}

    def rate(self, name, seconds):
        # One thread's processor time is fairer than the wall on a shared machine; the other side does the same.
        clock = time.process_time if self.one else time.perf_counter
        start = clock()
        self.query(name)
        # A slow network's first query must do for its only one.
        start, count = (start, 1) if clock() - start > seconds else (clock(), 0)
        while count == 0 or clock() - start < seconds:
            self.query(name)
            count += 1
        images = 1 if self.kind == "votes" else len(self.data["images"])
        return {"rate": count * images / (clock() - start)}


def main():
    answers, work = os.fdopen(os.dup(1), "w"), None
    os.dup2(2, 1)  # What libraries print is no answer.
    torch.manual_seed(0)
    print(json.dumps({"torch": torch.__version__, "torchvision": torchvision.__version__}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        do = request.pop("do")
        try:
            if do == "open":
                work = None  # Frees the networks before.
                work = Work(**request)
                answer = {"variants": list(work.nets), "skipped": work.skipped}
            else:
                answer = getattr(work, do)(**request)
        except Exception as error:
            answer = {"error": f"{do} {request}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
