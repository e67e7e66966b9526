"""The TAESD family: shapes, what its files may hold, and that the published weights rebuild pictures."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_codec
from safetensors.numpy import save_file

from jaxdiff.codecs import open_codec
from jaxdiff.data.source import Source
from jaxdiff.networks.taesd import Decoder, Encoder
from jaxdiff.pretrained.taesd import MEMBERS, load_decoder, load_encoder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny_codec.write(tmp_path_factory.mktemp("codec"))


def pictures(n=2, size=16):
    return jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (n, size, size, 3)), jnp.float32)


@pytest.mark.parametrize("name", ["taesd", "taef1", "taef2"])
def test_every_tensor_of_a_file_is_used_and_none_is_missing(name):
    member = MEMBERS[name]
    encoder = tiny_codec.tensors(Encoder(member.latents, member.pool), jnp.zeros((1, 8, 8, 3)))
    decoder = tiny_codec.tensors(Decoder(member.pool), jnp.zeros((1, 1, 1, member.latents)))
    for load, arrays in ((load_encoder, encoder), (load_decoder, decoder)):
        load(arrays, member)
        lost = next(iter(arrays))
        with pytest.raises(ValueError, match=f"{lost} is missing; extra is not known"):
            load({k: v for k, v in arrays.items() if k != lost} | {"extra": np.zeros(1)}, member)
    # The published sizes, 1.34 million each for FLUX.2's.
    sizes = [sum(v.size for v in arrays.values()) for arrays in (encoder, decoder)]
    if name == "taef2":
        assert sizes == [1_338_528, 1_338_499]


def test_a_latent_pixel_is_8_pixels_wide_and_each_picture_is_its_own(files):
    codec = open_codec(f"taesd={files[0]},{files[1]}")
    assert (codec.factor, codec.channels, len(codec.sha256)) == (8, 4, 2)
    x = pictures(3, 24)
    z = codec.codec.encode(x)
    assert z.shape == (3, 3, 3, 4) and codec.codec.decode(z).shape == x.shape
    np.testing.assert_allclose(codec.codec.encode(x[1:2]), z[1:2], atol=1e-4)
    assert np.abs(np.asarray(z[0] - z[1])).max() > 1e-2
    with pytest.raises(ValueError, match=r"height 12.*multiple of 8.*--size"):
        codec.codec.encode(pictures(1, 12))


def test_the_order_of_the_files_does_not_matter_and_one_is_enough(files):
    both, turned = (open_codec(f"taesd={','.join(map(str, pair))}") for pair in (files, files[::-1]))
    z = both.codec.encode(pictures())
    np.testing.assert_array_equal(turned.codec.encode(pictures()), z)
    np.testing.assert_array_equal(open_codec(f"taesd={files[0]}").codec.encode(pictures()), z)
    np.testing.assert_array_equal(open_codec(f"taesd={files[1]}").codec.decode(z), both.codec.decode(z))
    with pytest.raises(ValueError, match=r"without its decoder.*--codec"):
        open_codec(f"taesd={files[0]}").codec.decode(z)


def test_extreme_latents_are_tamed(files):
    decode = open_codec(f"taesd={files[1]}").codec.decode
    far = jnp.full((1, 2, 2, 4), 1e4)
    np.testing.assert_allclose(decode(far), decode(far * 2), rtol=1e-6)


def test_mistakes_are_one_line(files, tmp_path):
    for spec, words in (("vae=x", "taef2"), ("taesd", "NAME=FILE"), (f"taesd={files[0]},{files[0]}", "second encoder")):
        with pytest.raises(ValueError, match=words) as info:
            open_codec(spec)
        assert "--codec" in str(info.value) and "\n" not in str(info.value)
    with pytest.raises(FileNotFoundError, match=r"no file nowhere.*--codec"):
        open_codec("taesd=nowhere")
    with pytest.raises(ValueError, match=r"layer|\[4, 64, 3, 3\]|16"):
        open_codec(f"taef1={files[0]}")
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="a is not known"):
        open_codec(f"taesd={tmp_path / 'other.safetensors'}")


def test_flux2s_weights_rebuild_drawings(models):
    """Twelve emoji of 32 px, enlarged twice: a mean grey would be some 10 dB away from them."""
    names = ("taef2_encoder.safetensors", "taef2_decoder.safetensors")
    codec = open_codec(f"taef2={','.join(str(models(name)) for name in names)}").codec
    with np.load(sys.modules[Source.__module__].__file__.replace("source.py", "emoji.npz")) as data:
        images = data["images"][::160].repeat(2, axis=1).repeat(2, axis=2)
    x = jnp.asarray(images, jnp.float32) / 127.5 - 1
    z = codec.encode(x).astype(jnp.float16)  # as they are stored
    assert z.shape == (len(images), 8, 8, 32)
    rebuilt = np.asarray(jnp.clip(codec.decode(z.astype(jnp.float32)), -1, 1))
    psnr = 10 * np.log10(4 / np.square(rebuilt - x).mean((1, 2, 3)))
    assert np.median(psnr) > 24
