"""The attention kernels against the plain one, the choice among them, and the mesh that they run on."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec

from jaxdiff.networks import attention
from jaxdiff.networks.dit import DiT

AXES = ("data", "fsdp", "sequence", "tensor")
interpreted = partial(attention.splash, interpret=True)


def draw(b, n, heads, d, dtype=jnp.float32):
    return [jax.random.normal(jax.random.key(i), (b, n, heads, d), dtype) for i in range(3)]


def mesh_of(*sizes):
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 4, devices=jax.devices()[: int(np.prod(sizes))])


def gradients(kernel):
    """(q, k, v) -> the result and the three gradients of a sum of it that weighs every element differently."""

    def weighed(q, k, v):
        out = kernel(q, k, v)
        return jnp.sum(jnp.sin(jnp.arange(out.size).reshape(out.shape)) * out), out

    return jax.value_and_grad(weighed, argnums=(0, 1, 2), has_aux=True)


def assert_same(kernel, reference, args):
    (_, out), slopes = jax.jit(gradients(kernel))(*args)
    (_, expected), right = jax.jit(gradients(reference))(*args)
    for a, b in zip((out, *slopes), (expected, *right), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_attention_is_the_average_of_the_values_with_softmax_weights():
    q, k, v = draw(1, 3, 2, 4)
    scores = np.einsum("bnhd,bmhd->bhnm", q, k) / 2
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(attention.plain(q, k, v), np.einsum("bhnm,bmhd->bnhd", weights, v), atol=1e-5)


@pytest.mark.parametrize(("n", "m", "d"), [(128, 256, 8), (256, 128, 12)])
def test_the_tpu_kernel_and_its_gradients_are_those_of_the_plain_one(n, m, d):
    q, _, _ = draw(1, n, 2, d)
    _, k, v = draw(1, m, 2, d)
    assert_same(interpreted, attention.plain, (q, k, v))


def test_a_kernel_runs_on_each_part_of_a_mesh(monkeypatch):
    """Images over data and fsdp, queries over sequence, heads over tensor, with the numbers of one device."""
    seen = []

    def local(q, k, v):
        seen.append((q.shape, k.shape))
        return attention.plain(q, k, v)

    monkeypatch.setattr(attention, "kernel_for", lambda *_: local)
    args = draw(4, 6, 2, 4)
    # The heads do not divide over 4 devices, so that each of these has all of them.
    for sizes, part in (((2, 1, 2, 2), (2, 3, 1)), ((1, 2, 1, 4), (2, 6, 2)), ((2, 2, 2, 1), (1, 3, 2))):
        seen.clear()
        mesh = mesh_of(*sizes)
        with jax.set_mesh(mesh):
            spread = jax.device_put(args, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
            assert_same(attention.fastest, attention.plain, spread)
        b, n, heads = part
        assert set(seen) == {((b, n, heads, 4), (b, 6, heads, 4))}


def test_the_tpu_kernel_runs_on_a_mesh(monkeypatch):
    monkeypatch.setattr(attention, "kernel_for", lambda *_: interpreted)
    mesh = mesh_of(1, 1, 2, 1)
    with jax.set_mesh(mesh):
        args = jax.device_put(draw(1, 256, 1, 8), NamedSharding(mesh, PartitionSpec()))
        assert_same(attention.fastest, attention.plain, args)


@pytest.mark.parametrize(
    ("platform", "dtype", "n", "d", "shards", "name"),
    [
        ("cpu", "bfloat16", 1024, 64, 1, "plain"),
        ("tpu", "bfloat16", 1024, 72, 1, "splash"),
        ("tpu", "float32", 4096, 64, 8, "splash"),
        ("tpu", "bfloat16", 256, 64, 1, "plain"),
        ("tpu", "bfloat16", 1100, 64, 1, "plain"),
        ("tpu", "bfloat16", 1024, 64, 16, "plain"),  # 64 tokens on each device
        ("gpu", "bfloat16", 256, 72, 1, "cudnn"),
        ("gpu", "float32", 256, 64, 1, "plain"),
        ("gpu", "bfloat16", 256, 36, 1, "plain"),
        ("gpu", "bfloat16", 256, 256, 1, "plain"),
        ("gpu", "bfloat16", 77, 64, 1, "plain"),  # CLIP's texts: cuDNN's gradient refuses odd lengths
        ("gpu", "bfloat16", 258, 64, 2, "plain"),  # 129 tokens on each device
    ],
)
def test_the_choice_of_a_kernel(platform, dtype, n, d, shards, name, monkeypatch):
    monkeypatch.setattr(attention, "has_cudnn", lambda: True)
    q = jnp.zeros((1, n, 1, d), dtype)
    assert attention.kernel_for(platform, q, q, shards) is getattr(attention, name)
    if platform == "gpu":
        monkeypatch.setattr(attention, "has_cudnn", lambda: False)
        assert attention.kernel_for(platform, q, q, shards) is attention.plain


def test_there_is_no_cudnn_on_a_cpu():
    assert not attention.has_cudnn()


def test_the_platform_is_that_of_the_mesh_in_force():
    assert attention.program_platform() == "cpu"
    elsewhere = AbstractMesh((1,), ("data",), abstract_device=AbstractDevice("TPU v5 lite", 1, "tpu"))
    with jax.sharding.use_abstract_mesh(elsewhere):
        assert attention.program_platform() == "tpu"


def test_a_network_is_lowered_for_tpus_with_the_kernel_and_without_it_where_plain_is_asked_for():
    """Lowered on a CPU for the mesh of another platform, as a plan does."""
    net = DiT(patch=1, width=8, depth=1, heads=1, mlp_ratio=1)
    x, noise = jnp.zeros((2, 32, 32, 1)), jnp.zeros(2)
    elsewhere = AbstractMesh(
        (2, 1, 1, 1), AXES, (AxisType.Auto,) * 4, abstract_device=AbstractDevice("TPU v5 lite", 1, "tpu")
    )
    with jax.sharding.use_abstract_mesh(elsewhere):
        for choice, kernels in (("auto", True), ("plain", False)):
            one = net.clone(attention=choice)
            params = jax.eval_shape(one.init, jax.random.key(0), x, noise, {})["params"]
            slope = jax.make_jaxpr(jax.grad(lambda p, one=one: one.apply({"params": p}, x, noise, {}).sum()))(params)
            assert ("pallas_call" in str(slope)) == kernels
            assert ("1024,1024" in str(slope)) != kernels  # the attention map
