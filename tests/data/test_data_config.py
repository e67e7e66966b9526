import pytest

from jaxdiff.data import Data


@pytest.mark.parametrize(
    ("field", "value", "flag", "allowed"),
    [
        ("source", "", "--data.source", "path"),
        ("size", 0, "--data.size", "at least 1"),
        ("channels", 2, "--data.channels", "1 or 3"),
        ("split", "", "--data.split", "train"),
        ("holdout", 0.6, "--data.holdout", "[0, 0.5]"),
        ("holdout", -0.1, "--data.holdout", "[0, 0.5]"),
        ("augment", 1.5, "--data.augment", "[0, 1]"),
        ("workers", -1, "--data.workers", "at least 0"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_flag(field, value, flag, allowed, refused):
    fields = {"source": "emoji", "size": 32, field: value}
    message = refused(ValueError, lambda: Data(**fields))
    assert flag in message and allowed in message and repr(value) in message
