"""Moments: exact at any offset, the same in any grouping; and their files."""

import functools
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.evaluation.moments import (
    Gaussian,
    Statistics,
    across_hosts,
    empty,
    gaussian,
    load,
    merge,
    moments,
    pack,
    remove,
    save,
    unpack,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5000, 3)) @ RNG.normal(size=(3, 3)) + [1.0, -2.0, 0.5]


def close(a, b, tol=1e-12):
    return (
        a.n == b.n
        and np.allclose(a.mean, b.mean, rtol=tol, atol=tol)
        and np.allclose(a.scatter / max(a.n, 1), b.scatter / max(b.n, 1), rtol=tol, atol=tol)
    )


def test_mean_and_covariance_are_numpys():
    got = gaussian(moments(X))
    assert np.allclose(got.mean, X.mean(0), rtol=1e-13) and np.allclose(got.covariance, np.cov(X.T), rtol=1e-12)


def test_integers_are_exact_at_any_offset():
    # Whole numbers: the covariance is known in closed form, and 1e8 + k is exact even where its square is not.
    k = np.arange(4096.0)[:, None] * [[1, -1]]
    for offset in (0.0, 1e8, 1e12):
        got = gaussian(moments(k + offset))
        assert np.allclose(got.covariance, 4096 * 4097 / 12 * np.array([[1, -1], [-1, 1]]), rtol=1e-11)
        assert np.allclose(got.mean, offset + np.array([2047.5, -2047.5]), rtol=1e-15)


def test_a_large_offset_costs_no_digits_over_many_batches():
    small = X - X.mean(0)
    offset = 1e6
    parts = [moments((small + offset)[i : i + 7]) for i in range(0, 5000, 7)]
    got = gaussian(functools.reduce(merge, parts))
    # The sum itself rounds the numbers to 1e-10.
    assert np.allclose(got.covariance, np.cov(small.T), rtol=1e-8)


@pytest.mark.parametrize("cuts", [[1, 2, 3], [2500], [10, 4999], list(range(100, 5000, 100))])
def test_any_grouping_is_the_whole(cuts):
    parts = [moments(p) for p in np.split(X, cuts)]
    left = functools.reduce(merge, parts)
    right = functools.reduce(lambda a, b: merge(b, a), reversed(parts))

    def tree(ps):
        return ps[0] if len(ps) == 1 else merge(tree(ps[: len(ps) // 2]), tree(ps[len(ps) // 2 :]))

    for got in (left, right, tree(parts)):
        assert close(got, moments(X))


def test_the_empty_set_changes_nothing_and_what_was_added_can_be_removed():
    a, b = moments(X[:1999]), moments(X[1999:])
    assert merge(empty(3), a) is a and merge(a, empty(3)) is a and moments(X[:0]).n == 0
    assert close(remove(merge(a, b), a), b, 1e-10) and close(remove(merge(a, b), b), a, 1e-10)
    assert close(remove(a, empty(3)), a)
    with pytest.raises(ValueError, match="cannot be removed"):
        remove(a, a)


def test_float32_features_are_accumulated_in_float64():
    x = X.astype(np.float32)
    got = moments(x)
    assert got.scatter.dtype == got.mean.dtype == np.float64
    assert np.allclose(gaussian(got).covariance, np.cov(x.T.astype(np.float64)), rtol=1e-12)


def test_packed_moments_pass_through_jax_bit_for_bit():
    m = moments(X)
    got = unpack(np.asarray(jnp.asarray(pack(m))))
    assert got.n == m.n and np.array_equal(got.mean, m.mean) and np.array_equal(got.scatter, m.scatter)
    assert across_hosts(m) is m


def test_bad_features_are_refused():
    x = X.copy()
    x[3333, 1] = np.inf
    with pytest.raises(ValueError, match="feature 3333 is not finite"):
        moments(x)
    with pytest.raises(ValueError, match="at least 2"):
        gaussian(moments(X[:1]))
    with pytest.raises(ValueError, match="3 and of 2 numbers"):
        merge(moments(X), moments(X[:, :2]))


def test_a_file_comes_back_as_it_was(tmp_path):
    g, s = gaussian(moments(X)), gaussian(moments(X[:, :2]))
    whole = Statistics(g, s, 5000, "a network", "ab" * 32, "bicubic", "a set", "cd" * 32)
    for name, want in {"whole.npz": whole, "least.npz": Statistics(g)}.items():
        save(tmp_path / name, want)
        got = load(tmp_path / name)
        assert got._replace(pooled=None, spatial=None) == want._replace(pooled=None, spatial=None)
        for a, b in zip((got.pooled, got.spatial), (want.pooled, want.spatial), strict=True):
            assert (a is None and b is None) or all(np.array_equal(u, v) for u, v in zip(a, b, strict=True))
    save(tmp_path / "again.npz", whole)
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.npz", "least.npz", "whole.npz"]


def test_other_tools_files_are_read(tmp_path):
    mu, sigma = X.mean(0), np.cov(X.T)
    np.savez(tmp_path / "fid.npz", mu=mu, sigma=sigma)
    np.savez(
        tmp_path / "adm.npz", arr_0=np.zeros((2, 8, 8, 3), np.uint8), mu=mu, sigma=sigma, mu_s=mu[:2], sigma_s=np.eye(2)
    )
    fid, adm = load(tmp_path / "fid.npz"), load(tmp_path / "adm.npz")
    assert np.array_equal(fid.pooled.covariance, sigma) and fid.spatial is None and fid.n == 0 and fid.network == ""
    assert np.array_equal(adm.pooled.mean, mu) and np.array_equal(adm.spatial.covariance, np.eye(2))


def test_a_file_of_other_tools_reads_ours(tmp_path):
    save(tmp_path / "ours.npz", Statistics(gaussian(moments(X))))
    with np.load(tmp_path / "ours.npz") as file:
        assert file["mu"].dtype == file["sigma"].dtype == np.float64 and file["sigma"].shape == (3, 3)


@pytest.mark.parametrize(
    "arrays, says",
    [
        ({"mu": np.zeros(3)}, "holds no mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, "no mean and covariance"),
        ({"mu": np.zeros(2), "sigma": np.array([[1, 0.5], [0, 1]])}, "not symmetric"),
        ({"mu": np.zeros(2), "sigma": np.full((2, 2), np.nan)}, "not finite"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "mu_s": np.zeros(2)}, "mu_s and sigma_s"),
        ({"mu": np.array([print, print]), "sigma": np.eye(2)}, "no statistics file"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bad_files_are_refused(tmp_path, arrays, says):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=says):
        load(tmp_path / "bad.npz")


def test_what_is_no_npz_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("no")
    np.save(tmp_path / "array.npy", np.zeros(2))
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as file:
        file.writestr("mu.txt", "1 2 3")
    for name in ("text.npz", "array.npy", "zip.npz"):
        with pytest.raises(ValueError, match="is no statistics file"):
            load(tmp_path / name)
    with pytest.raises(ValueError, match=r"\.npz"):
        save(tmp_path / "statistics.bin", Statistics(Gaussian(np.zeros(1), np.eye(1))))
