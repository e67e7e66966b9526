"""The networks of flaxdiff, configured as near to the compared ones as they allow."""

from importlib.metadata import version

import jax.numpy as jnp
from flaxdiff.models.simple_dit import SimpleDiT  # pyright: ignore[reportMissingImports]
from flaxdiff.models.simple_unet import Unet  # pyright: ignore[reportMissingImports]

from benchmarks.peer_jax import Peer, serve_peer
from benchmarks.sizes import CHANNELS, Size, Spec

ATTENTION = {"heads": 1, "only_pure_attention": False}


def peer_of(spec: Spec) -> Peer:
    """Unet, or SimpleDiT. Neither has dropout."""
    size = Size(*spec.size)
    if spec.network == "unet":
        network = Unet(
            output_channels=CHANNELS["unet"],
            emb_features=4 * size.channels,
            feature_depths=[size.channels, *[2 * size.channels] * 3],
            # Its decoder reads the settings of the last level wherever there is attention, so that has it as well.
            attention_configs=[None, ATTENTION, None, ATTENTION],
            num_res_blocks=2,
            norm_groups=32,
        )
        differs = "attention in the last block of a level, with cross-attention and MLP; two decoder blocks a level"

        def call(params: dict, x, t):
            return network.apply(params, x, t, jnp.zeros((x.shape[0], 1, 1)))

        def init(key, x, t):
            return network.init(key, x, t, jnp.zeros((x.shape[0], 1, 1)))
    else:
        network = SimpleDiT(
            output_channels=CHANNELS["dit"],
            patch_size=2,
            emb_features=size.width,
            num_layers=size.depth,
            num_heads=size.heads,
        )
        differs = "rotary positions, a norm without modulation at the end"
        call, init = network.apply, network.init
    return Peer(init, lambda params, x, t, key: call(params, x, t), f"flaxdiff {version('flaxdiff')}", differs)


if __name__ == "__main__":
    serve_peer(peer_of)
