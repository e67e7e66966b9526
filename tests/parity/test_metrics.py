"""The metrics of torch-fidelity on the same features."""

import importlib
import types

import numpy as np
import pytest

from jaxdiff.evaluation.frechet import frechet
from jaxdiff.evaluation.inception_score import inception_score
from jaxdiff.evaluation.kernel import kid, kid_full
from jaxdiff.evaluation.manifold import precision_recall
from jaxdiff.evaluation.moments import gaussian, moments

torch = pytest.importorskip("torch", reason="needs the extra parity")

RNG = np.random.default_rng(0)
# As those of a network after a ReLU and a mean: positive, correlated, close to each other.
MIX = RNG.normal(size=(48, 48)) * np.linspace(1, 0.1, 48)


def features(n, shift):
    return (np.maximum(RNG.normal(size=(n, 48)) @ MIX / 4 + shift, 0) ** 0.5).astype(np.float32)


X, Y = features(300, 0.3), features(260, 0.45)


@pytest.fixture(scope="module")
def fidelity(torch_fidelity):
    """torch-fidelity's modules of metrics."""
    names = ("kid", "fid", "prc", "isc")
    return types.SimpleNamespace(**{n: importlib.import_module(f"{torch_fidelity.__name__}.metric_{n}") for n in names})


def test_fid(fidelity):
    ours = frechet(*(gaussian(moments(v)) for v in (X, Y)))
    theirs = fidelity.fid.fid_statistics_to_metric(
        *(fidelity.fid.fid_features_to_statistics(torch.tensor(v, dtype=torch.float64)) for v in (X, Y)), verbose=False
    )
    assert np.isclose(ours, theirs[fidelity.fid.KEY_METRIC_FID], rtol=1e-5, atol=1e-5) and ours > 0.1


def test_kid(fidelity):
    # Subsets of all: which ones are drawn does not matter.
    options = {
        "kid_subsets": 2,
        "kid_subset_size": len(Y),
        "kid_kernel": "poly",
        "kid_kernel_poly_degree": 3,
        "kid_kernel_poly_gamma": None,
        "kid_kernel_poly_coef0": 1.0,
        "rng_seed": 0,
        "verbose": False,
    }
    x = X[: len(Y)]
    theirs = fidelity.kid.kid_features_to_metric(*(torch.tensor(np.float64(v)) for v in (x, Y)), **options)
    mean = theirs[fidelity.kid.KEY_METRIC_KID_MEAN]
    ours = kid(x, Y, subsets=2, subset_size=len(Y))
    assert np.isclose(ours.mean, mean, rtol=1e-5, atol=1e-6) and mean > 1e-3
    assert np.isclose(kid_full(x, Y), mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [3, 5])
def test_precision_and_recall(fidelity, k):
    options = {"prc_neighborhood": k, "prc_batch_size": 100, "save_cpu_ram": True, "verbose": False}
    theirs = fidelity.prc.prc_features_to_metric(*(torch.tensor(np.float64(v)) for v in (X, Y)), **options)
    ours = precision_recall(X, Y, k=k)
    assert np.allclose(ours, [theirs["precision"], theirs["recall"]], atol=1e-5)
    assert 0.05 < ours.precision < 0.99 and 0.05 < ours.recall < 0.99 and ours.precision != ours.recall


@pytest.mark.parametrize("splits", [1, 10])
def test_inception_score(fidelity, splits):
    logits = np.float32(3 * X[:, :10])
    theirs = fidelity.isc.isc_features_to_metric(torch.tensor(logits), splits, shuffle=False)
    ours = inception_score(logits, splits=splits, seed=None)
    assert np.allclose(ours, list(theirs.values()), rtol=1e-5, atol=1e-8)
