"""The research classics' own checkpoint files, told apart by what is in them.

| file | of | weights that are read |
|---|---|---|
| `.pt` | improved-diffusion, guided-diffusion (ADM), its classifiers | all |
| `.pt` | DiT; SiT, which has the same names and must be said | the average, of a training's own file |
| `.pkl` | EDM, EDM2 | the average |
| `checkpoint_N` | score SDE's DDPM++ and NCSN++, of the CIFAR-10 kind | the average |
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.config import Config, Sampling
from jaxdiff.core import grids, times
from jaxdiff.core.paths import DiscreteVP, GeometricVE, Linear, LinearVP, Sigma
from jaxdiff.core.predictions import Eps, Flow, PathTime
from jaxdiff.data import Data
from jaxdiff.networks.classifier import Classifier
from jaxdiff.networks.dit import DiT
from jaxdiff.objectives.classification import Classification
from jaxdiff.objectives.denoising import Denoising
from jaxdiff.objectives.hybrid import Hybrid
from jaxdiff.pretrained import adm, dit, edm, edm2, persistent, score_sde
from jaxdiff.pretrained.adm import Ways
from jaxdiff.pretrained.original import Original
from jaxdiff.pretrained.pickles import refusing
from jaxdiff.pretrained.weights import read_weights
from jaxdiff.sampling.ancestral import Ancestral
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.euler_maruyama import EulerMaruyama
from jaxdiff.sampling.heun import Heun


def tensors_of(path: Path) -> Mapping[str, np.ndarray] | None:
    """The file's tensors by name; None for a pickle of a network or of a training's state. Raises as `read_weights`."""
    return None if persistent.recognised(path) or score_sde.recognised(path) else read_weights(path)


def open_original(
    path: Path, ways: Ways | None = None, sit: bool = False, arrays: Mapping[str, np.ndarray] | None = None
) -> Original:
    """The network of the file, its parameters, and what it was trained for. Nothing that the file holds is run.

    `ways`: what a file of improved- or guided-diffusion does not tell; None for what the published files do.
    `ways.size` is that of score SDE's images too, 32 by default. `sit`: a file with the names of DiT is SiT's.
    `arrays`: its tensors, where they have been read.
    Raises FileNotFoundError, and ValueError of one line for another kind of file, a damaged one or one that would run
    code, and for tensors that are missing, left over or misshapen.
    """
    if persistent.recognised(path):
        module = persistent.read(path)
        with refusing(path):
            return edm2.open_edm2(module) if module.kind == "Precond" else edm.open_edm(module)
    if score_sde.recognised(path):
        arrays = score_sde.read(path)
        with refusing(path):
            return score_sde.open_score_sde(arrays, ways.size if ways else 32)
    arrays = read_weights(path) if arrays is None else arrays
    with refusing(path):
        if adm.recognised(arrays):
            return _adm(arrays, ways)
        if dit.recognised(arrays):
            return _dit(arrays, sit)
        raise ValueError("not the original file of a network that is known here")


def _adm(arrays: Mapping[str, np.ndarray], ways: Ways | None) -> Original:
    network = adm.adm_config(arrays, ways)
    ways = ways or adm.published_ways(network)
    chain, prediction = adm.chain_of(ways)
    params = adm.load(arrays, network, ways.heads_first)
    return Original(network, params, chain, prediction, adm.size_of(arrays, network, ways), arrays[adm.FIRST].shape[1])


def _dit(arrays: Mapping[str, np.ndarray], sit: bool) -> Original:
    network = dit.original_config(arrays)
    size, channels = dit.original_size(arrays, network)
    if sit:
        network = network.clone(learned_variance=False)
        prediction = Flow(PathTime(Linear(), scale=-1.0, offset=1.0))
        return Original(network, dit.load_sit(arrays, network), Linear(), prediction, size, channels)
    chain = DiscreteVP()
    return Original(network, dit.load(arrays, network), chain, Eps(PathTime(chain, offset=-1.0)), size, channels)


def config_of(original: Original) -> Config:
    """A run with this network, for a checkpoint that sample.py takes: the sampler of its paper, no data.

    The objective is the one it was trained with as far as its files tell; what else a training needs is this package's
    own default.
    """
    network, path, prediction = original.network, original.path, original.prediction
    sampler: dict[str, Any] = {"solver": DDIM(), "grid": grids.UniformT(), "sampling": Sampling(steps=50)}
    laws = times.Uniform()
    if isinstance(path, DiscreteVP):
        laws = times.UniformSteps(path.num_steps)
        latents = isinstance(network, DiT)  # which are not clipped
        sampling = Sampling(steps=250, threshold="none" if latents else "static")
        sampler = {"solver": DDIM(eta=1.0), "grid": grids.Trailing(path.num_steps), "sampling": sampling}
    elif isinstance(path, Sigma):
        laws = times.LogNormal(-1.2, 1.2)
        sampling = Sampling(steps=32, threshold="none")
        sampler = {"solver": Heun(), "grid": grids.Karras(0.002, 80.0, 7.0), "sampling": sampling}
    elif isinstance(path, Linear):
        sampler |= {"solver": Heun(), "sampling": Sampling(steps=125, threshold="none")}
    elif isinstance(path, LinearVP | GeometricVE):
        laws = times.Uniform(start=1e-5)
        sampler |= {"solver": EulerMaruyama(), "sampling": Sampling(steps=1000, threshold="none")}
    if isinstance(network, Classifier):
        objective = Classification(path, prediction, laws)
    elif isinstance(path, DiscreteVP) and network.learned_variance:
        objective = Hybrid(path, prediction, times.UniformSteps(path.num_steps))
        sampler["solver"] = Ancestral(u=None)
    else:
        objective = Denoising(path, prediction, laws)
    data = Data("records:original", size=original.size, channels=original.channels, labels=bool(network.num_classes))
    return Config(data=data, network=network, objective=objective, **sampler)
