"""The learned tokenizer: any text has tokens, and they say the text."""

import json
import pickle

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="needs the extra text")

from jaxdiff.data.word_pieces import ABSENT, BYTES, WordPieces, learn

CAPTIONS = [
    "Smiling cat with heart eyes",
    "grinning cat",
    "waving hand: dark skin tone",
    "waving hand: light skin tone",
    "cat, smiling",
] * 2


@pytest.fixture(scope="module")
def text():
    return learn(CAPTIONS, 320)


@pytest.mark.parametrize(
    "words",
    [
        "smiling cat",
        "waving hand: dark",
        "zebra!?",
        "naïve café",
        "猫と犬",
        "\U0001f44b\U0001f3ff 12",
        "a\x00b",
        "’tis",
    ],
)
def test_every_text_is_said_by_its_tokens(text, words):
    tokens = WordPieces(text, 64)([words])
    assert tokens.dtype == np.int32 and tokens.max() < 320 and (tokens[0] != ABSENT).any()
    assert WordPieces(text, 64).text(tokens[0]) == words


def test_case_and_spaces_do_not_count(text):
    tokens = WordPieces(text, 16)(["smiling cat", "  SMILING \n Cat ", "Ｓmiling cat"])
    assert (tokens == tokens[0]).all()


def test_words_that_occur_often_are_one_piece_wherever_they_stand(text):
    words = WordPieces(text, 8)
    cat, skin = words.pieces("cat"), words.pieces("skin")
    assert len(cat) == len(skin) == 1 and words.pieces("skin cat skin") == skin + cat + skin
    assert words(["cat skin"]).tolist() == [[*cat, *skin, *[ABSENT] * 6]]


def test_long_texts_are_cut_and_texts_of_no_words_are_absent(text):
    tokens = WordPieces(text, 3)(["cat " * 9, "", " \t"])
    assert (tokens[0] == tokens[0, 0]).all() and (tokens[1:] == ABSENT).all()
    assert WordPieces(text, 3)([]).shape == (0, 3)


def test_no_input_is_refused(text):
    broken = bytes([99, 97, 116, 0xFF]).decode("utf-8", "surrogateescape")
    assert WordPieces(text, 8).text(WordPieces(text, 8)([broken])[0]) == "cat?"
    assert learn([broken], 300)
    every = "".join(map(chr, range(0x300))) + "\ufffe\U0010ffff"
    assert WordPieces(text, 5000)([every]).min() == ABSENT


def test_the_order_of_the_captions_does_not_count(text):
    assert learn(CAPTIONS[::-1], 320) == text == learn(iter(CAPTIONS), 320)
    assert learn(CAPTIONS[:3], 320) != text


def test_sizes(text):
    assert BYTES < WordPieces(text, 4).vocab == len(json.loads(text)["model"]["vocab"]) <= 320
    assert WordPieces(learn(CAPTIONS, 270), 4).vocab == 270
    assert WordPieces(learn(CAPTIONS, BYTES), 4).vocab == BYTES == WordPieces(learn([], 999), 4).vocab
    with pytest.raises(ValueError, match=r"255 .*256 or more.*--vocab"):
        learn(CAPTIONS, 255)
    with pytest.raises(ValueError, match=r"length 0 .*1 or more"):
        WordPieces(text, 0)
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        WordPieces("{}", 4)


def test_it_goes_to_other_processes(text):
    words = WordPieces(text, 4)
    assert pickle.loads(pickle.dumps(words)) == words and hash(words) == hash(WordPieces(text, 4))
