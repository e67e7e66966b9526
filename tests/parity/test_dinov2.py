"""DINOv2 against transformers' networks with the same random weights, and PyTorch's interpolation."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the extra parity")
transformers = pytest.importorskip("transformers", reason="needs the extra parity")

from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD  # noqa: E402

from jaxdiff.networks.dinov2 import DINOv2  # noqa: E402
from jaxdiff.networks.vit import cubic_weights  # noqa: E402
from jaxdiff.pretrained import dinov2  # noqa: E402
from jaxdiff.pretrained.dinov2 import load_dinov2  # noqa: E402
from jaxdiff.pretrained.features import open_features  # noqa: E402
from jaxdiff.pretrained.weights import read_weights  # noqa: E402

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 40,
    "patch_size": 8,
    "initializer_range": 0.2,
}
PLAIN = DINOv2(width=32, depth=3, heads=4, hidden=128, patch=8, grid=5, offset=0.0)
GATED = PLAIN.clone(hidden=88, gated=True, activation=jax.nn.silu)
REGISTERS = PLAIN.clone(registers=3, antialias=True)


@pytest.fixture(scope="module")
def plain():
    return random_weights(transformers.Dinov2Model(transformers.Dinov2Config(**SIZES)))


@pytest.fixture(scope="module")
def gated():
    return random_weights(transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, use_swiglu_ffn=True)))


@pytest.fixture(scope="module")
def registers():
    config = transformers.Dinov2WithRegistersConfig(**SIZES, num_register_tokens=3)
    return random_weights(transformers.Dinov2WithRegistersModel(config))


# Compiles fast and runs slowly.
quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def random_weights(model):
    """Every weight other than its initial value, so that none hides a branch; tokens small, so that epsilons tell."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
            if "embeddings" in name:
                parameter *= 0.01
    return model.eval()


def close(ours, theirs):
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize(
    ("network", "model"),
    [(PLAIN, "plain"), (GATED, "gated"), (REGISTERS, "registers")],
    ids=["plain", "gated", "registers"],
)
def test_outputs_of_a_saved_model(network, model, request, tmp_path):
    """At the size of the positions, at a smaller and at a larger one, neither of them square."""
    model = request.getfixturevalue(model)
    model.save_pretrained(tmp_path)
    params = load_dinov2(read_weights(tmp_path / "model.safetensors"), network)
    for height, width in ((40, 40), (24, 32), (56, 48)):
        images = np.random.default_rng(0).standard_normal((2, height, width, 3), np.float32)
        with torch.no_grad():
            theirs = model(torch.from_numpy(images.transpose(0, 3, 1, 2)))
        ours = quickly(network.apply)({"params": params}, images)
        close(ours.cls, theirs.pooler_output)
        tokens = jnp.concatenate([ours.cls[:, None], ours.registers, ours.patches.reshape(2, -1, 32)], axis=1)
        close(tokens, theirs.last_hidden_state)


@pytest.mark.parametrize(("offset", "antialias"), [(0.1, False), (0.0, False), (0.0, True), (0.1, True)])
def test_interpolation_is_pytorchs(offset, antialias):
    """With the offset, the published models give the factor and not the size."""
    grid = torch.randn(1, 2, 37, 37, generator=torch.Generator().manual_seed(0))
    for rows, cols in ((16, 16), (24, 41)):
        to = {"scale_factor": ((rows + offset) / 37, (cols + offset) / 37)} if offset else {"size": (rows, cols)}
        theirs = torch.nn.functional.interpolate(grid, mode="bicubic", antialias=antialias, **to)
        by_row, by_col = (cubic_weights(37, n, offset, antialias) for n in (rows, cols))
        close(np.einsum("ri,cj,bdij->bdrc", by_row, by_col, grid.numpy()), theirs)


@pytest.mark.parametrize(("network", "model"), [(GATED, "gated"), (REGISTERS, "registers")], ids=["gated", "registers"])
def test_the_original_naming(network, model, request, tmp_path):
    """The same weights by the names of the original files, through a file that PyTorch saved."""
    tensors = {}
    request.getfixturevalue(model).save_pretrained(tmp_path)
    for name, array in read_weights(tmp_path / "model.safetensors").items():
        name = re.sub(r"^encoder\.layer\.", "blocks.", name).replace("layer_scale", "ls").replace("lambda1", "gamma")
        name = re.sub(r"^layernorm\.", "norm.", name).replace(
            "embeddings.patch_embeddings.projection", "patch_embed.proj"
        )
        name = re.sub(r"^embeddings\.", "", name).replace("position_embeddings", "pos_embed")
        name = name.replace("attention.output.dense", "attn.proj")
        name = name.replace("weights_in", "w12").replace("weights_out", "w3")
        tensors[name] = torch.tensor(array)
    for name in [name for name in tensors if "attention.attention.query" in name]:
        parts = [tensors.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        tensors[name.replace("attention.attention.query", "attn.qkv")] = torch.cat(parts)
    torch.save(tensors, tmp_path / "original.pth")

    original = load_dinov2(read_weights(tmp_path / "original.pth"), network)
    expected = load_dinov2(read_weights(tmp_path / "model.safetensors"), network)
    jax.tree.map(np.testing.assert_array_equal, original, expected)


def test_other_files_are_refused(plain, registers, tmp_path):
    plain.save_pretrained(tmp_path)
    tensors = read_weights(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="registers is missing"):
        load_dinov2(tensors, REGISTERS)
    with pytest.raises(ValueError, match="positions is"):
        load_dinov2(tensors, PLAIN.clone(grid=6))
    with pytest.raises(ValueError, match="blocks"):
        load_dinov2(tensors, PLAIN.clone(depth=2))
    with pytest.raises(ValueError, match="extra is not known"):
        load_dinov2({**tensors, "extra": np.zeros(3)}, PLAIN)
    with pytest.raises(ValueError, match="missing in some blocks"):
        load_dinov2({k: v for k, v in tensors.items() if not k.startswith("encoder.layer.1.")}, PLAIN)
    with pytest.raises(ValueError, match="mixes two naming schemes"):
        load_dinov2({**tensors, "cls_token": tensors["embeddings.cls_token"]}, PLAIN)


def test_from_a_file_to_features(plain, tmp_path, monkeypatch):
    """Pictures as FD-DINOv2 prepares them: Pillow, and ImageNet's moments."""
    monkeypatch.setattr(dinov2, "NETWORKS", {"dinov2-l14": PLAIN})
    monkeypatch.setattr(dinov2, "SIZE", 48)
    plain.save_pretrained(tmp_path)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 30, 30, 3), np.uint8)
    pixels = [np.asarray(Image.fromarray(p).resize((48, 48), Image.Resampling.BICUBIC)) for p in pictures]
    mean, std = (np.array(values, np.float32) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    normal = (np.stack(pixels).astype(np.float32) / 255 - mean) / std
    with torch.no_grad():
        theirs = plain(torch.from_numpy(normal.transpose(0, 3, 1, 2))).pooler_output

    net = open_features("dinov2-l14", tmp_path / "model.safetensors")
    assert (net.name, net.size, net.dims, net.resize) == ("dinov2-l14", 48, 32, "pillow-bicubic")
    close(quickly(net.forward)(net.params, pictures)["features"], theirs)
    with pytest.raises(FileNotFoundError, match="dinov2-l14 has no weights here: download dinov2_vit"):
        open_features("dinov2-l14", None)
