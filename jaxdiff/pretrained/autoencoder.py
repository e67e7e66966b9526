"""Published AutoencoderKL: diffusers' folders, and files in its naming, its early naming or the original programs'.

    ours                              diffusers                                   original
    encoder/down_0_1/conv_0/kernel    encoder.down_blocks.0.resnets.1.conv1.      encoder.down.0.block.1.conv1.
    encoder/down_0_half/conv/kernel   encoder.down_blocks.0.downsamplers.0.conv.  encoder.down.0.downsample.conv.
    decoder/up_0_2/skip/kernel        decoder.up_blocks.0.resnets.2.conv_shortcut.  decoder.up.3.block.2.nin_shortcut.
    decoder/quant/kernel              post_quant_conv.                            post_quant_conv.

The original programs number the decoder's sizes from the picture's own, and call 1x1 convolutions what are linear
layers here. What a model's latents are to diffusion is in its config: ``(z - shift_factor) * scaling_factor``.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core.codec import Codec, Images, Latents, Opened, Posterior, normalised
from jaxdiff.core.types import Params
from jaxdiff.networks.autoencoder import AutoencoderKL
from jaxdiff.networks.vq import VQModel
from jaxdiff.pretrained import exchange
from jaxdiff.pretrained.autoencoder_config import CONFIG, Scaling, autoencoder_config, scaling_of
from jaxdiff.pretrained.exchange import Origin, Shape
from jaxdiff.pretrained.folders import WEIGHTS
from jaxdiff.pretrained.pickles import refusing
from jaxdiff.pretrained.vit import Rules, new_name, rename
from jaxdiff.pretrained.weights import Where, read_weights, sha256, torch_name

OURS: Rules = (
    (r"^encoder\.quant\.", "quant_conv."),
    (r"^decoder\.quant\.", "post_quant_conv."),
    (r"\.down_(\d+)_half\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up_(\d+)_twice\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.(down|up)_(\d+)_(\d+)\.", r".\1_blocks.\2.resnets.\3."),
    (r"\.middle_(\d+)\.", r".mid_block.resnets.\1."),
    (r"\.middle_attention\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.middle_attention\.heads\.out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.middle_attention\.heads\.", ".mid_block.attentions.0.to_"),
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"\.norm_0\.", ".norm1."),
    (r"\.norm_1\.", ".norm2."),
    (r"\.conv_0\.", ".conv1."),
    (r"\.conv_1\.", ".conv2."),
    (r"\.skip\.", ".conv_shortcut."),
)
"""From our names to diffusers'."""

OLDER: Rules = (
    (r"^loss\..*$", ""),  # the discriminator and LPIPS, which lay in the same file while they trained
    (r"\.attentions\.0\.query\.", ".attentions.0.to_q."),
    (r"\.attentions\.0\.key\.", ".attentions.0.to_k."),
    (r"\.attentions\.0\.value\.", ".attentions.0.to_v."),
    (r"\.attentions\.0\.proj_attn\.", ".attentions.0.to_out.0."),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
    (r"^encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets."),
    (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0.to_"),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
)
"""From other naming schemes to diffusers'; the decoder's levels are numbered in `to_diffusers`."""

PREFIXES = ("first_stage_model.", "vae.")
"""Before the autoencoder's names in a file of a whole model."""


class Published(NamedTuple):
    """A published autoencoder."""

    network: AutoencoderKL
    scaling: Scaling


_WIDE = AutoencoderKL(latents=16, quant=False)
PUBLISHED: Mapping[str, Published] = {
    "sd": Published(AutoencoderKL(), Scaling((0.0,), (1 / 0.18215,))),
    "sdxl": Published(AutoencoderKL(), Scaling((0.0,), (1 / 0.13025,))),
    "sd3": Published(_WIDE, Scaling((0.0609,), (1 / 1.5305,))),
    "flux": Published(_WIDE, Scaling((0.1159,), (1 / 0.3611,))),
}
"""For files without a config: Stable Diffusion 1 and 2, SDXL, SD3 and 3.5, FLUX.1."""


def load(arrays: Mapping[str, np.ndarray], network: AutoencoderKL) -> Params:
    """Parameters from the tensors of a file in any of the namings, of the autoencoder alone or of a whole model.

    Raises ValueError where they are not exactly this network's.
    """
    return exchange.load(diffusers_names(arrays, len(network.widths)), shapes_of(network), origins)


def dump(params: Params, network: AutoencoderKL) -> dict[str, np.ndarray]:
    """The tensors of diffusers' file: what `load` was given, bit for bit."""
    del network
    return exchange.dump(params, origins)


def shapes_of(network: AutoencoderKL | VQModel) -> Mapping[str, object]:
    """The shapes of the network's parameters."""
    image = jax.ShapeDtypeStruct((1, network.factor, network.factor, network.channels), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), image)["params"]


def origins(path: Where, shape: Shape) -> Origin:
    """The tensor of a parameter by diffusers' name."""
    del shape
    return Origin((new_name(torch_name(path), OURS),))


def diffusers_names(arrays: Mapping[str, np.ndarray], levels: int) -> dict[str, np.ndarray]:
    """The autoencoder's tensors by diffusers' names, of a network of so many sizes."""
    for prefix in PREFIXES:
        own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        arrays = own or arrays
    renamed = rename(arrays, to_diffusers(levels))
    attention = ".mid_block.attentions.0.to_"
    return {
        name: array.reshape(array.shape[:2]) if attention in name and array.ndim > 2 else array
        for name, array in renamed.items()
    }


def to_diffusers(levels: int) -> Rules:
    """From the names of another scheme to diffusers', of a network of so many sizes."""
    sizes: Rules = tuple(
        (rf"^decoder\.up\.{k}\.{theirs}\.", f"decoder.up_blocks.{levels - 1 - k}.{new}.")
        for k in range(levels)
        for theirs, new in (("block", "resnets"), ("upsample", "upsamplers.0"))
    )
    return OLDER + sizes


def count_levels(names: Iterable[str]) -> int:
    """Sizes of the network whose tensors have these names, of any scheme. Raises ValueError where they tell none."""
    found = [int(match[1]) for name in names if (match := re.match(r"encoder\.down(?:_blocks)?\.(\d+)\.", name))]
    if not found:
        raise ValueError("weights of another network: encoder.down.0 is missing")
    return 1 + max(found)


def network_of(arrays: Mapping[str, np.ndarray]) -> AutoencoderKL:
    """The network of tensors by diffusers' names, with 32 groups in its norms as all published ones have.

    Raises ValueError where a tensor that tells it is missing.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in arrays or arrays[name].ndim != 4:
            raise ValueError(f"weights of another network: {name} is missing, or is no convolution")
        return arrays[name].shape

    first = re.compile(r"encoder\.down_blocks\.0\.resnets\.\d+\.conv1\.weight")
    return AutoencoderKL(
        latents=shape("decoder.conv_in.weight")[1],
        widths=tuple(shape(f"encoder.down_blocks.{i}.resnets.0.conv1.weight")[0] for i in range(count_levels(arrays))),
        blocks_per_level=sum(1 for name in arrays if first.fullmatch(name)),
        channels=shape("encoder.conv_in.weight")[1],
        quant="quant_conv.weight" in arrays,
        middle_attention=any(".mid_block.attentions." in name for name in arrays),
    )


def open_autoencoder(text: str) -> Opened:
    """The codec of diffusers' folder, of the whole model or of its vae, or of a file beside its config.json.

    The latents are the means of the encoder's distribution, scaled and shifted as the config says. Raises ValueError or
    FileNotFoundError, one line that names the flag.
    """
    path = Path(text)
    folder = path if path.is_dir() else path.parent
    if path.is_dir() and not (folder / CONFIG).is_file() and (folder / "vae" / CONFIG).is_file():
        folder /= "vae"
    if not (folder / CONFIG).is_file():
        names = ", ".join(f"{name}=FILE" for name in PUBLISHED)
        raise FileNotFoundError(f"{folder} has no {CONFIG}, without which say whose it is: {names} (--codec kl=FOLDER)")
    files = [folder / name for name in WEIGHTS] if path.is_dir() else [path]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise FileNotFoundError(f"there is no weights file {' or '.join(map(str, files[:1]))} (--codec kl=FOLDER)")
    with refusing(folder / CONFIG):
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        published = Published(autoencoder_config(config), scaling_of(config))
    return _open("kl", file, published)


def open_published(name: str, text: str) -> Opened:
    """The codec `PUBLISHED[name]` with the weights of a file. Raises as `open_autoencoder`."""
    if not Path(text).is_file():
        raise FileNotFoundError(f"there is no file {text} (--codec {name}=FILE)")
    return _open(name, Path(text), PUBLISHED[name])


def _open(name: str, file: Path, published: Published) -> Opened:
    arrays = read_weights(file)
    with refusing(file):
        params = load(arrays, published.network)
    codec = normalised(codec_of(published.network, params), *published.scaling)
    return Opened(codec, name, (sha256(file),), published.network.factor, published.network.latents)


def codec_of(network: AutoencoderKL, params: Params) -> Codec:
    """The network, compiled, as a codec; its latents are the means, as they are."""

    @jax.jit
    def encode(params: Params, x: Images) -> Latents:
        return cast(Posterior, network.apply({"params": params}, x, method="encode")).mean

    @jax.jit
    def decode(params: Params, z: Latents) -> Images:
        return cast(Images, network.apply({"params": params}, z, method="decode"))

    return Codec(lambda x: encode(params, x), lambda z: decode(params, z))
