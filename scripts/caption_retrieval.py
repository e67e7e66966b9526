"""Does a network draw what its caption says? Samples for captions, looked for among the real pictures.

    python scripts/caption_retrieval.py RUN OUT [--captions 396] [--scales 1,3]
    python scripts/caption_retrieval.py RUN OUT --pictures emoji64.zip --codec taef2=...   of a run on latents

A sample is right (top 1) where, of all real pictures of the set, training and test together, the one that its caption
belongs to is the nearest by the angle between EfficientNet-Lite0 features, and right (top 5) where it is among the five
nearest. The captions of the test split were never seen in training. As many of the training split are measured beside
them, chosen evenly from those with a skin tone, as the test split's are, and evenly from all. Of captions with a skin
tone it is counted as well how often the nearest picture has the right emoji in any tone, and the right tone on any.
Since these features hardly see colours, it is also counted how often, of the emoji's pictures in all tones, the right
one is the nearest in mean colour.

OUT/retrieval.json has the figures, with 95 % Wilson intervals, and OUT/*.npz the samples, which are not made again.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxdiff.commands.images import Images, images_of_data, images_of_run, label, looker
from jaxdiff.commands.reference import pictures_behind
from jaxdiff.data import open_source
from jaxdiff.data.captions import caption
from jaxdiff.evaluation.kernel import unit
from jaxdiff.pretrained.features import DEFAULT, open_features
from jaxdiff.settings import Settings
from jaxdiff.trained import open_trained

TONE = " skin tone"


def parts_of(text: str) -> tuple[str, str]:
    """(the emoji, its skin tone or "") that a caption names: "raised hand: dark skin tone"."""
    words = [part.strip() for part in text.replace(":", ",").split(",")]
    tones = [word for word in words if word.endswith(TONE)]
    return ", ".join(word for word in words if not word.endswith(TONE)), ", ".join(tones)


def evenly(places: list[int], count: int) -> list[int]:
    """`count` of them, spread over all."""
    return [places[int(i)] for i in np.unique(np.linspace(0, len(places) - 1, min(count, len(places))).round())]


def share(hits: np.ndarray) -> dict[str, float]:
    """Percent of hits and its 95 % interval (Wilson)."""
    n, p, z = len(hits), float(np.mean(hits)), 1.96
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return {name: round(100 * x, 1) for name, x in {"percent": p, "low": centre - half, "high": centre + half}.items()}


def tones(images: np.ndarray, places: Sequence[int], colours: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """Whether each image's mean colour is nearest to that of its caption's picture, among that emoji's pictures."""
    by_emoji: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        emoji, tone = parts_of(text)
        by_emoji.setdefault(emoji, []).extend([i] if tone else [])
    hits = []
    for image, place in zip(images, places, strict=True):
        rivals = by_emoji[parts_of(texts[place])[0]]
        if len(rivals) > 1:
            distance = np.linalg.norm(colours[rivals] - image.mean(axis=(0, 1)), axis=1)
            hits.append(rivals[int(np.argmin(distance))] == place)
    return np.array(hits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--captions", type=int, default=396, help="of each kind")
    parser.add_argument("--scales", default="1,3", help="of guidance")
    parser.add_argument("--steps", type=int, default=None, help="of the sampler")
    parser.add_argument("--splits", default="train,test", help="train alone, of a set that has no other")
    parser.add_argument("--pictures", default=None, help="what a run's latents were made from")
    parser.add_argument("--codec", default=None, help="what decodes them")
    args = parser.parse_args()

    settings = Settings(batch_size=36, steps=args.steps, codec=args.codec)
    trained = open_trained(args.run, settings)
    net = open_features(DEFAULT, None)
    real, colours, texts = [], [], []
    for split in args.splits.split(","):
        config = trained.config
        data = config.data if config.latents is None else pictures_behind(config, args.pictures, split)
        data = dataclasses.replace(data, split=split)
        source = open_source(data)
        look = looker({"net": net}, images_of_data(data), 64, keep=True)
        found = look(np.arange(len(source), dtype=np.int32))
        real.append(unit(found[f"{label(net)}/features"]))
        colours.append(found["images"].mean(axis=(1, 2)))
        texts += [caption(source, i)[0] for i in range(len(source))]
    real, colours, first_test = np.concatenate(real), np.concatenate(colours), len(real[0])
    toned = [i for i in range(first_test) if parts_of(texts[i])[1]]
    asked = {
        "held out": evenly(list(range(first_test, len(texts))), args.captions),
        "seen, with a skin tone": evenly(toned, args.captions),
        "seen, of all kinds": evenly(list(range(first_test)), args.captions),
    }
    asked = {kind: places for kind, places in asked.items() if places}
    args.out.mkdir(parents=True, exist_ok=True)
    record: dict[str, object] = {"pictures": len(real), "features": label(net), "figures": []}
    for scale in map(float, args.scales.split(",")):
        guided = open_trained(args.run, dataclasses.replace(settings, cfg_scale=scale))
        for kind, places in asked.items():
            prompts = tuple(texts[i] for i in places)
            file = args.out / f"{kind.replace(',', '').replace(' ', '_')}_{scale:g}.npz"
            images = images_of_run(dataclasses.replace(guided, prompts=prompts))
            if file.exists():
                images = Images({}, None, np.load(file)["images"].__getitem__)
            found = looker({"net": net}, images, 36, keep=True)(np.arange(len(places), dtype=np.int32))
            np.savez_compressed(file, images=found["images"])
            order = np.argsort(-unit(found[f"{label(net)}/features"]) @ real.T, axis=1)[:, :5]
            right = np.array([[texts[j] == prompt for j in row] for row, prompt in zip(order, prompts, strict=True)])
            figures = {"captions": kind, "cfg_scale": scale, "n": len(places)}
            figures |= {"top 1": share(right[:, 0]), "top 5": share(np.asarray(right.any(axis=1)))}
            if kind != "seen, of all kinds":
                nearest = [parts_of(texts[j]) for j in order[:, 0]]
                pairs = list(zip(nearest, map(parts_of, prompts), strict=True))
                figures |= {"emoji": share(np.array([a[0] == b[0] for a, b in pairs]))}
                figures |= {"skin tone": share(np.array([a[1] == b[1] for a, b in pairs]))}
                figures |= {"skin tone by colour": share(tones(found["images"], places, colours, texts))}
            record["figures"].append(figures)  # pyright: ignore[reportAttributeAccessIssue]
            record |= {"run": guided.description() | {"prompt": "of the captions", "cfg_scale": "as above"}}
            print(json.dumps(figures), flush=True)
            (args.out / "retrieval.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
