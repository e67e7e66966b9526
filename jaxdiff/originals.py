"""The research classics' own checkpoint files, told apart by what is in them.

| file | of | weights that are read |
|---|---|---|
| `.pt` | improved-diffusion, guided-diffusion (ADM), its classifiers | all |
| `.pt` | DiT; SiT, which has the same names and must be said | the average, of a training's own file |
| `.pkl` | EDM | the average |
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxdiff.core.paths import DiscreteVP, Linear
from jaxdiff.core.predictions import Eps, Flow, PathTime
from jaxdiff.pretrained import adm, dit, edm, persistent
from jaxdiff.pretrained.adm import Ways
from jaxdiff.pretrained.original import Original
from jaxdiff.pretrained.pickles import refusing
from jaxdiff.pretrained.weights import read_weights


def open_original(path: Path, ways: Ways | None = None, sit: bool = False) -> Original:
    """The network of the file, its parameters, and what it was trained for. Nothing that the file holds is run.

    `ways`: what a file of improved- or guided-diffusion does not tell; None for what the published files do.
    `sit`: a file with the names of DiT is SiT's.
    Raises FileNotFoundError, and ValueError of one line for another kind of file, a damaged one or one that would run
    code, and for tensors that are missing, left over or misshapen.
    """
    if persistent.recognised(path):
        module = persistent.read(path)
        with refusing(path):
            return edm.open_edm(module)
    arrays = read_weights(path)
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
