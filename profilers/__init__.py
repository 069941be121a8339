"""The torch half: makes traces and measurements, applies plans."""
