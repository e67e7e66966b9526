"""What would make a training step fit: less kept for the backward pass, the state in parts, the batch in parts."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, get_args, get_type_hints

from jaxdiff.config import Config
from jaxdiff.planning.report import Program


class Remedy(NamedTuple):
    """A changed run, and the flags that change it."""

    flags: str
    config: Config


def remat_policies(config: Config) -> Sequence[bool | str]:
    """What the network may recompute beyond what it does: the values of its field `remat` after the present one."""
    present = getattr(config.network, "remat", None)
    if present is None:
        return []
    hint = get_type_hints(type(config.network))["remat"]
    values = [False, True] if hint is bool else list(get_args(hint))
    return values[values.index(present) + 1 :]


def remedies(config: Config, devices: int) -> Iterator[Remedy]:
    """Remedies to try, the cheapest first: each alone, then with everything recomputed.

    Recomputation, then `mesh.fsdp` 2, 4 ..., then `optim.accumulate` 2, 4 ...: only what the mesh and the batch allow.
    """
    policies = [_remat(Remedy("", config), policy) for policy in remat_policies(config)]
    yield from policies
    bases = [Remedy("", config), *policies[-1:]]
    for base in bases:
        parts = list(_fsdp(base, devices))
        yield from parts
        yield from _accumulate(base, devices)
    widest = list(_fsdp(bases[-1], devices))[-1:]
    for base in widest:
        yield from _accumulate(base, devices)


def first_that_fits(tries: Iterator[Remedy], plan: Callable[[Config], Program]) -> tuple[Remedy, Program] | None:
    """The first remedy whose step, compiled, fits; None where none does."""
    for remedy in tries:
        program = plan(remedy.config)
        if program.fits:
            return remedy, program
    return None


def _remat(base: Remedy, policy: bool | str) -> Remedy:
    flag = "--network.remat" if policy is True else f"--network.remat {policy}"
    network = base.config.network.clone(remat=policy)
    return Remedy(f"{base.flags} {flag}".strip(), dataclasses.replace(base.config, network=network))


def _fsdp(base: Remedy, devices: int) -> Iterator[Remedy]:
    mesh = base.config.mesh
    for size in itertools.takewhile(lambda n: n <= devices, (2**i for i in range(1, 12))):
        rest = size * mesh.sequence * mesh.tensor
        if size <= mesh.fsdp or devices % rest or base.config.batch_size % (devices // mesh.sequence // mesh.tensor):
            continue
        config = dataclasses.replace(base.config, mesh=dataclasses.replace(mesh, data=-1, fsdp=size))
        yield Remedy(f"{base.flags} --mesh.fsdp {size}".strip(), config)


def _accumulate(base: Remedy, devices: int) -> Iterator[Remedy]:
    data, fsdp, _, _ = base.config.mesh.sizes(devices)
    optim, rows = base.config.optim, base.config.batch_size // (data * fsdp)
    for parts in itertools.takewhile(lambda n: n <= rows, (2**i for i in range(1, 12))):
        if parts > optim.accumulate and rows % parts == 0:
            config = dataclasses.replace(base.config, optim=dataclasses.replace(optim, accumulate=parts))
            yield Remedy(f"{base.flags} --optim.accumulate {parts}".strip(), config)
