"""Every solver against closed forms: python scripts/oracle.py [--out docs]. Writes oracle.png, oracle.json, oracle.md.

The denoiser is exact, so what is measured is the solver alone:

- error: RMS distance from the exact solution of the probability-flow ODE of a mixture of two normals, stopped at
  sigma/alpha = 0.02, where the comparison does not hide behind the last step; the observed order is the slope between
  the two largest numbers of calls that are above the rounding of float32
- moments: mean and standard deviation of 65,536 points of that mixture at 20 calls; they start evenly spread over the
  distribution, so what is left for a solver of the ODE is its own error
- residual: how far samples of a finite set of images end from the nearest image of the set at 20 calls, RMS per pixel;
  where the method is right it is zero, since such data has no other points
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

from jaxdiff.core import grids, paths
from jaxdiff.core.types import Level
from jaxdiff.data import Data, open_source
from jaxdiff.data.pictures import Pictures
from jaxdiff.names import SOLVERS, value_of
from jaxdiff.sampling import exact
from jaxdiff.sampling.sample import image_keys, normal, sample
from jaxdiff.sampling.solver import Solver

CALLS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
MEANS, STD, WEIGHTS = np.array([-0.6, 0.5]), 0.3, np.array([0.4, 0.6])
LOW, HIGH = 0.02, 20.0


class Row(NamedTuple):
    """A solver, and the order that its paper claims for the ODE (0: it draws noise)."""

    label: str
    solver: Solver
    order: float

    def grid(self, steps: int) -> Level:
        """The levels that it is given."""
        main = grids.Karras(LOW, HIGH)
        if self.label.startswith("Restart"):
            main = grids.Restarts(main, (grids.RestartInterval(0.2, 1.0, 2, 2),))
        return main(paths.Sigma(), steps)


def rows() -> list[Row]:
    """All solvers at their orders."""
    named = [
        ("DDIM = Euler", "ddim", 1),
        ("Heun", "heun", 2),
        ("DPM-Solver-2S", "dpm-2", 2),
        ("DPM-Solver-3S", "dpm-3", 3),
        ("DPM-Solver++ 2S", "dpmpp-2s", 2),
        ("DPM-Solver++ 2M", "dpmpp-2m", 2),
        ("DPM-Solver++ 3M", "dpmpp-3m", 3),
        ("DEIS-2", "deis(order=2)", 2),
        ("DEIS-3", "deis(order=3)", 3),
        ("PLMS-4", "plms", 2),
        ("PNDM", "pndm", 2),
        ("UniPC-1 (B2)", "unipc(order=1)", 2),
        ("UniPC-2 (B2)", "unipc(order=2)", 3),
        ("UniPC-3 (B2)", "unipc(order=3)", 4),
        ("UniPC-3 (B1)", "unipc-b1(order=3)", 4),
        ("RK45", "rk45", 5),
        ("DDPM (small)", "ddpm", 0),
        ("DDPM (large)", "ddpm-large", 0),
        ("Euler-Maruyama", "euler-maruyama", 0),
        ("EDM stochastic", "heun(churn=10)", 0),
        ("SDE-DPM-Solver++ 1", "dpmpp-sde", 0),
        ("SDE-DPM-Solver++ 2M", "dpmpp-2m-sde", 0),
        ("SDE-DPM-Solver++ 3M", "dpmpp-3m-sde", 0),
        ("SA-Solver", "sa", 0),
        ("predictor-corrector", "pc", 0),
        ("Restart (Heun)", "restart", 0),
        ("Renoise", "renoise", 0),
    ]
    return [Row(label, value_of(text, SOLVERS, "--solver"), order) for label, text, order in named]


def steps_for(solver: Solver, calls: int, grid: Callable[[int], Level]) -> Level | None:
    """The levels of the most steps that need at most `calls` calls; None if even one step needs more."""
    # Calls are a + b steps, but for the shortest grids.
    four, five = (solver.nfe(grid(steps)) or 0 for steps in (4, 5))
    if five == four:
        return grid(1)
    steps = 4 + (calls - four) // (five - four)
    return grid(steps) if steps >= 2 else None


def without_clean(levels: Level) -> Level:
    return Level(levels.alpha[:-1], levels.sigma[:-1])


def mixture_cdf(x: np.ndarray, ratio: float) -> np.ndarray:
    return (WEIGHTS * ndtr((x[..., None] - MEANS) / np.hypot(STD, ratio))).sum(-1)


def quantiles(p: np.ndarray, ratio: float) -> np.ndarray:
    """Where the mixture with this noise has these cumulative probabilities."""
    return np.array([brentq(lambda x, q=q: mixture_cdf(np.array(x), ratio) - q, -200, 200, xtol=1e-12) for q in p])


def observed_order(calls: list[int], errors: list[float]) -> float | None:
    """The slope of log error against log calls, over the last two points above rounding."""
    good = [(c, e) for c, e in zip(calls, errors, strict=True) if e > 1e-5]
    if len(good) < 3:
        return None
    (c0, e0), (c1, e1) = good[-3], good[-1]
    return float(np.log(e0 / e1) / np.log(c1 / c0))


def study(row: Row, data: exact.Mixture, images: np.ndarray) -> dict[str, object]:
    """One row of the table."""
    denoise = exact.of_mixture(data)
    run = jax.jit(lambda keys, x, levels: sample(keys, x, levels, denoise, row.solver))
    found: dict[str, object] = {"solver": row.label, "order": row.order}
    if row.order:
        p = (np.arange(64) + 0.5) / 64
        start, want = quantiles(p, HIGH), quantiles(p, LOW)
        x = jnp.asarray(start, jnp.float32).reshape(-1, 1, 1, 1)
        calls, errors = [], []
        for n in CALLS if row.label != "RK45" else ():
            # The step to the clean level is left out, so one more level is laid.
            levels = steps_for(row.solver, n, lambda steps: without_clean(row.grid(steps + 1)))
            if levels is None:
                continue
            end = np.asarray(run(image_keys(0, jnp.arange(64)), x, levels), np.float64).ravel()
            calls.append(row.solver.nfe(levels) or 0)
            errors.append(float(np.sqrt(np.mean((end - want) ** 2))))
        if row.label == "RK45":
            for tolerance in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5):
                solver = value_of(f"rk45(rtol={tolerance}, atol={tolerance})", SOLVERS, "--solver")
                # One image of 64 pixels: the error that chooses the steps is a mean over an image.
                ends, nfe = adaptive(solver, x.reshape(1, 8, 8, 1), without_clean(row.grid(2)), denoise)
                calls.append(nfe)
                errors.append(float(np.sqrt(np.mean((ends - want) ** 2))))
        found |= {"calls": calls, "errors": errors, "observed": observed_order(calls, errors)}
    n = 2**16
    key = image_keys(1, jnp.arange(n // 64))
    levels = steps_for(row.solver, 20, row.grid)
    levels = row.grid(1) if levels is None else levels
    # Evenly spread over the distribution, so that a solver of the ODE has no sampling error.
    places = np.random.default_rng(0).permutation(n)
    knots = np.linspace(-5 * HIGH, 5 * HIGH, 200001)
    first = np.interp((places + 0.5) / n, mixture_cdf(knots, HIGH), knots)
    x = jnp.asarray(first, jnp.float32).reshape(-1, 8, 8, 1)
    end = np.asarray(run(key, x, levels), np.float64)
    mean, std = WEIGHTS @ MEANS, np.sqrt(STD**2 + WEIGHTS @ MEANS**2 - (WEIGHTS @ MEANS) ** 2)
    found |= {"calls_20": row.solver.nfe(levels), "mean_error": end.mean() - mean, "std_error": end.std() - std}

    few = jnp.asarray(images, jnp.float32)
    keys = image_keys(2, jnp.arange(64))
    x = HIGH * normal(keys, images.shape[1:])
    finite = exact.of_images(few)
    end = jax.jit(lambda keys, x, levels: sample(keys, x, levels, finite, row.solver))(keys, x, levels)
    gaps = np.sqrt(np.mean((np.asarray(end)[:, None] - images[None]) ** 2, axis=(2, 3, 4)))
    return found | {"residual": float(gaps.min(1).mean()), "different": len(set(gaps.argmin(1).tolist()))}


def adaptive(solver, x, levels, denoise) -> tuple[np.ndarray, int]:
    """Where an adaptive solver ends, and the mean number of its calls."""
    cur, nxt = (jax.tree.map(lambda a, i=i: a[i], levels) for i in (0, 1))
    keys = image_keys(0, jnp.arange(x.shape[0]))
    end, state = jax.jit(lambda x: solver.step(keys, x, solver.init(x, levels), cur, nxt, denoise))(x)
    return np.asarray(end, np.float64).ravel(), round(float(np.mean(state.nfe)))


def plot(results: list[dict], out: Path) -> None:
    """Error against calls, log-log."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    ode = [r for r in results if r["order"]]
    for i, r in enumerate(ode):
        style = dict(marker="osv^D"[i % 5], ms=3.5, lw=1, color=plt.get_cmap("tab20")(i % 20))
        axes[0].loglog(r["calls"], r["errors"], label=r["solver"], **style)
    for order in (1, 2, 3, 4):
        c = np.array([24, 256])
        axes[0].loglog(c, 0.05 * (24 / c) ** order, "k:", lw=0.7)
        axes[0].annotate(f"order {order}", (c[-1], 0.05 * (24 / 256) ** order), fontsize=7)
    axes[0].set(xlabel="network calls", ylabel="RMS error of the ODE's end", title="Deterministic solvers")
    axes[0].set_ylim(1e-7, 2)
    axes[0].legend(fontsize=7, ncol=2)
    axes[0].grid(alpha=0.3, which="both")
    names = [r["solver"] for r in results]
    place = np.arange(len(names))
    axes[1].barh(place - 0.2, [abs(r["std_error"]) for r in results], 0.4, label="|error of the standard deviation|")
    axes[1].barh(place + 0.2, [abs(r["mean_error"]) for r in results], 0.4, label="|error of the mean|")
    axes[1].set_yticks(place, names, fontsize=7)
    axes[1].invert_yaxis()
    axes[1].set_xscale("log")
    axes[1].set(title="Moments of a mixture at 20 calls")
    axes[1].legend(fontsize=7)
    figure.savefig(out / "oracle.png", dpi=110)


def table(results: list[dict]) -> str:
    """The same as Markdown."""
    head = ["solver", "order", "observed", "error at 16", "at 64", "mean error", "std error", "residual"]
    lines = [head, ["---"] * len(head)]
    for r in results:
        at = dict(zip(r.get("calls", []), r.get("errors", []), strict=True))
        near = [next((f"{e:.1e}" for c, e in at.items() if c0 * 0.9 <= c <= 1.1 * c0), "") for c0 in (16, 64)]
        observed = "" if r.get("observed") is None else f"{r['observed']:.2f}"
        order = f"{r['order']:g}" if r["order"] else "noise"
        figures = [f"{r[k]:+.4f}" for k in ("mean_error", "std_error")]
        lines.append([r["solver"], order, observed, *near, *figures, f"{r['residual']:.4f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    out = parser.parse_args().out
    data = exact.Mixture(jnp.asarray(MEANS, jnp.float32), jnp.float32(STD), jnp.asarray(WEIGHTS, jnp.float32))
    config = Data("emoji:smileys-emotion", size=16)
    pictures = Pictures(config, open_source(config))
    images = np.stack([pictures[i]["image"] for i in range(128)]).astype(np.float32) / 127.5 - 1
    results = []
    for row in rows():
        results.append(study(row, data, images))
        print(json.dumps(results[-1]), flush=True)
    (out / "oracle.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "oracle.md").write_text(table(results) + "\n")
    plot(results, out)


if __name__ == "__main__":
    main()
