"""AutoencoderKL and VQModel against diffusers' with the same random weights, and published ones by shape alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra parity")
diffusers = pytest.importorskip("diffusers", reason="needs the extra parity")

from jaxdiff.pretrained import vq  # noqa: E402
from jaxdiff.pretrained.autoencoder import dump, load, shapes_of  # noqa: E402
from jaxdiff.pretrained.autoencoder_config import autoencoder_config, scaling_of, vq_config  # noqa: E402

SMALL = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 3,
    "norm_num_groups": 4,
    "layers_per_block": 1,
}
BARE = {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1, "scaling_factor": 0.4}
BIG = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
}


def random_weights(model):
    """The model with no weight at zero, so that none hides a mistake."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def apart(ours, theirs):
    """The largest difference over the largest value; theirs is NCHW."""
    theirs = theirs.numpy().transpose(0, 2, 3, 1)
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize("more", [{}, BARE], ids=["SD", "SD3 and FLUX"])
def test_moments_and_pictures(more):
    model = random_weights(diffusers.AutoencoderKL(**SMALL, **more))
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    network = autoencoder_config(dict(model.config))
    params = load(arrays, network)
    back = dump(params, network)
    assert back.keys() == arrays.keys() and all(np.array_equal(back[name], arrays[name]) for name in arrays)

    rng = np.random.default_rng(0)
    x, z = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 8, 12, 3), (2, 4, 6, 3)))
    with torch.no_grad():
        found = model.encode(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).latent_dist
        picture = model.decode(torch.from_numpy(z.transpose(0, 3, 1, 2).copy())).sample
    ours = jax.jit(lambda p, x: network.apply({"params": p}, x, method="encode"))(params, x)
    assert apart(ours.mean, found.mean) < 1e-4 and apart(ours.logvar, found.logvar) < 1e-4
    decoded = jax.jit(lambda p, z: network.apply({"params": p}, z, method="decode"))(params, z)
    assert apart(decoded, picture) < 1e-4
    scaling = scaling_of(dict(model.config))
    mean, factor = (0.1, 0.4) if more else (0.0, 0.18215)
    np.testing.assert_allclose([*scaling.mean, *scaling.std], [mean, 1 / factor], rtol=1e-6)


@pytest.mark.parametrize(
    ("more", "total"),
    [({"latent_channels": 4}, 83_653_863), ({"latent_channels": 16, **BARE}, 83_819_683)],
    ids=["SD and SDXL", "SD3 and FLUX"],
)
def test_the_published_networks_have_these_tensors(more, total):
    with torch.device("meta"):
        model = diffusers.AutoencoderKL(**BIG, **more)
    theirs = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    network = autoencoder_config(dict(model.config))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape), shapes_of(network))
    assert {name: value.shape for name, value in dump(zeros, network).items()} == theirs
    assert sum(np.prod(shape) for shape in theirs.values()) == total


@pytest.mark.parametrize("more", [{}, {"vq_embed_dim": 2, "norm_num_groups": 2}], ids=["as latents", "narrower"])
def test_a_codebook(more):
    model = random_weights(diffusers.VQModel(**SMALL | more, num_vq_embeddings=12))
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    network = vq_config(dict(model.config))
    params = vq.load(arrays, network)
    back = vq.dump(params)
    assert back.keys() == arrays.keys() and all(np.array_equal(back[name], arrays[name]) for name in arrays)
    rng = np.random.default_rng(0)
    width = more.get("vq_embed_dim", 3)
    x, z = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 8, 12, 3), (2, 4, 6, width)))
    with torch.no_grad():
        found = model.encode(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).latents
        picture = model.decode(torch.from_numpy(0.2 * z.transpose(0, 3, 1, 2))).sample
    ours = jax.jit(lambda p, x: network.apply({"params": p}, x, method="encode"))(params, x)
    decoded = jax.jit(lambda p, z: network.apply({"params": p}, z, method="decode"))(params, 0.2 * z)
    assert apart(ours, found) < 1e-4 and apart(decoded, picture) < 1e-4
    del arrays["quantize.embedding.weight"]
    with pytest.raises(ValueError, match=r"quantize\.embedding\.weight is missing"):
        vq.load(arrays, network)
    with pytest.raises(ValueError, match="norm_type = 'spatial'"):
        vq_config(dict(model.config) | {"norm_type": "spatial"})
