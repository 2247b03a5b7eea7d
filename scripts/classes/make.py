"""Writes the classes that are known by name: python scripts/classes/make.py TIMM.whl TORCHVISION.whl

The wheels are read, not installed: pip download --no-deps timm==1.0.20 torchvision==0.29.2

One line per class, in the order of its number: synset, name, other names (separated by `|`). Synsets and WordNet's lemmas are
those of timm, ImageNet's names those of torchvision; ImageNette's names are those of its own release.
"""

import sys
import zipfile
from pathlib import Path

DATA = Path(__file__).parents[2] / "crates/stage/data"
IMAGENETTE = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
# The hub's copy of ImageNet tells its two cranes apart so.
OTHERS = {"n03126707": ["crane2"]}
# Beside each, what PyTorch's tutorial calls it.
CIFAR10 = {
    "airplane": ["plane", "aeroplane"],
    "automobile": ["car"],
    "bird": [],
    "cat": [],
    "deer": [],
    "dog": [],
    "frog": [],
    "horse": [],
    "ship": ["boat"],
    "truck": [],
}


def write(name, rows):
    """Rows of synset, name, other names."""
    lines = []
    for synset, first, others in rows:
        others = [other for other in dict.fromkeys(others) if other != first]
        lines.append(f"{synset}\t{first}\t{'|'.join(others)}\n")
    (DATA / f"{name}.tsv").write_text("".join(lines))


def main(timm, torchvision):
    timm, torchvision = zipfile.ZipFile(timm), zipfile.ZipFile(torchvision)
    read = lambda name: timm.read(f"timm/data/_info/{name}.txt").decode()
    synsets = read("imagenet_synsets").split()
    lemmas = dict(line.split("\t") for line in read("imagenet_synset_to_lemma").splitlines())
    scope = {}
    exec(torchvision.read("torchvision/models/_meta.py").decode(), scope)
    names = scope["_IMAGENET_CATEGORIES"]
    assert len(synsets) == len(names) == len(set(names)) == 1000
    # A class is also called by the whole list of its lemmas.
    others = lambda synset: [lemmas[synset], *lemmas[synset].split(", "), *OTHERS.get(synset, [])]
    write("imagenet", [(synset, name, others(synset)) for synset, name in zip(synsets, names, strict=True)])
    write("imagenette", [(synset, name, others(synset)) for synset, name in IMAGENETTE.items()])
    write("cifar10", [("", name, others) for name, others in CIFAR10.items()])


if __name__ == "__main__":
    main(*sys.argv[1:])
