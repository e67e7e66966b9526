"""jaxdiff: diffusion image generation in JAX/Flax. See docs/architecture.md for the map of the package."""

__version__ = "0.1.0"
