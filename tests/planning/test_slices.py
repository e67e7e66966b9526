"""Slices by name, the roofline, the search."""

import pytest

from jaxdiff.planning.chips import CHIPS, parse_slice
from jaxdiff.planning.roofline import roofline
from jaxdiff.planning.search import largest


@pytest.mark.parametrize(
    ("name", "same", "chips"),
    [
        ("v5e-8", "v5e:2x4", 8),
        ("v5e-256", "v5e:16x16", 256),
        ("v6e-256", "v6e:16x16", 256),
        ("v5p-128", "v5p:4x4x4", 64),  # two TensorCores a chip
        ("v4-16", "v4:2x2x2", 8),
    ],
)
def test_names_and_shapes_agree(name, same, chips):
    slice_ = parse_slice(name)
    assert slice_ == parse_slice(same) and slice_.chips == chips and slice_.name == same


@pytest.mark.parametrize(
    "text", ["v5e", "v5x-8", "v5e:2x2x2", "v5p:4x4", "v5e-7", "v5p-2", "v5e:0x4", "v5e:2xa", "v5e-"]
)
def test_unknown_slices_are_refused_in_one_line(text):
    with pytest.raises(ValueError, match=r"allowed are .*--topology") as error:
        parse_slice(text)
    assert repr(text) in str(error.value) and "\n" not in str(error.value)


def test_links():
    v5e, v5p = CHIPS["v5e"], CHIPS["v5p"]
    assert parse_slice("v5e-256").interconnect == 4 * v5e.link  # rings in both directions
    assert parse_slice("v5e-8").interconnect == 2 * v5e.link  # lines
    assert parse_slice("v5e-1").interconnect == 0
    assert parse_slice("v5p-128").interconnect == 6 * v5p.link


def test_roofline_names_the_longest():
    slice_ = parse_slice("v5e-8")
    line = roofline(slice_, 8 * 197e12, 819e9 / 2, 2 * 100e9)
    assert line == (1.0, 0.5, 2.0) and line.seconds == 2.0 and line.bound == "interconnect"
    assert roofline(parse_slice("v5e-1"), 197e12, 0.0, 0.0).bound == "compute"


@pytest.mark.parametrize("limit", [0, 7, 8, 9, 100, 259, 260, 1000, 5000])
@pytest.mark.parametrize("start", [1, 8, 200, 9999])
def test_search_finds_the_largest_multiple_and_asks_nothing_twice(limit, start):
    asked = []

    def fits(n):
        asked.append(n)
        return n <= limit

    assert largest(fits, 4, start, 1024) == min(limit, 1024) // 4 * 4
    assert len(set(asked)) == len(asked) <= 20 and all(n % 4 == 0 and 0 < n <= 1024 for n in asked)
