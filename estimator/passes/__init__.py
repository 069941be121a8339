"""Passes: each rewrites a trace by one field of a plan."""
