"""Posterior methods against analytic posteriors: python scripts/posterior_oracle.py [--out docs].

Writes posterior_oracle.json and prints Markdown tables. The data are a normal and a mixture of three normals on
pictures of 6 x 6 pixels, whose denoisers and posteriors are known, so that all that is measured is the method and 250
steps of its sampler. For each of three operators and three noise levels:

- mean: distance of the mean of the draws from the posterior's, over the root of the trace of the posterior's covariance
- cov: distance of the covariances (Frobenius), over the norm of the posterior's
- variance: trace of the draws' covariance over that of the posterior's

The row `draws` is as many independent draws from the posterior itself, which no method can be told to be better than;
`DDPM` and `Heun` are two samplers that are given the posterior's own denoiser. PiGDM, a transform, is sampled by Heun;
the others have steps of their own, of DDPM's kind.

Then the particle method as its populations grow: the mean squared error of a population's mean, the least effective
sample size, and how well the evidence is estimated.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import grids, paths
from jaxdiff.core.types import Level
from jaxdiff.names import OPERATORS, POSTERIORS, value_of
from jaxdiff.sampling import exact
from jaxdiff.sampling.ancestral import Ancestral
from jaxdiff.sampling.heun import Heun
from jaxdiff.sampling.inverse.operator import Linear, matrix_of, seen_of
from jaxdiff.sampling.inverse.problem import Problem
from jaxdiff.sampling.sample import image_keys, initial, sample, sample_and_state
from jaxdiff.sampling.solver import Solver

SIDE, STD, DRAWS, STEPS = 6, 0.5, 2048, 250
SHAPE = (SIDE, SIDE, 1)
LOW, HIGH = 0.01, 80.0
NOISES = (0.02, 0.1, 0.5)
TASKS = {"mask": "mask(hidden=0.5)", "downsample": "downsample(factor=2)", "blur": "blur(std=1.0)"}
METHODS = {
    "ddrm": "ddrm",
    "ddnm": "ddnm",
    "pigdm": f"pigdm(std={STD})",
    "dps": "dps",
    "diffpir": "diffpir",
    "red-diff": "red-diff",
    "daps": f"daps(std={STD})",
    "fk, 64": "fk(particles=64)",
    "tds, 64": "tds(particles=64)",
}
CONTROLS = ("draws", "DDPM", "Heun")
SIZES = (1, 4, 16, 64, 256, 1024)


class Errors(NamedTuple):
    """How far draws are from a posterior."""

    mean: float
    cov: float
    variance: float


def smooth(side: int, std: float, length: float) -> np.ndarray:
    """The covariance of smooth pictures: a Gaussian of the distance, and a twentieth of the variance in each pixel."""
    rows, columns = np.divmod(np.arange(side * side), side)
    square = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
    return std**2 * (0.95 * np.exp(-0.5 * square / length**2) + 0.05 * np.eye(side * side))


def normal(side: int) -> exact.Normals:
    """Smooth pictures around a ramp."""
    ramp = 0.4 * np.linspace(-1, 1, side)
    mean = (ramp[:, None] + ramp).ravel() / 2
    return exact.Normals(mean[None], smooth(side, STD, 1.5)[None], np.ones(1))


def mixture(side: int) -> exact.Normals:
    """Three kinds of pictures: light at the left, light at the right, stripes; each smooth on another length."""
    ramp = np.linspace(-1, 1, side)
    left = np.broadcast_to(-0.7 * ramp, (side, side))
    stripes = np.broadcast_to(0.6 * np.cos(np.pi * np.arange(side))[:, None], (side, side))
    means = np.stack([left.ravel(), -left.ravel(), stripes.ravel()])
    covariances = np.stack([smooth(side, 0.3, length) for length in (1.0, 2.0, 1.5)])
    return exact.Normals(means, covariances, np.array([0.4, 0.35, 0.25]))


def draws(data: exact.Normals, count: int, rng: np.random.Generator) -> np.ndarray:
    """Independent draws, [count, d]."""
    roots = np.stack([np.linalg.cholesky(c + 1e-10 * np.eye(len(c))) for c in data.covariances])
    which = rng.choice(len(data.weights), size=count, p=data.weights)
    return data.means[which] + np.einsum("nij,nj->ni", roots[which], rng.normal(size=(count, data.means.shape[1])))


def errors(found: np.ndarray, truth: exact.Normals) -> Errors:
    """How far the draws `found`, [n, d], are from the posterior."""
    covariance = np.cov(found.T)
    scale, spread = np.trace(truth.covariance), np.linalg.norm(truth.covariance)
    return Errors(
        float(np.linalg.norm(found.mean(0) - truth.mean) / np.sqrt(scale)),
        float(np.linalg.norm(covariance - truth.covariance) / spread),
        float(np.trace(covariance) / scale),
    )


def levels_of(steps: int) -> Level:
    """The noise levels."""
    return grids.Karras(LOW, HIGH)(paths.Sigma(), steps)


def sampler_of(data: exact.Normals, operator: Linear, method: str, shape: tuple[int, int, int]) -> Callable:
    """(y, noise, seed) -> draws, jitted for all measurements and noises."""
    value = value_of(method, POSTERIORS, "--method")
    # As many calls of the denoiser.
    levels, denoise = levels_of(STEPS if value.own_steps else STEPS // 2), exact.of_normals(data)

    @jax.jit
    def run(y: jax.Array, noise: jax.Array, seed: jax.Array) -> jax.Array:
        keys = image_keys(seed, jnp.arange(DRAWS))
        x = initial(keys, shape, jax.tree.map(lambda a: a[0], levels))
        solver = value(Problem(operator, jnp.broadcast_to(y, (DRAWS, *y.shape)), noise), Heun())
        return sample(keys, x, levels, denoise, solver)

    return run


def study(name: str, data: exact.Normals) -> list[dict]:
    """Every method on every task."""
    rng, rows = np.random.default_rng(0), []
    for task, text in TASKS.items():
        operator = value_of(text, OPERATORS, "--operator").on(SHAPE, {})
        assert isinstance(operator, Linear)
        matrix = matrix_of(operator)
        seen = seen_of(operator)
        truths, measured = {}, {}
        for noise in NOISES:
            x = draws(data, 1, rng)[0]
            y = (matrix @ x).reshape(operator.measured) + noise * rng.normal(size=operator.measured)
            measured[noise] = y * seen
            rows_seen = seen.ravel() > 0
            truths[noise], _ = exact.conditioned(data, matrix[rows_seen], measured[noise].ravel()[rows_seen], noise)
        runs = {m: sampler_of(data, operator, text, SHAPE) for m, text in METHODS.items()}
        for method in (*CONTROLS, *METHODS):
            for noise in NOISES:
                truth, started = truths[noise], time.monotonic()
                if method == "draws":
                    found = draws(truth, DRAWS, rng)
                elif method == "DDPM":
                    found = controlled(truth, Ancestral(), STEPS)
                elif method == "Heun":
                    found = controlled(truth, Heun(), STEPS // 2)
                else:
                    y = jnp.asarray(measured[noise], jnp.float32)
                    found = np.asarray(runs[method](y, jnp.float32(noise), jnp.int32(1)), np.float64)
                    found = found.reshape(DRAWS, -1)
                row = {"data": name, "task": task, "noise": noise, "method": method, **errors(found, truth)._asdict()}
                rows.append(row | {"seconds": round(time.monotonic() - started, 2)})
                print(json.dumps(rows[-1]), flush=True)
    return rows


def controlled(truth: exact.Normals, solver: Solver, steps: int) -> np.ndarray:
    """Draws of a sampler that is given the posterior's own denoiser."""
    levels, keys = levels_of(steps), image_keys(1, jnp.arange(DRAWS))
    x = initial(keys, SHAPE, jax.tree.map(lambda a: a[0], levels))
    found = jax.jit(lambda x: sample(keys, x, levels, exact.of_normals(truth), solver))(x)
    return np.asarray(found, np.float64).reshape(DRAWS, -1)


def convergence(chains: int = 8192, steps: int = STEPS) -> list[dict]:
    """Populations of growing size, on the mixture with 4 x 4 pixels, half of them hidden."""
    side, noise, rng, rows = 4, 0.2, np.random.default_rng(3), []
    data, shape = mixture(side), (side, side, 1)
    denoise = exact.of_normals(data)
    operator = value_of("mask(hidden=0.5)", OPERATORS, "--operator").on(shape, {})
    assert isinstance(operator, Linear)
    matrix, seen = matrix_of(operator), seen_of(operator).ravel() > 0
    y = matrix @ draws(data, 1, rng)[0] + noise * rng.normal(size=side * side)
    truth, log_evidence = exact.conditioned(data, matrix[seen], y[seen], noise)
    levels = levels_of(steps)
    many = jnp.broadcast_to(jnp.asarray((y * seen).reshape(shape), jnp.float32), (chains, *shape))
    for method in ("tds", "fk"):
        for size in SIZES:
            value = value_of(f"{method}(particles={size})", POSTERIORS, "--method")
            solver = value(Problem(operator, many, jnp.float32(noise)), Ancestral())
            keys = image_keys(size + (method == "fk"), jnp.arange(chains))  # noise of its own
            x = initial(keys, shape, jax.tree.map(lambda a: a[0], levels))
            found, state = jax.jit(sample_and_state, static_argnums=(3, 4))(keys, x, levels, denoise, solver)
            means = np.asarray(found, np.float64).reshape(-1, size, side * side).mean(1)
            square = np.sum((means - truth.mean) ** 2, axis=1)
            ratio = np.exp(np.asarray(state.log_evidence, np.float64) - log_evidence)
            row = {
                "method": method,
                "particles": size,
                "populations": len(means),
                "mse": float(square.mean() / np.trace(truth.covariance)),
                "mse_error": float(square.std() / np.sqrt(len(square)) / np.trace(truth.covariance)),
                "bias": float(np.linalg.norm(means.mean(0) - truth.mean) / np.sqrt(np.trace(truth.covariance))),
                "evidence_ratio": float(ratio.mean()),
                "evidence_error": float(ratio.std() / np.sqrt(len(ratio))),
                "log_evidence_std": float(np.log(ratio).std()),
                "least_effective_size": float(np.mean(np.asarray(state.effective))),
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def table(rows: list[dict], data: str) -> str:
    """`mean / cov` for every task and noise."""
    cells = {(r["method"], r["task"], r["noise"]): r for r in rows if r["data"] == data}
    head = [data, *(f"{task} {noise:g}" for task in TASKS for noise in NOISES), "variance"]
    lines = [head, ["---"] * len(head)]
    for method in (*CONTROLS, *METHODS):
        found = [cells[method, task, noise] for task in TASKS for noise in NOISES]
        ratios = [r["variance"] for r in found]
        figures = [f"{r['mean']:.2f} / {r['cov']:.2f}" for r in found]
        lines.append([method, *figures, f"{min(ratios):.2f} to {max(ratios):.2f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def particle_table(rows: list[dict]) -> str:
    """The convergence of populations."""
    head = ["method", "K", "mean squared error", "times K", "bias of the mean", "evidence / exact", "least ESS"]
    lines = [head, ["---"] * len(head)]
    for r in rows:
        figures = [f"{r['mse']:.2g}", f"{r['mse'] * r['particles']:.2f}", f"{r['bias']:.3f}"]
        least = f"{r['least_effective_size']:.1f}"
        evidence = f"{r['evidence_ratio']:.2f} ± {r['evidence_error']:.2f}"
        lines.append([r["method"], str(r["particles"]), *figures, evidence, least])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    out = parser.parse_args().out
    populations = convergence()
    rows = study("normal", normal(SIDE)) + study("mixture", mixture(SIDE))
    record = {"methods": METHODS, "draws": DRAWS, "steps": STEPS, "rows": rows, "particles": populations}
    (out / "posterior_oracle.json").write_text(json.dumps(record, indent=1) + "\n")
    for data in ("normal", "mixture"):
        print(table(rows, data) + "\n")
    print(particle_table(populations))


if __name__ == "__main__":
    main()
