"""Optimisers as values: a rule, a learning-rate schedule, clipping. All mathematics is optax's."""

import dataclasses

import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class AdamW:
    """Adam, with decoupled weight decay (0: plain Adam). Source: arXiv:1412.6980; arXiv:1711.05101."""

    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""

    def transform(self, rate: optax.Schedule) -> optax.GradientTransformation:
        return optax.adamw(rate, self.b1, self.b2, self.eps, weight_decay=self.weight_decay)


@dataclasses.dataclass(frozen=True)
class Lion:
    """Sign momentum. Source: arXiv:2302.06675."""

    b1: float = 0.9
    """Interpolation of the update."""
    b2: float = 0.99
    """Decay of the momentum."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""

    def transform(self, rate: optax.Schedule) -> optax.GradientTransformation:
        return optax.lion(rate, self.b1, self.b2, weight_decay=self.weight_decay)


@dataclasses.dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum."""

    momentum: float = 0.9
    """Decay of the momentum."""

    def transform(self, rate: optax.Schedule) -> optax.GradientTransformation:
        return optax.sgd(rate, self.momentum)


@dataclasses.dataclass(frozen=True)
class Constant:
    """The peak rate, for ever."""

    def after_warmup(self, peak: float, steps: int) -> optax.Schedule:
        return optax.constant_schedule(peak)


@dataclasses.dataclass(frozen=True)
class CosineDecay:
    """Half a cosine from the peak rate down to `final` times it. Source: arXiv:1608.03983, Eq. 5."""

    final: float = 0.0
    """The last rate, as a fraction of the peak."""

    def after_warmup(self, peak: float, steps: int) -> optax.Schedule:
        return optax.cosine_decay_schedule(peak, max(steps, 1), self.final)


@dataclasses.dataclass(frozen=True)
class InverseSqrt:
    """peak / sqrt(max(t / t_ref, 1)). Source: arXiv:2312.02696, Eq. 67."""

    t_ref: int = 70_000
    """The step (after warm-up) from which the rate falls."""

    def after_warmup(self, peak: float, steps: int) -> optax.Schedule:
        return lambda count: peak * jnp.sqrt(self.t_ref / jnp.maximum(count, self.t_ref))


@dataclasses.dataclass(frozen=True)
class Optim:
    """How gradients change the parameters."""

    learning_rate: float = 2e-4
    """Peak learning rate."""
    rule: AdamW | Lion | SGD = AdamW()
    """The optimiser."""
    decay: Constant | CosineDecay | InverseSqrt = Constant()
    """The rate after warm-up."""
    warmup: int = 0
    """Steps over which the rate rises linearly from 0."""
    clip: float = 0.0
    """Largest norm of the gradient; 0: no clipping."""
    accumulate: int = 1
    """Parts that a batch is cut into, one after the other, to save memory."""

    def __post_init__(self) -> None:
        for name, low in (("learning_rate", 0.0), ("warmup", 0), ("clip", 0.0), ("accumulate", 1)):
            value = getattr(self, name)
            if not low <= value < float("inf"):
                flag = name.replace("_", "-")
                raise ValueError(f"{name} = {value} is not allowed: at least {low} and finite (--optim.{flag})")


def rate_schedule(optim: Optim, steps: int) -> optax.Schedule:
    """The learning rate at each step of a run of `steps`."""
    after = optim.decay.after_warmup(optim.learning_rate, steps - optim.warmup)
    if optim.warmup == 0:
        return after
    rise = optax.linear_schedule(0.0, optim.learning_rate, optim.warmup)
    # Warm-up counts from step 1, so that the first update is not lost to a rate of 0.
    return optax.join_schedules([lambda count: rise(count + 1), after], [optim.warmup])


def optimizer(optim: Optim, steps: int) -> optax.GradientTransformation:
    """Clipping, then the rule at the scheduled rate."""
    rule = optim.rule.transform(rate_schedule(optim, steps))
    return optax.chain(optax.clip_by_global_norm(optim.clip), rule) if optim.clip else rule
