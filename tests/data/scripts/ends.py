"""Ends in the way that argument 1 names, while threads of its own and of autograd live."""

import os
import sys
import threading
import time

import torch


class Raises(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise ValueError("no gradient today")


class Leaves(Raises):
    @staticmethod
    def backward(ctx, gradient):
        sys.exit(5)


threading.Thread(target=time.sleep, args=(600,)).start()
x = torch.ones(8, device="cuda", requires_grad=True)
(x * 2).sum().backward()
if sys.argv[1] == "raises":
    Raises.apply(x).sum().backward()
if sys.argv[1] == "leaves":
    Leaves.apply(x).sum().backward()
if sys.argv[1] == "exits":
    sys.exit("enough")
if sys.argv[1] == "dies":
    os._exit(6)
