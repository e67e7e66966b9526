"""InceptionV3 against torch-fidelity's port, with random weights that pass through a PyTorch file."""

import sys

import jax
import numpy as np
import pytest

from jaxdiff.networks.resize import TF1_BILINEAR
from jaxdiff.pretrained import inception

torch = pytest.importorskip("torch", reason="needs the extra parity")

NAMES = {
    "64": "pool_64",
    "192": "pool_192",
    "768": "pool_768",
    "2048": "features",
    "logits_unbiased": "logits",
    "logits": "logits_biased",
}


@pytest.fixture(scope="module")
def network(torch_fidelity, tmp_path_factory):
    """torch-fidelity's network with random weights that keep activations near one, and the file of them."""
    module = sys.modules[torch_fidelity.FeatureExtractorInceptionV3.__module__]
    with pytest.MonkeyPatch.context() as patch:
        # It would download its weights.
        patch.setattr(module, "load_state_dict_from_url", lambda *args, **kwargs: None)
        patch.setattr(torch.nn.Module, "load_state_dict", lambda self, state: None)
        net = module.FeatureExtractorInceptionV3("inception", list(NAMES))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            noise = torch.randn(value.shape, generator=generator) if value.dtype.is_floating_point else 0
            if name.endswith("conv.weight"):
                value.copy_(noise * (2 / value[0].numel()) ** 0.5)
            elif name.endswith(("bn.weight", "running_var")):
                value.copy_((0.2 * noise).exp())
            elif name.endswith(("bias", "running_mean")):
                value.copy_(0.2 * noise)
            elif name == "fc.weight":
                value.copy_(noise / 2048**0.5)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(net.state_dict(), path)
    return net, path


def test_features_are_torch_fidelitys(network):
    net, path = network
    images = np.random.default_rng(0).integers(0, 256, (2, 37, 50, 3), dtype=np.uint8)
    spatial = []
    handle = net.Mixed_6d.branch1x1.register_forward_hook(lambda module, args, out: spatial.append(out))
    theirs = net(torch.from_numpy(images).permute(0, 3, 1, 2))
    handle.remove()
    ours = jax.jit(inception.forward(TF1_BILINEAR))(inception.load(path), images)
    for name, expected in zip(NAMES, theirs, strict=True):
        scale = expected.abs().max().item()
        np.testing.assert_allclose(ours[NAMES[name]], expected.numpy(), atol=1e-4 * scale, rtol=0, err_msg=name)
    # sFID's: seven channels of the first branch, row by row.
    expected = spatial[0][:, :7].permute(0, 2, 3, 1).reshape(2, -1).numpy()
    np.testing.assert_allclose(ours["spatial"], expected, atol=1e-4 * abs(expected).max(), rtol=0)
    # The features are alive: they differ between the pictures.
    assert (np.ptp(np.asarray(ours["features"]), 0) > 1e-3).mean() > 0.5
