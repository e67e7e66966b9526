"""Published weights, read without running anything that a file contains, as Flax parameters."""
