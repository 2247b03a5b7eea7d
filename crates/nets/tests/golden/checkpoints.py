"""Writes the torch checkpoints of tests/it/checkpoints.rs: python checkpoints.py (torch, numpy, safetensors).

Layouts and tensors as PyTorch writes them, with what they hold beside them as plain safetensors.
"""

import pathlib
import sys

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

HERE = pathlib.Path(__file__).parent
torch.manual_seed(0)

base = torch.randn(24)
tensors = {
    "kernel": torch.randn(2, 3, 2, 2).contiguous(memory_format=torch.channels_last),
    "expanded": torch.randn(3, 1).expand(3, 4),
    "sliced": base.view(4, 6)[1:, ::2],
    "turned": base.view(4, 6).t(),
    "offset": base[5:9],
    "scalar": torch.tensor(0.5),
    "half": torch.randn(2, 2).half(),
    "bfloat16": torch.randn(3).bfloat16(),
    "double": torch.randn(2, 2).double(),
    "long": torch.tensor([1, -2, 3]),
    "parameter": nn.Parameter(torch.randn(2, 3)),
}
plain = {name: t.detach().clone().contiguous() for name, t in tensors.items()}
save_file({n: t.float() if t.dtype in (torch.half, torch.bfloat16) else t for n, t in plain.items()},
          HERE / "checkpoints.safetensors")
torch.save({"state_dict": tensors, "best_acc1": torch.tensor(73.5), "epoch": 3}, HERE / "zip.pth")
torch.save({"state_dict": tensors, "best_acc1": torch.tensor(73.5), "epoch": 3}, HERE / "stream.pth",
           _use_new_zipfile_serialization=False)

# What a file says of its machine does not change how PyTorch reads its numbers.
real, sys.byteorder = sys.byteorder, "big"
torch.save({"double": tensors["double"], "half": tensors["half"]}, HERE / "stream-big.pth",
           _use_new_zipfile_serialization=False)
sys.byteorder = real
back = torch.load(HERE / "stream-big.pth", weights_only=True)
assert all(torch.equal(back[name], plain[name]) for name in back)

array = np.arange(6, dtype=np.float32).reshape(2, 3)
torch.save({"rows": array, "columns": np.asfortranarray(array), "big": array.astype(">f8")}, HERE / "numpy.pth")
torch.save(nn.Linear(2, 2), HERE / "module.pth")
torch.save({"weight": torch.quantize_per_tensor(torch.randn(2, 2), 0.1, 0, torch.qint8)}, HERE / "quantised.pth")
torch.jit.script(nn.Linear(1, 1)).save(str(HERE / "script.pt"))
