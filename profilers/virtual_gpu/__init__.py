"""CUDA's driver and libraries with no GPU behind them: the true memory of any GPU model, on a machine without one."""
