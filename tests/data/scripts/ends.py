"""Ends in the way that argument 1 names, while threads of its own and of autograd live."""

import os
import sys
import threading
import time

import torch


def fail(_):
    raise ValueError("no gradient today")


def leave(_):
    sys.exit(5)


threading.Thread(target=time.sleep, args=(600,)).start()
x = torch.ones(8, device="cuda", requires_grad=True)
y = x * 2
y.sum().backward(retain_graph=True)
if sys.argv[1] in ("raises", "leaves"):
    y.register_hook(fail if sys.argv[1] == "raises" else leave)
    y.sum().backward()
if sys.argv[1] == "exits":
    sys.exit("enough")
if sys.argv[1] == "dies":
    os._exit(6)
