"""One subject, learned from a few pictures of it, on top of the text-to-image model of emoji that ships here.

For another model, the folder of its run takes the place of the preset, with the same flags (docs/lora.md).
"""

import dataclasses

from jaxdiff.config import Config
from jaxdiff.data import Data
from jaxdiff.networks.lora import LoRA
from jaxdiff.networks.new_word import NewWord
from jaxdiff.presets.emoji import emoji_text
from jaxdiff.training import ema, optim


def dreambooth() -> Config:
    """A subject by name: a LoRA on the model of emoji, from --data.source pictures and a --data.prior: minutes."""
    return dataclasses.replace(
        _on_emoji(),
        data=Data("pictures", size=32, labels=False, text=True, caption="a sks toy"),
        lora=LoRA(rank=8, targets="all"),
        optim=optim.Optim(learning_rate=1e-3, warmup=20, clip=1.0),
        steps=400,
    )


def textual_inversion() -> Config:
    """A subject as one new word of the model of emoji, from --data.source pictures of it: minutes."""
    return dataclasses.replace(
        _on_emoji(),
        data=Data("pictures", size=32, labels=False, text=True, caption="<toy>"),
        word=NewWord("<toy>"),
        optim=optim.Optim(learning_rate=5e-3, warmup=20),
        steps=400,
    )


def _on_emoji() -> Config:
    config = emoji_text()
    objective = dataclasses.replace(config.objective, drop=0.0)  # what guidance leads away from stays as it is
    return dataclasses.replace(
        config,
        start="emoji",
        objective=objective,
        ema=(ema.Decay(0.99),),
        batch_size=16,
        log_every=20,
        save_every=400,
        preview_every=0,
    )
