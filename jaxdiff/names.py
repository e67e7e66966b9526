"""Values on the command line by short names: `--solver heun`, or with fields, `--solver "heun(churn=40)"`."""

import ast
import dataclasses
import re
from collections.abc import Mapping
from typing import TypeVar

from jaxdiff.config import AnySolver
from jaxdiff.core import grids
from jaxdiff.sampling.ancestral import Ancestral
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.deis import DEIS
from jaxdiff.sampling.dpm_solver import DPMSolverPP
from jaxdiff.sampling.dpm_solver_single import DPMSolver, DPMSolverPPS
from jaxdiff.sampling.editing.inversion import DDIMInversion, Interpolate
from jaxdiff.sampling.editing.keep import ILVR, Replace
from jaxdiff.sampling.editing.noise_maps import DDPMInversion
from jaxdiff.sampling.editing.prompt_to_prompt import PromptToPrompt
from jaxdiff.sampling.editing.repaint import RePaint
from jaxdiff.sampling.editing.sdedit import Generate, SDEdit
from jaxdiff.sampling.editing.task import Method
from jaxdiff.sampling.euler_maruyama import EulerMaruyama
from jaxdiff.sampling.guidance_rules import APG, CFG, AnyRule, CFGPlusPlus, CFGZeroStar, Rescale
from jaxdiff.sampling.heun import Heun
from jaxdiff.sampling.inverse.blur import GaussianBlur, MotionBlur
from jaxdiff.sampling.inverse.daps import DAPS
from jaxdiff.sampling.inverse.ddnm import DDNM
from jaxdiff.sampling.inverse.ddrm import DDRM
from jaxdiff.sampling.inverse.diffpir import DiffPIR
from jaxdiff.sampling.inverse.dps import DPS
from jaxdiff.sampling.inverse.jpeg import JPEG
from jaxdiff.sampling.inverse.kspace import Cartesian, PoissonDisc, Radial
from jaxdiff.sampling.inverse.operator import Spec
from jaxdiff.sampling.inverse.particles import Particles
from jaxdiff.sampling.inverse.phase import Phase
from jaxdiff.sampling.inverse.pigdm import PiGDM
from jaxdiff.sampling.inverse.pixels import Box, Grey, Mask
from jaxdiff.sampling.inverse.problem import Method as Posterior
from jaxdiff.sampling.inverse.radon import CT, FanCT
from jaxdiff.sampling.inverse.red_diff import REDDiff
from jaxdiff.sampling.inverse.separable import Bicubic, Downsample
from jaxdiff.sampling.plms import PLMS, PNDM
from jaxdiff.sampling.predictor_corrector import PredictorCorrector
from jaxdiff.sampling.renoise import Renoise
from jaxdiff.sampling.restart import Restart
from jaxdiff.sampling.rk45 import RK45
from jaxdiff.sampling.sa_solver import SASolver
from jaxdiff.sampling.unipc import B1, B2, UniPC

SOLVERS: Mapping[str, AnySolver] = {
    "ddim": DDIM(),
    "euler": DDIM(),  # in sigma, and in time for rectified flow
    "ddpm": Ancestral(u=0.0),
    "ddpm-large": Ancestral(u=1.0),
    "ddpm-learned": Ancestral(u=None),
    "heun": Heun(),
    "edm": Heun(churn=40.0, churn_min=0.05, churn_max=50.0, noise=1.003),
    "euler-maruyama": EulerMaruyama(),
    "pc": PredictorCorrector(),
    "dpm-2": DPMSolver(order=2),
    "dpm-3": DPMSolver(order=3),
    "dpmpp-2s": DPMSolverPPS(order=2),
    "dpmpp-2m": DPMSolverPP(order=2),
    "dpmpp-3m": DPMSolverPP(order=3),
    "dpmpp-sde": DPMSolverPP(order=1, eta=1.0),
    "dpmpp-2s-sde": DPMSolverPPS(order=2, eta=1.0),
    "dpmpp-2m-sde": DPMSolverPP(order=2, eta=1.0),
    "dpmpp-3m-sde": DPMSolverPP(order=3, eta=1.0),
    "deis": DEIS(),
    "plms": PLMS(),
    "pndm": PNDM(),
    "unipc": UniPC(),
    "unipc-b1": UniPC(b=B1()),
    "unipc-b2": UniPC(b=B2()),
    "sa": SASolver(),
    "rk45": RK45(),
    "restart": Restart(),
    "renoise": Renoise(),
}
"""What `--solver` names."""

GRIDS: Mapping[str, grids.AnyGrid] = {
    "uniform": grids.UniformT(),
    "polynomial": grids.Polynomial(),
    "logsnr": grids.UniformLogSNR(),
    "karras": grids.Karras(),
    "trailing": grids.Trailing(),
    "leading": grids.Leading(),
    "linspace": grids.Linspace(),
    "spread": grids.Spread(),
    "ays": grids.AlignYourSteps(),
    "restarts": grids.Restarts(),
}
"""What `--grid` names."""

RULES: Mapping[str, AnyRule] = {
    "cfg": CFG(),
    "rescale": Rescale(),
    "apg": APG(),
    "cfgpp": CFGPlusPlus(),
    "cfg-zero": CFGZeroStar(),
}
"""What `--guidance` names."""

OPERATORS: Mapping[str, Spec] = {
    "mask": Mask(),
    "box": Box(),
    "downsample": Downsample(),
    "bicubic": Bicubic(),
    "blur": GaussianBlur(),
    "motion": MotionBlur(),
    "grey": Grey(),
    "jpeg": JPEG(),
    "mri": Cartesian(),
    "mri-radial": Radial(),
    "mri-poisson": PoissonDisc(),
    "ct": CT(),
    "ct-fan": FanCT(),
    "phase": Phase(),
}
"""What `--operator` names."""

POSTERIORS: Mapping[str, Posterior] = {
    "ddrm": DDRM(),
    "ddnm": DDNM(),
    "pigdm": PiGDM(),
    "dps": DPS(),
    "diffpir": DiffPIR(),
    "red-diff": REDDiff(),
    "daps": DAPS(),
    "tds": Particles(),
    "fk": Particles(twist=0.0),
}
"""What `--method` of `jaxdiff restore` names."""


METHODS: Mapping[str, Method] = {
    "sdedit": SDEdit(),
    "replace": Replace(),
    "repaint": RePaint(),
    "ilvr": ILVR(),
    "ddim-inversion": DDIMInversion(),
    "ddpm-inversion": DDPMInversion(),
    "prompt-to-prompt": PromptToPrompt(),
    "interpolate": Interpolate(),
    "generate": Generate(),
}
"""What `--method` of `jaxdiff edit` names."""

T = TypeVar("T")


def value_of(text: str, table: Mapping[str, T], flag: str) -> T:
    """The value that `name` or `name(field=number, ...)` means.

    Raises: ValueError, naming what is allowed.
    """
    match = re.fullmatch(r"([^()\s]+)\s*(?:\((.*)\))?", text.strip())
    if match is None or match[1] not in table:
        raise ValueError(f"{text!r} is not allowed: {', '.join(table)}, or NAME(field=value, ...) ({flag})")
    value = table[match[1]]
    if not match[2]:
        return value
    fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}  # pyright: ignore[reportArgumentType]
    changed = _fields_in(text, match[2], flag)
    for name in changed:
        if name not in fields:
            known = ", ".join(f"{k}={v}" for k, v in fields.items()) or "none"
            raise ValueError(f"{match[1]} has no field {name!r}: its fields are {known} ({flag})")
        given = changed[name]
        if isinstance(fields[name], float) and isinstance(given, int):
            changed[name] = float(given)
        if fields[name] is not None and changed[name] is not None and type(changed[name]) is not type(fields[name]):
            raise ValueError(f"{name} = {changed[name]!r} is not allowed: a {type(fields[name]).__name__} ({flag})")
    return dataclasses.replace(value, **changed)  # pyright: ignore[reportArgumentType]


def _fields_in(text: str, arguments: str, flag: str) -> dict[str, object]:
    try:
        call = ast.parse(f"f({arguments})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError
        return {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{text!r} cannot be read: NAME(field=value, ...) ({flag})") from error
