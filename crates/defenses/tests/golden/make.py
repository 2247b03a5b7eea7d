"""Golden values for the rotation, from kornia and PyTorch's autograd.

    pip install torch kornia
    python make.py

Writes rotation.json beside this script: for each case an image, an angle in degrees, the rotated image, and the gradient
of sum(upstream * rotated) with respect to the image. All in double precision. RandomRotation itself draws its angle, so
its own geometry is used through `apply_transform` with the angle given.
"""

import json
from pathlib import Path

import kornia
import torch

# No side of one pixel: its coordinates cannot be normalised to [-1, 1], as kornia does.
CASES = [(1, 5, 5, 0.0), (1, 5, 5, 90.0), (2, 6, 6, 30.0), (1, 7, 4, -77.5), (2, 4, 9, 12.25), (1, 2, 6, 45.0), (1, 8, 8, -180.0)]


def case(index, channels, height, width, degrees):
    generator = torch.Generator().manual_seed(index)
    shape = (1, channels, height, width)
    x = torch.rand(shape, generator=generator, dtype=torch.float64).requires_grad_()
    upstream = torch.randn(shape, generator=generator, dtype=torch.float64)
    rotation = kornia.augmentation.RandomRotation(abs(degrees) + 1.0, p=1.0, align_corners=True)
    assert rotation.flags["resample"] == kornia.constants.Resample.BILINEAR
    params = {"degrees": torch.tensor([degrees], dtype=torch.float64)}
    transform = rotation.compute_transformation(x, params, rotation.flags)
    out = rotation.apply_transform(x, params, rotation.flags, transform)
    (out * upstream).sum().backward()
    numbers = {"image": x, "upstream": upstream, "rotated": out, "gradient": x.grad}
    numbers = {name: [round(v, 15) for v in tensor.flatten().tolist()] for name, tensor in numbers.items()}
    return {"channels": channels, "height": height, "width": width, "degrees": degrees, **numbers}


if __name__ == "__main__":
    cases = [case(index, *arguments) for index, arguments in enumerate(CASES)]
    golden = {"kornia": kornia.__version__, "torch": torch.__version__.split("+")[0], "cases": cases}
    lines = json.dumps(golden).replace('{"channels"', '\n{"channels"')
    Path(__file__).with_name("rotation.json").write_text(lines + "\n")
