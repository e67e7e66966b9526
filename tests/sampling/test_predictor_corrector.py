"""Predictor and corrector: the paper's Langevin step, and what it is for."""

import jax
import jax.numpy as jnp
import pytest

from jaxdiff.core import grids, paths
from jaxdiff.core.types import Level
from jaxdiff.sampling.ancestral import Ancestral
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.dpm_solver import DPMSolverPP
from jaxdiff.sampling.predictor_corrector import PredictorCorrector
from jaxdiff.sampling.sample import image_keys, normal, normal_like, sample

run = jax.jit(sample, static_argnums=(3, 4))


def test_langevin_is_algorithm_4(closed_form):
    # On the VE path, with the score and the norms of one image each.
    keys, snr = image_keys(0, jnp.arange(3)), 0.2
    x = 3.0 * normal(image_keys(1, jnp.arange(3)), (4, 4, 1))
    denoise = closed_form.denoiser(closed_form.normal(0.3, 0.5))
    cur, nxt = (Level(jnp.ones(()), jnp.float32(s)) for s in (3.0, 2.0))
    solver = PredictorCorrector(DDIM(), corrections=2, snr=snr)
    got, _ = solver.step(keys, x, solver.init(x, cur), cur, nxt, denoise)
    y, _ = DDIM().step(keys, x, None, cur, nxt, denoise)
    streams = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
    for m in (1, 2):
        z = normal_like(streams[:, m], y)
        score = -(y - denoise(y, nxt, nxt).x0) / 2.0**2
        for i in range(3):
            e = 2 * (snr * jnp.linalg.norm(z[i]) / jnp.linalg.norm(score[i])) ** 2
            y = y.at[i].set(y[i] + e * score[i] + jnp.sqrt(2 * e) * z[i])
    assert jnp.allclose(got, y, atol=1e-4)


def test_corrections_mend_the_variance(closed_form):
    # DDPM's step with few levels draws too narrowly; Langevin steps widen what it draws.
    data = closed_form.normal(0.0, 0.5)
    keys, levels = image_keys(0, jnp.arange(64)), grids.Polynomial(2.0)(paths.Sigma(3.0), 12)
    x = closed_form.marginal(data, closed_form.first(levels), normal(image_keys(1, jnp.arange(64)), (16, 16, 1)))
    excess = [
        float(jnp.var(run(keys, x, levels, closed_form.denoiser(data), solver)) / 0.25 - 1)
        for solver in (Ancestral(), *(PredictorCorrector(Ancestral(), m) for m in (1, 3)))
    ]
    assert excess[0] < -0.3 and abs(excess[1]) < 0.75 * abs(excess[0]) and abs(excess[2]) < 0.4 * abs(excess[0])


def test_any_predictor_keeps_its_state(closed_form):
    denoise = closed_form.denoiser(closed_form.normal(0.0, 0.5))
    keys, levels = image_keys(0, jnp.arange(4)), grids.UniformT()(paths.Linear(), 6)
    x = normal(keys, (2, 2, 1))
    plain = run(keys, x, levels, denoise, DPMSolverPP())
    assert jnp.allclose(run(keys, x, levels, denoise, PredictorCorrector(DPMSolverPP(), 0)), plain)
    assert jnp.isfinite(run(keys, x, levels, denoise, PredictorCorrector(DPMSolverPP()))).all()


@pytest.mark.parametrize(("field", "value"), [("corrections", -1), ("snr", 0.0), ("snr", float("inf"))])
def test_bad_settings_are_refused(field, value):
    with pytest.raises(ValueError, match=rf"{field} = .*\(--solver\.{field}\)"):
        PredictorCorrector(**{field: value})
