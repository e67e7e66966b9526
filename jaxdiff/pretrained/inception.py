"""The Inception weights of 2015-12-05 from their published PyTorch file, which the user downloads.

pt_inception-2015-12-05-6726825d.pth (pytorch-fid) and weights-inception-2015-12-05-6726825d.pth (torch-fidelity)
are the same 95,628,359 bytes. FID is defined by these weights, so no others are taken for them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt8

from jaxdiff.core.types import Params
from jaxdiff.networks.feature_net import FeatureNet, Features, resized
from jaxdiff.networks.inception import InceptionFeatures, InceptionV3
from jaxdiff.networks.resize import Resize
from jaxdiff.pretrained.pickles import refusing
from jaxdiff.pretrained.weights import fill, read_weights, sha256

FILE = "pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SIZE = 299


def load(path: Path) -> Params:
    """Parameters of `InceptionV3` from a file with PyTorch's names, whatever its digest.

    Raises ValueError of one line where the file is refused or holds another network.
    """
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    shapes = jax.eval_shape(InceptionV3().init, jax.random.key(0), image)["params"]
    arrays = read_weights(path)
    with refusing(path):
        return fill(arrays, shapes, unused=("num_batches_tracked",))


def open_inception(path: Path, resize: Resize) -> FeatureNet:
    """The network of FID. Raises ValueError where the file is not the published one."""
    digest = sha256(path)
    if digest != SHA256:
        raise ValueError(
            f"{path} is not {FILE}: its sha256 is {digest} and must be {SHA256}; download it again (--weights)"
        )
    return FeatureNet("inception-2015-12-05", digest, resize.name, SIZE, 2048, load(path), jax.jit(forward(resize)))


def forward(resize: Resize) -> Callable[[Params, UInt8[Array, "b h w c"]], Features]:
    """The function from (params, images) to "features" [b, 2048], "spatial" [b, 2023], "logits" (without the
    bias, as the Inception score takes them) and "logits_biased" [b, 1008]; "pool_64", "pool_192", "pool_768".
    """

    def apply(params: Params, images: UInt8[Array, "b h w c"]) -> Features:
        pixels = resized(images, resize, SIZE)
        named = cast(InceptionFeatures, InceptionV3().apply({"params": params}, (pixels - 128) / 128))._asdict()
        return {**named, "logits": named.pop("logits_unbiased"), "logits_biased": named["logits"]}

    return apply
