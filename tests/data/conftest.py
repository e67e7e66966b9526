"""Small files that the tests of data/ share."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def png() -> Callable[[np.ndarray], bytes]:
    """An array uint8 [h, w] or [h, w, c] as the bytes of a PNG."""

    def encode(array: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "PNG")
        return buffer.getvalue()

    return encode


@pytest.fixture
def refused() -> Callable[..., str]:
    """Calls a function that must refuse its input, and returns the message, which must be one line."""

    def call(error: type[Exception], function: Callable[..., object], *args: object) -> str:
        with pytest.raises(error) as info:
            function(*args)
        message = str(info.value)
        assert "\n" not in message
        return message

    return call
