"""Pictures and masks that commands are given: what is read without loss, how it is fitted, what is refused."""

import re

import numpy as np
import pytest
from etils import epath
from PIL import Image

from jaxdiff import inputs
from jaxdiff.data.images import fit
from jaxdiff.inputs import Given, Margins, prepare, read_masks, read_pictures

RNG = np.random.default_rng(0)


def save(path, array, mode=None):
    Image.fromarray(np.asarray(array), mode).save(path)
    return epath.Path(path)


def given(h, w, c=3):
    return Given("picture.png", "", RNG.integers(0, 256, (h, w, c), dtype=np.uint8))


def test_pictures_are_read_without_loss(tmp_path):
    colour = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    (found,) = read_pictures(save(tmp_path / "colour.png", colour), 3, "--image")
    np.testing.assert_array_equal(found.image, colour)
    (found,) = read_pictures(save(tmp_path / "grey.png", colour[..., 0]), 3, "--image")
    np.testing.assert_array_equal(found.image, colour[..., :1].repeat(3, 2))
    (found,) = read_pictures(save(tmp_path / "grey_as_rgb.png", colour[..., :1].repeat(3, 2)), 1, "--image")
    np.testing.assert_array_equal(found.image, colour[..., :1])
    clear = np.dstack([colour, np.full((5, 7), 255, np.uint8)])
    clear[0, 0] = (9, 9, 9, 0)
    (found,) = read_pictures(save(tmp_path / "clear.png", clear), 3, "--image")
    assert found.image[0, 0].tolist() == [255, 255, 255] and np.array_equal(found.image[1:], colour[1:])
    deep = np.array([[0, 128, 257, 65535]], np.uint16)
    (found,) = read_pictures(save(tmp_path / "deep.png", deep), 1, "--image")
    assert found.image[..., 0].tolist() == [[0, 0, 1, 255]]


def test_a_folder_is_its_pictures_in_the_order_of_their_names(tmp_path):
    for name, value in (("b.png", 2), ("a.png", 1), ("c.txt", 0)):
        if name.endswith("png"):
            save(tmp_path / name, np.full((2, 2, 3), value, np.uint8))
        else:
            (tmp_path / name).write_text("no picture")
    assert [g.image[0, 0, 0] for g in read_pictures(tmp_path, 3, "--image")] == [1, 2]


def deep_colours(path):
    import struct
    import zlib

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + bytes(2 * 2 * 3) for _ in range(2))
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    assert Image.open(path).size == (2, 2)
    return path


def test_what_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    cut = save(tmp_path / "whole.png", np.zeros((40, 40, 3), np.uint8)).read_bytes()[:60]
    (tmp_path / "cut.png").write_bytes(cut)
    save(tmp_path / "colour.png", np.eye(3, dtype=np.uint8)[None] * 200)
    for name, channels, words in (
        ("missing.png", 3, "there is no file"),
        ("empty", 3, "has no images"),
        ("broken.png", 3, "not an image"),
        ("cut.png", 3, "cannot be read"),
        ("colour.png", 1, "has colours"),
        (deep_colours(tmp_path / "deep.png").name, 3, "16 bits"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=words) as error:
            read_pictures(tmp_path / name, channels, "--image")
        line = str(error.value)
        assert "\n" not in line and name in line and "(--image)" in line and "--data" not in line


def test_masks(tmp_path):
    pictures = [given(4, 6)._replace(file=f"{name}.png") for name in ("one", "two")]
    white = np.zeros((4, 6), np.uint8)
    white[1, 2], white[2, 3], white[0, 0] = 255, 128, 127
    one = read_masks(save(tmp_path / "mask.png", white), pictures)
    assert len(one) == 2 and np.argwhere(one[1]).tolist() == [[1, 2], [2, 3]]
    (tmp_path / "masks").mkdir()
    save(tmp_path / "masks" / "one.png", white)
    with pytest.raises(FileNotFoundError, match=r"no mask named two \(--mask\)"):
        read_masks(tmp_path / "masks", pictures)
    save(tmp_path / "masks" / "two.jpg", 255 - 0 * white)
    assert [m.sum() for m in read_masks(tmp_path / "masks", pictures)] == [2, 24]
    for array, words in ((white.T, r"4 x 6 pixels and the picture one\.png 6 x 4"), (0 * white, "has no white")):
        with pytest.raises(ValueError, match=rf"{words}.*\(--mask\)"):
            read_masks(save(tmp_path / "bad.png", array), pictures)
    with pytest.raises(FileNotFoundError, match="--mask"):
        read_masks(tmp_path / "none.png", pictures)


def test_fitting():
    same = given(8, 8)
    for how in ("none", "crop", "pad", "squeeze", "windows"):
        np.testing.assert_array_equal(prepare(same, None, 8, how).image, same.image)
    for h, w in ((8, 13), (30, 17), (5, 5)):
        picture = given(h, w)
        np.testing.assert_array_equal(prepare(picture, None, 8, "crop").image, fit(picture.image, 8, "center"))
        np.testing.assert_array_equal(prepare(picture, None, 8, "squeeze").image, fit(picture.image, 8, "none"))
    padded = prepare(Given("", "", np.zeros((4, 16, 3), np.uint8)), None, 8, "pad").image
    assert padded.shape == (8, 8, 3) and np.all(padded[3:5] == 0) and np.all(padded[:3] == 255)
    wide = given(9, 20)
    np.testing.assert_array_equal(prepare(wide, None, 8, "windows").image, wide.image)


def test_masks_are_fitted_with_their_pictures():
    mask = np.zeros((16, 32), bool)
    mask[:8, :24] = True
    assert np.array_equal(prepare(given(16, 32), mask, 8, "crop").mask, np.arange(8)[:, None] + np.zeros(8) < 4)
    squeezed = prepare(given(16, 32), mask, 8, "squeeze").mask
    assert np.array_equal(np.argwhere(squeezed).max(0), [3, 5])
    padded = prepare(given(16, 32), mask, 8, "pad").mask
    assert padded.sum() == 2 * 6 and not padded[:2].any() and not padded[6:].any()
    corner = np.zeros((16, 32), bool)
    corner[:, :4] = True
    with pytest.raises(ValueError, match=r"nothing white is left.*--mask"):
        prepare(given(16, 32), corner, 8, "crop")


def test_margins_are_made_anew():
    picture = given(4, 5)
    image, mask = prepare(picture, None, 8, margins=Margins(2, 1, 1, 3))
    np.testing.assert_array_equal(image[1:5, 2:7], picture.image)
    assert not mask[1:5, 2:7].any() and mask.sum() == 64 - 20
    np.testing.assert_array_equal(image[0, 2:7], picture.image[0])  # the edge, drawn out
    given_too = np.zeros((4, 5), bool)
    given_too[0, 0] = True
    assert prepare(picture, given_too, 8, margins=Margins(2, 1, 1, 3)).mask.sum() == 64 - 19
    larger = prepare(given(20, 40), None, 8, "crop", Margins(4, 0, 0, 0))
    assert larger.image.shape == (8, 8, 3) and np.array_equal(larger.mask, np.zeros((8, 1)) + np.arange(8) < 4)
    wide = prepare(given(8, 8), None, 8, "windows", Margins(0, 0, 6, 0))
    assert wide.image.shape == (8, 14, 3) and wide.mask.sum() == 48


@pytest.mark.parametrize(
    ("size", "options", "words"),
    [
        ((8, 9), {}, "9 x 8 pixels and must be 8 x 8 here: --fit crop"),
        ((8, 8), {"margins": Margins(1, 0, 0, 0)}, "must be 7 x 8 here"),
        ((8, 8), {"margins": Margins(-1, 0, 0, 0)}, "at least 0 (--outpaint)"),
        ((8, 8), {"margins": Margins(4, 0, 4, 0), "fit": "crop"}, "leave nothing of 8 x 8 pixels (--outpaint)"),
        ((7, 20), {"fit": "windows"}, "too small for windows of 8 x 8"),
    ],
)
def test_what_does_not_fit_is_refused(size, options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        prepare(given(*size), None, 8, **options)


def test_composites_and_masks_of_latents():
    mask = np.zeros((2, 8, 8), bool)
    mask[0, 3, 5] = mask[1, :4] = True
    small = inputs.shrunk(mask, 4)
    assert small[0].tolist() == [[False, True], [False, False]] and small[1].tolist() == [[True, True], [False, False]]
    made, image = (RNG.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8) for _ in range(2))
    whole = inputs.composited(made, image, mask)
    assert np.array_equal(whole[mask], made[mask]) and np.array_equal(whole[~mask], image[~mask])
    assert inputs.grey(mask[0], 3)[3, 5].tolist() == [255, 255, 255] and inputs.grey(mask[0], 3).sum() == 765
