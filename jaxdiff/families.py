"""Which published networks there are: by diffusers' class, how one is read into ours, and how it is written."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.core.types import Params
from jaxdiff.networks.dit import DiT
from jaxdiff.networks.flux import PATCH, Flux
from jaxdiff.networks.mmdit import MMDiT
from jaxdiff.networks.pixart import PixArt
from jaxdiff.networks.unet import UNet
from jaxdiff.pretrained import dit, flux, mmdit, pixart, unet
from jaxdiff.pretrained.folders import read_json, weights_in
from jaxdiff.pretrained.pickles import refusing

Json = Mapping[str, object]
Network = UNet | DiT | PixArt | MMDiT | Flux


class Family(NamedTuple):
    """How the networks of a class are read and written."""

    network: type
    """Ours."""
    part: str
    """What diffusers calls it in a pipeline."""
    config: Callable[[Json], Any]
    json: Callable[[Any, int, int], dict[str, object]]
    """(network, channels of its images or latents, their side) -> config.json."""
    load: Callable[[Mapping[str, np.ndarray], Any], Params]
    dump: Callable[[Params, Any], dict[str, np.ndarray]]


_UNET = Family(UNet, "unet", unet.unet_config, unet.unet_json, unet.load, unet.dump)
FAMILIES: Mapping[str, Family] = {
    "UNet2DModel": _UNET,
    "UNet2DConditionModel": _UNET,
    "DiTTransformer2DModel": Family(DiT, "transformer", dit.dit_config, dit.config_json, dit.load, dit.dump),
    "PixArtTransformer2DModel": Family(
        PixArt, "transformer", pixart.pixart_config, pixart.config_json, pixart.load, pixart.dump
    ),
    "SD3Transformer2DModel": Family(
        MMDiT, "transformer", mmdit.mmdit_config, lambda net, c, _: mmdit.config_json(net, c), mmdit.load, mmdit.dump
    ),
    "FluxTransformer2DModel": Family(
        Flux, "transformer", flux.flux_config, lambda net, c, _: flux.config_json(net, c), flux.load, flux.dump
    ),
}
"""By diffusers' name of the class."""

NATIVE = {"SD3Transformer2DModel": 128, "FluxTransformer2DModel": 128}
"""Side of the latents that a network is made for, where its config.json need not say."""


class Part(NamedTuple):
    """A network of a pipeline, read."""

    kind: str
    """diffusers' class."""
    network: Network
    params: Params
    size: int
    """Side of its images, or of its latents."""
    channels: int
    """Channels of its images, or of its latents."""


def class_of(json: Json) -> str:
    """diffusers' class of a network's config.json. Raises ValueError for one that is not known here."""
    name = str(json.get("_class_name"))
    if name == "Transformer2DModel":  # how DiT and PixArt were saved at first
        kinds = {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}
        name = kinds.get(str(json.get("norm_type")), name)
    if name not in FAMILIES:
        raise ValueError(f"the network {name} is not known: allowed are {', '.join(FAMILIES)}")
    return name


def read_part(folder: Path) -> Part:
    """The network in a folder of diffusers'. Raises FileNotFoundError or ValueError, one line."""
    json = read_json(folder / "config.json")
    with refusing(folder / "config.json"):
        kind = class_of(json)
        family = FAMILIES[kind]
        network = family.config(json)
        size, channels = json.get("sample_size"), json.get("in_channels", 3 if kind == "UNet2DModel" else 4)
        size = NATIVE.get(kind) if size is None else size
        if isinstance(size, list) and len(set(size)) == 1:
            size = size[0]
        if not isinstance(size, int):
            raise ValueError(f"sample_size = {size!r} is not allowed: the side of a square")
        if kind in NATIVE and "in_channels" not in json:
            channels = 16 * PATCH**2 if family.network is Flux else 16
        if not isinstance(channels, int):
            raise ValueError(f"in_channels = {channels!r} is not allowed: a positive integer")
    arrays = weights_in(folder)
    with refusing(folder):
        params = family.load(arrays, network)
    return Part(kind, network, params, size, channels // PATCH**2 if family.network is Flux else channels)


def family_of(network: object) -> tuple[str, Family]:
    """diffusers' class for a network of ours. Raises ValueError for one that diffusers has not."""
    texts = isinstance(network, UNet) and bool(network.text_width)
    for kind, family in FAMILIES.items():
        if isinstance(network, family.network) and not (texts and kind == "UNet2DModel"):
            return kind, family
    names = ", ".join(sorted({family.network.__name__ for family in FAMILIES.values()}))
    raise ValueError(f"diffusers has no network like {type(network).__name__}: allowed are {names}")


def written_json(network: Network, params: Params, channels: int, size: int) -> dict[str, object]:
    """The config.json of a network of ours. Raises ValueError that names what diffusers' networks have not."""
    _, family = family_of(network)
    if not isinstance(network, UNet):
        return family.json(network, channels, size)
    table = unet.dump(params, network).get(unet.LABELS)
    return unet.unet_json(network, channels, size, table is not None and len(table) > network.num_classes)
