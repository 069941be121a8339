"""Optimizers that torch has not: each as its paper has it, small, and with the allocations that its pass predicts."""
