"""A TAESD of random weights, in files of the published form, for tests that need any codec."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from jaxdiff.networks.taesd import Decoder, Encoder


def tensors(network, example, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of a network of the family, by PyTorch's names and in its layout."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(network.init, jax.random.key(0), example)["params"]
    found = {}
    for path, leaf in jax.tree.leaves_with_path(shapes):
        name = ".".join(key.key for key in path).replace("layer_", "").replace("_", ".")
        name = name.replace("kernel", "weight").replace("scale", "weight")
        value = rng.standard_normal(leaf.shape) / np.sqrt(max(1, np.prod(leaf.shape[:-1])))
        if name.endswith("pool.1.weight"):
            value += 1
        if value.ndim == 4:
            value = np.moveaxis(value, (-1, -2), (0, 1))
        found[name] = np.ascontiguousarray(value, np.float32)
    return found


def write(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """(encoder, decoder) of a `taesd`, four channels."""
    paths = folder / "encoder.safetensors", folder / "decoder.safetensors"
    save_file(tensors(Encoder(4), jnp.zeros((1, 8, 8, 3)), seed), paths[0])
    save_file(tensors(Decoder(), jnp.zeros((1, 1, 1, 4)), seed), paths[1])
    return paths
