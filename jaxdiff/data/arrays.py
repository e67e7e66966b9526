"""Sets that lie in memory as one array: the embedded emoji, `.npz` files, Fashion-MNIST's idx files."""

import gzip
import struct
import zipfile
import zlib
from importlib import resources

import numpy as np
from etils import epath
from jaxtyping import Integer, UInt8

from jaxdiff.data.source import ArraySource

BROKEN = (ValueError, OSError, EOFError, struct.error, zlib.error, zipfile.BadZipFile)
"""What numpy, gzip and struct raise on a file that is damaged or of another kind."""

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
"""Where Debian's package dataset-fashion-mnist puts its files."""

FASHION_LABELS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def slug(name: str) -> str:
    """A name as the command line spells it: `Smileys & Emotion` is `smileys-emotion`."""
    words = "".join(c if c.isalnum() else " " for c in name.lower()).split()
    return "-".join(words)


def open_emoji(category: str | None = None, split: str = "train") -> ArraySource:
    """The embedded set: 1,897 captioned emoji, 32x32 RGB, in 10 categories, or one category without labels.

    Raises ValueError with the allowed names where `category` is none of the slugs of the categories.
    """
    if split != "train":
        raise ValueError(f"--data.split {split} is not in emoji, which has train")
    file = resources.files("jaxdiff.data").joinpath("emoji.npz")
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        images, label, text = arrays["images"], arrays["label"], arrays["text"].tolist()
        categories = tuple(arrays["categories"].tolist())
    if category is None:
        return ArraySource("emoji", images, label, categories, tuple(text))
    slugs = [slug(name) for name in categories]
    if category not in slugs:
        raise ValueError(f"--data.source emoji:{category} is unknown, allowed after emoji: are {', '.join(slugs)}")
    chosen = np.flatnonzero(label == slugs.index(category))
    return ArraySource(f"emoji:{category}", images[chosen], text=tuple(text[i] for i in chosen))


def npz_splits(path: epath.PathLike) -> tuple[str, ...]:
    """The splits of an .npz: `train` where it has `images`, else each s of its arrays `s_images`."""
    names = npz_arrays(epath.Path(path))
    if "images" in names:
        return ("train",)
    return tuple(name.removesuffix("_images") for name in names if name.endswith("_images"))


def open_npz(path: epath.PathLike, split: str, names: tuple[str, ...] = (), several: bool = False) -> ArraySource:
    """The pictures of an .npz: `images` uint8 [n, h, w] or [n, h, w, c], c = 1, 3 or 4, optional `label` (or
    `labels`) int [n] or [n, 1], `categories` str [k] (the names of the labels) and `text` str [n].

    Where there is no `images`, MedMNIST's names `train_images`, `train_labels`, ... are read by `split`.
    `names` are those of the labels where the file has no `categories`; with `several` labels [n, k] of pictures that
    are of several classes at once are left out, and else refused.
    Raises FileNotFoundError or ValueError, one line with the file's name.
    """
    path = epath.Path(path)
    splits = npz_splits(path)
    if not splits:
        raise ValueError(f"{path} has no array named images (--data.source)")
    split = "val" if split == "validation" and "val" in splits else split
    if split not in splits:
        raise ValueError(f"--data.split {split} is not in {path}, which has {', '.join(splits)}")
    prefix = "" if "images" in npz_arrays(path) else f"{split}_"
    fields = _read(path, [f"{prefix}{name}" for name in ("images", "label", "labels", "text")] + ["categories"])
    images = _images(fields[f"{prefix}images"], path)
    label = fields.get(f"{prefix}label", fields.get(f"{prefix}labels"))
    if several and label is not None and label.ndim == 2 and label.shape[1] > 1:
        label = None
    categories = fields.get("categories", np.array(names) if names else None)
    label, names = _labels(label, categories, len(images), path)
    text = fields.get(f"{prefix}text")
    if text is not None and text.shape != (len(images),):
        raise ValueError(f"{path}: text has shape {text.shape}, must be ({len(images)},)")
    return ArraySource(str(path), images, label, names, () if text is None else tuple(map(str, text)))


def open_fashion_mnist(folder: epath.PathLike, split: str) -> ArraySource:
    """Fashion-MNIST's idx files, plain or .gz: 28x28 grey, 10 classes, 60,000 train and 10,000 test."""
    parts = {"train": "train", "test": "t10k"}
    if split not in parts:
        raise ValueError(f"--data.split {split} is not in fashion_mnist, which has train, test")
    folder = epath.Path(folder)
    images = _read_idx(folder, f"{parts[split]}-images-idx3-ubyte")
    label = _read_idx(folder, f"{parts[split]}-labels-idx1-ubyte")
    if images.ndim != 3 or label.shape != images.shape[:1] or (label.size and label.max() > 9):
        raise ValueError(f"{folder}: the idx files of {split} are not Fashion-MNIST's (--data.source)")
    return ArraySource("fashion_mnist", images[..., None], label, FASHION_LABELS)


def _read_idx(folder: epath.Path, name: str) -> UInt8[np.ndarray, "..."]:
    """The uint8 array of an idx file: two zero bytes, type 8, the rank, big-endian sizes, then the values."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            break
    else:
        raise FileNotFoundError(
            f"{folder / name}[.gz] is missing: `apt-get install dataset-fashion-mnist`,"
            " or name the folder of the idx files with --data.source fashion_mnist:DIR"
        )
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, kind, rank = struct.unpack(">HBB", data[:4])
        shape = struct.unpack(f">{rank}I", data[4 : 4 + 4 * rank])
        if (zero, kind) != (0, 8):
            raise ValueError("not an idx file of bytes")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)
    except BROKEN as error:
        raise ValueError(f"{path} is not a whole idx file of bytes (--data.source)") from error


def npz_arrays(path: epath.Path) -> tuple[str, ...]:
    """The names of the arrays of an .npz."""
    if not path.is_file():
        raise FileNotFoundError(f"--data.source {path} does not exist")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return tuple(arrays.files)
    except (*BROKEN, AttributeError, TypeError) as error:  # a plain .npy has no files and is no context
        raise ValueError(f"--data.source {path} is not an .npz file") from error


def _read(path: epath.Path, names: list[str]) -> dict[str, np.ndarray]:
    """Those of the named arrays that an .npz has."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names if name in arrays}
    except BROKEN as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"--data.source {path} is damaged, or holds Python objects ({reason})") from error


def _images(images: np.ndarray, path: epath.Path) -> UInt8[np.ndarray, "n h w c"]:
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3, 4):
        raise ValueError(
            f"{path}: images must be uint8 [n, h, w] or [n, h, w, c] with c = 1, 3 or 4,"
            f" got {images.dtype} {list(images.shape)}"
        )
    if not images.size:
        raise ValueError(f"{path} has no images (--data.source)")
    return images


def _labels(
    label: np.ndarray | None, categories: np.ndarray | None, n: int, path: epath.Path
) -> tuple[Integer[np.ndarray, " n"] | None, tuple[str, ...]]:
    if label is None:
        return None, ()
    label = label.reshape(-1) if label.shape == (n, 1) else label
    if label.shape != (n,) or not np.issubdtype(label.dtype, np.integer):
        raise ValueError(f"{path}: label must be integers [{n}], got {label.dtype} {list(label.shape)}")
    names = tuple(map(str, range(label.max() + 1) if categories is None else categories))
    if label.min() < 0 or label.max() >= len(names):
        bad = label.min() if label.min() < 0 else label.max()
        raise ValueError(f"{path}: label {bad} is out of range, must be in 0..{len(names) - 1}")
    return label, names
