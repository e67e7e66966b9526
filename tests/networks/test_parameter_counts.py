"""The networks have exactly as many parameters as the papers' (by shapes alone, nothing is allocated).

A class-conditional network has one more label row than most papers' nets: the absent label.
"""

import math

import jax
import jax.numpy as jnp
import pytest

from jaxdiff.networks.dit import DiT
from jaxdiff.networks.unet import UNet

# arXiv:2006.11239, App. B: "our CIFAR10 model has 35.7 million parameters".
DDPM = UNet(
    channels=128,
    channel_mults=(1, 2, 2, 2),
    blocks_per_level=2,
    attention_resolutions=(16,),
    dropout=0.1,
    max_period=10000 ** (64 / 63),
    norm_eps=1e-6,
)

# arXiv:2102.09672, App. A (CIFAR-10): three blocks a level, attention at 16 and 8 with four heads.
IDDPM = UNet(
    channels=128,
    channel_mults=(1, 2, 2, 2),
    blocks_per_level=3,
    attention_resolutions=(16, 8),
    heads=4,
    dropout=0.3,
    scale_shift=True,
    learned_variance=True,
    init_gain=1 / 3,
)

# arXiv:2206.00364, Table 7 (DDPM++ as retrained by EDM, with its augmentation condition): 55.7 M.
DDPMPP = UNet(
    channels=128,
    channel_mults=(2, 2, 2),
    blocks_per_level=4,
    attention_resolutions=(16,),
    decoder_attention=False,
    dropout=0.13,
    resample_blocks=True,
    resample_projection=True,
    skip_scale=0.5**0.5,
    max_period=10000 ** (64 / 63),
    label_before_mlp=True,
    augment_dim=9,
    norm_eps=1e-6,
)

# The same paper's NCSN++.
NCSNPP = DDPMPP.clone(residual_input=True, resample_taps=(1, 3, 3, 1), fourier_scale=16.0, embedding_channels=256)

# arXiv:2105.05233, Tables 4 and 12 (ImageNet 64x64): 296 M.
ADM = UNet(
    channels=192,
    channel_mults=(1, 2, 3, 4),
    blocks_per_level=3,
    attention_resolutions=(32, 16, 8),
    head_channels=64,
    dropout=0.1,
    scale_shift=True,
    resample_blocks=True,
    num_classes=1000,
    learned_variance=True,
    init_gain=1 / 3,
)

# arXiv:2107.00630, App. B: 32 blocks at full size, attention in the middle only, Fourier features 6 and 7.
VDM = UNet(
    channels=128,
    channel_mults=(1,),
    blocks_per_level=32,
    attention_resolutions=(),
    dropout=0.1,
    fourier_features=(6, 7),
    add_input=True,
    norm_eps=1e-6,
)

NULL_ROW = 4 * 192  # ADM's label table is as wide as the embedding


def count(network, size: int = 32, channels: int = 3) -> int:
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    noise = jax.ShapeDtypeStruct((1,), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), image, noise, {})["params"]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def conv(size: int, inputs: int, outputs: int) -> int:
    return size * size * inputs * outputs + outputs


def res(inputs: int, outputs: int, emb: int = 512, mod: int = 1) -> int:
    """Two norms, two convolutions, the embedding's projection, and a 1x1 skip where the widths differ."""
    skip = conv(1, inputs, outputs) if inputs != outputs else 0
    return (
        2 * inputs
        + conv(3, inputs, outputs)
        + conv(1, emb, mod * outputs)
        + 2 * outputs
        + conv(3, outputs, outputs)
        + skip
    )


def attention(width: int) -> int:
    return 2 * width + conv(1, width, 3 * width) + conv(1, width, width)


def test_ddpm_has_the_published_count():
    encoder = (
        conv(3, 3, 128)
        + 2 * res(128, 128)
        + conv(3, 128, 128)
        + res(128, 256)
        + res(256, 256)
        + 2 * attention(256)
        + conv(3, 256, 256)
        + 2 * (2 * res(256, 256))
        + conv(3, 256, 256)
    )
    middle = 2 * res(256, 256) + attention(256)
    decoder = (
        2 * (3 * res(512, 256) + conv(3, 256, 256))  # 4x4 and 8x8
        + 2 * res(512, 256)
        + res(256 + 128, 256)
        + 3 * attention(256)
        + conv(3, 256, 256)
        + res(256 + 128, 128)
        + 2 * res(128 + 128, 128)
    )
    embedding = conv(1, 128, 512) + conv(1, 512, 512)
    total = encoder + middle + decoder + embedding + 2 * 128 + conv(3, 128, 3)
    assert count(DDPM) == total == 35_746_307


def test_iddpm_and_adm_have_the_published_counts():
    assert count(IDDPM) == 52_546_438  # 52.5 M
    assert count(ADM, 64) == 295_904_454 + NULL_ROW  # 295.9 M
    # EDM's ImageNet-64 net is ADM's without the three variance channels at the output.
    edm = ADM.clone(learned_variance=False)
    assert count(edm, 64) == 295_904_454 - 3 * (9 * 192 + 1) + NULL_ROW


def test_edm_cifar10_networks_have_the_published_counts():
    ddpmpp = count(DDPMPP)
    assert ddpmpp == 55_733_891  # 55.7 M
    # Class-conditional: EDM projects ten one-hot labels, with a bias: eleven rows of 128.
    assert count(DDPMPP.clone(num_classes=10)) == ddpmpp + 11 * 128
    assert count(DDPMPP.clone(augment_dim=0)) == ddpmpp - 9 * 128
    # NCSN++ has twice the noise features and a convolved input at both lower levels.
    wider = 128 * 512 + 128 * 9
    assert count(NCSNPP) == ddpmpp + wider + conv(3, 3, 256) + conv(3, 256, 256) == 56_397_827


def test_vdm_count():
    # Ours against the authors' network: they feed one more (constant) number to the first dense layer of
    # the embedding, and project the embedding without a bias in each of the 32 + 2 + 33 blocks.
    embedding = conv(1, 128, 512) + conv(1, 512, 512)
    encoder = conv(3, 3 + 4 * 3, 128) + 32 * res(128, 128)
    middle = 2 * res(128, 128) + attention(128)
    decoder = 33 * res(256, 128)
    total = embedding + encoder + middle + decoder + 2 * 128 + conv(3, 128, 3)
    assert count(VDM) == total == 30_578_179 - 512 + (32 + 2 + 33) * 128


@pytest.mark.parametrize(
    ("depth", "width", "heads", "published"),
    [
        (12, 384, 6, 32_963_360),
        (12, 768, 12, 130_512_416),
        (24, 1024, 16, 458_102_816),
        (28, 1152, 16, 675_129_632),
    ],
    ids=["S/2", "B/2", "L/2", "XL/2"],
)
def test_dit_has_the_published_count(depth, width, heads, published):
    net = DiT(patch=2, width=width, depth=depth, heads=heads, num_classes=1000, learned_variance=True)
    block = 18 * width**2 + 15 * width  # qkv 3, out 1, mlp 8, modulation 6 times width^2; biases
    rest = (
        conv(1, 16, width)
        + conv(1, 256, width)
        + conv(1, width, width)
        + 1001 * width
        + conv(1, width, 2 * width)
        + conv(1, width, 32)
    )
    trained = count(net, 32, 4)
    assert trained == depth * block + rest
    # arXiv:2212.09748, Table 1 (33 M, 130 M, 458 M, 675 M) counts the 256 fixed positions too.
    assert trained + 256 * width == published
