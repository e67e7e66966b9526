"""Textual inversion: one new word in the vocabulary of a network's own text encoder, of which nothing else changes.

    embedding' = embedding, with the new word's vector in the row of its token

Source: arXiv:2208.01618, Sec. 3.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.core.types import Params

PATH = ("network", "text_encoder", "tokens", "embedding")
"""Where a run's table of words stands."""


@dataclasses.dataclass(frozen=True)
class NewWord:
    """A word that the tokenizer does not know yet."""

    text: str = ""
    """The word as captions and prompts will say it, such as <my-toy>; empty: none."""
    like: str = ""
    """What it is at first: the mean of the vectors of these words. Empty: of all words."""
    token: int = -1
    """Its number; train.py fills it in."""

    def __post_init__(self) -> None:
        if self.text != "".join(self.text.split()):
            raise ValueError(f"word {self.text!r} is not allowed: one word without spaces (--word.text)")


def first_vector(params: Params, like: Sequence[int]) -> Params:
    """The trained part at first, from the run's parameters and the tokens of the words that the new one is like."""
    table = _table(params)
    rows = table[jnp.asarray(like)] if like else table
    return trained(rows.mean(0))


def trained(vector: Float[Array, "d"]) -> Params:
    """The trained part, which holds this vector."""
    node: Params = vector
    for name in reversed(PATH):
        node = {name: node}
    return node


def vector_of(part: Params) -> Float[Array, "d"]:
    """The vector that the trained part holds."""
    return _table(part)


def with_word(params: Params, part: Params, token: int) -> Params:
    """The run's parameters, whose table of words has the vector in row `token`, with as many more rows as it needs."""
    table = _table(params)
    more = max(0, token + 1 - len(table))
    table = jnp.concatenate([table, jnp.zeros((more, table.shape[1]), table.dtype)]) if more else table
    return _replaced(params, PATH, table.at[token].set(vector_of(part)))


def _table(tree: Params) -> Array:
    for name in PATH:
        if name not in tree:
            raise ValueError("a new word needs a network with a text encoder of its own (--word.text)")
        tree = tree[name]
    return tree


def _replaced(tree: Params, path: tuple[str, ...], leaf: Array) -> Params:
    if not path:
        return leaf
    return {**tree, path[0]: _replaced(tree[path[0]], path[1:], leaf)}
