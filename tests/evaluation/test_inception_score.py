"""The Inception score's closed forms."""

import numpy as np
import pytest

from jaxdiff.evaluation.inception_score import inception_score


def log(p):
    with np.errstate(divide="ignore"):
        return np.log(p)


@pytest.mark.parametrize("splits", [1, 5])
def test_sure_and_even_is_the_number_of_classes(splits):
    # One-hot: zero probabilities, logits of -inf. Split i holds each class once.
    one_hot = log(np.tile(np.eye(6), (5, 1)))
    score = inception_score(one_hot, splits=splits, seed=None)
    assert np.allclose(score, (6, 0), atol=1e-12)


def test_one_answer_is_one():
    p = np.tile([[0.2, 0.5, 0.3]], (20, 1))
    assert np.allclose(inception_score(log(p)), (1, 0), atol=1e-12)
    assert np.allclose(inception_score(log(np.eye(3)[np.zeros(20, int)])), (1, 0), atol=1e-12)


def test_unsure_answers():
    # Half of the images each: KL((q, 1-q) || (1/2, 1/2)) = log 2 - H(q).
    q = 0.9
    p = np.array([[q, 1 - q], [1 - q, q]] * 10)
    want = 2 * np.exp(q * np.log(q) + (1 - q) * np.log(1 - q))
    assert np.allclose(inception_score(log(p), splits=1), (want, 0), rtol=1e-12)


def test_logits_may_have_any_offset():
    logits = np.random.default_rng(0).normal(size=(40, 7)).astype(np.float32) * 4
    got = inception_score(np.float64(logits) + 1e4 * np.arange(40)[:, None])
    assert np.allclose(got, inception_score(logits), rtol=1e-6) and got.std > 0


def test_images_in_the_order_of_their_labels_are_shuffled():
    sure = log(np.repeat(np.eye(10), 50, axis=0))
    assert np.allclose(inception_score(sure, seed=None), (1, 0), atol=1e-12)
    assert inception_score(sure).mean > 8 and inception_score(sure) == inception_score(sure)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="splits = 10 is not allowed: 1 to 4"):
        inception_score(np.zeros((4, 3)))
    with pytest.raises(ValueError, match="image 2"):
        inception_score(np.where(np.arange(4)[:, None] == 2, np.nan, np.zeros((4, 3))), splits=1)
