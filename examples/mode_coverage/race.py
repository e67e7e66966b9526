"""What the two sides of the comparison share: the training loop, its clock, its arithmetic, and the records.

Cost is counted in floating-point operations of the jitted training step, as XLA's cost analysis counts them, so that
both sides get the same whatever their batch sizes. All runs advance together, one look after the other, and each is
stored after every look: an interrupted comparison goes on where it stopped, and `--looks` can be raised afterwards.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from jaxdiff.evaluation.modes import modes

State = Any
Examples = Callable[[Array, int], Array]
"""(key, b) -> b real examples [b, h, w, c], drawn afresh. Traceable."""
Measures = dict[str, float | None]
Score = Callable[[np.ndarray], Measures]
"""Generated examples -> what is measured on them; None where there is nothing to measure."""
Record = dict[str, Any]
PICTURE = 64
"""Samples that are stored for the figure where no others are."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is trained and measured."""

    workdir: Path
    """Folder of the records and of the runs, which go on where they stopped."""
    every: int
    """Training steps of the diffusion model between looks; the GAN's cost as many operations."""
    batch: int
    """Examples in a step of the diffusion model."""
    gan_batch: int
    """Examples in a step of the GAN."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Runs of each method."""
    looks: int = 8
    """Measurements in each run, the last one at its end."""
    small: int = 2500
    """Samples of each."""
    samples: int = 10_000
    """Samples of the final measurement; 0: none, the last look is the final one."""
    hidden: int = 128
    """Width of the networks."""


class Player(NamedTuple):
    """One method: how it starts, learns and generates. All but the counts is traceable, the seeds too."""

    name: str
    batch: int
    init: Callable[[int], State]
    step: Callable[[State, Array, int], tuple[State, Mapping[str, Array]]]
    """(state, real examples, seed) -> (state, metrics); the state counts its steps in `step`."""
    sample: Callable[[State, int, Int[Array, "n"]], Array]
    """(state, seed, indices) -> examples; each depends on the seed and its own index alone."""
    parts: Mapping[str, Callable[[State], PyTree]]
    """The parameters of each network; the first generates."""


class Machine(NamedTuple):
    """A player, compiled once for all seeds, and the steps that it makes between looks."""

    player: Player
    advance: Callable[[State, int], tuple[State, Mapping[str, Array]]]
    draw: Callable[[State, int, Int[Array, "n"]], Array]
    every: int
    step_flops: float


def count(tree: PyTree) -> int:
    """Numbers in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def machine(player: Player, examples: Examples, flops: float) -> Machine:
    """The player with as many steps between looks as `flops` pay for."""

    def advance(state: State, seed: int) -> tuple[State, Mapping[str, Array]]:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), seed), state.step)
        return player.step(state, examples(key, player.batch), seed)

    cost = step_flops(player, examples)
    return Machine(player, jax.jit(advance, donate_argnums=0), jax.jit(player.sample), steps_for(flops, cost), cost)


def steps_for(flops: float, cost: float) -> int:
    """The steps of that cost that `flops` pay for: one at least."""
    return max(1, round(flops / cost))


def step_flops(player: Player, examples: Examples) -> float:
    """Floating-point operations of one training step."""
    state = jax.eval_shape(player.init, 0)
    real = jax.eval_shape(lambda: examples(jax.random.key(0), player.batch))
    cost = jax.jit(player.step).lower(state, real, 0).cost_analysis()
    return float((cost or {})["flops"])


def generate(machine: Machine, state: State, seed: int, n: int, page: int = 500) -> np.ndarray:
    """The first n examples of a seed."""
    page = min(page, n)
    pages = [machine.draw(state, seed, jnp.arange(i, i + page)) for i in range(0, n, page)]
    return np.concatenate([np.asarray(x) for x in pages])[:n]


def load(machine: Machine, file: Path, seed: int) -> tuple[State, Record]:
    """The run stored at `file`, or a new one."""
    player = machine.player
    state = jax.jit(player.init)(seed)
    if file.exists():
        state = flax.serialization.from_bytes(state, file.with_suffix(".state").read_bytes())
        return jax.tree.map(jnp.asarray, state), json.loads(file.read_text())
    record = {"method": player.name, "seed": seed, "batch": player.batch, "step_flops": machine.step_flops}
    record["parameters"] = {name: count(of(state)) for name, of in player.parts.items()}
    return state, record | {"steps": 0, "wall_seconds": 0.0, "cpu_seconds": 0.0, "curve": []}


def look(machine: Machine, file: Path, seed: int, number: int, plan: Plan, score: Score) -> None:
    """Brings a run to look `number` (from 1), and stores it. The seconds are those of training, without compilation."""
    state, record = load(machine, file, seed)
    if len(record["curve"]) >= number:
        return
    goal, metrics, clocks = number * machine.every, {}, None
    while record["steps"] < goal:
        state, metrics = machine.advance(state, seed)
        record["steps"] += 1
        if clocks is None:
            jax.block_until_ready(state)
            clocks = time.perf_counter(), time.process_time()
    jax.block_until_ready(state)
    if clocks is not None:
        # The first step, which may have compiled, is taken to be as long as the others.
        factor = machine.every / max(machine.every - 1, 1)
        record["wall_seconds"] += (time.perf_counter() - clocks[0]) * factor
        record["cpu_seconds"] += (time.process_time() - clocks[1]) * factor
    record["flops"] = record["steps"] * machine.step_flops
    record["curve"].append(
        {"step": goal, "flops": record["flops"]}
        | score(generate(machine, state, seed, plan.small))
        | {name: float(value) for name, value in metrics.items() if "grad" not in name}
    )
    record.pop("final", None)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".state").write_bytes(flax.serialization.to_bytes(state))
    file.write_text(json.dumps(record, indent=1))
    print(machine.player.name, seed, json.dumps(record["curve"][-1]), f"{record['cpu_seconds']:.0f} s", flush=True)


def finish(machine: Machine, file: Path, seed: int, plan: Plan, score: Score) -> Record:
    """The record of a run, its samples measured; some of them are stored beside it.

    Without samples of its own the final measurement is the last look's.
    """
    state, record = load(machine, file, seed)
    picture = file.with_suffix(".npy")
    if plan.samples == 0:
        # A run may have gone on beyond this look: its cost up to here is that share of the whole.
        curve, share = record["curve"][: plan.looks], plan.looks / len(record["curve"])
        cost = {name: share * record[name] for name in ("flops", "wall_seconds", "cpu_seconds")}
        np.save(picture, generate(machine, state, seed, PICTURE).astype(np.float16))
        return record | cost | {"steps": curve[-1]["step"], "curve": curve, "samples": plan.small, "final": curve[-1]}
    if record.get("samples") != plan.samples or "final" not in record:
        made = generate(machine, state, seed, plan.samples)
        record |= {"samples": plan.samples, "final": score(made)}
        np.save(picture, made[: plan.small].astype(np.float16))
        file.write_text(json.dumps(record, indent=1))
        print(machine.player.name, seed, json.dumps(record["final"]), flush=True)
    return record


def compare(
    task: str, plan: Plan, players: tuple[Player, Player], examples: Examples, score: Score, about: Record
) -> None:
    """Runs both methods from every seed, and writes the record of the task to the plan's folder."""
    flops = plan.every * step_flops(players[0], examples)
    runs = [
        (machine, plan.workdir / f"{task}_{machine.player.name}_{seed}.json", seed)
        for machine in [machine(player, examples, flops) for player in players]
        for seed in plan.seeds
    ]
    for number in range(1, plan.looks + 1):
        for run in runs:
            look(*run, number, plan, score)
    settings = {name: value for name, value in dataclasses.asdict(plan).items() if name != "workdir"}
    np.save(plan.workdir / f"{task}_real.npy", np.asarray(examples(jax.random.key(0), plan.small), np.float16))
    record = {"task": task, "plan": settings, **about, "runs": [finish(*run, plan, score) for run in runs]}
    (plan.workdir / f"{task}.json").write_text(json.dumps(record, indent=1))


def or_none(value: float) -> float | None:
    """The value, or None where it is not a number, which JSON does not have."""
    return value if math.isfinite(value) else None


def perfect(count: int, n: int, rounds: int = 200) -> dict[str, float]:
    """What n samples of the uniform law over `count` modes score: means over `rounds` draws."""
    draws = np.random.default_rng(0).integers(0, count, (rounds, n))
    covered, kl, _ = np.mean([modes(draw, count) for draw in draws], axis=0)
    return {"modes": float(covered), "kl": float(kl)}
