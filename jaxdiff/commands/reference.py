"""What an evaluation compares with: a data set, or stored statistics."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxdiff.commands.images import data_of_folder, label
from jaxdiff.config import Config, from_json
from jaxdiff.data import Data
from jaxdiff.evaluation import moments
from jaxdiff.evaluation.metrics import Metric, Reference
from jaxdiff.networks.feature_net import FeatureNet
from jaxdiff.training.workdir import read_config


def is_run(folder: Path) -> bool:
    """Whether this is the folder of a run."""
    return (folder / "config.json").exists()


def has_statistics(path: Path) -> bool:
    """Whether this file holds a mean and a covariance."""
    if path.suffix != ".npz" or not path.is_file():
        return False
    with np.load(path, allow_pickle=False) as file:
        return "mu" in file.files


def reference_data(folder: Path, reference: str | None, split: str) -> Data:
    """The data set to compare with, fitted to the images of a run or of a folder. Raises: ValueError."""
    if not is_run(folder):
        if reference is None:
            raise ValueError(f"{folder} is no run: say what its images are compared with (--reference)")
        return dataclasses.replace(data_of_folder(folder), source=reference, split=split)
    config = from_json(read_config(folder)["config"])
    assert isinstance(config, Config)
    if reference is None:
        return dataclasses.replace(config.data, split=config.data.split if split == "train" else split)
    return dataclasses.replace(config.data, source=reference, split=split, holdout=0.0)


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
    path: Path, outputs: Mapping[str, np.ndarray], net: FeatureNet, source: str, dataset_sha256: str
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
