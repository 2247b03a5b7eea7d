#!/usr/bin/env bash
# datasets turns an image by the orientation in its EXIF when it decodes it; Pillow, and with it torchvision's ImageFolder, by
# which networks are trained and judged, does not. The same folder gives other pixels, in other shapes.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check datasets==5.2.0 pillow==13.0.0
export HF_HUB_OFFLINE=1 HF_HOME="$folder/home" HF_DATASETS_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'PY'
import os, sys
import datasets, PIL
from PIL import Image

os.makedirs("images/a")
exif = Image.Exif()
exif[0x0112] = 6
Image.new("RGB", (32, 16)).save("images/a/0.jpg", exif=exif)
data = datasets.load_dataset("imagefolder", data_dir="images", split="train")
turned, plain = data[0]["image"].size, Image.open("images/a/0.jpg").convert("RGB").size
print("datasets", datasets.__version__, "Pillow", PIL.__version__)
print("expected: one size of one file, width x height", plain)
print("seen:     Pillow", plain, "and datasets", turned)
sys.exit(0 if plain == (32, 16) and turned == (16, 32) else 1)
PY
