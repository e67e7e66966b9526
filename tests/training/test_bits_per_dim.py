"""A run that minimises a bound ends in bits per dimension: the mean over all times and images, told once."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.training.monitor import Monitor
from jaxdiff.training.validate import continuous_bits, make_validate


def test_bits_are_the_mean_over_uniform_times_and_real_images():
    seen = []

    def losses(params, key, raw, row, t):
        jax.debug.callback(lambda t, noise: seen.append((float(t[0]), float(noise))), t, jax.random.normal(key))
        return params["scale"] * t**3 * raw["image"][:, 0, 0, 0]

    images = np.array([2, 4, 0], np.uint8).reshape(3, 1, 1, 1)
    pages = [
        {"image": images[:2], "mask": np.array([True, True])},
        {"image": np.concatenate([images[2:], 100 + images[:1]]), "mask": np.array([True, False])},
    ]
    params = {"scale": jnp.float32(4.0)}
    bits = continuous_bits(make_validate(losses), params, jax.random.key(0), lambda: iter(pages))
    jax.effects_barrier()
    # 4 t**3 has mean 1 on [0, 1], and the images 2.
    assert bits == pytest.approx(2.0, rel=1e-3)
    assert len({t for t, _ in seen}) == 80 and len({noise for _, noise in seen}) == 8


def test_the_bound_is_a_line_of_its_own(tmp_path):
    monitor = Monitor(tmp_path, 0, 4, 8, every=1)
    monitor.validation(4, jnp.array([2.0]), np.array([0.1]))
    monitor.bits_per_dim(4, 3.25, 190)
    monitor.close()
    line = json.loads((tmp_path / "validation.jsonl").read_text().splitlines()[-1])
    assert line == {"step": 4, "bits_per_dim": 3.25, "bound": "continuous", "images": 190}
