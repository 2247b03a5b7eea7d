#!/usr/bin/env bash
# datasets: Dataset.to_parquet() of an image folder writes no image, only its path on this machine.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check datasets==5.2.0 pillow==13.0.0
export HF_HUB_OFFLINE=1 HF_HOME="$folder/home" HF_DATASETS_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'PY'
import os, sys
import datasets, pyarrow.parquet as pq
from PIL import Image

for name in "ab":
    os.makedirs(f"images/{name}")
    Image.new("RGB", (8, 8), (9, 50, 200)).save(f"images/{name}/0.png")
data = datasets.load_dataset("imagefolder", data_dir="images", split="train")
data.to_parquet("set.parquet")
first = pq.read_table("set.parquet").to_pylist()[0]["image"]
print("datasets", datasets.__version__)
print("expected: the Parquet file holds the images, as push_to_hub() writes them")
print("seen:     bytes", first["bytes"], "and path", first["path"])
sys.exit(0 if first["bytes"] is None and os.path.isabs(first["path"]) else 1)
PY
