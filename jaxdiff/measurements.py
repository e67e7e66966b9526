"""The measurements that `jaxdiff restore` works on: read, checked, made of pictures.

In files intensities are 0 (black) to 1 (white), and so is the noise counted; methods see pictures in [-1, 1]. A
measurement that is shaped like a picture is a PNG or another picture file; every kind may be an .npy or .npz, which
holds `measurement`, complex or with a last axis of real and imaginary parts.
"""

import io
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Float, UInt8
from PIL import Image

from jaxdiff.data.images import BrokenImageError, decode, with_channels
from jaxdiff.inputs import WHITE, has_deep_colours
from jaxdiff.sampling.inverse.operator import Linear, Operator, Shape, Spec, divided, seen_of
from jaxdiff.sampling.inverse.radon import CT, FanCT, counted, counting_std

Values = Float[np.ndarray, "..."]


class Taken(NamedTuple):
    """A measurement as methods take it."""

    operator: Operator
    """With its rows divided by the noise's relative deviations, where these differ."""
    y: Values
    noise: float
    """Standard deviation of y's noise."""


def read_arrays(mask: epath.Path | None, arrays: epath.Path | None) -> dict[str, np.ndarray]:
    """What the operator is given: a picture of a mask, which is white where the picture is to be made anew, as "mask",
    and the arrays of an .npz.

    Raises: FileNotFoundError or ValueError, one line that names the flag.
    """
    found: dict[str, np.ndarray] = {}
    if arrays is not None:
        found |= {name: a for name, a in load(arrays, "--arrays").items() if name != "measurement"}
        if not found:
            raise ValueError(f"{arrays} has no arrays for the operator: mask, kspace_mask, sensitivities (--arrays)")
    if mask is not None:
        found["mask"] = (intensities(mask, "--mask").mean(axis=-1) >= WHITE / 255).astype(np.float32)
    return found


def load(path: epath.Path, flag: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz, or that of an .npy as `measurement`; no pickles. Raises: FileNotFoundError, ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path} ({flag})")
    try:
        held = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        return {"measurement": held} if isinstance(held, np.ndarray) else {name: held[name] for name in held.files}
    except (ValueError, OSError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read ({reason}): an .npz or .npy is needed ({flag})") from error


def intensities(path: epath.Path, flag: str) -> Float[np.ndarray, "h w c"]:
    """A picture file as intensities in [0, 1], with 1 or 3 channels; grey of 16 bits keeps them, 65535 being white.

    Raises: FileNotFoundError or ValueError.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path} ({flag})")
    encoded = path.read_bytes()
    if has_deep_colours(encoded):
        raise ValueError(f"{path} has colours of 16 bits, which would be cut to 8: save it as .npy ({flag})")
    try:
        with Image.open(io.BytesIO(encoded)) as picture:
            if picture.mode.startswith("I;16"):
                return np.asarray(picture, np.float64)[..., None] / 65535
        return np.asarray(decode(encoded, str(path)), np.float64) / 255
    except BrokenImageError as error:
        raise ValueError(f"{str(error).split(': remove it')[0]} ({flag})") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read (not an image) ({flag})") from error


def read_picture(path: epath.Path, shape: Shape, flag: str) -> Float[np.ndarray, "h w c"]:
    """A clean picture of this shape, in [0, 1]. Raises: FileNotFoundError or ValueError for another size, or colours
    that would be lost."""
    h, w, c = shape
    picture = intensities(path, flag)
    if picture.shape[:2] != (h, w):
        size = f"{picture.shape[1]} x {picture.shape[0]}"
        raise ValueError(f"{path} is {size} pixels, and this model makes pictures of {w} x {h} ({flag})")
    return recoloured(picture, c, path, flag)


def recoloured(picture: Float[np.ndarray, "h w c"], channels: int, path: object, flag: str) -> Values:
    """The picture with this many channels. Raises: ValueError where colours would be lost."""
    if picture.shape[2] == channels:
        return picture
    if picture.shape[2] == 1 and channels == 3:
        return np.repeat(picture, 3, axis=2)
    if picture.shape[2] == 3 and channels == 1:
        if not (picture == picture[..., :1]).all():
            raise ValueError(f"{path} has colours, and this model makes grey pictures: convert it first ({flag})")
        return picture[..., :1]
    raise ValueError(f"{path} has {picture.shape[2]} channels, and {channels} are needed: give an .npy ({flag})")


def read_measurement(path: epath.Path, operator: Operator) -> Values:
    """The measurement in a file, of the operator's shape.

    Raises: FileNotFoundError or ValueError where it does not match the operator, or holds what is no number.
    """
    flag = "--measurement"
    if path.suffix in (".npy", ".npz"):
        held = load(path, flag)
        if "measurement" not in held:
            raise ValueError(f"{path} has no array named measurement, only {', '.join(held) or 'nothing'} ({flag})")
        values = held["measurement"]
        if values.dtype.kind not in "buifc":
            raise ValueError(f"{path} holds no numbers, but {values.dtype} ({flag})")
        if np.iscomplexobj(values):
            values = np.stack([np.real(values), np.imag(values)], axis=-1)
        values = values.astype(np.float64)
    else:
        picture = intensities(path, flag)
        if len(operator.measured) != 3:
            raise ValueError(f"{path} is a picture, and this operator's measurement is none: give an .npz ({flag})")
        losing = operator.measured[-1] == 1 and operator.shape[-1] == 3  # that is what this operator does
        if losing and picture.shape[2] == 3:
            picture = with_channels(np.round(255 * picture).astype(np.uint8), 1) / 255.0
        values = recoloured(picture, operator.measured[-1], path, flag)
    if [n for n in values.shape if n > 1] != [n for n in operator.measured if n > 1]:
        raise ValueError(
            f"the measurement {path} has the shape {values.shape}, and this operator on this model's pictures "
            f"{operator.shape} gives {operator.measured} ({flag}, --operator)"
        )
    if not np.isfinite(values).all():
        bad = int(np.sum(~np.isfinite(values)))
        raise ValueError(f"the measurement {path} has {bad} values that are no finite numbers ({flag})")
    return values.reshape(operator.measured)


def outside(operator: Operator, y: Values) -> Values:
    """What a file holds of this measurement of a picture in [-1, 1]."""
    return (np.asarray(y, np.float64) + np.asarray(operator.offset, np.float64)) / 2


def inside(operator: Operator, values: Values) -> Values:
    """The measurement of a picture in [-1, 1] of which a file holds these values."""
    return (2 * values - np.asarray(operator.offset, np.float64)) * seen_of(operator)


def taken(spec: Spec, operator: Operator, values: Values, noise: float) -> Taken:
    """The measurement for a method; `noise` as in a file, and with photons what their number makes it."""
    y = inside(operator, values)
    if not (photons := photons_of(spec)):
        return Taken(operator, y, 2 * noise)
    assert isinstance(operator, Linear) and isinstance(spec, CT | FanCT)
    std = counting_std(values, photons, spec.attenuation)
    whole = float(np.sqrt(np.mean(np.square(std))))
    return Taken(divided(operator, jnp.asarray(std / whole, jnp.float32)), y * whole / std, 2 * whole)


def simulated(spec: Spec, operator: Operator, picture: Float[np.ndarray, "h w c"], noise: float, seed: int) -> Values:
    """What is measured of a picture in [0, 1], with noise of this deviation or, with photons, as they are counted."""
    x = jnp.asarray(2 * picture - 1, jnp.float32)[None]
    clean = outside(operator, np.asarray(jax.jit(operator.forward)(x))[0])
    key = jax.random.fold_in(jax.random.key(seed), 2**31 - 1)  # no image has this number
    if photons := photons_of(spec):
        assert isinstance(spec, CT | FanCT)
        return counted(key, jnp.asarray(clean, jnp.float32), photons, spec.attenuation)
    drawn = np.asarray(jax.random.normal(key, operator.measured), np.float64)
    return clean + noise * drawn * seen_of(operator)


def photons_of(spec: Spec) -> float:
    """Photons a ray where a detector counts them, 0 elsewhere."""
    return spec.photons if isinstance(spec, CT | FanCT) else 0.0


def check_noise(spec: Spec, noise: float) -> None:
    """Raises: ValueError for a deviation that is none, or that photons say already."""
    if not (0 <= noise < np.inf):
        raise ValueError(f"noise = {noise} is not allowed: a standard deviation, at least 0 (--noise)")
    if noise and photons_of(spec):
        raise ValueError(f"noise = {noise} is not allowed with photons, which say how noisy it is (--noise)")


def first_look(operator: Operator, y: Values) -> UInt8[np.ndarray, "h w c"]:
    """A picture of the measurement: what its pseudo-inverse makes of it, itself where it is a picture, or black."""
    if operator.pinv is not None:
        x = np.asarray(operator.pinv(jnp.asarray(y, jnp.float32)[None]))[0]
    elif y.shape == operator.shape:
        x = y
    else:
        x = np.full(operator.shape, -1.0)
    return as_uint8((x + 1) / 2)


def as_uint8(picture: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Intensities in [0, 1] as grey levels."""
    return np.round(np.clip(255 * picture, 0, 255)).astype(np.uint8)


def described(arrays: Mapping[str, np.ndarray]) -> dict[str, list[int]]:
    """The arrays' shapes, for records."""
    return {name: list(a.shape) for name, a in sorted(arrays.items())}
