#!/usr/bin/env python3
"""Input gradients of EfficientNet-Lite0 and MobileNetV2 on photographs, in PyTorch: nothing here is shared with the Rust
programs but the files of images and weights.

    python tests/independent/input_gradients.py DATA_ROOT OUT.safetensors [--images 500] [--gradients 32]

Images are scaled from 299 to 224 pixels by PIL (bilinear). Prints how many of the images each network names rightly, and
writes for the first `gradients` of them the images, the logits, the gradient of the cross-entropy with respect to the
logits (upstream) and to the pixels, in f32 and, rounded to it, from f64. The engine's answers beside them:

    PYTORCH_ANSWERS=OUT.safetensors cargo test --release -p engine -- --ignored --nocapture gradients_beside_pytorch

Needs torch, numpy, pyarrow, pillow, safetensors.
"""
import argparse
import io

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file


def same(x, kernel, stride):
    """TensorFlow's SAME padding."""
    high, wide = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[2:])
    return F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))


class Net:
    def __init__(self, path, dtype):
        self.w = {name: tensor.to(dtype) for name, tensor in load_file(path).items() if tensor.is_floating_point()}

    def conv(self, x, name, norm, eps, stride=1, act=True):
        weight = self.w[f"{name}.weight"]
        groups = x.shape[1] // weight.shape[1]
        x = F.conv2d(same(x, weight.shape[2], stride), weight, stride=stride, groups=groups)
        parts = [self.w[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        x = F.batch_norm(x, *parts, eps=eps)
        return F.relu6(x) if act else x


class Lite(Net):
    # Expansion, outputs, repeats, stride, and kernel are seen from the weights but for the strides.
    STRIDES = {1: 2, 3: 2, 5: 2, 11: 2}

    def __call__(self, x):
        x = self.conv((x * 255 - 127) / 128, "_conv_stem", "_bn0", 1e-3, 2)
        for block in range(16):
            name, y, stride = f"_blocks.{block}", x, self.STRIDES.get(block, 1)
            if f"{name}._expand_conv.weight" in self.w:
                y = self.conv(y, f"{name}._expand_conv", f"{name}._bn0", 1e-3)
            y = self.conv(y, f"{name}._depthwise_conv", f"{name}._bn1", 1e-3, stride)
            y = self.conv(y, f"{name}._project_conv", f"{name}._bn2", 1e-3, act=False)
            x = y + x if y.shape == x.shape else y
        x = self.conv(x, "_conv_head", "_bn1", 1e-3)
        return F.linear(x.mean((2, 3)), self.w["_fc.weight"], self.w["_fc.bias"])


class Mobile(Net):
    STRIDES = {2: 2, 4: 2, 7: 2, 14: 2}

    def __call__(self, x):
        x = self.conv(x * 2 - 1, "features.0.0", "features.0.1", 1e-5, 2)
        for block in range(1, 18):
            name, y, stride = f"features.{block}.conv", x, self.STRIDES.get(block, 1)
            if block > 1:
                y = self.conv(y, f"{name}.0.0", f"{name}.0.1", 1e-5)
            at = int(block > 1)
            y = self.conv(y, f"{name}.{at}.0", f"{name}.{at}.1", 1e-5, stride)
            y = self.conv(y, f"{name}.{at + 1}", f"{name}.{at + 2}", 1e-5, act=False)
            x = y + x if y.shape == x.shape else y
        x = self.conv(x, "features.18.0", "features.18.1", 1e-5)
        return F.linear(x.mean((2, 3)), self.w["classifier.1.weight"], self.w["classifier.1.bias"])


def gradient(net, x, labels):
    x = x.clone().requires_grad_()
    logits = net(x)
    logits.retain_grad()
    F.cross_entropy(logits, labels, reduction="sum").backward()
    return logits.detach(), logits.grad, x.grad


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("out")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--gradients", type=int, default=32)
    args = parser.parse_args()
    table = pq.read_table(f"{args.root}/images/nips17-500.parquet").slice(0, args.images).to_pylist()
    scaled = [Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").resize((224, 224), Image.BILINEAR) for row in table]
    images = torch.from_numpy(np.stack([np.asarray(image) for image in scaled])).permute(0, 3, 1, 2).float() / 255
    labels, answers = torch.tensor([row["label"] for row in table]), {}
    for name, kind, file in [
        ("efficientnet-lite0", Lite, "imagenet-efficientnet-lite0"),
        ("mobilenet-v2", Mobile, "imagenet-mobilenet-v2"),
    ]:
        path = f"{args.root}/weights/{file}.safetensors"
        net, wide = kind(path, torch.float32), kind(path, torch.float64)
        with torch.no_grad():
            right = sum((net(x).argmax(1) == y).sum().item() for x, y in zip(images.split(50), labels.split(50)))
        print(f"{name}: {right} of {len(images)}")
        x, y = images[: args.gradients], labels[: args.gradients]
        parts = [[], [], [], []]
        for x8, y8 in zip(x.split(8), y.split(8)):
            logits, upstream, grad = gradient(net, x8, y8)
            # The same question in f64: the upstream gradient of f32.
            probe = x8.double().requires_grad_()
            (wide(probe) * upstream.double()).sum().backward()
            for part, tensor in zip(parts, [logits, upstream, grad, probe.grad.float()]):
                part.append(tensor)
        named = zip(["logits", "upstream", "gradient", "gradient64"], parts)
        answers |= {f"{name}.{part}": torch.cat(tensors).contiguous() for part, tensors in named}
        answers[f"{name}.images"] = x.contiguous()
    save_file(answers, args.out)


if __name__ == "__main__":
    main()
