"""Prompt-to-prompt: whose maps the words take, and when."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core import grids, paths
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.editing.prompt_to_prompt import PromptToPrompt, aligned, ratio_after
from jaxdiff.sampling.editing.task import Task
from jaxdiff.sampling.sample import image_keys, normal

CAT, DOG, A, RED, ON, MAT, BIG = range(7)


@pytest.mark.parametrize(
    ("source", "target", "want"),
    [
        ([A, CAT], [A, CAT], [0, 1]),
        ([A, CAT, ON, MAT], [A, DOG, ON, MAT], [0, 1, 2, 3]),  # a word in place of another takes its map
        ([A, CAT], [A, BIG, RED, CAT], [0, -1, -1, 1]),  # added words have none
        ([A, BIG, CAT], [A, CAT, -1], [0, 2, -1]),  # what ends a text is no word
        ([A, CAT, -1], [DOG, BIG, RED], [-1, -1, -1]),
        ([-1, -1], [A, -1], [-1, -1]),
    ],
)
def test_words_take_the_maps_of_the_same_words(source, target, want):
    assert aligned(source, target).tolist() == want


@pytest.mark.parametrize("path", [paths.Linear(), paths.Sigma(10.0)])
def test_a_share_of_the_steps(path):
    levels = grids.pad(grids.Karras(0.05, 10.0)(path, 10), 14)
    for share, count in ((0.0, 0), (0.3, 3), (0.5, 5), (1.0, 10)):
        ratios = levels.sigma[:-1] / levels.alpha[:-1]
        assert int(jnp.sum(ratios > ratio_after(levels, share))) == count
    from_noise = grids.UniformT()(paths.Linear(), 4)
    assert ratio_after(from_noise, 0.0) == jnp.inf and jnp.isfinite(ratio_after(from_noise, 0.25))


def test_the_source_is_sampled_beside_the_target(wild):
    keys, image = image_keys(0, jnp.arange(4)), 0.5 * normal(image_keys(1, jnp.arange(4)), (8, 8, 1))
    levels, asked = grids.Karras(0.02, 10.0)(paths.Linear(), 8), []

    def paired(until):
        asked.append(until.shape)

        def denoise(x, cur, nxt):  # the target differs from the source by its words
            halves = [wild(shift)(part, cur, nxt) for shift, part in zip((0.0, 1.0), jnp.split(x, 2), strict=True)]
            return jax.tree.map(lambda *parts: jnp.concatenate(parts), *halves)

        return denoise

    task = Task(keys, image, levels, wild(1.0), wild(0.0), DDIM(), paired=paired)
    made = PromptToPrompt(iterations=1)(task)
    from jaxdiff.sampling.editing.inversion import DDIMInversion

    np.testing.assert_allclose(made, DDIMInversion(1)(task), atol=1e-4)
    assert asked == [(2,)] and PromptToPrompt(iterations=1).nfe(DDIM(), levels) == 2 * 8 + 2 * 8
    with pytest.raises(ValueError, match="--method"):
        PromptToPrompt()(task._replace(paired=None))
    with pytest.raises(ValueError, match=r"words = 1.5"):
        PromptToPrompt(words=1.5)
