"""A published network as a run's config: whole, stored and read again, for each kind of file."""

import math

import jax.numpy as jnp
import pytest

from jaxdiff.config import from_json, to_json
from jaxdiff.core.paths import DiscreteVP, GeometricVE, Linear, LinearVP, Sigma
from jaxdiff.core.predictions import EDM, Eps, Flow, LogRatio, PathTime
from jaxdiff.networks.classifier import Classifier
from jaxdiff.networks.dit import DiT
from jaxdiff.networks.edm2 import EDM2
from jaxdiff.networks.unet import UNet
from jaxdiff.originals import config_of, open_original
from jaxdiff.pretrained.original import Original

CHAIN = DiscreteVP()
STEPS = Eps(PathTime(CHAIN, offset=-1.0))
KINDS = {
    "adm": (UNet(learned_variance=True, num_classes=10), CHAIN, STEPS),
    "classifier": (Classifier(UNet(), 10), CHAIN, STEPS),
    "dit": (DiT(learned_variance=True, num_classes=10), CHAIN, STEPS),
    "sit": (DiT(num_classes=10), Linear(), Flow(PathTime(Linear(), -1.0, 1.0))),
    "edm": (UNet(fourier_scale=16.0, fourier_frequencies=(0.1, 2.5)), Sigma(80.0), EDM(0.5)),
    "edm2": (EDM2(frequencies=(0.1,), phases=(0.2,)), Sigma(80.0), EDM(0.5)),
    "vp": (UNet(), LinearVP(), Eps(PathTime(LinearVP(), 999.0))),
    "ve": (UNet(), GeometricVE(0.02, 100.0), Eps(LogRatio(1.0, -math.log(2)))),
}


@pytest.mark.parametrize("name", KINDS)
def test_configs_are_whole_and_survive_their_storage(name):
    network, path, prediction = KINDS[name]
    config = config_of(Original(network, {"a": jnp.zeros(1)}, path, prediction, 32, 3))
    assert (config.network, config.objective.path, config.objective.prediction) == (network, path, prediction)
    assert from_json(to_json(config)) == config
    levels = config.grid(path, config.sampling.steps)
    assert jnp.isfinite(levels.sigma).all() and len(levels.sigma) > config.sampling.steps


def test_other_files_are_refused_in_one_line(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="neither a safetensors nor a PyTorch file") as caught:
        open_original(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
