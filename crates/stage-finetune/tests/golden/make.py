"""Prints the learning rates in src/schedule.rs: torch's cosine schedule, stepped once per epoch."""

import torch

weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
optimiser = torch.optim.AdamW([weight], lr=1e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=4, eta_min=1e-4)
for _ in range(4):
    print(repr(optimiser.param_groups[0]["lr"]))
    optimiser.step()
    schedule.step()
