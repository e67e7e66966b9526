"""TAESD against diffusers' AutoencoderTiny with the same random weights."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_codec

torch = pytest.importorskip("torch", reason="needs the extra parity")
diffusers = pytest.importorskip("diffusers", reason="needs the extra parity")

from jaxdiff.codecs import open_codec  # noqa: E402
from jaxdiff.networks.taesd import Decoder, Encoder  # noqa: E402


def test_both_halves(tmp_path):
    encoder, decoder = tiny_codec.write(tmp_path)
    codec = open_codec(f"taesd={encoder},{decoder}").codec
    theirs = diffusers.AutoencoderTiny().eval()
    # Theirs has no number for the clamp at the decoder's beginning.
    state = {f"encoder.layers.{k}": v for k, v in tiny_codec.tensors(Encoder(4), jnp.zeros((1, 8, 8, 3))).items()}
    for key, value in tiny_codec.tensors(Decoder(), jnp.zeros((1, 1, 1, 4))).items():
        number, rest = key.split(".", 1)
        state[f"decoder.layers.{int(number) - 1}.{rest}"] = value
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=True)

    x = np.random.default_rng(0).uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)
    with torch.no_grad():
        z = theirs.encoder(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()
        y = theirs.decoder(torch.from_numpy(4 * z)).numpy()
    ours = np.asarray(codec.encode(jnp.asarray(x))).transpose(0, 3, 1, 2)
    assert np.abs(ours - z).max() < 1e-4 * np.abs(z).max()
    ours = np.asarray(codec.decode(jnp.asarray(4 * z.transpose(0, 2, 3, 1)))).transpose(0, 3, 1, 2)
    assert np.abs(ours - y).max() < 1e-4 * np.abs(y).max()
