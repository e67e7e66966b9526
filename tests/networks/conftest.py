"""What the tests of the networks share."""

from collections.abc import Callable
from functools import partial

import jax
import pytest


@pytest.fixture(scope="session")
def quick() -> Callable:
    """`jax.jit` that compiles fast and runs slowly: these programs run once, on a few pixels."""
    return partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="session")
def randomised() -> Callable:
    """``(params, scale) -> params`` without the zeros that hide a branch at the start of training."""

    def perturb(params, scale=0.1, seed=2):
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(seed), len(leaves))
        return jax.tree.unflatten(
            tree, [a + scale * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
        )

    return perturb


@pytest.fixture(scope="session")
def run(quick) -> Callable:
    """``(net, params, x, noise, cond={}) -> out``, compiled once for each network and kind of condition."""
    compiled = {}

    def run(net, params, x, noise, cond=None):
        if net not in compiled:
            compiled[net] = quick(lambda p, x, noise, cond: net.apply({"params": p}, x, noise, cond))
        return compiled[net](params, x, noise, cond or {})

    return run
