"""Planners: each solves for the best decisions of one field of a plan within a budget of bytes."""
