"""What CUDA would run in place of the CPU's kernels, so that a fake run prices the GPU that was named."""
