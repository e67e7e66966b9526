"""What the backward pass recomputes: gradients stay, memory shrinks; a scanned program does not grow with depth."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks.dit import DiT
from jaxdiff.networks.unet import UNet

X = jax.random.normal(jax.random.key(1), (2, 8, 8, 2))
NOISE = jnp.array([3.0, 700.0])
NETS = {
    "dit": DiT(patch=2, width=16, depth=3, heads=2, dropout=0.5),
    "unet": UNet(channels=8, channel_mults=(1, 2), blocks_per_level=1, attention_resolutions=(4,), dropout=0.5),
}


def shapes_of(net):
    return jax.eval_shape(net.init, jax.random.key(0), X, NOISE, {})["params"]


def loss_of(net, copies=1):
    x, noise = jnp.tile(X, (copies, 1, 1, 1)), jnp.tile(NOISE, copies)

    def loss(params):
        out = net.apply({"params": params}, x, noise, {}, train=True, rngs={"dropout": jax.random.key(3)})
        return jnp.mean(out**2)

    return loss


def kept(net, copies=1):
    """Shapes of what the forward pass leaves to the backward pass."""
    _, pull = jax.eval_shape(lambda p: jax.vjp(loss_of(net, copies), p), shapes_of(net))
    return [leaf.shape for leaf in jax.tree.leaves(pull)]


def equations(jaxpr):
    """How many the compiler sees: those in calls as well, and those of a loop as often as it is unrolled."""

    def inside(eqn):
        parts = jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr)
        return sum(equations(getattr(p, "jaxpr", p)) for p in parts if is_jaxpr(p))

    return sum(1 + eqn.params.get("unroll", 1) * inside(eqn) for eqn in jaxpr.eqns)


def is_jaxpr(value):
    return isinstance(value, jax.extend.core.Jaxpr | jax.extend.core.ClosedJaxpr)


@pytest.mark.parametrize("name", NETS)
def test_the_gradient_is_the_same_and_less_is_kept(name, quick, randomised):
    net = NETS[name]
    params = randomised(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes_of(net)), 0.2)
    values, memory = [], []
    for remat in ("none", "dots", "full"):
        one = net.clone(remat=remat)
        values.append(quick(jax.value_and_grad(loss_of(one)))(params))
        memory.append(sum(math.prod(shape) for shape in kept(one, copies=50)))  # so many that parameters are few
    for other in values[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), values[0], other)
    assert memory[0] > 1.3 * memory[1] > 1.3 * 1.3 * memory[2]


def test_dots_keeps_no_attention_map_and_no_activation():
    stacked = [shape[1:] for shape in kept(NETS["dit"].clone(remat="dots", depth=5)) if shape[:1] == (5,)]
    assert (2, 2, 16, 16) not in stacked  # softmax(q k)
    assert stacked.count((2, 16, 64)) == 1  # of the MLP's hidden layer only the product, not its activation


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_a_deeper_transformer_is_the_same_program(remat):
    def size(depth):
        net = NETS["dit"].clone(remat=remat, depth=depth)
        return equations(jax.make_jaxpr(jax.grad(loss_of(net)))(shapes_of(net)).jaxpr)

    assert size(12) == size(4) < 1500
