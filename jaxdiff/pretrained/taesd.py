"""The TAESD family's published weights, as codecs by name.

A file holds the encoder or the decoder: `taesd_encoder.safetensors`, `taef2_decoder.pth` and so on. In both the layers
are numbered, "11.conv.0.weight", and the decoder's first numbered layer is 1.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.core.codec import Codec, Opened
from jaxdiff.core.types import Params
from jaxdiff.networks.taesd import FACTOR, Decoder, Encoder
from jaxdiff.pretrained.pickles import refusing
from jaxdiff.pretrained.weights import Where, fill, read_weights, sha256, torch_name

Images = Float[Array, "b h w c"]
Half = Callable[[Images], Images]


class Member(NamedTuple):
    """One of the family."""

    latents: int
    """Channels of a latent pixel."""
    pool: bool
    """Whether some blocks look at the whole picture."""


MEMBERS: Mapping[str, Member] = {
    "taesd": Member(4, False),
    "taesdxl": Member(4, False),
    "taesd3": Member(16, False),
    "taef1": Member(16, False),
    "taef2": Member(32, True),
}
"""For the latents of Stable Diffusion 1 and 2, SDXL, SD3, FLUX.1 and FLUX.2."""


def open_taesd(name: str, files: str) -> Opened:
    """The codec `MEMBERS[name]` of ``FILE`` or ``FILE,FILE``: encoder, decoder, or both in either order.

    Raises ValueError or FileNotFoundError, one line that names the flag.
    """
    member, halves, digests = MEMBERS[name], {}, []
    for file in map(Path, files.split(",")):
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file} (--codec {name}=FILE)")
        half, run = open_half(file, member)
        if half in halves:
            raise ValueError(f"{file} is a second {half}: one encoder and one decoder are enough (--codec)")
        halves[half] = run
        digests.append(sha256(file))
    encode, decode = (halves.get(half) or _missing(name, half) for half in ("encoder", "decoder"))
    return Opened(Codec(encode, decode), name, tuple(digests), FACTOR, member.latents)


def open_half(path: Path, member: Member) -> tuple[str, Half]:
    """("encoder" or "decoder", its compiled function) of a file. Raises ValueError for one of another network."""
    arrays = read_weights(path)
    encoder = "0.weight" in arrays
    with refusing(path):
        params = load_encoder(arrays, member) if encoder else load_decoder(arrays, member)
    network: Encoder | Decoder = Encoder(member.latents, member.pool) if encoder else Decoder(member.pool)
    apply = jax.jit(lambda params, x: cast(Array, network.apply({"params": params}, x)))
    if encoder:
        return "encoder", lambda x: apply(params, (x + 1) / 2)
    return "decoder", lambda z: 2 * apply(params, z) - 1


def load_encoder(arrays: Mapping[str, np.ndarray], member: Member) -> Params:
    """The encoder's parameters. Raises ValueError where the arrays are not exactly those of this member."""
    image = jax.ShapeDtypeStruct((1, FACTOR, FACTOR, 3), jnp.float32)
    shapes = jax.eval_shape(Encoder(member.latents, member.pool).init, jax.random.key(0), image)["params"]
    return fill(arrays, shapes, _name)


def load_decoder(arrays: Mapping[str, np.ndarray], member: Member) -> Params:
    """The decoder's parameters. Raises ValueError where the arrays are not exactly those of this member."""
    latent = jax.ShapeDtypeStruct((1, 1, 1, member.latents), jnp.float32)
    shapes = jax.eval_shape(Decoder(member.pool).init, jax.random.key(0), latent)["params"]
    return fill(arrays, shapes, _name)


def _name(path: Where) -> str:
    first = path[0].removeprefix("layer_")
    return torch_name((first, *(part.replace("_", ".") for part in path[1:-1]), path[-1]))


def _missing(name: str, half: str) -> Half:
    def missing(x: Images) -> Images:
        raise ValueError(f"the codec {name} was opened without its {half}: name that file (--codec {name}=FILE)")

    return missing
