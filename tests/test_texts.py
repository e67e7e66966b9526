"""Readers of prompts: what they keep, what guidance leads away from, what goes beside a text."""

import dataclasses

import numpy as np
import pytest

from jaxdiff import texts
from jaxdiff.data import Latents
from jaxdiff.networks.flux import Flux
from jaxdiff.networks.pixart import PixArt
from jaxdiff.networks.unet import UNet
from jaxdiff.presets import preset
from jaxdiff.settings import Settings, with_settings
from jaxdiff.texts import Reader, in_parts, kept, told_beside


class Counted:
    """An encoder that notes what it reads: the length of a text as its one feature."""

    def __init__(self):
        self.read = []

    def __call__(self, said):
        self.read += said
        return {"text_pooled": np.array([[len(text)] for text in said], np.float32)}


def test_a_text_is_read_once_while_it_is_kept():
    encoder = Counted()
    encode = kept(encoder, 2)
    np.testing.assert_array_equal(encode(["a", "bb", "a"])["text_pooled"][:, 0], [1, 2, 1])
    encode(["bb"])
    assert encoder.read == ["a", "bb"]
    np.testing.assert_array_equal(encode(["a", "ccc"])["text_pooled"][:, 0], [1, 3])  # "bb" goes
    encode(["a", "ccc"])
    assert encoder.read == ["a", "bb", "ccc"]
    encode(["bb"])
    assert encoder.read == ["a", "bb", "ccc", "bb"]
    np.testing.assert_array_equal(encode(["a", "bb", "ccc", "dddd"])["text_pooled"][:, 0], [1, 2, 3, 4])


def no_ids(texts):
    raise AssertionError("conditions need no tokens")


def test_many_texts_are_read_in_parts_of_one_size():
    encoder = Counted()
    said = ["a" * i for i in range(1, 6)]
    np.testing.assert_array_equal(in_parts(encoder, 2)(said)["text_pooled"][:, 0], [1, 2, 3, 4, 5])
    assert encoder.read == [*said, ""]  # the last part is filled up
    in_parts(encoder, 9)(["b"])
    assert encoder.read[6:] == ["b"]


def test_what_guidance_leads_away_from():
    beside = {"size": np.arange(6, dtype=np.float32)}
    none, empty = (Reader(Counted(), "", no_ids, text, beside) for text in (None, ""))
    assert none.away(None, 2).keys() == {"size"} and none.away("", 2).keys() == {"size", "text_pooled"}
    np.testing.assert_array_equal(empty.away(None, 2)["text_pooled"], [[0], [0]])
    np.testing.assert_array_equal(empty.away("cat", 3)["text_pooled"], [[3]] * 3)
    np.testing.assert_array_equal(empty.conditions(["a", "bb"])["size"], [np.arange(6)] * 2)


def config_of(network, **data):
    config = preset("emoji")
    return dataclasses.replace(config, network=network, data=dataclasses.replace(config.data, size=16, **data))


def test_what_networks_are_told_beside_a_text():
    latents = Latents("kl", ("",), 8, (0.0,), (1.0,))
    xl = dataclasses.replace(config_of(UNet(size_features=8)), latents=latents)
    np.testing.assert_array_equal(told_beside(xl)["size"], [128, 128, 0, 0, 128, 128])
    np.testing.assert_array_equal(told_beside(config_of(PixArt(size_condition=True)))["size"], [16, 16, 0, 0, 16, 16])
    for network in (UNet(), PixArt(), Flux()):
        assert told_beside(config_of(network)) == {}
    dev = config_of(Flux(guidance=True))
    assert told_beside(dev)["guidance_scale"] == 3.5
    assert told_beside(with_settings(dev, Settings(distilled_scale=2.0)))["guidance_scale"] == 2


def test_only_distilled_networks_are_told_a_strength():
    for network in (UNet(), Flux()):
        with pytest.raises(ValueError, match=r"distilled_scale = 2\.0 .*--distilled-scale"):
            with_settings(config_of(network), Settings(distilled_scale=2.0))


def test_a_prompt_is_read_in_parts_by_clip_alone():
    with pytest.raises(ValueError, match=r"text_parts = 2 .*--text-parts"):
        with_settings(config_of(UNet()), Settings(text_parts=2))


def test_other_readers_are_refused():
    for text in ("published", "published=", "clip=x"):
        with pytest.raises(ValueError, match="words, minilm, minilm=FILE or published=FOLDER"):
            texts.open_reader(dataclasses.replace(preset("emoji"), text=text), "")
