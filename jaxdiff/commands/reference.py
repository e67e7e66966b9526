"""What an evaluation compares with: a data set, or stored statistics."""

import dataclasses
import io
from collections.abc import Mapping

import numpy as np
from etils import epath

from jaxdiff.commands.images import data_of_folder, label
from jaxdiff.config import Config, from_json
from jaxdiff.data import Data, header_of
from jaxdiff.evaluation import moments
from jaxdiff.evaluation.metrics import Metric, Reference
from jaxdiff.models import find_model, is_trained, read_model_config
from jaxdiff.networks.feature_net import FeatureNet
from jaxdiff.training.workdir import read_config


def has_statistics(path: epath.PathLike) -> bool:
    """Whether this file holds a mean and a covariance."""
    path = epath.Path(path)
    if path.suffix != ".npz" or not path.exists() or path.is_dir():
        return False
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
        return "mu" in file.files


def reference_data(folder: epath.PathLike, reference: str | None, split: str) -> Data:
    """The data set to compare with, fitted to the images of a run, a model or a folder. Raises: ValueError."""
    if not is_trained(folder):
        if reference is None:
            raise ValueError(f"{folder} is no run: say what its images are compared with (--reference)")
        return dataclasses.replace(data_of_folder(folder), source=reference, split=split)
    model = find_model(folder)
    config = from_json(read_config(folder)["config"]) if model is None else read_model_config(model)[0]
    assert isinstance(config, Config)
    if config.latents is not None:
        return pictures_behind(config, reference, split)
    if reference is None:
        return dataclasses.replace(config.data, split=config.data.split if split == "train" else split)
    # Another set need not have the classes that this one was cut down to.
    classes = config.data.classes if reference == config.data.source else ()
    return dataclasses.replace(config.data, source=reference, split=split, holdout=0.0, classes=classes)


def pictures_behind(config: Config, reference: str | None, split: str) -> Data:
    """The pictures that a run's latents were made from, or `reference` at their size. Raises: ValueError."""
    assert config.latents is not None
    if reference is not None:
        size = config.data.size * config.latents.factor
        return dataclasses.replace(
            config.data, source=reference, split=split, holdout=0.0, size=size, channels=3, text=False
        )
    header = header_of(config.data)
    data = from_json(header.made["data"]) if header else None  # pyright: ignore[reportArgumentType]
    assert isinstance(data, Data)
    return dataclasses.replace(data, holdout=config.data.holdout, split=data.split if split == "train" else split)


def of_statistics(stored: moments.Statistics, metric: Metric, net: FeatureNet) -> Reference:
    """A metric's part of a statistics file. Raises: ValueError where the file is another network's."""
    if stored.network and (stored.network, stored.resize) != (net.name, net.resize):
        raise ValueError(
            f"these statistics are of {stored.network} ({stored.resize}), not of {net.name} ({net.resize}): "
            "--features or another --reference"
        )
    if metric.output == "spatial":
        if stored.spatial is None:
            raise ValueError("these statistics have no spatial features, which sfid needs (--reference)")
        return Reference(None, stored.spatial)
    return Reference(None, stored.pooled)


def save_statistics(
    path: epath.PathLike, outputs: Mapping[str, np.ndarray], net: FeatureNet, source: str, dataset_sha256: str
) -> None:
    """Writes the reference's Gaussian for later evaluations."""
    pooled = moments.gaussian(moments.moments(outputs[f"{label(net)}/features"]))
    spatial = outputs.get(f"{label(net)}/spatial")
    around = None if spatial is None else moments.gaussian(moments.moments(spatial))
    n = len(outputs["sha256"])
    moments.save(
        path,
        moments.Statistics(pooled, around, n, net.name, net.weights_sha256, net.resize, source, dataset_sha256),
    )
