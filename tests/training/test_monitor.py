"""Watching a run: divergence stops it with a diagnosis, and the loss by noise level is the mean that it says."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdiff.training.contact_sheet import contact_sheet, save_png
from jaxdiff.training.monitor import Diverged, Monitor
from jaxdiff.training.validate import make_validate


def metrics(loss: float, norm: float = 1.0):
    values = {"loss": loss, "grad_norm": norm, "grad_norm/network/conv_in": norm, "grad_norm/network/mid": 0.1}
    return {k: jnp.float32(v) for k, v in values.items()}


@pytest.mark.parametrize(("bad", "norm"), [(float("nan"), float("nan")), (0.4, float("inf")), (900.0, 1e4)])
def test_a_bad_loss_stops_with_a_diagnosis(tmp_path, bad, norm):
    monitor = Monitor(tmp_path, 0, 100, 8, every=1, quiet=True)
    for step in range(1, 6):
        monitor.push(step, metrics(0.5))
    with pytest.raises(Diverged) as caught:
        monitor.push(6, metrics(bad, norm))
    message = str(caught.value)
    assert "step 6" in message and "network/conv_in" in message and "--optim.learning-rate" in message
    assert "\n" not in message
    diagnosis = json.loads((tmp_path / "diagnosis.json").read_text())
    assert diagnosis["step"] == 6
    assert [h["mean_loss"] for h in diagnosis["loss_history"]][:5] == [0.5] * 5
    assert next(iter(diagnosis["grad_norm_by_module"])) == "network/conv_in"


def test_a_noisy_but_falling_loss_goes_on(tmp_path):
    monitor = Monitor(tmp_path, 0, 100, 8, every=2, quiet=True)
    for step in range(1, 41):
        monitor.push(step, metrics(2.0 / step + 0.1 * (step % 3)))
    monitor.check()
    assert not (tmp_path / "diagnosis.json").exists()


def test_bad_steps_are_found_before_a_save_between_two_looks(tmp_path):
    monitor = Monitor(tmp_path, 0, 100, 8, every=1000, quiet=True)
    monitor.push(1, metrics(float("nan")))
    with pytest.raises(Diverged):
        monitor.check()


def test_writes_scalars_pictures_and_validation(tmp_path):
    monitor = Monitor(tmp_path, 0, 4, 8, every=2)
    for step in range(1, 5):
        monitor.push(step, metrics(0.5))
    monitor.preview(4, np.zeros((3, 4, 4, 3), np.uint8))
    monitor.validation(4, jnp.array([2.0, -2.0]), np.array([0.1, 0.2]))
    monitor.close()
    assert list((tmp_path / "logs").iterdir())
    assert Image.open(tmp_path / "samples" / "step_0000004.png").size == (14, 14)
    assert json.loads((tmp_path / "validation.jsonl").read_text()) == {
        "step": 4,
        "logsnr": [2.0, -2.0],
        "loss": [0.1, 0.2],
    }


def test_contact_sheet_keeps_every_pixel(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (5, 4, 6, 1), dtype=np.uint8)
    sheet = contact_sheet(images, columns=3)
    assert sheet.shape == (2 * 6 + 2, 3 * 8 + 2, 1)
    np.testing.assert_array_equal(sheet[8:12, 10:16], images[4])
    save_png(tmp_path / "sheet.png", sheet)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "sheet.png")), sheet[..., 0])
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.png"]


def test_validation_is_the_mean_over_real_rows():
    def losses(params, key, raw, row, t):
        return t * raw["image"][:, 0, 0, 0].astype(jnp.float32) + 0 * row

    pages = [
        {"image": np.full((2, 1, 1, 1), v, np.uint8), "mask": np.array(m)}
        for v, m in ((1, [True, True]), (4, [True, False]))
    ]
    got = make_validate(losses)({}, jax.random.key(0), jnp.array([1.0, 10.0]), pages)
    np.testing.assert_allclose(got, [2.0, 20.0])
    with pytest.raises(ValueError, match=r"--data\.holdout"):
        make_validate(losses)({}, jax.random.key(0), jnp.array([1.0]), [])
