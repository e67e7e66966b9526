"""diffusers' scheduler_config.json as values of ours, and back: path, prediction, solver, grid, clipping.

Its step t in 0 ... N - 1 is step t + 1 of our chain, so networks are fed ``PathTime(path, 1.0, -1.0)``. Where a grid
ends at its step 0 and not at the clean level (`set_alpha_to_one` false), ours ends at step 1.

| scheduler | path | solver |
|---|---|---|
| DDIM | DiscreteVP | DDIM |
| DDPM | DiscreteVP | Ancestral, of the variance that it names |
| PNDM | DiscreteVP | PNDM |
| EulerDiscrete | DiscreteVP | DDIM, which is Euler's method in sigma/alpha |
| DPMSolverMultistep | DiscreteVP | DPMSolverPP |
| FlowMatchEulerDiscrete | Linear | DDIM, which is Euler's method in flow time |

What differs there: DDIM with `clip_sample` leaves eps as it was unless it is called with `use_clipped_model_output`;
DDIM, DDPM and PNDM on a grid whose steps are of several lengths (linspace, trailing where n does not divide N) go to
other steps than they visit next.
"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias

from jaxdiff.config import AnySolver
from jaxdiff.core import grids
from jaxdiff.core.betas import AnyBetas, CosineBetas, LinearBetas, ScaledLinearBetas, ZeroTerminal
from jaxdiff.core.paths import DiscreteVP, Linear
from jaxdiff.core.predictions import X0, Eps, Flow, PathTime, V
from jaxdiff.sampling.ancestral import Ancestral
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.dpm_solver import DPMSolverPP
from jaxdiff.sampling.plms import PNDM

Json: TypeAlias = Mapping[str, object]
Threshold: TypeAlias = Literal["none", "static"]


class Schedule(NamedTuple):
    """How a published network is sampled."""

    path: DiscreteVP | Linear
    prediction: Eps | X0 | V | Flow
    solver: AnySolver
    grid: grids.AnyGrid
    threshold: Threshold


FLOW = "FlowMatchEulerDiscreteScheduler"
KNOWN = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    FLOW,
)

ONLY: Mapping[str, tuple[object, ...]] = {
    "trained_betas": (None,),
    "thresholding": (False,),
    "use_karras_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_flow_sigmas": (False, None),
    "use_dynamic_shifting": (False, None),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "algorithm_type": ("dpmsolver++",),
    "solver_type": ("midpoint",),
    "lambda_min_clipped": (-math.inf, "-Infinity"),
    "sigma_min": (None,),
    "sigma_max": (None,),
}
"""What fields of a chain's scheduler may say."""

ONLY_FLOW: Mapping[str, tuple[object, ...]] = {
    "invert_sigmas": (False,),
    "shift_terminal": (None,),
    "use_karras_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "stochastic_sampling": (False,),
}
"""What fields of a flow's scheduler may say."""

VARIANCES: Mapping[str, float | None] = {
    "fixed_small": 0.0,
    "fixed_small_log": 0.0,
    "fixed_large": 1.0,
    "learned_range": None,
}
"""`Ancestral.u` by DDPM's variance_type."""

PREDICTIONS: Mapping[str, type[Eps] | type[X0] | type[V]] = {"epsilon": Eps, "sample": X0, "v_prediction": V}


def open_scheduler(json: Json, tokens: int = 0) -> Schedule:
    """The values that a scheduler_config.json stands for.

    `tokens` is the number of tokens of an image of the network's own size where the pipeline lays the grid itself, as
    FLUX's does, and 0 elsewhere. Raises ValueError that names a field which cannot be honoured.
    """
    name = str(json.get("_class_name"))
    if name not in KNOWN:
        raise ValueError(f"the scheduler {name} is not known: allowed are {', '.join(KNOWN)}")
    if name == FLOW:
        return _flow(json, tokens)
    _check(json, ONLY)
    steps = json.get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or steps < 1:
        raise _refused("num_train_timesteps", steps, "a positive integer")
    path = DiscreteVP(steps, _betas(json, steps))
    kind = _one_of(json, "prediction_type", "epsilon", *PREDICTIONS)
    prediction = PREDICTIONS[kind](PathTime(path, 1.0, -1.0))
    clips = name in ("DDIMScheduler", "DDPMScheduler") and bool(json.get("clip_sample", True))
    if clips and json.get("clip_sample_range", 1.0) != 1.0:
        raise _refused("clip_sample_range", json["clip_sample_range"], "1")
    solver = _solver(name, json)
    return Schedule(path, prediction, solver, _grid(name, json, steps), "static" if clips else "none")


def scheduler_json(schedule: Schedule) -> dict[str, object]:
    """A scheduler_config.json from which `open_scheduler` gives these values.

    Raises ValueError, one line that names what diffusers' schedulers have not.
    """
    path, prediction, solver, grid, threshold = schedule
    if isinstance(path, Linear):
        if prediction != Flow(PathTime(Linear(), 1000.0)) or solver != DDIM() or threshold != "none":
            raise ValueError(f"{FLOW} has no {type(solver).__name__} with {prediction}: only DDIM with Flow, unclipped")
        if grid not in (grids.UniformT(), _flow_grid(path.shift)):
            raise ValueError(f"{FLOW} has no grid {grid}")
        return {"_class_name": FLOW, "num_train_timesteps": 1000, "shift": path.shift}
    kinds: dict[type, str] = {cls: kind for kind, cls in PREDICTIONS.items()}
    if type(prediction) not in kinds or prediction.time != PathTime(path, 1.0, -1.0):
        raise ValueError(
            f"diffusers' networks cannot be told the time as {type(prediction).__name__}({prediction.time}) says"
        )
    fields: dict[str, object] = {"num_train_timesteps": path.num_steps, **_betas_json(path.betas, path.num_steps)}
    fields |= {"prediction_type": kinds[type(prediction)], **_grid_json(grid, path.num_steps)}
    ends_clean = getattr(grid, "last", 0) == 0
    clips = {"clip_sample": threshold == "static", "clip_sample_range": 1.0}
    if solver == DDIM():
        return {"_class_name": "DDIMScheduler", **fields, **clips, "set_alpha_to_one": ends_clean}
    if isinstance(solver, Ancestral) and solver.u in (0.0, 1.0, None):
        kind = {0.0: "fixed_small", 1.0: "fixed_large", None: "learned_range"}[solver.u]
        return {"_class_name": "DDPMScheduler", **fields, **clips, "variance_type": kind}
    if isinstance(solver, PNDM) and threshold == "none":
        more = {"skip_prk_steps": not solver.runge_kutta, "set_alpha_to_one": ends_clean}
        return {"_class_name": "PNDMScheduler", **fields, **more}
    if isinstance(solver, DPMSolverPP) and solver.eta == 0 and threshold == "none":
        more = {"solver_order": solver.order, "final_sigmas_type": "zero" if ends_clean else "sigma_min"}
        return {"_class_name": "DPMSolverMultistepScheduler", **fields, **more}
    raise ValueError(f"diffusers' schedulers have no {solver} with threshold {threshold}: DDIM, Ancestral or PNDM")


def _flow(json: Json, tokens: int) -> Schedule:
    dynamic = bool(json.get("use_dynamic_shifting", False))
    _check(json, ONLY_FLOW)
    if json.get("num_train_timesteps", 1000) != 1000:
        raise _refused("num_train_timesteps", json["num_train_timesteps"], "1000")
    shift = _real(json, "shift", 1.0)
    if dynamic:
        if not tokens:
            raise _refused("use_dynamic_shifting", True, "false in this pipeline")
        low, high = _real(json, "base_image_seq_len", 256.0), _real(json, "max_image_seq_len", 4096.0)
        least, most = _real(json, "base_shift", 0.5), _real(json, "max_shift", 1.15)
        mu = least + (most - least) * (tokens - low) / (high - low)
        linear = _one_of(json, "time_shift_type", "exponential", "exponential", "linear") == "linear"
        shift = mu if linear else math.exp(mu)
    grid = grids.UniformT() if tokens else _flow_grid(shift)
    return Schedule(Linear(shift), Flow(PathTime(Linear(), 1000.0)), DDIM(), grid, "none")


def _flow_grid(shift: float) -> grids.Spread:
    """From t = 1 to the shifted 1/1000, which the scheduler shifts once more."""
    return grids.Spread(1.0, shift / (1000 + (shift - 1)))


def _betas(json: Json, steps: int) -> AnyBetas:
    kinds = ("linear", "scaled_linear", "squaredcos_cap_v2")
    kind = _one_of(json, "beta_schedule", "linear", *kinds)
    first, last = _real(json, "beta_start", 1e-4), _real(json, "beta_end", 0.02)
    betas = {
        "linear": LinearBetas(first * steps / 1000, last * steps / 1000),  # which ours stretch
        "scaled_linear": ScaledLinearBetas(first, last),
        "squaredcos_cap_v2": CosineBetas(),
    }[kind]
    return ZeroTerminal(betas) if json.get("rescale_betas_zero_snr", False) else betas


def _betas_json(betas: AnyBetas, steps: int) -> dict[str, object]:
    if isinstance(betas, ZeroTerminal):
        return _betas_json(betas.betas, steps) | {"rescale_betas_zero_snr": True}
    if isinstance(betas, CosineBetas):
        if betas != CosineBetas():
            raise ValueError(f"diffusers' schedulers have no {betas}, but {CosineBetas()}")
        return {"beta_schedule": "squaredcos_cap_v2"}
    scaled, stretch = isinstance(betas, ScaledLinearBetas), 1.0
    if not scaled:
        stretch = 1000 / steps
    kind = "scaled_linear" if scaled else "linear"
    return {"beta_schedule": kind, "beta_start": betas.first * stretch, "beta_end": betas.last * stretch}


def _solver(name: str, json: Json) -> AnySolver:
    if name == "DDPMScheduler":
        return Ancestral(VARIANCES[_one_of(json, "variance_type", "fixed_small", *VARIANCES)])
    if name == "PNDMScheduler":
        return PNDM(runge_kutta=not json.get("skip_prk_steps", False), lower_order_final=False)
    if name == "DPMSolverMultistepScheduler":
        order = json.get("solver_order", 2)
        if order not in (1, 2, 3) or not isinstance(order, int):
            raise _refused("solver_order", order, "1, 2 or 3")
        return DPMSolverPP(order=order, curvature=0.5)
    return DDIM()


def _grid(name: str, json: Json, steps: int) -> grids.Leading | grids.Trailing | grids.Linspace:
    chain = name in ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler")
    kind = _one_of(json, "timestep_spacing", "leading" if chain else "linspace", "leading", "trailing", "linspace")
    ends_clean = bool(json.get("set_alpha_to_one", name != "PNDMScheduler")) or name == "DDPMScheduler"
    if not chain:
        ends_clean = _one_of(json, "final_sigmas_type", "zero", "zero", "sigma_min") == "zero"
    last, extra = int(not ends_clean), int(name == "DPMSolverMultistepScheduler")
    offset = json.get("steps_offset", 0)
    if not isinstance(offset, int) or offset < 0:
        raise _refused("steps_offset", offset, "0 or a positive integer")
    if kind == "leading":
        return grids.Leading(steps, offset, extra, last)
    if kind == "trailing":
        return grids.Trailing(steps, last)
    return grids.Linspace(steps, name != "EulerDiscreteScheduler", extra, last)


def _grid_json(grid: grids.AnyGrid, steps: int) -> dict[str, object]:
    kinds = {grids.Leading: "leading", grids.Trailing: "trailing", grids.Linspace: "linspace"}
    if grid == grids.UniformT():
        grid = grids.Trailing(steps)
    if not isinstance(grid, grids.Leading | grids.Trailing | grids.Linspace) or grid.length != steps:
        raise ValueError(f"diffusers' schedulers have no grid {grid}: Leading, Trailing or Linspace of {steps} steps")
    offset = {"steps_offset": grid.offset} if isinstance(grid, grids.Leading) else {}
    return {"timestep_spacing": kinds[type(grid)], **offset}


def _check(json: Json, only: Mapping[str, tuple[object, ...]]) -> None:
    for name, allowed in only.items():
        if name in json and json[name] not in allowed:
            raise _refused(name, json[name], " or ".join(map(repr, allowed)))


def _one_of(json: Json, name: str, default: str, *allowed: str) -> str:
    value = json.get(name, default)
    if value not in allowed or not isinstance(value, str):
        raise _refused(name, value, ", ".join(allowed))
    return value


def _real(json: Json, name: str, default: float) -> float:
    value = json.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise _refused(name, value, "a positive number")
    return float(value)


def _refused(field: str, value: object, allowed: str) -> ValueError:
    return ValueError(f"scheduler_config.json: {field} = {value!r} is not allowed: {allowed}")
