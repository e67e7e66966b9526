"""Textual inversion at its smallest: one new word is learned, and nothing else changes."""

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_text import TEXT

import sample
import train
from jaxdiff.checkpoints import read_checkpoint
from jaxdiff.commands import lora
from jaxdiff.data.word_pieces import WordPieces, learn, with_word
from jaxdiff.pretrained import safetensors
from jaxdiff.training.restore import read_params

TABLE = ("network", "text_encoder", "tokens", "embedding")
WORD = ["--word.text", "<Toy>", "--word.like", "cat", "--steps", "4", "--save-every", "4"]


def test_a_word_is_one_token_wherever_it_stands_and_others_stay():
    json = learn(["a cat sat", "a cat ran"] * 3, 300)
    more, token = with_word(json, "<Toy>")
    before, after = WordPieces(json, 12), WordPieces(more, 12)
    assert token == before.vocab == after.vocab - 1
    a, cat = before.pieces("a"), before.pieces("cat")
    assert after.pieces("a <Toy> cat") == [*a, token, *cat]
    assert after.pieces("A  cat") == before.pieces("a cat")
    assert token not in after.pieces("<toy>")
    with pytest.raises(ValueError, match=r"--word\.text"):
        with_word(more, "<Toy>")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("word")
    pictures = folder / "pictures"
    pictures.mkdir()
    for i in range(3):
        Image.fromarray(np.full((8, 8, 3), (200, 40 * i, 30), np.uint8)).save(pictures / f"{i}.png")
    train.main([*TEXT, "--steps", "4", "--workdir", str(folder / "base")])
    own = ["--data.source", str(pictures), "--data.caption", "a <Toy>"]
    train.main([str(folder / "base"), *own, *WORD, "--workdir", str(folder / "run")])
    return folder


def leaf(tree, path):
    for name in path:
        tree = tree[name]
    return np.asarray(tree)


def test_only_the_new_row_differs(runs):
    base, run = (read_checkpoint(runs / name, None, None) for name in ("base", "run"))
    token = run.config.word.token
    old, new = leaf(base.params, TABLE), leaf(run.params, TABLE)
    kept = np.arange(len(old)) != token
    assert len(new) == run.config.network.text_encoder.vocabulary == max(len(old), token + 1)
    np.testing.assert_array_equal(new[: len(old)][kept], old[kept])
    stored = read_params(runs / "run", 4)
    assert [tuple(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(stored)] == [TABLE]
    # It began as the mean of what it is like, and has been learned since.
    like = WordPieces(base.tokenizer, 24).pieces("cat")
    change = np.abs(leaf(stored, TABLE) - old[like].mean(0))
    assert 0 < change.max() < 4.5 * 0.03  # four steps of Adam at this rate
    for path, value in jax.tree_util.tree_leaves_with_path(base.params):
        names = tuple(key.key for key in path)
        if names != TABLE:
            np.testing.assert_array_equal(value, leaf(run.params, names))


def test_the_word_can_be_said_and_is_written_for_others(runs, tmp_path):
    def images(name, prompt):
        out = tmp_path / "out"
        sample.main(
            [str(runs / "run"), "--out", str(out / name), "--num", "2", "--batch-size", "2", "--prompt", prompt]
        )
        return np.stack([np.asarray(Image.open(out / name / "images" / f"{i:06d}.png")) for i in range(2)])

    assert images("one", "a <Toy>").shape == (2, 8, 8, 3)
    lora.main([str(runs / "run"), str(tmp_path / "learned_embeds.safetensors"), "--ema", "none"])
    (name, vector), *rest = safetensors.read(tmp_path / "learned_embeds.safetensors").items()
    assert not rest and name == "<Toy>" and vector.shape == (1, 8)
    np.testing.assert_array_equal(vector[0], leaf(read_params(runs / "run", 4), TABLE))
