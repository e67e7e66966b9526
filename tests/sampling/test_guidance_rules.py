"""Rules of guidance, on the exact beliefs of two normals of different means and widths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from jaxdiff.core import gaussian, grids, paths
from jaxdiff.core.predictions import Flow, V
from jaxdiff.core.types import Estimate, Level
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.guidance import cfg, guided, pag, pair_of
from jaxdiff.sampling.guidance_rules import APG, CFG, CFGPlusPlus, CFGZeroStar, Interval, Rescale
from jaxdiff.sampling.heun import Heun
from jaxdiff.sampling.sample import image_keys, sample, trajectory

MAIN, REF = (0.5, 0.4), (-0.2, 0.9)
"""Mean and standard deviation of the data that each belief is exact for."""

NOISE = Level(jnp.float32(0.0), jnp.float32(1.0))
MIDDLE = Level(jnp.float32(0.6), jnp.float32(0.8))
OTHERS = {"flow": Level(jnp.float32(0.7), jnp.float32(0.3)), "exploding": Level(jnp.float32(1.0), jnp.float32(7.0))}
LEVELS = {"noise": NOISE, "preserving": MIDDLE, **OTHERS}

RULES = [CFG(), Rescale(0.7), APG(0.3, 1.5), CFGZeroStar(None)]
"""Those that keep x = alpha x0 + sigma eps, and for which a scale of 1 is none."""
EVERY = [*RULES, CFGPlusPlus()]


def name(value):
    return type(value).__name__


@pytest.fixture(scope="module")
def beliefs(closed_form):
    """level -> (main, ref, x, level), what a rule is given; main has a v."""
    main, ref = (closed_form.denoiser(closed_form.normal(*data)) for data in (MAIN, REF))

    def at(level):
        x = jax.random.normal(jax.random.key(0), (3, 2, 4, 1)) * jnp.hypot(level.alpha, level.sigma)
        return main(x, level, level)._replace(v=0.1 * x), ref(x, level, level), x, level

    return at


def close(got, want, atol=1e-5):
    np.testing.assert_allclose(got.x0, want.x0, atol=atol, rtol=1e-5)
    np.testing.assert_allclose(got.eps, want.eps, atol=atol, rtol=1e-5)


def dot(a, b):
    return jnp.sum(a * b, axis=(1, 2, 3))


@pytest.mark.parametrize("at", LEVELS)
@pytest.mark.parametrize("rule", RULES, ids=name)
def test_scale_1_is_main(rule, at, beliefs):
    main, ref, x, level = beliefs(LEVELS[at])
    close(rule(1.0)(main, ref, x, level), main)


@pytest.mark.parametrize("at", LEVELS)
@pytest.mark.parametrize("rule", [*RULES, CFGZeroStar(1.0)], ids=name)
def test_the_plane_is_kept(rule, at, beliefs):
    main, ref, x, level = beliefs(LEVELS[at])
    got = rule(3.0)(main, ref, x, level)
    np.testing.assert_allclose(gaussian.diffuse(level, got.x0, got.eps), x, atol=1e-5)
    assert jnp.abs(got.x0 - main.x0).max() > 0.05


@pytest.mark.parametrize("rule", EVERY, ids=name)
def test_one_program_for_every_scale_and_one_scale_for_each_image(rule, beliefs):
    main, ref, x, level = beliefs(MIDDLE)
    run = jax.jit(lambda scale: rule(scale)(main, ref, x, level))
    scales = jnp.array([0.0, 1.5, 4.0])
    together = rule(scales)(main, ref, x, level)
    for i, scale in enumerate(scales):
        close(jax.tree.map(lambda a, i=i: a[i], together), jax.tree.map(lambda a, i=i: a[i], run(scale)))
    assert run._cache_size() == 1
    assert jnp.array_equal(together.v, main.v)


@pytest.mark.parametrize("at", OTHERS)
def test_cfg_is_the_score_of_the_tilted_density(at, beliefs):
    # p_main^s p_ref^(1 - s) of the two marginals at this level, whatever their widths: autoguidance as well.
    main, ref, x, level = beliefs(OTHERS[at])

    def log_tilted(x):
        logs = [norm.logpdf(x, level.alpha * m, jnp.hypot(level.alpha * s, level.sigma)) for m, s in (MAIN, REF)]
        return jnp.sum(2.5 * logs[0] - 1.5 * logs[1])

    close(cfg(2.5)(main, ref, x, level), gaussian.from_eps(level, x, -level.sigma * jax.grad(log_tilted)(x)))


def test_autoguidance_ends_where_the_integral_says(closed_form):
    # Widths a (main) and b (a weaker model's), mean 0: dy/dr = r (s / (a^2 + r^2) + (1 - s) / (b^2 + r^2)) y.
    a, b, s, top = 0.5, 0.8, 2.0, 10.0
    main, weak = (closed_form.denoiser(closed_form.normal(0.0, width)) for width in (a, b))
    denoise = guided(pair_of(main, weak), cfg(s))
    levels = grids.Karras(0.01, top)(paths.Sigma(top), 40)
    z = jnp.linspace(-2, 2, 8).reshape(2, 2, 2, 1)
    x = jax.jit(lambda x: sample(image_keys(0, jnp.arange(2)), x, levels, denoise, Heun()))(top * z)
    shrunk = (a**2 / (a**2 + top**2)) ** (s / 2) * (b**2 / (b**2 + top**2)) ** ((1 - s) / 2)
    np.testing.assert_allclose(x, shrunk * top * z, rtol=0.01, atol=1e-4)
    assert jnp.std(x) < 0.7 * a * jnp.std(z)  # narrower than the data: towards what main does better


def test_perturbed_attention_counts_from_0(beliefs):
    main, ref, x, level = beliefs(MIDDLE)
    close(pag(0.0)(main, ref, x, level), main)
    np.testing.assert_allclose(pag(2.0)(main, ref, x, level).x0, main.x0 + 2 * (main.x0 - ref.x0), atol=1e-5)


@pytest.mark.parametrize("at", LEVELS)
@pytest.mark.parametrize("rule", [Rescale(0.0), APG(eta=1.0)], ids=name)
def test_cfg_is_a_special_case(rule, at, beliefs):
    close(rule(4.0)(*beliefs(LEVELS[at])), cfg(4.0)(*beliefs(LEVELS[at])), atol=1e-4)


@pytest.mark.parametrize("at", LEVELS)
def test_rescaled_velocities_have_the_spread_of_main(at, beliefs):
    main, ref, x, level = beliefs(LEVELS[at])

    def spread(belief):
        return jnp.std(gaussian.target(V(), level, belief.x0, belief.eps), axis=(1, 2, 3))

    full, half, none = (spread(Rescale(phi)(5.0)(main, ref, x, level)) for phi in (1.0, 0.5, 0.0))
    np.testing.assert_allclose(full, spread(main), rtol=1e-4)
    np.testing.assert_allclose(half, 0.5 * (full + none), rtol=1e-4)


def test_from_pure_noise_it_is_the_images_whose_spread_is_kept(beliefs):
    x = beliefs(NOISE)[2]
    main, ref = (gaussian.from_x0(NOISE, x, jax.random.normal(jax.random.key(k), x.shape)) for k in (1, 2))
    burnt, rescaled = (Rescale(phi)(5.0)(main, ref, x, NOISE).x0 for phi in (0.0, 1.0))
    np.testing.assert_allclose(rescaled.std((1, 2, 3)), main.x0.std((1, 2, 3)), rtol=1e-4)
    assert jnp.all(burnt.std((1, 2, 3)) > 2 * main.x0.std((1, 2, 3)))


def test_projected_guidance_is_orthogonal_and_bounded(beliefs):
    main, ref, x, level = beliefs(MIDDLE)
    push = APG(eta=0.0)(3.0)(main, ref, x, level).x0 - main.x0
    np.testing.assert_allclose(dot(push, main.x0), 0, atol=1e-4)
    assert jnp.all(dot(push, main.x0 - ref.x0) > 0.1)
    for radius in (0.2, 1e6):
        push = APG(eta=1.0, radius=radius)(3.0)(main, ref, x, level).x0 - main.x0
        free = jnp.sqrt(dot(main.x0 - ref.x0, main.x0 - ref.x0))
        np.testing.assert_allclose(jnp.sqrt(dot(push, push)), 2 * jnp.minimum(radius, free), rtol=1e-4)


def test_cfgpp_is_cfg_of_another_scale_in_a_ddim_step(beliefs):
    main, ref, x, cur = beliefs(MIDDLE)
    for nxt in (Level(jnp.float32(0.9), jnp.float32(0.2)), Level(jnp.float32(1.0), jnp.float32(0.0))):
        same = 0.6 / (1 - (nxt.sigma / nxt.alpha) / (cur.sigma / cur.alpha))
        got, want = (rule(main, ref, x, cur) for rule in (CFGPlusPlus()(0.6), cfg(same)))
        moved = [gaussian.diffuse(nxt, belief.x0, belief.eps) for belief in (got, want)]
        np.testing.assert_allclose(moved[0], moved[1], atol=1e-5)
    assert jnp.abs(gaussian.diffuse(cur, got.x0, got.eps) - x).max() > 0.05  # off the plane, on purpose


def test_the_reference_is_scaled_to_fit(beliefs):
    main, ref, x, level = beliefs(OTHERS["flow"])

    def velocity(belief):
        return gaussian.target(Flow(), level, belief.x0, belief.eps)

    parallel = gaussian.estimate(Flow(), level, x, 0.3 * velocity(main))
    close(CFGZeroStar(None)(7.0)(main, parallel, x, level), main)
    fitted = velocity(CFGZeroStar(None)(0.0)(main, ref, x, level))
    np.testing.assert_allclose(dot(velocity(main) - fitted, velocity(ref)), 0, atol=1e-3)
    lengths = dot(fitted, fitted) * dot(velocity(ref), velocity(ref))
    np.testing.assert_allclose(dot(fitted, velocity(ref)) ** 2, lengths, rtol=1e-5)


def test_the_first_steps_stand_still(closed_form):
    main, ref = (closed_form.denoiser(closed_form.normal(*data)) for data in (MAIN, REF))
    levels, x = grids.UniformT()(paths.Linear(), 4), jnp.linspace(-1, 1, 8).reshape(1, 2, 4, 1)

    def has_moved(rule):
        """Whether x is elsewhere, after each number of steps."""
        states = trajectory(image_keys(0, jnp.arange(1)), x, levels, guided(pair_of(main, ref), rule(2.0)), DDIM())
        return (jnp.abs(states - x).max((1, 2, 3, 4)) > 1e-5).tolist()

    assert has_moved(CFGZeroStar(None)) == [True, True, True, True]
    assert has_moved(CFGZeroStar()) == [False, True, True, True]
    assert has_moved(CFGZeroStar(0.99)) == [False, False, False, True]  # ratios inf, 3, 1 and 1/3


@pytest.mark.parametrize("rule", EVERY, ids=name)
def test_intervals(rule, beliefs):
    for level in LEVELS.values():
        args = beliefs(level)
        close(Interval()(rule(3.0))(*args), rule(3.0)(*args), atol=0)
        close(Interval(2.0, 2.0)(rule(3.0))(*args), args[0], atol=0)
        assert jnp.array_equal(Interval(2.0, 2.0)(rule(3.0))(*args).v, args[0].v)


def test_an_interval_is_of_sigma_over_alpha_open_below_and_closed_above():
    ratios = jnp.array([0.0, 0.5, 0.6, 2.0, 2.1, jnp.inf])
    inside = [False, False, True, True, False, False]
    for alpha in (1.0, 0.25):
        level = Level(jnp.full(6, alpha), alpha * ratios)
        assert Interval(0.5, 2.0).holds(level).tolist() == inside
    each = Level(jnp.array([1.0, 1.0]), jnp.array([0.1, 1.0]))
    main, ref = (Estimate(jnp.full((2, 1, 1, 1), v), jnp.full((2, 1, 1, 1), v)) for v in (1.0, 0.0))
    assert Interval(0.5, 2.0)(cfg(3.0))(main, ref, main.x0, each).x0.ravel().tolist() == [1.0, 3.0]


def test_outside_the_interval_the_reference_is_not_asked(closed_form):
    asked = []
    exact = closed_form.denoiser(closed_form.normal(*MAIN))

    def spy(what):
        def denoise(x, cur, nxt):
            jax.debug.callback(lambda ratio: asked.append((what, round(float(ratio), 2))), cur.sigma / cur.alpha)
            return exact(x, cur, nxt)

        return denoise

    levels = Level(jnp.ones(5), jnp.array([8.0, 2.0, 1.0, 0.25, 0.0]))
    denoise = Interval(0.5, 2.0).switch(spy("guided"), spy("main"))
    x = jnp.linspace(-8, 8, 8).reshape(1, 2, 4, 1)
    jax.block_until_ready(jax.jit(lambda x: sample(image_keys(0, jnp.arange(1)), x, levels, denoise, DDIM()))(x))
    jax.effects_barrier()
    assert sorted(asked) == [("guided", 1.0), ("guided", 2.0), ("main", 0.25), ("main", 8.0)]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Rescale(1.5), "phi = 1.5 .*--guidance.phi"),
        (lambda: APG(radius=0.0), "radius = 0.0 .*--guidance.radius"),
        (lambda: APG(eta=float("nan")), "eta = nan .*--guidance.eta"),
        (lambda: CFGZeroStar(0.0), "zero_from = 0.0 .*--guidance.zero-from"),
        (lambda: Interval(2.0, 1.0), r"\(2.0, 1.0\] .*--interval.low"),
    ],
)
def test_numbers_out_of_range_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
