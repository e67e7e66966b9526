"""PSNR, SSIM and CLIP score: closed forms, and scikit-image where it is installed."""

import jax
import numpy as np
import pytest

from jaxdiff.evaluation.image_quality import clip_score, psnr, ssim

RNG = np.random.default_rng(0)
X = RNG.uniform(-1, 1, (3, 20, 16, 3)).astype(np.float32)
NOISY = np.clip(X + np.float32([0.02, 0.2, 1])[:, None, None, None] * RNG.normal(size=X.shape), -1, 1)
NOISY = NOISY.astype(np.float32)


def on_device(f, x, y, data_range=2.0):
    return np.asarray(jax.jit(f, static_argnums=2)(x, y, data_range))


def test_psnr_of_a_known_error():
    # A tenth of the range everywhere: 20 dB.
    assert np.allclose(on_device(psnr, 0 * X, 0 * X + np.float32(0.2)), 20, atol=1e-4)
    assert np.allclose(on_device(psnr, 0 * X, 0 * X + np.float32(0.1), 1.0), 20, atol=1e-4)
    assert np.all(np.isinf(on_device(psnr, X, X)))


def test_equal_images_have_similarity_one():
    assert np.allclose(on_device(ssim, X, X), 1, atol=1e-6)
    assert np.allclose(on_device(ssim, X, NOISY), on_device(ssim, NOISY, X), atol=1e-6)


def test_constant_images_differ_in_luminance_only():
    a, b, c1 = 0.5, 0.25, 1e-4
    got = on_device(ssim, np.full_like(X, a), np.full_like(X, b), 1.0)
    assert np.allclose(got, (2 * a * b + c1) / (a * a + b * b + c1), atol=1e-6)


def test_negatives_have_negative_similarity():
    # A chequerboard has no mean under the window, so only the covariance is left.
    board = np.float32((np.indices((20, 20)).sum(0) % 2) * 2 - 1)[None, :, :, None]
    assert np.all(on_device(ssim, board, -board) < -0.99)


@pytest.mark.parametrize("scale", [1.0, 127.5])
def test_scikit_image(scale):
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    x, y = scale * (X + 1), scale * (NOISY + 1)
    structural = [
        metrics.structural_similarity(
            np.float64(a),
            np.float64(b),
            data_range=2 * scale,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(x, y, strict=True)
    ]
    peak = [metrics.peak_signal_noise_ratio(a, b, data_range=2 * scale) for a, b in zip(x, y, strict=True)]
    assert np.allclose(on_device(ssim, x, y, 2 * scale), structural, atol=1e-5)
    assert np.allclose(on_device(psnr, x, y, 2 * scale), peak, rtol=1e-5)


def test_smooth_images_keep_their_digits():
    # Variances far below the squared means: (s^2 + C2) would be lost in float32 without the shift.
    skimage = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    x = np.float32(200 + 0.5 * RNG.normal(size=(1, 16, 16, 1)))
    y = np.float32(x + 0.5 * RNG.normal(size=x.shape))
    want = skimage.structural_similarity(
        np.float64(x[0, ..., 0]),
        np.float64(y[0, ..., 0]),
        data_range=16.0,
        gaussian_weights=True,
        use_sample_covariance=False,
    )
    assert 0.1 < want < 0.9 and np.allclose(on_device(ssim, x, y, 16.0), want, atol=2e-5)


def test_small_images_are_refused():
    with pytest.raises(ValueError, match="10x20"):
        on_device(ssim, X[:, :, :10], X[:, :, :10])


def test_clip_score_is_the_mean_cosine():
    images = np.float32([[3, 0], [1, 1], [1, 0]])
    texts = np.float32([[5, 0], [0, 2], [-1, 0]])
    # Cosines 1, 1/sqrt 2 and -1, which counts as 0.
    assert np.isclose(clip_score(images, texts), 100 * (1 + np.sqrt(0.5)) / 3)
    assert np.isclose(clip_score(images, images), 100) and clip_score(images, -images) == 0
    with pytest.raises(ValueError, match="embedding 0"):
        clip_score(0 * images, texts)
