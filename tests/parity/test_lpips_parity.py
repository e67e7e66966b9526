"""LPIPS against its authors' package, with the package's heads and random classifiers."""

import json
import struct
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.pretrained.lpips import open_lpips
from jaxdiff.pretrained.weights import read_weights

torch = pytest.importorskip("torch", reason="needs the extra parity")

VGG = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]


def alexnet(pretrained):
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip


def vgg16(pretrained):
    layers, width = [], 3
    for item in VGG:
        if item == "M":
            layers.append(torch.nn.MaxPool2d(2, 2))
        else:
            layers += [torch.nn.Conv2d(width, item, 3, 1, 1), torch.nn.ReLU()]
            width = item
    return torch.nn.Sequential(*layers)


@pytest.fixture(scope="module")
def lpips():
    """The package lpips, given the architectures that it takes from torchvision."""
    if "lpips" not in sys.modules:
        models = types.ModuleType("torchvision.models")
        models.alexnet = lambda pretrained: types.SimpleNamespace(features=alexnet(pretrained))
        models.vgg16 = lambda pretrained: types.SimpleNamespace(features=vgg16(pretrained))
        vision = types.ModuleType("torchvision")
        vision.models = models
        stubs = {"torchvision": vision, "torchvision.models": models}
        sys.modules.update(stubs)
        try:
            pytest.importorskip("lpips", reason="needs the extra parity")
        finally:
            for name in stubs:
                del sys.modules[name]
    return sys.modules["lpips"]


def write(path: Path, arrays):
    """A safetensors file of float32 arrays."""
    header, body = {}, b""
    for name, array in arrays.items():
        data = np.ascontiguousarray(array, np.float32).tobytes()
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + body)
    return path


@pytest.mark.parametrize(
    "theirs, ours, outer", [("alex", "lpips-alexnet", "AlexNet_0"), ("vgg", "lpips-vgg16", "VGG16_0")]
)
def test_distances_are_the_packages(lpips, tmp_path, theirs, ours, outer):
    torch.manual_seed(0)
    net = lpips.LPIPS(net=theirs, verbose=False, pnet_rand=True)
    convolutions = [layer for layer in net.net.modules() if isinstance(layer, torch.nn.Conv2d)]
    arrays = {}
    for i, layer in enumerate(convolutions):
        arrays[f"{outer}.Conv_{i}.kernel"] = layer.weight.detach().numpy().transpose(2, 3, 1, 0)
        arrays[f"{outer}.Conv_{i}.bias"] = layer.bias.detach().numpy()
    # The heads straight from the package's file, which has PyTorch's old format, by our reader.
    heads = read_weights(Path(lpips.__file__).parent / "weights" / "v0.1" / f"{theirs}.pth")
    for name, head in heads.items():
        arrays[f"NetLinLayer_{name[3]}.Conv_0.kernel"] = head.transpose(2, 3, 1, 0)
    distance = open_lpips(ours, write(tmp_path / "x.safetensors", arrays))
    x, y = np.random.default_rng(0).uniform(-1, 1, (2, 2, 48, 40, 3)).astype(np.float32)
    with torch.no_grad():
        expected = net(*(torch.from_numpy(a).permute(0, 3, 1, 2) for a in (x, y))).flatten().numpy()
    np.testing.assert_allclose(distance.apply(jnp.asarray(x), jnp.asarray(y)), expected, rtol=1e-4)


@pytest.mark.parametrize("theirs, ours", [("alex", "lpips_alexnet"), ("vgg", "lpips_vgg16")])
def test_kept_heads_are_the_packages(lpips, theirs, ours):
    kept = Path(__file__).parents[3] / "shared" / "models" / f"{ours}.safetensors"
    if not kept.is_file():
        pytest.skip(f"needs ../shared/models/{ours}.safetensors")
    heads = read_weights(Path(lpips.__file__).parent / "weights" / "v0.1" / f"{theirs}.pth")
    ours = read_weights(kept)
    for name, head in heads.items():
        mine = ours[f"NetLinLayer_{name[3]}.Conv_0.kernel"].reshape(-1)
        np.testing.assert_allclose(mine, head.reshape(-1), rtol=1e-3, atol=1e-6)
