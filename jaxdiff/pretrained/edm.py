"""The original files of EDM: DDPM++ and NCSN++ (`SongUNet`) and ADM (`DhariwalUNet`), with their preconditioning.

The class of the outer module says what is predicted. With F the network and D the denoiser of x = x0 + sigma eps:

    EDMPrecond   D = c_skip x + c_out F(c_in x; log(sigma) / 4)      `EDM`
    VPPrecond    D = x - sigma F(x / sqrt(1 + sigma^2); 999 t)       `Eps` on `LinearVP`
    VEPrecond    D = x + sigma F(x; log(sigma / 2))                  `Eps` on `GeometricVE`, the last layer negated

Labels are one-hot vectors times the square root of their number in `SongUNet`, and a dense layer of them is a table
here, whose last row is that of no label. Source: arXiv:2206.00364, Table 1 and App. F.
"""

import math
import reprlib
from collections.abc import Mapping

import numpy as np

from jaxdiff.core.paths import FixedPath, GeometricVE, LinearVP, Sigma
from jaxdiff.core.predictions import EDM, AnyPrediction, Eps, LogRatio, PathTime
from jaxdiff.networks.unet import UNet
from jaxdiff.pretrained import exchange
from jaxdiff.pretrained.exchange import Origin, Origins, Shape
from jaxdiff.pretrained.original import Original
from jaxdiff.pretrained.persistent import Module
from jaxdiff.pretrained.unet import unet_shapes
from jaxdiff.pretrained.unet_names import BLOCK
from jaxdiff.pretrained.weights import Where, torch_name

PRECONDITIONED = ("EDMPrecond", "VPPrecond", "VEPrecond")
NETWORKS = ("SongUNet", "DhariwalUNet")

INSIDE: Mapping[str, str] = {
    "norm_0": "norm0",
    "conv_0": "conv0",
    "embedding": "affine",
    "norm_1": "norm1",
    "conv_1": "conv1",
    "norm": "norm2",
    "out": "proj",
    "dense_0": "map_layer0",
    "dense_1": "map_layer1",
    "label": "map_label",
    "augment": "map_augment",
}
"""Inside a module, where the name is another."""


def open_edm(outer: Module) -> Original:
    """The network of the file's averaged module.

    Raises ValueError for another class, a field that cannot be honoured, and tensors that do not fit.
    """
    if outer.kind not in PRECONDITIONED:
        raise ValueError(f"{outer.kind[:60]} is not supported: allowed are {', '.join(PRECONDITIONED)}")
    inner = outer.part("model")
    network = edm_config(inner)
    arrays, size = inner.arrays(), whole(inner, "img_resolution")
    channels = whole(inner, "in_channels")
    song = inner.kind == "SongUNet"
    last = f"dec.{side(size, 0)}_aux_conv." if song else "out_conv."
    if outer.kind == "VEPrecond":
        arrays = {name: -array if name.startswith(last) else array for name, array in arrays.items()}
    arrays = {name: array for name, array in _with_table(arrays, song).items() if name != "map_noise.freqs"}
    shapes = unet_shapes(network, channels)
    params = exchange.load(arrays, shapes, edm_names(network, size, song), unused=(".resample_filter",))
    path, prediction = _fed(outer)
    return Original(network, params, path, prediction, size, channels)


def edm_config(inner: Module) -> UNet:
    """The network of its module's recorded arguments. Raises ValueError that names a field it cannot honour."""
    if inner.kind not in NETWORKS:
        raise ValueError(f"{inner.kind[:60]} is not supported: allowed are {', '.join(NETWORKS)}")
    song = inner.kind == "SongUNet"
    base = whole(inner, "model_channels", 128 if song else 192)
    mults = wholes(inner, "channel_mult", (1, 2, 2, 2) if song else (1, 2, 3, 4))
    emb = base * whole(inner, "channel_mult_emb", 4)
    first = base if song else base * mults[0]
    if emb % first or any(base * mult % first for mult in mults):
        raise ValueError(f"channel_mult = {mults}: allowed are multiples of the first")
    size, sides = whole(inner, "img_resolution"), wholes(inner, "attn_resolutions", (16,) if song else (32, 16, 8))
    common = UNet(
        channels=first,
        channel_mults=tuple(base * mult // first for mult in mults),
        blocks_per_level=whole(inner, "num_blocks", 4 if song else 3),
        attention_resolutions=(),
        attention_levels=tuple(level for level in range(len(mults)) if size >> level in sides),
        resample_blocks=True,
        embedding_channels=base * (whole(inner, "channel_mult_noise", 1) if song else 1),
        embedding_mult=emb // first,
        num_classes=whole(inner, "label_dim", 0),
        augment_dim=whole(inner, "augment_dim", 0),
        dropout=real(inner, "dropout", 0.1),
    )
    if not song:
        return common.clone(head_channels=64, scale_shift=True, cosine_first=True, init_gain=1 / 3)
    count = common.embedding_channels // 2
    frequencies = ()
    if choice(inner, "embedding_type", ("positional", "fourier")) == "fourier":
        frequencies = tuple(float(w) for w in inner.arrays().get("map_noise.freqs", ()))
        if len(frequencies) != count:
            raise ValueError("weights of another network: map_noise.freqs is missing or misshapen")
    choice(inner, "decoder_type", ("standard",))
    return common.clone(
        decoder_attention=False,
        resample_projection=True,
        resample_taps=wholes(inner, "resample_filter", (1, 1)),
        residual_input=choice(inner, "encoder_type", ("standard", "residual")) == "residual",
        skip_scale=math.sqrt(0.5),
        norm_eps=1e-6,
        max_period=10000.0 if frequencies else 10000 ** (count / (count - 1)),
        fourier_scale=16.0 if frequencies else 0.0,
        fourier_frequencies=frequencies,
        label_before_mlp=True,
    )


def edm_names(network: UNet, size: int, song: bool) -> Origins:
    """The origins of the parameters, for images of this size, in `SongUNet` or `DhariwalUNet`."""
    last = f"{side(size, len(network.channel_mults) - 1)}_in"
    tops = {
        "conv_in": f"enc.{side(size, 0)}_conv",
        "middle_0": f"dec.{last}0",
        "middle_attention": f"dec.{last}0",
        "middle_1": f"dec.{last}1",
        "norm_out": f"dec.{side(size, 0)}_aux_norm" if song else "out_norm",
        "conv_out": f"dec.{side(size, 0)}_aux_conv" if song else "out_conv",
    }

    def module(top: str) -> str:
        if top in tops:
            return tops[top]
        if top.endswith("_input"):
            return f"enc.{side(size, int(top.split('_')[1]) + 1)}_aux_residual"
        match = BLOCK.fullmatch(top)
        if match is None:
            raise ValueError(f"the U-Net's part {top!r} has no place in EDM's files")
        half, level, which, _ = match.groups()
        there = int(level) + {"down": 1, "up": -1}.get(which, 0)
        return f"{half[:3]}.{side(size, there)}_{which if which in ('down', 'up') else f'block{which}'}"

    def origin(path: Where, shape: Shape) -> Origin:
        inside = ".".join([*(INSIDE.get(part, part) for part in path[1:-1]), torch_name(path[-1:])])
        if path[0] == "embedding":
            return Origin((inside,))
        name = f"{module(path[0])}.{inside}"
        if path[1] == "qkv":
            width = shape[-1] // 3
            heads = width // network.head_channels if network.head_channels else network.heads
            return Origin((name,), ones=2, order=by_kind(heads, width // heads))
        attends = path[0].endswith("_attention") and path[1] == "out"
        return Origin((name,), ones=2 if attends else 0)

    return origin


def by_kind(heads: int, channels: int) -> tuple[int, ...]:
    """Of outputs sorted by head, channel and kind: their places when sorted by kind, head and channel."""
    return tuple(
        (head * channels + channel) * 3 + kind
        for kind in range(3)
        for head in range(heads)
        for channel in range(channels)
    )


def side(size: int, level: int) -> str:
    """What EDM calls a level, for images of this size."""
    return f"{size >> level}x{size >> level}"


def _with_table(arrays: Mapping[str, np.ndarray], song: bool) -> dict[str, np.ndarray]:
    """The dense layer of one-hot labels as a table with a row for no label."""
    found = dict(arrays)
    kernel, bias = found.get("map_label.weight"), found.pop("map_label.bias", None)
    if kernel is not None and kernel.ndim == 2:
        table = np.concatenate([kernel.T, np.zeros_like(kernel.T[:1])])
        table = table * np.float32(math.sqrt(kernel.shape[1])) if song else table
        found["map_label.weight"] = table if bias is None else table + bias
    return found


def _fed(outer: Module) -> tuple[FixedPath, AnyPrediction]:
    if outer.kind == "VPPrecond":
        low = real(outer, "beta_min", 0.1)
        path = LinearVP(low, low + real(outer, "beta_d", 19.9))
        return path, Eps(PathTime(path, scale=real(outer, "M", 1000.0) - 1))
    if outer.kind == "VEPrecond":
        path = GeometricVE(real(outer, "sigma_min", 0.02), real(outer, "sigma_max", 100.0))
        return path, Eps(LogRatio(1.0, offset=-math.log(2)))
    return Sigma(80.0), EDM(real(outer, "sigma_data", 0.5))


def given(module: Module, name: str, default: object) -> object:
    """An argument of the module's making, which a persistent object records; or an attribute of this name."""
    given = module.field("_init_kwargs")
    if isinstance(given, dict) and name in given:
        return given[name]
    return module.field(name, default)


def whole(module: Module, name: str, default: int | None = None) -> int:
    """A natural number among a module's arguments. Raises ValueError where it is none."""
    value = given(module, name, default)
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} of {module.kind[:60]} is {reprlib.repr(value)}: an integer from 0 on is expected")
    return value


def wholes(module: Module, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """A list of natural numbers among them. Raises ValueError where it is none."""
    value = given(module, name, default)
    if (
        not isinstance(value, list | tuple)
        or not all(isinstance(number, int) and number >= 0 for number in value)
        or not value
    ):
        raise ValueError(f"{name} of {module.kind[:60]} is {reprlib.repr(value)}: integers are expected")
    return tuple(value)


def real(module: Module, name: str, default: float) -> float:
    """A number among them. Raises ValueError where it is none."""
    value = given(module, name, default)
    if not isinstance(value, int | float):
        raise ValueError(f"{name} of {module.kind[:60]} is {reprlib.repr(value)}: a number is expected")
    return float(value)


def choice(module: Module, name: str, allowed: tuple[str, ...]) -> str:
    """One of the words that are `allowed`, the first by default. Raises ValueError for another."""
    value = given(module, name, allowed[0])
    if value not in allowed:
        raise ValueError(f"{name} = {reprlib.repr(value)} is not supported: allowed are {', '.join(allowed)}")
    return str(value)
