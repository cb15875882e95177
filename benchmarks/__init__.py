"""Measurements: `python -m benchmarks core`. What they mean and what they leave out: README.md beside this file."""
