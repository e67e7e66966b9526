"""Watching a run: progress bar, TensorBoard, and the check that the loss is still a number."""

import json
import logging
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from etils import epath
from jaxtyping import Array, Float, UInt8
from tensorboardX import SummaryWriter
from tqdm import tqdm

from jaxdiff.training.contact_sheet import contact_sheet, save_png
from jaxdiff.training.workdir import append_line, write_json

log = logging.getLogger(__name__)

HISTORY = 20
"""Means of the loss that a diagnosis shows."""
AHEAD = 2
"""Steps that may wait for the devices: enough to keep them busy, few enough that a signal is soon obeyed."""
BLOW_UP = 20.0
"""A mean loss this many times the smallest one so far is a divergence."""
UPLOAD = 60.0
"""Seconds between copies of the TensorBoard logs to an object store, which cannot add to a file."""


class Diverged(Exception):
    """The loss is not finite, or has blown up; the message is the diagnosis, one line."""


class Monitor:
    """Collects each step's metrics on the device and looks at them once every `every` steps.

    Writes `logs/` (TensorBoard: scalars and images) and, on divergence, `diagnosis.json` in the workdir. Where
    `quiet`, as on all hosts but the first, it only checks.
    """

    def __init__(
        self, workdir: epath.PathLike, start: int, steps: int, batch_size: int, every: int, quiet: bool = False
    ):
        self._workdir, self._every, self._batch_size = epath.Path(workdir), every, batch_size
        self._pending: list[tuple[int, Mapping[str, Array]]] = []
        self._history: deque[tuple[int, float]] = deque(maxlen=HISTORY)
        self._best = float("inf")
        remote = "://" in str(workdir)
        self._local = tempfile.TemporaryDirectory() if remote and not quiet else None
        self._uploaded = time.monotonic()
        self._writer = (
            None if quiet else SummaryWriter(self._local.name if self._local else str(self._workdir / "logs"))
        )
        self._bar = tqdm(total=steps, initial=start, unit="step", disable=quiet, dynamic_ncols=True, mininterval=0)
        self._clock = time.monotonic()

    def push(self, step: int, metrics: Mapping[str, Float[Array, ""]]) -> None:
        """Takes the metrics of the step that was just dispatched; looks at them at multiples of `every`."""
        self._pending.append((step, metrics))
        if len(self._pending) > AHEAD:
            jax.block_until_ready(self._pending[-1 - AHEAD][1]["loss"])
        if step % self._every == 0:
            self.check()

    def check(self) -> None:
        """Waits for the pending steps, logs their means.

        Raises: Diverged where a loss is not finite, or the mean has grown `BLOW_UP`-fold over the best one. Where the
        loss may well be negative, the error that it is made of takes its place (the metric "error").
        """
        if not self._pending:
            return
        steps, values = zip(*self._pending, strict=True)
        values = jax.device_get(values)
        self._pending = []
        for step, metrics in zip(steps, values, strict=True):
            if not np.isfinite(metrics["loss"]) or not np.isfinite(metrics["grad_norm"]):
                self._diverged(step, metrics, "is not finite")
        means = {name: float(np.mean([v[name] for v in values])) for name in values[0]}
        loss = means.get("error", means["loss"])
        self._history.append((steps[-1], loss))
        if loss > BLOW_UP * self._best and loss > self._history[0][1]:
            self._diverged(steps[-1], values[-1], f"is over {BLOW_UP:g} times its best mean, {self._best:.4g}")
        self._best = min(self._best, abs(loss))
        now = time.monotonic()
        rate = len(steps) * self._batch_size / max(now - self._clock, 1e-9)
        self._clock = now
        self._bar.set_postfix({"loss": f"{means['loss']:.4f}", "images/s": f"{rate:.0f}"}, refresh=False)
        self._bar.update(len(steps))
        self.scalars(steps[-1], means | {"images_per_second": rate})

    def _diverged(self, step: int, metrics: Mapping[str, np.ndarray], what: str) -> None:
        norms = {k.removeprefix("grad_norm/"): float(v) for k, v in metrics.items() if k.startswith("grad_norm/")}
        norms = dict(sorted(norms.items(), key=lambda item: np.nan_to_num(-item[1], nan=-np.inf)))
        diagnosis = {
            "step": step,
            "loss": float(metrics["loss"]),
            "loss_history": [{"step": s, "mean_loss": v} for s, v in self._history],
            "grad_norm": float(metrics["grad_norm"]),
            "grad_norm_by_module": norms,
        }
        path = self._workdir / "diagnosis.json"
        if jax.process_index() == 0:
            write_json(path, diagnosis)
        worst = ", ".join(f"{k} {v:.3g}" for k, v in list(norms.items())[:3])
        past = ", ".join(f"{v:.4g}" for _, v in list(self._history)[-5:]) or "none"
        raise Diverged(
            f"the loss at step {step}, {float(metrics['loss']):.4g}, {what}; mean losses before: {past}; largest "
            f"gradient norms: {worst}; all of it is in {path}; the last good checkpoint is kept: lower "
            "--optim.learning-rate or set --optim.clip, and start again"
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars to TensorBoard."""
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            if self._local and time.monotonic() > self._uploaded + UPLOAD:
                self._upload(self._local.name)

    def validation(self, step: int, logsnr: Float[Array, "n"], loss: Float[np.ndarray, "n"]) -> None:
        """Writes the loss by noise level: TensorBoard, and a line of `validation.jsonl`."""
        self._clock = time.monotonic()  # time spent here is not training time
        if self._writer:
            record = {"step": step, "logsnr": np.asarray(logsnr).tolist(), "loss": loss.tolist()}
            append_line(self._workdir / "validation.jsonl", json.dumps(record))
            named = {f"validation/logsnr_{s:+.1f}": v for s, v in zip(record["logsnr"], loss, strict=True)}
            self.scalars(step, named | {"validation/loss": float(np.mean(loss))})

    def bits_per_dim(self, step: int, bits: float, images: int) -> None:
        """Writes the continuous bound on this many validation images: TensorBoard, and a line of `validation.jsonl`."""
        self._clock = time.monotonic()
        if self._writer:
            record = {"step": step, "bits_per_dim": bits, "bound": "continuous", "images": images}
            append_line(self._workdir / "validation.jsonl", json.dumps(record))
            self.scalars(step, {"validation/bits_per_dim": bits})

    def psnr(self, step: int, decibels: float, images: int) -> None:
        """Writes the mean PSNR of rebuilt validation images: TensorBoard, and a line of `validation.jsonl`."""
        self._clock = time.monotonic()
        if self._writer:
            append_line(
                self._workdir / "validation.jsonl", json.dumps({"step": step, "psnr": decibels, "images": images})
            )
            self.scalars(step, {"validation/psnr": decibels})

    def preview(self, step: int, images: UInt8[np.ndarray, "n h w c"]) -> None:
        """Writes a grid of samples: TensorBoard, and `samples/step_NNNNNNN.png`."""
        self._clock = time.monotonic()
        if self._writer:
            sheet = contact_sheet(images)
            self._writer.add_image("samples", sheet, step, dataformats="HWC")
            (self._workdir / "samples").mkdir(exist_ok=True)
            save_png(self._workdir / "samples" / f"step_{step:07d}.png", sheet)

    def close(self) -> None:
        """Flushes and ends the bar."""
        self._bar.close()
        if self._writer:
            self._writer.close()
        if self._local:
            self._upload(self._local.name)
            self._local.cleanup()

    def _upload(self, logs: str) -> None:
        if self._writer:
            self._writer.flush()  # does nothing once it is closed
        folder = self._workdir / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        for file in Path(logs).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        self._uploaded = time.monotonic()
