"""Planners: each finds, for a trace and a budget, the cheapest value of a field of a plan that fits."""
