"""The original checkpoints of score SDE (arXiv:2011.13456) in JAX: DDPM++ and NCSN++ of the CIFAR-10 kind.

Such a file is MessagePack with Flax's type of arrays; of its parts the averaged parameters are read. Flax numbered the
modules of a kind in the order in which they were called. Networks with pyramids of skips at the output (256 pixels and
above) are refused. Files with random Fourier features are variance-exploding: their output is ``-eps``, and the
last layer is negated here. All others are taken for the variance-preserving SDE in continuous time.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from jaxdiff.core.paths import GeometricVE, LinearVP
from jaxdiff.core.predictions import Eps, LogRatio, PathTime
from jaxdiff.networks.unet import UNet
from jaxdiff.pretrained.original import Original
from jaxdiff.pretrained.pickles import refusing
from jaxdiff.pretrained.unet import unet_shapes
from jaxdiff.pretrained.unet_names import BLOCK
from jaxdiff.pretrained.weights import Where, fill, same_layout

BLOCKS, ATTENTION, WAVES = "ResnetBlockBigGANpp_", "AttnBlockpp_", "GaussianFourierProjection_0.W"

INSIDE: Mapping[str, str] = {
    "norm_0": "GroupNorm_0",
    "conv_0": "Conv_0",
    "embedding": "Dense_0",
    "norm_1": "GroupNorm_1",
    "conv_1": "Conv_1",
    "skip": "Conv_2",
    "norm": "GroupNorm_0",
}
"""Inside a block, where the name is another."""

TOPS: Mapping[str, str] = {"conv_in": "Conv_0", "conv_out": "Conv_1", "norm_out": "GroupNorm_0"}


def recognised(path: Path) -> bool:
    """Whether the file begins as a MessagePack mapping of a training's state."""
    with path.open("rb") as file:
        head = file.read(64)
    return 0x80 < head[0] < 0x90 and b"step" in head if head else False


def read(path: Path) -> dict[str, np.ndarray]:
    """The averaged parameters of the file, names joined by dots.

    Raises ValueError of one line where it is damaged, holds other things than arrays and numbers, or no average.
    """
    import msgpack

    with refusing(path):
        tree = msgpack.unpackb(path.read_bytes(), ext_hook=_array, raw=False, strict_map_key=False)
        average = tree.get("params_ema") if isinstance(tree, dict) else None
        found = _flat(average, "") if isinstance(average, dict) else {}
        if not found:
            raise ValueError("holds no averaged parameters ('params_ema')")
        return found


def open_score_sde(arrays: Mapping[str, np.ndarray], size: int = 32) -> Original:
    """The network of the averaged parameters, for images of this size, with attention at 16 pixels.

    Raises ValueError where the tensors are not exactly one such network's.
    """
    network = score_sde_config(arrays, size)
    exploding = WAVES in arrays
    found = _joined({name: array for name, array in arrays.items() if name != WAVES})
    if exploding:
        found = {name: -array if name.startswith("Conv_1.") else array for name, array in found.items()}
    channels = arrays["Conv_0.kernel"].shape[2]
    params = fill(found, unet_shapes(network, channels), _names(network), same_layout)
    if exploding:
        # 0.01 to 50 for images in [0, 1]; these span [-1, 1].
        return Original(network, params, GeometricVE(0.02, 100.0), Eps(LogRatio(1.0, -math.log(2))), size, channels)
    path = LinearVP(0.1, 20.0)
    return Original(network, params, path, Eps(PathTime(path, scale=999.0)), size, channels)


def score_sde_config(arrays: Mapping[str, np.ndarray], size: int = 32) -> UNet:
    """The network, from the shapes of its tensors. Raises ValueError for one of another kind."""
    kernels, number = [], 0
    while (kernel := arrays.get(f"{BLOCKS}{number}.Conv_0.kernel")) is not None and kernel.ndim == 4:
        kernels.append(kernel.shape[2:])
        number += 1
    if not kernels or "Conv_0.kernel" not in arrays or "Dense_0.kernel" not in arrays:
        raise ValueError("weights of another network: only DDPM++ and NCSN++ with BigGAN's blocks are supported")
    # A block that keeps the width but has a projection changes the size.
    changes = [i for i, (n, m) in enumerate(kernels) if n == m and f"{BLOCKS}{i}.Conv_2.kernel" in arrays]
    per = changes[0] if changes else (len(kernels) - 3) // 2
    levels, rest = divmod(len(kernels), 2 * per + 3)
    if rest or per < 1:
        raise ValueError(f"its {len(kernels)} blocks are not those of levels of {per} blocks")
    base, half = arrays["Conv_0.kernel"].shape[-1], arrays["Dense_0.kernel"].shape[0] // 2
    frequencies = tuple(float(w) for w in arrays.get(WAVES, ()))
    return UNet(
        channels=base,
        channel_mults=tuple(kernels[level * (per + 1)][1] // base for level in range(levels)),
        blocks_per_level=per,
        attention_resolutions=(),
        attention_levels=tuple(level for level in range(levels) if size >> level == 16),
        decoder_attention=False,
        resample_blocks=True,
        resample_taps=(1, 3, 3, 1) if frequencies else (1, 1),
        resample_projection=True,
        residual_input="Downsample_0.Conv2d_0.weight" in arrays,
        skip_scale=math.sqrt(0.5),
        embedding_channels=2 * half,
        max_period=10000.0 if frequencies else 10000 ** (half / (half - 1)),
        fourier_scale=16.0 if frequencies else 0.0,
        fourier_frequencies=frequencies,
        norm_eps=1e-6,
        dropout=0.1,
    )


def _names(network: UNet) -> Callable[[Where], str]:
    levels, per = len(network.channel_mults), network.blocks_per_level
    middle = levels * (per + 1) - 1
    attends = network.attention_levels
    order = [f"encoder_{level}_{i}_attention" for level in attends for i in range(per)]
    order += ["middle_attention", *(f"decoder_{level}_{per}_attention" for level in reversed(attends))]

    def block(half: str, level: int, which: str) -> int:
        if half == "encoder":
            return level * (per + 1) + (per if which == "down" else int(which))
        return middle + 2 + (levels - 1 - level) * (per + 2) + (per + 1 if which == "up" else int(which))

    def name(path: Where) -> str:
        top, *inside = path
        if top == "embedding":
            return f"Dense_{inside[0][-1]}.{inside[-1]}"
        if top in TOPS:
            return f"{TOPS[top]}.{inside[-1]}"
        if top.endswith("_input"):
            return f"Downsample_{top.split('_')[1]}.Conv2d_0.{'weight' if inside[-1] == 'kernel' else 'bias'}"
        if top in order:
            return ".".join([f"{ATTENTION}{order.index(top)}", INSIDE.get(inside[0], inside[0]), inside[-1]])
        match = BLOCK.fullmatch(top)
        number = block(match[1], int(match[2]), match[3]) if match else middle + int(top[-1])
        return f"{BLOCKS}{number}.{INSIDE[inside[0]]}.{inside[-1]}"

    return name


def _joined(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Attention's three first layers as one, and its layers by the words of all others."""
    found = dict(arrays)
    number = 0
    while f"{ATTENTION}{number}.NIN_0.W" in arrays:
        here = f"{ATTENTION}{number}."
        for theirs, ours in (("W", "kernel"), ("b", "bias")):
            parts = [found.pop(f"{here}NIN_{i}.{theirs}") for i in range(4) if f"{here}NIN_{i}.{theirs}" in found]
            if len(parts) != 4:
                raise ValueError(f"weights of another network: a part of {here}NIN is missing")
            found[f"{here}qkv.{ours}"], found[f"{here}out.{ours}"] = np.concatenate(parts[:3], axis=-1), parts[3]
        number += 1
    return found


def _array(code: int, data: bytes) -> object:
    """Flax's extensions of MessagePack: 1 is an array (shape, type, bytes), 3 a number of NumPy's likewise."""
    import msgpack

    if code not in (1, 3):
        raise ValueError(f"refused, it holds a value of kind {code}, which arrays do not need")
    shape, kind, raw = msgpack.unpackb(data, raw=True)
    word = kind.decode() if isinstance(kind, bytes) else str(kind)
    if word not in ("float16", "float32", "float64", "int32", "int64", "uint32", "uint8"):
        raise ValueError(f"an array of elements {word[:20]!r} is not supported")
    return np.frombuffer(raw, np.dtype(word)).reshape(shape)


def _flat(tree: Mapping[object, object], prefix: str) -> dict[str, np.ndarray]:
    found = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, np.ndarray):
            found[f"{prefix}{key}"] = value
    return found
