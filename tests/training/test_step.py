"""The training step: the same on any number of devices, in any number of parts, and at any length of run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.core import paths, predictions, times
from jaxdiff.objectives.base import Batch
from jaxdiff.objectives.denoising import Denoising
from jaxdiff.training.ema import Decay
from jaxdiff.training.optim import SGD, AdamW, Constant, CosineDecay, InverseSqrt, Lion, Optim, optimizer, rate_schedule
from jaxdiff.training.sharding import MeshShape, make_mesh, replicated, shard_batch
from jaxdiff.training.state import Purpose, key_for
from jaxdiff.training.step import averaged, conditions, init_state, make_step, to_unit

AVERAGES = (Decay(0.9, warmup=False),)


def apply(params, x, cur, nxt, cond, key=None):
    """A linear network that mixes channels."""
    return jnp.einsum("bhwc,cd->bhwd", x, params["network"]["mix"]["w"]) + params["network"]["bias"]["b"]


def loss(params, key, raw, row, total, step):
    objective = Denoising(paths.Linear(), predictions.Flow(), times.Uniform())
    return objective(apply, params, key, Batch(to_unit(raw["image"]), conditions(raw), row, total))


def fresh_params():
    return {"network": {"mix": {"w": jnp.eye(3)}, "bias": {"b": jnp.zeros(3)}}}


def images(n: int) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(0).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)}


def run(devices: int, steps: int = 3, accumulate: int = 1):
    mesh = make_mesh(MeshShape(), jax.devices()[:devices])
    rule = optimizer(Optim(1e-2, AdamW(), warmup=2), 10)
    state = jax.device_put(init_state(fresh_params(), rule, AVERAGES), replicated(mesh))
    step = jax.jit(make_step(loss, rule, AVERAGES, seed=0, accumulate=accumulate), donate_argnums=0)
    for _ in range(steps):
        state, metrics = step(state, shard_batch(mesh, images(8)))
    return jax.device_get((state, metrics))


def test_the_number_of_devices_changes_nothing():
    (one, m1), (eight, m8) = run(1), run(8)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
    assert float(m1["loss"]) == pytest.approx(float(m8["loss"]), rel=1e-5)


def test_accumulated_gradient_is_that_of_the_whole_batch():
    def plain(params, key, raw, row, total, step):
        error = jnp.mean(jnp.square(to_unit(raw["image"]) @ params["network"]["m"]["w"] - row[:, None, None, None]))
        return error, {"error": error}

    start = {"network": {"m": {"w": jnp.eye(3)}}}
    results = []
    for parts in (1, 4):
        rule = optax.sgd(0.1)
        step = jax.jit(make_step(plain, rule, (), seed=0, accumulate=parts))
        results.append(step(init_state(start, rule, ()), {"image": jnp.asarray(images(8)["image"])}))
    (a, metrics), (b, _) = results
    np.testing.assert_allclose(a.params["network"]["m"]["w"], b.params["network"]["m"]["w"], rtol=1e-5)
    assert not np.allclose(a.params["network"]["m"]["w"], np.eye(3))
    assert {"loss", "error", "grad_norm", "grad_norm/network/m"} <= metrics.keys()


def test_average_and_step_follow_the_parameters():
    state, _ = run(1, steps=3)
    assert int(state.step) == 3
    previous = fresh_params()["network"]["mix"]["w"]
    for n in (1, 2, 3):
        previous = previous + 0.1 * (run(1, steps=n)[0].params["network"]["mix"]["w"] - previous)
    np.testing.assert_allclose(state.ema[0]["network"]["mix"]["w"], previous, rtol=1e-5)
    shown = averaged(jax.tree.map(jnp.asarray, state))
    np.testing.assert_array_equal(shown["network"]["mix"]["w"], state.ema[0]["network"]["mix"]["w"])


def test_module_norms_make_up_the_whole_norm():
    _, metrics = run(1)
    parts = [float(v) for k, v in metrics.items() if k.startswith("grad_norm/")]
    assert len(parts) == 2
    assert float(metrics["grad_norm"]) == pytest.approx(np.linalg.norm(parts), rel=1e-5)


def test_keys_differ_by_seed_step_and_purpose():
    keys = [key_for(s, t, p) for s in (0, 1) for t in (0, 1) for p in Purpose]
    assert len({tuple(np.asarray(jax.random.key_data(k)).tolist()) for k in keys}) == len(keys)


def test_uint8_reaches_both_ends():
    assert to_unit(jnp.array([0, 255], jnp.uint8).reshape(1, 2, 1, 1)).ravel().tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(
    ("decay", "at_end"), [(Constant(), 1.0), (CosineDecay(0.1), 0.1), (InverseSqrt(25), 0.5)], ids=str
)
def test_rate_rises_then_decays(decay, at_end):
    rate = rate_schedule(Optim(2.0, decay=decay, warmup=10), steps=110)
    rising = [float(rate(i)) for i in range(10)]
    np.testing.assert_allclose(rising, 2.0 * np.arange(1, 11) / 10, rtol=1e-6)
    assert float(rate(10)) == pytest.approx(2.0)
    assert float(rate(110)) == pytest.approx(2.0 * at_end, rel=1e-3)


@pytest.mark.parametrize("rule", [AdamW(weight_decay=0.1), Lion(), SGD()], ids=str)
def test_every_rule_goes_downhill_and_clipping_bounds_the_gradient(rule):
    transform = optimizer(Optim(1e-2, rule, clip=1e-3), 100)
    params = {"w": jnp.float32(1.0)}
    updates, _ = transform.update({"w": jnp.float32(100.0)}, transform.init(params), params)
    assert float(updates["w"]) < 0
    if isinstance(rule, SGD):
        assert float(updates["w"]) == pytest.approx(-1e-5, rel=1e-3)


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [("learning_rate", float("nan"), "--optim.learning-rate"), ("accumulate", 0, "--optim.accumulate")],
)
def test_bad_numbers_are_refused(field, value, flag):
    with pytest.raises(ValueError, match=flag):
        Optim(**{field: value})
