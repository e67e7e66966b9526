"""Few pictures of one subject: the caption they all share, and pictures of its class that are learned beside them.

    loss = E[subject's pictures] + weight * E[pictures of its class]

The second term keeps what the model knew of the class (DreamBooth's prior preservation, arXiv:2208.12242, Sec. 3.2).
Here it is no term of its own: of each ``1 + weight`` pictures that are learned, `weight` are of the class, which has
the same gradient but for a factor 1 / (1 + weight).
"""

import math
from dataclasses import dataclass

from jaxdiff.data.source import Example, Source


@dataclass(frozen=True, eq=False)
class Told:
    """The pictures of `source`, each with the same caption in place of its own."""

    source: Source
    text: str

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.source.label_names

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        example = self.source[index].copy()
        example["text"] = self.text
        example.pop("keywords", None)
        return example


@dataclass(frozen=True, eq=False)
class Beside:
    """`first` and then `second`, each so often, in turn, that there are `weight` pictures of the second to one of the
    first. They have no classes: those of the two may be different ones.

    Every picture of the first comes equally often but for one, and every picture of both comes.
    """

    first: Source
    second: Source
    weight: float

    @property
    def name(self) -> str:
        return f"{self.first.name}, and {len(self.second)} images of {self.second.name} beside them"

    @property
    def label_names(self) -> tuple[str, ...]:
        return ()

    @property
    def firsts(self) -> int:
        """Places of the first."""
        return max(len(self.first), math.ceil(len(self.second) / self.weight))

    def __len__(self) -> int:
        return self.firsts + round(self.weight * self.firsts)

    def place(self, index: int) -> tuple[Source, int]:
        """The source and the place in it of a picture."""
        if index < self.firsts:
            return self.first, index % len(self.first)
        return self.second, (index - self.firsts) % len(self.second)

    def __getitem__(self, index: int) -> Example:
        source, place = self.place(index)
        example = source[place].copy()
        example.pop("label", None)
        return example
