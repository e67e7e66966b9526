"""How well does a network that is shown a picture make the one that it should?

    python scripts/shown_picture_study.py RUN OUT [--each 60] [--seeds 4] [--cfg-scales 1,2] [--image-scales none,1.5]

Of a run on pairs (`--data.pairs`, the preset emoji_edit) the test split's pictures are edited as they are told: for
each instruction, `--each` pairs. Figures are against the picture that the pair has: PSNR of single results, of their
mean, and of the picture shown itself; with skin tones, how often the result is nearer in mean colour to its own tone
than to that emoji's others. Of a run on shrunk pictures (`--data.low`, the preset emoji_sr) the pictures held out are
enlarged, beside bicubic enlargement.

OUT/study.json has the figures, OUT/study.md the table, OUT/pictures.png rows of: shown, results, truth.
"""

import argparse
import dataclasses
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxdiff.checkpoints import read_checkpoint
from jaxdiff.data import Data, open_source, open_validation
from jaxdiff.data.images import resize
from jaxdiff.data.pictures import Pictures
from jaxdiff.training.contact_sheet import contact_sheet, save_png

SHOWN = 12
"""Rows of the picture."""


class Case(NamedTuple):
    """A picture to be made: what is shown, what is said, what should come of it, and others that should not."""

    shown: np.ndarray
    told: str
    truth: np.ndarray
    rivals: np.ndarray


def pairs(data: Data, each: int) -> list[Case]:
    """Of the test split, spread over it, `each` of every instruction; rivals are the emoji's other pictures there."""
    data = dataclasses.replace(data, split="test", text=False)
    source = open_source(data)
    pictures = Pictures(data, source)
    with zipfile.ZipFile(data.source) as archive:
        lines = [json.loads(line) for line in archive.read("test/metadata.jsonl").splitlines()]
        every = lines + [json.loads(line) for line in archive.read("train/metadata.jsonl").splitlines()]
    place: dict[tuple[str, str], tuple[str, str]] = {}
    for i, line in enumerate(every):
        place[line["base"], line["edit"]] = ("test" if i < len(lines) else "train", line["file_name"])
    by_told: dict[str, list[int]] = {}
    for i, line in enumerate(lines):
        by_told.setdefault(line["edit"], []).append(i)
    chosen = [
        some[int(k)]
        for some in by_told.values()
        for k in np.unique(np.linspace(0, len(some) - 1, min(each, len(some))).round())
    ]
    cases = []
    for i in chosen:
        line, picture = lines[i], pictures[i]
        others = [v for (base, told), v in place.items() if base == line["base"] and told != line["edit"]]
        rivals = np.stack([read_picture(data, *other) for other in others])
        shown = picture.get("source")
        assert shown is not None
        cases.append(Case(shown, line["edit"], picture["image"], rivals))
    return cases


def read_picture(data: Data, split: str, name: str) -> np.ndarray:
    """A picture of the archive, on white, at the run's size."""
    with zipfile.ZipFile(data.source) as archive, Image.open(io.BytesIO(archive.read(f"{split}/{name}"))) as image:
        white = Image.new("RGBA", image.size, "white")
        return resize(np.asarray(Image.alpha_composite(white, image.convert("RGBA")))[..., :3], data.size, data.size)


def enlargements(data: Data, each: int) -> list[Case]:
    """Of the pictures held out, the first `each`, shrunk."""
    source = open_validation(data)
    assert source is not None
    pictures = Pictures(dataclasses.replace(data, low=0), source)
    found = [pictures[i]["image"] for i in range(min(each, len(pictures)))]
    return [Case(resize(np.ascontiguousarray(x), data.low, data.low), "", x, np.zeros((0, *x.shape))) for x in found]


def made(run: str, out: Path, cases: Sequence[Case], seeds: int, flags: Sequence[str]) -> np.ndarray:
    """[cases, seeds, h, w, c]: what `jaxdiff edit` makes; a folder for each instruction, not made again."""
    results: list[np.ndarray | None] = [None] * len(cases)
    for told in dict.fromkeys(case.told for case in cases):
        places = [i for i, case in enumerate(cases) if case.told == told]
        name = "-".join(told.split()) or "all"
        shown, folder = out / "shown" / name, out / name
        shown.mkdir(parents=True, exist_ok=True)
        for i in places:
            Image.fromarray(cases[i].shown).save(shown / f"{i:06d}.png")
        if not (folder / "info.json").exists():
            words = ["--prompt", told] if told else []
            args = [run, "--image", str(shown), "--out", str(folder), "--num", str(seeds), "--batch-size", "64"]
            command = [sys.executable, "-m", "jaxdiff", "edit", *args, *words, *flags]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        files = sorted((folder / "images").iterdir())
        for k, i in enumerate(places):
            results[i] = np.stack([np.asarray(Image.open(file)) for file in files[k * seeds : (k + 1) * seeds]])
    return np.stack([r for r in results if r is not None])


def decibels(a: np.ndarray, b: np.ndarray) -> float:
    """PSNR of two pictures of 8 bits."""
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(np.float64) - b) ** 2), 1e-12)))


def colour(picture: np.ndarray) -> np.ndarray:
    """The mean colour."""
    return picture.astype(np.float64).mean(axis=(0, 1))


def measured(cases: Sequence[Case], results: np.ndarray) -> dict[str, float]:
    """Averages over the cases, with standard errors."""
    rows: dict[str, list[float]] = {}
    for case, some in zip(cases, results, strict=True):
        size = case.truth.shape[:2]
        shown = case.shown
        if shown.shape[:2] != size:
            shown = np.asarray(Image.fromarray(shown).resize(size[::-1], Image.Resampling.BICUBIC))
        rows.setdefault("shown", []).append(decibels(shown, case.truth))
        rows.setdefault("one result", []).append(float(np.mean([decibels(x, case.truth) for x in some])))
        rows.setdefault("mean of results", []).append(decibels(some.mean(axis=0), case.truth))
        if len(case.rivals):
            own = np.linalg.norm(colour(some[0]) - colour(case.truth))
            rows.setdefault("right tone", []).append(
                float(all(own < np.linalg.norm(colour(some[0]) - colour(rival)) for rival in case.rivals))
            )
    figures = {name: float(np.mean(values)) for name, values in rows.items()}
    return figures | {f"{name}, error": float(np.std(v, ddof=1) / len(v) ** 0.5) for name, v in rows.items()}


def sheet(cases: Sequence[Case], results: np.ndarray) -> np.ndarray:
    """Rows of what is shown, up to four results, and the truth, spread over the cases."""
    rows = []
    for i in np.unique(np.linspace(0, len(cases) - 1, SHOWN).round().astype(int)):
        case, size = cases[i], cases[i].truth.shape[:2]
        shown = np.asarray(Image.fromarray(case.shown).resize(size[::-1], Image.Resampling.NEAREST))
        rows.append(np.stack([shown, *results[i][:4], case.truth]))
    return contact_sheet(np.concatenate(rows), columns=2 * len(rows[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("out", type=Path)
    parser.add_argument("--each", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cfg-scales", default="1,2")
    parser.add_argument("--image-scales", default="none,1.5")
    args = parser.parse_args()
    data = read_checkpoint(args.run, None, None).config.data
    told = data.pairs
    cases = pairs(data, args.each) if told else enlargements(data, args.each)
    study: dict[str, dict[str, float]] = {}
    settings = [("", "none")]
    if told:
        settings = [(c, i) for c in args.cfg_scales.split(",") for i in args.image_scales.split(",")]
    for cfg, image in settings:
        if cfg == "1" and image != "none":
            continue  # without guidance there is nothing to lead
        flags = ["--steps", str(args.steps), *(["--cfg-scale", cfg] if cfg else [])]
        flags += ["--image-scale", image] if image != "none" else []
        name = f"guidance {cfg}" + (f", image {image}" if image != "none" else "") if cfg else "enlarged"
        results = made(args.run, args.out / name.replace(" ", "-").replace(",", ""), cases, args.seeds, flags)
        study[name] = measured(cases, results)
        save_png(args.out / f"{name.replace(' ', '-').replace(',', '')}.png", sheet(cases, results))
        print(json.dumps({name: study[name]}), flush=True)
    record = {"images": len(cases), "seeds": args.seeds, "steps": args.steps, "figures": study}
    (args.out / "study.json").write_text(json.dumps(record, indent=1) + "\n")
    columns = [n for n in next(iter(study.values())) if not n.endswith("error")]
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    for name, found in study.items():
        lines.append([name, *(f"{found[n]:.3g} ± {found[f'{n}, error']:.1g}" for n in columns)])
    (args.out / "study.md").write_text("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")


if __name__ == "__main__":
    main()
