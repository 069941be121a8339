"""dnnmem from Python: `dnnmem.profile`, `estimate`, `recommend`, `check` and `diff`, for scripts and notebooks.

Each takes what its command takes and returns the data that the command would print, which shows itself: `print(x)` and
rich give the command's report, a notebook its page. Nothing is printed; what goes wrong is a `DnnmemError`.
"""
