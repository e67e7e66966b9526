"""Texts as tokens: what is cut, and T5's pieces from a file of SentencePiece."""

import struct

import numpy as np
import pytest

from jaxdiff.pretrained import clip_text, sentencepiece, t5
from jaxdiff.pretrained.tokens import rows_by

tokenizers = pytest.importorskip("tokenizers")

PIECES = ["<pad>", "</s>", "<unk>", "▁", "▁a", "▁cat", "c", "a", "t", "s"]
KINDS = {"<pad>": 3, "</s>": 3, "<unk>": 2}


def field(number, value):
    """A field of a protocol buffer: a whole number, a float32, or bytes."""
    if isinstance(value, int):
        return bytes([number << 3]) + varint(value)
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    return bytes([number << 3 | 2]) + varint(len(value)) + value


def varint(value):
    return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])


def model(kind=1):
    """A unigram model as SentencePiece writes it: the more letters, the better."""
    pieces = [field(1, field(1, p.encode()) + field(2, float(len(p) - 9)) + field(3, KINDS.get(p, 1))) for p in PIECES]
    return b"".join(pieces) + field(2, field(3, kind) + field(2, b"x" * 300)) + field(3, field(1, b"identity"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "spiece.model").write_bytes(model())
    return tmp_path


def test_pieces_of_sentencepiece(folder):
    found = t5.open_tokenizer(folder, 6)(["a  cat", "", "cats</s>", "a cat a cat a cat", "dog"])
    assert found.ids[:3].tolist() == [[4, 5, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0], [5, 9, 1, 1, 0, 0]]
    assert found.ids[3].tolist() == [4, 5, 4, 5, 4, 1] and found.cut == ("", "", "", "cat", "")
    assert found.ids[4, :2].tolist() == [3, 2]  # signs that it does not know are one
    np.testing.assert_array_equal(found.mask.sum(1), [3, 1, 4, 6, 3])


def test_gaps_come_after_the_pieces(folder):
    tokenizer = sentencepiece.read(folder / "spiece.model", extra=3)
    assert tokenizer.encode("a<extra_id_2>cat<extra_id_0>").ids == [4, 10, 5, 12, 1]


@pytest.mark.parametrize(
    ("data", "says"), [(model()[:-3], "is cut off"), (model(2), "no unigram model"), (b"{}", "is no protocol buffer")]
)
def test_other_files_are_refused(data, says, folder):
    (folder / "spiece.model").write_bytes(data)
    with pytest.raises(ValueError, match=says) as refused:
        t5.open_tokenizer(folder, 6)
    assert "spiece.model" in str(refused.value) and "\n" not in str(refused.value)


def test_a_folder_without_a_tokenizer(tmp_path):
    for module in (t5, clip_text):
        with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
            module.open_tokenizer(tmp_path, 6)


def test_what_is_cut_is_told_in_the_texts_own_words():
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[END]", "a", "cat"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A [END]", special_tokens=[("[END]", 2)]
    )
    tokenizer.enable_truncation(max_length=1)  # what a file says of lengths is not heeded
    tokenizer.enable_padding(length=9)
    found = rows_by(tokenizer, 3, 0)(["A cat", "A  cat named Tom's", "Dog"])
    assert found.ids.tolist() == [[3, 4, 2], [3, 4, 2], [1, 2, 0]]
    assert found.cut == ("", "named Tom's", "")
