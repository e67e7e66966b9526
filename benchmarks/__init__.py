"""Measurements side by side with PyTorch and with other JAX libraries: `python -m benchmarks.run`."""
