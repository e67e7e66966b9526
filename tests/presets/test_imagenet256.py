"""DiT's and SiT's presets have the sizes and the cost of arXiv:2212.09748, Tables 1 and 4 (by shapes alone)."""

import math

import jax
import jax.numpy as jnp
import pytest

from jaxdiff import build
from jaxdiff.planning.flops import count_function
from jaxdiff.presets import preset

PUBLISHED = {
    "imagenet256_dit_s2": (33e6, 6.06e9),
    "imagenet256_dit_b2": (130e6, 23.01e9),
    "imagenet256_dit_l2": (458e6, 80.71e9),
    "imagenet256_dit_xl2": (675e6, 118.64e9),
    "imagenet256_sit_xl2": (675e6, 118.64e9),
}
"""Parameters, and multiplications with an addition each for an image."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_and_costs_are_the_published_ones(name):
    config, (size, cost) = preset(name), PUBLISHED[name]
    params = jax.eval_shape(lambda: build.init_run(config, jax.random.key(0)))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert abs(count - size) < 0.5e6
    width, depth, out = config.network.width, config.network.depth, 2 if config.network.learned_variance else 1
    block = 3 * (width + 1) * width + (width + 1) * width + 2 * 4 * width * width + 5 * width + 6 * (width + 1) * width
    edges = 17 * width + 257 * width + (width + 1) * width + 1001 * width
    assert count == depth * block + edges + 2 * (width + 1) * width + (width + 1) * 16 * out

    x = jax.ShapeDtypeStruct((1, *build.image_shape(config)), jnp.float32)
    one, label = jax.ShapeDtypeStruct((1,), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    network = config.network

    def call(params, x, noise, label):
        return network.apply({"params": params["network"]}, x, noise, {"label": label})

    assert count_function(call, params, x, one, label).total == pytest.approx(2 * cost, rel=0.005)


def test_how_they_are_trained_and_sampled():
    for name in PUBLISHED:
        config = preset(name)
        assert (config.batch_size, config.objective.drop, config.ema[0].decay) == (256, 0.1, 0.9999)
        assert build.image_shape(config) == (32, 32, 4) and config.network.num_classes == 1000
        assert config.sampling.threshold == "none"  # latents leave [-1, 1]
        assert config.steps * 256 == (1_792_000_000 if "xl2" in name else 102_400_000)
