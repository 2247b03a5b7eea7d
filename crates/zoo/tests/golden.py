"""What timm's networks answer: logits, and gradients of the image, in double precision.

    python -m venv venv && venv/bin/pip install torch==TORCH timm==TIMM --extra-index-url https://download.pytorch.org/whl/cpu
    venv/bin/python golden.py > golden.json

Weights, images and the logits' gradient come from one formula of a name and a position, which tests/it/main.rs has too.
"""

import json
import sys
from functools import partial

import numpy as np
import timm
import torch
from timm.layers import LayerNorm2d
from timm.models.convnext import ConvNeXt
from timm.models.deit import VisionTransformerDistilled
from timm.models.efficientnet import _gen_efficientnet
from timm.models.mobilenetv3 import _gen_mobilenet_v4
from timm.models.vision_transformer import VisionTransformer

CLASSES = 7
PLACES = 24


def uniform(name, count):
    """Numbers in [0, 1) that depend on a name (FNV-1a) and a position alone."""
    seed = 2166136261
    for byte in name.encode():
        seed = (seed ^ byte) * 16777619 % 2**32
    x = (np.arange(count, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(seed)) & np.uint64(0xFFFFFFFF)
    for shift, factor in [(16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)]:
        x = ((x ^ (x >> np.uint64(shift))) * np.uint64(factor)) & np.uint64(0xFFFFFFFF)
    return x.astype(np.float64) / 2.0**32


def weight(name, shape):
    u = uniform(name, int(np.prod(shape)))
    if name.endswith("running_var"):
        value = 0.5 + u
    elif name.endswith("running_mean") or name.endswith("bias"):
        value = 0.4 * u - 0.2
    elif "grn" in name:
        value = u - 0.5
    elif name.endswith("gamma") or len([d for d in shape if d > 1]) < 2 and name.endswith("weight"):
        value = 0.6 + 0.8 * u
    elif name.endswith("_token") or name == "pos_embed":
        value = u - 0.5
    else:
        value = (2 * u - 1) * np.sqrt(3.0 / np.prod(shape[1:]))
    return torch.from_numpy(value.reshape(shape))


class Dino(torch.nn.Module):
    """DINOv2 with the linear classifier that its authors publish: of the class token and the mean of the others."""

    def __init__(self, **sizes):
        super().__init__()
        self.backbone = VisionTransformer(init_values=1e-5, num_classes=0, global_pool="", **sizes)
        self.head = torch.nn.Linear(2 * sizes["embed_dim"], CLASSES)

    def forward(self, x):
        x = self.backbone.forward_features(x)
        return self.head(torch.cat([x[:, 0], x[:, 1:].mean(1)], 1))


def cases():
    imagenet = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    half = ([0.5] * 3, [0.5] * 3)
    vit = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": CLASSES}
    yield "vit-tiny-patch16-224", {"side": 32, "width": 0.125, "depth": 0.25}, half, VisionTransformer(**vit)
    yield "deit-tiny-distilled-patch16-224", {"side": 32, "width": 0.125, "depth": 0.25}, imagenet, VisionTransformerDistilled(**vit)
    dino = {"img_size": 42, "patch_size": 14, "embed_dim": 48, "depth": 2, "num_heads": 6}
    yield "dinov2-small-patch14-224", {"side": 42, "width": 0.125, "depth": 0.16}, imagenet, Dino(**dino)
    next_ = {"depths": (1, 1, 3, 1), "dims": (8, 16, 32, 64), "num_classes": CLASSES}
    yield "convnext-atto", {"side": 64, "width": 0.2, "depth": 0.5}, imagenet, ConvNeXt(conv_mlp=True, **next_)
    yield "convnextv2-atto", {"side": 64, "width": 0.2, "depth": 0.5}, imagenet, ConvNeXt(use_grn=True, ls_init_value=None, **next_)
    efficient = partial(_gen_efficientnet, channel_multiplier=0.25, num_classes=CLASSES)
    yield "efficientnet-b0", {"side": 64, "width": 0.25, "depth": 0.34}, imagenet, efficient("efficientnet_b0", depth_multiplier=0.34)
    yield "tf-efficientnet-b1", {"side": 75, "width": 0.25}, imagenet, efficient(
        "tf_efficientnet_b1", depth_multiplier=1.1, pad_type="same", norm_layer=partial(torch.nn.BatchNorm2d, eps=1e-3)
    )
    for size in ["small", "medium"]:
        net = _gen_mobilenet_v4(f"mobilenetv4_conv_{size}", channel_multiplier=0.25, num_classes=CLASSES)
        yield f"mobilenetv4-conv-{size}", {"side": 67, "width": 0.25}, imagenet, net


def answer(name, sizes, normalisation, net):
    net = net.double().eval()
    state = net.state_dict()
    ours = {key: key.removeprefix("backbone.") for key in state}
    net.load_state_dict({k: v if k.endswith("tracked") else weight(ours[k], tuple(v.shape)) for k, v in state.items()})
    side = sizes["side"]
    x = torch.from_numpy(uniform("image", 2 * 3 * side * side).reshape(2, 3, side, side)).requires_grad_()
    mean, std = (torch.tensor(v, dtype=torch.float64).reshape(1, 3, 1, 1) for v in normalisation)
    logits = net((x - mean) / std)
    upstream = torch.from_numpy(2 * uniform("upstream", 2 * CLASSES).reshape(2, CLASSES) - 1)
    (logits * upstream).sum().backward()
    gradient = x.grad.flatten()
    step = gradient.numel() // PLACES
    return {
        "spec": {"architecture": name, "classes": CLASSES, **sizes},
        "logits": logits.detach().flatten().tolist(),
        "norm": gradient.norm().item(),
        "gradient": gradient[step // 2 :: step].tolist(),
    }


def places():
    """DINOv2's own resampling of its position embeddings, from 5x5 to 3x3 places (scale factors with its offset of .1)."""
    grid = torch.from_numpy(uniform("places", 25 * 2).reshape(1, 5, 5, 2)).permute(0, 3, 1, 2)
    scale = (3 + 0.1) / 5
    out = torch.nn.functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic", antialias=False)
    assert out.shape[-2:] == (3, 3)
    return out.permute(0, 2, 3, 1).flatten().tolist()


if __name__ == "__main__":
    made_by = {"torch": torch.__version__, "timm": timm.__version__}
    json.dump({"made_by": made_by, "cases": [answer(*case) for case in cases()], "places": places()}, sys.stdout, indent=1)
