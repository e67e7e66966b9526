"""The examples: tiny runs of the mode-coverage comparison, and the laws that make it a fair one."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.mode_coverage import figure, gan, gaussians, race, stacked_mnist

POINTS = race.Plan(workdir=None, every=3, batch=16, gan_batch=8, seeds=(0,), looks=2, small=50, samples=60, hidden=8)  # pyright: ignore[reportArgumentType]
IMAGES = dataclasses.replace(POINTS, every=2, batch=4, gan_batch=4, seeds=(0,), looks=1, small=4, samples=6, hidden=16)


def read(path):
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{path} holds {name}: not JSON"))


def test_a_comparison_is_written_and_goes_on_as_if_it_had_never_stopped(tmp_path):
    plan = dataclasses.replace(POINTS, workdir=tmp_path / "straight")
    gaussians.main(plan)
    straight = read(plan.workdir / "gaussians.json")
    assert [(run["method"], run["seed"]) for run in straight["runs"]] == [("diffusion", 0), ("gan", 0)]
    other = dataclasses.replace(plan, workdir=tmp_path / "stopped")
    gaussians.main(dataclasses.replace(other, looks=1))
    gaussians.main(other)
    for before, after in zip(straight["runs"], read(other.workdir / "gaussians.json")["runs"], strict=True):
        assert len(before["curve"]) == 2 and before["curve"] == after["curve"] and before["final"] == after["final"]
    figure.main(plan.workdir, tmp_path / "docs" / "figure")
    assert list(read(tmp_path / "docs" / "figure.json")) == ["gaussians"]
    assert (tmp_path / "docs" / "figure.png").stat().st_size > 1000


class OneConvolution(nn.Module):
    """In place of the U-Net, which takes long to compile (the test of the parameters traces the real one)."""

    @nn.compact
    def __call__(self, x, noise, cond, train=False):
        return nn.Conv(3, (3, 3))(x + noise[:, None, None, None])


def test_stacked_digits_from_a_file(tmp_path, monkeypatch):
    """Digits of one grey each: the classifier is trained, both methods run, and all that is written is JSON."""
    monkeypatch.setattr(stacked_mnist, "UNet", lambda **_: OneConvolution())
    labels = np.arange(200, dtype=np.uint8) % 10
    images = np.broadcast_to(25 * labels[:, None, None], (200, 28, 28)).astype(np.uint8)
    names = ("train_images", "train_labels", "test_images", "test_labels")
    np.savez(tmp_path / "digits.npz", **dict(zip(names, (images, labels, images, labels), strict=True)))
    plan = dataclasses.replace(IMAGES, workdir=tmp_path / "runs")
    stacked_mnist.main(plan, tmp_path / "digits.npz", classifier_steps=250)
    record = read(plan.workdir / "stacked_mnist.json")
    assert record["classifier_accuracy"] > 0.5
    assert record["real"]["modes"] > 1
    for run in record["runs"]:
        assert run["final"]["modes"] >= 1 and np.isfinite(run["curve"][0]["kl"])


@pytest.mark.parametrize("task", [gaussians, stacked_mnist], ids=["gaussians", "stacked_mnist"])
def test_both_methods_have_as_many_parameters_and_pay_as_many_operations(task):
    def examples(key, b):
        return jnp.zeros((b, *task.SHAPE))

    plan = task.PLAN
    players = task.players(plan)
    costs = [race.step_flops(player, examples) for player in players]
    spent = [race.steps_for(plan.every * costs[0], cost) * cost for cost in costs]
    assert spent[1] == pytest.approx(spent[0], rel=0.05)
    sizes = [race.count(of(jax.eval_shape(p.init, 0))) for p in players for of in p.parts.values()]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05) and sizes[2] == pytest.approx(sizes[0], rel=0.1)


def test_real_points_score_as_the_perfect_generator():
    x = np.asarray(gaussians.examples(jax.random.key(0), 20_000))
    score = gaussians.score(x)
    assert score["modes"] == 25 and score["kl"] == pytest.approx(24 / 40_000, rel=1.0)
    assert score["high_quality"] == pytest.approx(1 - np.exp(-4.5), abs=0.004)
    assert gaussians.score(x + 0.25)["high_quality"] < 0.01
    assert gaussians.score(gaussians.centres()[3:7] / gaussians.SCALE)["modes"] == 4


def test_perfect_is_the_known_bias():
    assert race.perfect(1000, 10_000)["kl"] == pytest.approx(999 / 20_000, rel=0.05)
    assert race.perfect(1000, 1000)["modes"] == pytest.approx(1000 * (1 - 0.999**1000), rel=0.01)


def test_doubling_is_a_transposed_convolution():
    """One lit pixel (i, j) lights rows 2i - 1 ... 2i + 2 and columns likewise, with each kernel number once."""
    x = jnp.zeros((1, 5, 6, 1)).at[0, 2, 3, 0].set(1.0)
    layer = gan.Double(1)
    params = layer.init(jax.random.key(0), x)
    out = np.asarray(layer.apply(params, x))[0, ..., 0]
    assert out.shape == (10, 12)
    lit = np.argwhere(out)
    assert lit.min(0).tolist() == [3, 5] and lit.max(0).tolist() == [6, 8]
    kernel = np.asarray(params["params"]["Dense_0"]["kernel"])
    np.testing.assert_allclose(np.sort(out[3:7, 5:9].ravel()), np.sort(kernel.ravel()), rtol=1e-6)
