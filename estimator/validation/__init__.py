"""Published measurements, row by row, as cases that dnnmem predicts: what was run, on what, and what was measured."""
