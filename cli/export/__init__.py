"""A report as a file that other tools read."""
