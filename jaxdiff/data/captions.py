"""Captions as conditions: what a text encoder says of every caption of a set, made once and looked up.

A picture may have several wordings of its caption, of which training takes one at random each time it sees the picture.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Shaped

from jaxdiff.data.files import FileSource
from jaxdiff.data.source import ArraySource, Example, Source, Subset
from jaxdiff.data.subject import Beside, Told

Encode = Callable[[Sequence[str]], Mapping[str, np.ndarray]]
"""texts -> the leaves that condition a network, each with one row a text."""


@dataclass(frozen=True, eq=False)
class Captioned:
    """`source`, whose pictures come with ``text_rows``: the places in `table` of the wordings of their captions."""

    source: Source
    rows: Int32[np.ndarray, "n k"]
    table: Mapping[str, Shaped[np.ndarray, "m ..."]]

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
        example["text_rows"] = self.rows[index]
        return example


def captioned(source: Source, encode: Encode, keywords: bool) -> Captioned:
    """The source with its captions encoded, each different text once; `keywords` as in `Data`.

    Raises: ValueError where a picture has no caption.
    """
    found = [wordings(*caption(source, i), keywords) for i in range(len(source))]
    if not all(words[0] for words in found):
        raise ValueError(f"{source.name} has pictures without a caption: --no-data.text, or another --data.source")
    place = {text: i for i, text in enumerate(dict.fromkeys(text for words in found for text in words))}
    rows = np.array([[place[text] for text in words] for words in found], np.int32)
    return Captioned(source, rows, encode(list(place)))


def wordings(text: str, keywords: Sequence[str], rich: bool) -> tuple[str, str, str, str]:
    """Four ways to say what a picture shows, of which one is taken each time.

    Plain: the caption. Rich: half of the time the caption, else the caption with the keywords, or they alone.
    """
    if not (rich and keywords):
        return text, text, text, text
    words = ", ".join(keywords)
    return text, text, f"{text}, {words}", words


def caption(source: Source, index: int) -> tuple[str, Sequence[str]]:
    """(caption, keywords) of a picture, "" and () where it has none; without decoding the picture where that can be."""
    match source:
        case Subset():
            return caption(source.source, int(source.indices[index]))
        case Told():
            return source.text, ()
        case Beside():
            return caption(*source.place(index))
        case ArraySource():
            return (source.text[index] if source.text else ""), ()
        case FileSource():
            return (source.text[index] if source.text else ""), (source.keywords[index] if source.keywords else ())
        case _:
            example = source[index]
            return example.get("text", ""), example.get("keywords", ())
