"""What real processes make of plans, and what one makes without: the two sides of the laws of gradients."""

import os
import subprocess
import sys
from pathlib import Path

import torch

PROGRAMS = Path(__file__).parent / "programs"
ROOT = Path(__file__).parents[2]


def run_ranks(program, ranks, folder, seconds=180):
    """What each of so many processes that speak by gloo wrote as `folder`/rankR.pt, or those of them that write."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    started = [
        subprocess.Popen(
            [sys.executable, str(PROGRAMS / program), str(rank), str(ranks), str(folder)], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    said = [process.communicate(timeout=seconds)[0] for process in started]
    assert not any(process.returncode for process in started), "\n".join(said)[-4000:]
    written = [folder / f"rank{rank}.pt" for rank in range(ranks)]
    return [torch.load(file, weights_only=True) for file in written if file.exists()]


def train_alone(model, optimizer, batches, loss_of):
    """Losses, gradients of the first step and weights after the last, by one process with no plan."""
    losses, grads = [], {}
    for batch in batches:
        loss = loss_of(model, batch)
        loss.backward()
        grads = grads or {name: p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return {"losses": losses, "grads": grads, "weights": weights}
