"""Names of published tensors and of our parameters, in one table that is read from either side.

theirs -> ours    `rules`, for `rename`; then `join` and `fill` as in `vit.py` and `weights.py`
ours -> theirs    `dump`, the exact inverse: stacks apart, query, key and value apart, PyTorch's layout
"""

import re
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from jaxdiff.pretrained.vit import Rules
from jaxdiff.pretrained.weights import Where, torch_name

Pairs = tuple[tuple[str, str], ...]
"""(theirs, ours), parts of names as they are written: the first part of a name, or, with a dot before it, any part."""


def rules(pairs: Pairs) -> Rules:
    """From their names to ours."""
    return tuple((_pattern(theirs), ours) for theirs, ours in pairs)


def dump(params: Mapping[str, object], pairs: Pairs) -> dict[str, np.ndarray]:
    """The parameters as tensors of a PyTorch file: what `rename` by these pairs, `join` and `fill` were given.

    The arrays are views of the parameters, and need not be contiguous.
    """
    tensors = {}
    for where, array in _apart(params):
        name = torch_name(where)
        for theirs, ours in reversed(pairs):
            name = re.sub(_pattern(ours), theirs, name)
        tensors[name] = array
    return tensors


def _pattern(part: str) -> str:
    return re.escape(part) if part.startswith(".") else f"^{re.escape(part)}"


def _apart(params: Mapping[str, object]) -> Iterator[tuple[Where, np.ndarray]]:
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        where, array = tuple(str(key.key) for key in path), np.asarray(leaf)
        if "blocks" in where:
            at = where.index("blocks") + 1
            layers = [((*where[:at], str(i), *where[at:]), layer) for i, layer in enumerate(array)]
        else:
            layers = [(where, array)]
        for name, layer in layers:
            if name[-1] == "kernel":
                layer = np.moveaxis(layer, (-1, -2), (0, 1))
            if name[-2:-1] == ("qkv",):
                parts = zip("qkv", np.split(layer, 3), strict=True)
                yield from (((*name[:-2], letter, name[-1]), part) for letter, part in parts)
            else:
                yield name, layer
