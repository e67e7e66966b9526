"""The fields of a published config.json, read one by one: what a network of ours cannot honour is refused by name."""

from collections.abc import Mapping

Json = Mapping[str, object]


def whole(json: Json, name: str, default: int) -> int:
    """A positive integer, `default` where the field is absent. Raises ValueError for anything else."""
    value = json.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"config.json: {name} = {value!r} is not allowed: a positive integer")
    return value


def real(json: Json, name: str, default: float) -> float:
    """A positive number, `default` where the field is absent or null. Raises ValueError for anything else."""
    value = json.get(name)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise ValueError(f"config.json: {name} = {value!r} is not allowed: a positive number")
    return float(value)


def flag(json: Json, name: str, default: bool) -> bool:
    """true or false, `default` where the field is absent or null. Raises ValueError for anything else."""
    value = json.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ValueError(f"config.json: {name} = {value!r} is not allowed: true or false")
    return value


def wholes(json: Json, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """Integers, `default` where the field is absent or null. Raises ValueError for anything else."""
    value = json.get(name)
    if value is None:
        return default
    if not isinstance(value, list | tuple) or not all(isinstance(item, int) for item in value):
        raise ValueError(f"config.json: {name} = {value!r} is not allowed: a list of integers")
    return tuple(value)


def check(json: Json, read: tuple[str, ...], only: Mapping[str, tuple[object, ...]]) -> None:
    """Raises ValueError for a field that is neither `read` nor one of `only` with a value that is allowed there.

    Names that begin with an underscore say who wrote the file.
    """
    for name, value in json.items():
        if name.startswith("_") or name in read:
            continue
        if name not in only:
            raise ValueError(f"config.json: {name} = {value!r} is not known to this kind of network")
        if value not in only[name]:
            allowed = " or ".join(map(repr, only[name]))
            raise ValueError(f"config.json: {name} = {value!r} is not supported, only {allowed}")


def doubled(json: Json, inputs: int) -> bool:
    """Whether `out_channels` is twice the number of inputs: a learned variance. Raises ValueError for other numbers."""
    value = json.get("out_channels")
    if value not in (None, inputs, 2 * inputs):
        raise ValueError(f"config.json: out_channels = {value!r} is not allowed: {inputs} or {2 * inputs}")
    return value == 2 * inputs
