"""Our reading of a spiece.model against SentencePiece itself, on a model that it has trained here."""

import random

import numpy as np
import pytest

sentencepiece = pytest.importorskip("sentencepiece", reason="needs the extra parity")

from jaxdiff.pretrained.t5 import open_tokenizer  # noqa: E402

WORDS = [
    "cat",
    "dog",
    "bicycle",
    "smiling",
    "heart",
    "eyes",
    "Ünïcode",
    "straße",
    "a",
    "the",
    "don't",
    "1234",
    "日本",
    "!",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A unigram model with SentencePiece's usual table of characters, and T5's numbers of pad, end and unknown."""
    folder, draw = tmp_path_factory.mktemp("spiece"), random.Random(0)
    sentences = (" ".join(draw.choices(WORDS, k=draw.randint(2, 9))) for _ in range(1000))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences,
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return folder


def test_tokens_are_sentencepieces_own(folder):
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    texts = [
        "a smiling cat with heart eyes",
        "  The  ﬁne ① straße\tdon't! ",
        "ÜNÏCODE １２３４ 日本 x",
        "",
        "½ ™ cafe\u0301 é",
    ]
    texts += ["cat\u200bdog\u00a0eyes", "\u3000dog"]
    found = open_tokenizer(folder, 60)(texts)
    for text, ids, mask in zip(texts, found.ids, found.mask, strict=True):
        assert ids[mask].tolist() == [*theirs.encode(text), theirs.eos_id()], text
        assert not np.any(ids[~mask])
