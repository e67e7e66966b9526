"""Guidance and likelihood against closed forms: python scripts/oracle_laws.py. Prints two Markdown tables.

Guidance. For data N(m1, s1^2) under the condition and N(m2, s2^2) without it, guidance at scale w makes the
probability-flow ODE linear in y = x / alpha,

    dy/dr = sum_k w_k r (y - m_k) / (r^2 + s_k^2),      w_1 = w,  w_2 = 1 - w

and its samples a normal whose mean and deviation follow by an integral. With s1 = s2 it is the tilted density
p1^w p2^(1-w), exactly; with m1 = m2 the deviation is s1^w s2^(1-w). Autoguidance is the second case (a weaker model is
a broader one), the interval the same ODE with w = 1 outside it.

Likelihood. The data is a mixture of two normals on 8-bit values, whose bits per dimension are a sum over bins. The ODE
with uniform dequantisation and the discrete bound are given the denoiser of the smooth mixture, the continuous bound
that of the 256 values: a bound on the smooth one is looser, since it cannot snap to the values.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp
from scipy.special import ndtr

from jaxdiff.core import grids, paths
from jaxdiff.objectives.bound import by_logsnr, continuous_bound, discrete_bound, large
from jaxdiff.sampling import exact, guidance
from jaxdiff.sampling.guidance_rules import CFG, Interval
from jaxdiff.sampling.heun import Heun
from jaxdiff.sampling.likelihood import angles, likelihood
from jaxdiff.sampling.sample import image_keys, normal, sample

HIGH = 80.0


def truth(main: tuple[float, float], ref: tuple[float, float], scale: float, interval: Interval) -> tuple[float, float]:
    """(mean, standard deviation) of the guided ODE's samples: a linear ODE, integrated to 1e-10."""

    def slope(r: float, y: np.ndarray) -> np.ndarray:
        w = scale if interval.low < r <= interval.high else 1.0
        (m1, s1), (m2, s2) = main, ref
        return w * r * (y - m1) / (r**2 + s1**2) + (1 - w) * r * (y - m2) / (r**2 + s2**2)

    edges = sorted({HIGH, *(e for e in (interval.low, interval.high) if 0 < e < HIGH), 0.0}, reverse=True)
    y = np.array([0.0, 1.0])
    for a, b in itertools.pairwise(edges):
        y = solve_ivp(slope, (a, b + 1e-9 * (b > 0)), y, rtol=1e-10, atol=1e-12).y[:, -1]
    # Where 0 and 1 go says where N(0, HIGH^2) goes.
    return float(y[0]), float((y[1] - y[0]) * HIGH)


def guided(
    main: tuple[float, float], ref: tuple[float, float], scale: float, interval: Interval
) -> tuple[float, float]:
    """The same, sampled: 16,384 points by Heun in 400 steps."""
    pair = guidance.pair_of(exact.of_mixture(exact.normal(*main)), exact.of_mixture(exact.normal(*ref)))
    denoise = guidance.guided(pair, interval(CFG()(scale)))
    keys = image_keys(0, jnp.arange(256))
    z = normal(keys, (8, 8, 1))
    z = (z - z.mean()) / z.std()
    levels = grids.Karras(0.002, HIGH)(paths.Sigma(), 400)
    x = np.asarray(jax.jit(lambda z: sample(keys, HIGH * z, levels, denoise, Heun()))(z), np.float64)
    return float(x.mean()), float(x.std())


def guidance_table() -> None:
    cases = [
        ("CFG, w = 1", (0.5, 0.3), (-0.2, 0.3), 1.0, Interval()),
        ("CFG, w = 2", (0.5, 0.3), (-0.2, 0.3), 2.0, Interval()),
        ("CFG, w = 4, unequal widths", (0.5, 0.2), (-0.2, 0.5), 4.0, Interval()),
        ("interval (0.3, 3], w = 3", (0.5, 0.3), (-0.2, 0.3), 3.0, Interval(0.3, 3.0)),
        ("autoguidance, w = 1.5", (0.1, 0.3), (0.1, 0.6), 1.5, Interval()),
        ("autoguidance, w = 3", (0.1, 0.3), (0.1, 0.4), 3.0, Interval()),
    ]
    print("| guidance | mean, exact | sampled | deviation, exact | sampled | tilted density |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, main, ref, scale, interval in cases:
        (m, s), (m_hat, s_hat) = truth(main, ref, scale, interval), guided(main, ref, scale, interval)
        precision = scale / main[1] ** 2 + (1 - scale) / ref[1] ** 2
        mean = (scale * main[0] / main[1] ** 2 + (1 - scale) * ref[0] / ref[1] ** 2) / precision
        tilted = f"N({mean:.3f}, {precision**-0.5:.3f}²)" if interval == Interval() else ""
        print(f"| {name} | {m:.4f} | {m_hat:.4f} | {s:.4f} | {s_hat:.4f} | {tilted} |")


def likelihood_table() -> None:
    means, std, weights = np.array([-0.35, 0.3]), 0.15, np.array([0.4, 0.6])
    edges = np.concatenate([[-np.inf], (np.arange(255) + 0.5) / 127.5 - 1, [np.inf]])
    mass = np.diff(weights @ ndtr((edges - means[:, None]) / std))
    rng = np.random.default_rng(0)
    values = rng.choice(256, size=(2048, 2, 2, 1), p=mass)
    bits = float(-np.log2(mass)[values].mean())
    print(f"\nentropy {-(mass * np.log2(mass)).sum():.4f}; these 8,192 values: {bits:.4f} bits per dimension\n")
    data = exact.Mixture(jnp.asarray(means, jnp.float32), jnp.float32(std), jnp.asarray(weights, jnp.float32))
    snapping = exact.Mixture(jnp.arange(256) / 127.5 - 1, jnp.float32(0.0), jnp.asarray(mass, jnp.float32))
    denoise, snap, keys = exact.of_mixture(data), exact.of_mixture(snapping), image_keys(1, jnp.arange(2048))
    x0 = jnp.asarray(values / 127.5 - 1, jnp.float32)
    print("| likelihood | bits per dimension | off |\n| --- | --- | --- |")
    for name, path in (("Linear", paths.Linear()), ("LinearVP", paths.LinearVP()), ("Sigma", paths.Sigma())):
        grid = angles(path, 80, clean=1e-3)
        found = jax.jit(lambda x0, grid=grid: likelihood(keys, x0, grid, denoise, draws=8).bits)(x0).mean()
        print(f"| ODE, {name}, 8 dequantisations | {found:.4f} | {found - bits:+.4f} |")
    for name, path in (("Linear", paths.Linear()), ("LinearVP", paths.LinearVP())):
        bound = jax.jit(lambda x0, path=path: continuous_bound(keys, x0, path, snap, 256).bits)(x0).mean()
        print(f"| continuous bound, {name} | {bound:.4f} | {bound - bits:+.4f} |")
    for steps in (64, 256, 1024):
        levels = grids.from_ratios(paths.Cosine(), jnp.geomspace(100.0, 2 / 255, steps))
        bound = jax.jit(lambda x0, levels=levels: discrete_bound(keys, x0, levels, denoise, large).bits)(x0).mean()
        print(f"| discrete bound, {steps} steps | {bound:.4f} | {bound - bits:+.4f} |")
    found = jax.jit(lambda x0: continuous_bound(keys, x0, paths.Linear(), snap, 256))(x0)
    parts = by_logsnr(found, jnp.linspace(-14.0, 10.0, 9)).mean(0)
    print("\nby log SNR, -14 to 10 in steps of 3:", " ".join(f"{p:.3f}" for p in parts))
    assert math.isfinite(bits)


if __name__ == "__main__":
    guidance_table()
    likelihood_table()
