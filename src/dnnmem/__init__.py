"""dnnmem: will a PyTorch model fit, how fast will it be, and which combination of techniques is best."""

__version__ = "0.1.0"
