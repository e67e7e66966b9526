"""Single files of whole pipelines, unpacked into the folders that diffusers would save: Stable Diffusion 1, 2, 3, SDXL,
FLUX.1, as `.safetensors` or `.ckpt`.

    model.diffusion_model.*             unet or transformer, whose names and shapes tell the kind of the file
    first_stage_model.*                 vae
    cond_stage_model.*, conditioner.*, text_encoders.*    text_encoder and its numbered fellows

A file that holds a transformer and nothing else may leave the first prefix out. Its schedule is its kind's published
one. Where averages lie beside the network ("model_ema."), these are taken.
"""

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from jaxdiff.pretrained import autoencoder, safetensors
from jaxdiff.pretrained import single_transformers as transformers
from jaxdiff.pretrained import single_unet as unets
from jaxdiff.pretrained.autoencoder_config import config_json
from jaxdiff.pretrained.exchange import torch_shapes
from jaxdiff.pretrained.folders import WEIGHTS
from jaxdiff.pretrained.pickles import refusing
from jaxdiff.pretrained.pieces import Piece, pieced
from jaxdiff.pretrained.single_texts import END, READERS, START, Reader, TextPart
from jaxdiff.pretrained.vit import new_name
from jaxdiff.pretrained.weights import read_weights

Arrays = Mapping[str, np.ndarray]
Json = Mapping[str, object]
PredictionName = Literal["eps", "v"]

NETWORK, WRAPPED = "model.diffusion_model.", "state_dict."
AUTOENCODERS = ("first_stage_model.", "vae.")
SILENT = re.compile(
    r"betas|.*alphas_cumprod.*|posterior_.*|logvar|lvlb_weights|scale_factor|(denoiser|model_sampling|model_ema)\..*"
)
"""Tables of the schedule and averages, which lie beside the parts."""

TEXT_WEIGHTS = "model.safetensors"
VOCABULARY = ("vocab.json", "merges.txt")
"""The files of CLIP's tokenizer."""

TOKENIZERS = {"tokenizer_3": "T5TokenizerFast"}
"""The classes of tokenizers that are not CLIP's."""

CHAIN = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}
PNDM = {"_class_name": "PNDMScheduler", **CHAIN, "skip_prk_steps": True, "set_alpha_to_one": False}
DDIM = {"_class_name": "DDIMScheduler", **CHAIN, "clip_sample": False, "set_alpha_to_one": False}
EULER = {"_class_name": "EulerDiscreteScheduler", **CHAIN, "timestep_spacing": "leading"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
SHIFTS = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}


class Kind(NamedTuple):
    """What the files of a kind have in common and do not tell: the published defaults."""

    pipeline: str
    part: str
    """diffusers' name of the network's folder."""
    scheduler: Json
    size: int
    """Side of the latents."""
    factor: float
    """By which latents are multiplied, once the shift is taken from them."""
    config: Callable[[Arrays, int], dict[str, object]] = unets.unet_json
    tensors: Callable[[Arrays, Json, str], dict[str, np.ndarray]] = unets.unet_tensors
    shift: float = 0.0


_SD3 = Kind(
    "StableDiffusion3Pipeline", "transformer", FLOW | {"shift": 3.0}, 128, 1.5305,
    transformers.sd3_json, transformers.sd3_tensors, 0.0609,
)  # fmt: skip
_FLUX = Kind(
    "FluxPipeline", "transformer", FLOW | SHIFTS | {"shift": 3.0, "use_dynamic_shifting": True}, 128, 0.3611,
    transformers.flux_json, transformers.flux_tensors, 0.1159,
)  # fmt: skip
_V = {"prediction_type": "v_prediction"}
KINDS: Mapping[str, Kind] = {
    "Stable Diffusion 1": Kind("StableDiffusionPipeline", "unet", PNDM, 64, 0.18215),
    "Stable Diffusion 2": Kind("StableDiffusionPipeline", "unet", DDIM | _V, 96, 0.18215),
    "Stable Diffusion 2 base": Kind("StableDiffusionPipeline", "unet", PNDM, 64, 0.18215),
    "SDXL": Kind("StableDiffusionXLPipeline", "unet", EULER, 128, 0.13025),
    "Stable Diffusion 3": _SD3,
    "FLUX.1-dev": _FLUX,
    "FLUX.1-schnell": _FLUX._replace(scheduler=FLOW | SHIFTS | {"shift": 1.0, "use_dynamic_shifting": False}),
}


class Given(NamedTuple):
    """What the user says of a file that does not tell."""

    prediction: PredictionName | None = None
    """What a U-Net predicts; None for v in Stable Diffusion 2 and eps elsewhere."""
    size: int | None = None
    """Side of the images; None for the published one."""
    vae: Path | None = None
    """A file with the autoencoder, in place of the one that lies in the file."""
    tokenizer: Path | None = None
    """The folder of CLIP's tokenizer, or of a pipeline's tokenizers."""


def recognised(arrays: Arrays) -> bool:
    """Whether these are the tensors of such a file."""
    return _network(_unwrapped(arrays))[1] is not None


@contextlib.contextmanager
def unpacked(file: Path, arrays: Arrays, given: Given, beside: Path) -> Iterator[Path]:
    """The folder of diffusers' pipeline that the file's tensors make, beside this path and for as long as it is read.

    Raises ValueError that names what is missing, left over or misshapen, or FileNotFoundError.
    """
    beside.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{beside.name}.single-", dir=beside.parent) as folder:
        with refusing(file):
            unpack(arrays, Path(folder), given)
        del arrays  # they are on the disk now
        yield Path(folder)


def unpack(arrays: Arrays, folder: Path, given: Given) -> None:
    """Writes the folder of diffusers' pipeline. Raises as `unpacked`."""
    arrays = _unwrapped(arrays)
    where, network = _network(arrays)
    if network is None:
        raise ValueError("not a single file of a pipeline that is known here")
    _check_known(arrays, where)
    kind = KINDS[kind_of(network, given.prediction)]
    vae = _autoencoder(arrays, kind, given.vae)
    said = kind.config(network, kind.size if given.size is None else given.size // vae.factor)
    _write(folder / kind.part / WEIGHTS[0], said, kind.tensors(network, said, where))
    _write(folder / "vae" / WEIGHTS[0], vae.json, vae.arrays)

    texts = {
        reader: reader.read(_below(arrays, prefix), prefix)
        for prefix, reader in READERS.items()
        if any(name.startswith(prefix) for name in arrays)
    }
    pooled = unets.pooled_width(said)
    if texts and pooled and pooled not in (t.json["projection_dim"] for r, t in texts.items() if r.folder[-1] == "2"):
        raise ValueError(f"{where}{unets.POOLED} is for pooled texts of {pooled} channels, which no encoder here gives")
    for reader, text in texts.items():
        _write(folder / reader.folder / TEXT_WEIGHTS, text.json, text.arrays)
    tokenizers = [] if given.tokenizer is None else _copy_tokenizers(texts, folder, given.tokenizer)

    scheduler = _scheduler(kind, given.prediction)
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index: dict[str, object] = {
        "_class_name": kind.pipeline,
        kind.part: ["diffusers", said["_class_name"]],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        **{reader.folder: ["transformers", text.kind] for reader, text in texts.items()},
        **{name: ["transformers", TOKENIZERS.get(name, "CLIPTokenizer")] for name in tokenizers},
    }
    if kind.pipeline == "StableDiffusionPipeline":
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    _write_json(folder / "model_index.json", index)


def kind_of(network: Arrays, prediction: PredictionName | None = None) -> str:
    """The kind in `KINDS` of the tensors of this network."""
    if transformers.SD3_FIRST in network:
        return "Stable Diffusion 3"
    if transformers.FLUX_FIRST in network:
        return "FLUX.1-dev" if transformers.GUIDANCE in network else "FLUX.1-schnell"
    if unets.POOLED in network:
        return "SDXL"
    if not unets.is_linear(network):
        return "Stable Diffusion 1"
    return "Stable Diffusion 2 base" if prediction == "eps" else "Stable Diffusion 2"


def _unwrapped(arrays: Arrays) -> Arrays:
    """The tensors of the model, without those of the optimiser and the averages of a training's own file."""
    arrays = _below(arrays, WRAPPED) or arrays
    averages = {
        name: arrays[average]
        for name in arrays
        if (average := "model_ema." + name.removeprefix("model.").replace(".", "")) in arrays
    }
    return {**arrays, **averages}


def _network(arrays: Arrays) -> tuple[str, Arrays | None]:
    """(what stands before the network's names, its tensors), None where there is none that is known here."""
    for where in (NETWORK, ""):
        network = _below(arrays, where)
        texts = unets.FIRST in network and any(".attn2.to_k." in name for name in network)
        if (texts and where) or transformers.SD3_FIRST in network or transformers.FLUX_FIRST in network:
            return where, network
    return "", None


def _below(arrays: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _check_known(arrays: Arrays, where: str) -> None:
    parts = (NETWORK, *AUTOENCODERS, *READERS)
    unknown = [name for name in arrays if where and not name.startswith(parts) and not SILENT.fullmatch(name)]
    if unknown:
        raise ValueError("; ".join(f"{name} is not known" for name in unknown))


def _scheduler(kind: Kind, prediction: PredictionName | None) -> dict[str, object]:
    if prediction is None:
        return dict(kind.scheduler)
    if kind.part != "unet":
        raise ValueError(f"prediction {prediction} is not allowed: a flow's network has one of its own (--prediction)")
    return {**kind.scheduler, "prediction_type": {"eps": "epsilon", "v": "v_prediction"}[prediction]}


class _Autoencoder(NamedTuple):
    json: Json
    arrays: Arrays
    factor: int


def _autoencoder(arrays: Arrays, kind: Kind, file: Path | None) -> _Autoencoder:
    """The autoencoder of another file, or of this one, as diffusers has it."""
    if file is not None:
        arrays = _unwrapped(read_weights(file))
    where = next((prefix for prefix in AUTOENCODERS if _below(arrays, prefix)), "")
    if file is None and not where:
        raise ValueError("the file holds no autoencoder: name the file of one (--vae)")
    own = _below(arrays, where)
    rules = autoencoder.to_diffusers(autoencoder.count_levels(own))
    names = {new: name for name in own if (new := new_name(name, rules))}
    own = {name: own[name] for name in names.values()}
    network = autoencoder.network_of({new: own[name] for new, name in names.items()})
    shapes = torch_shapes(autoencoder.shapes_of(network), autoencoder.origins)
    found = pieced(own, {new: Piece(name) for new, name in names.items()}, shapes, where)
    return _Autoencoder(config_json(network, kind.factor, kind.shift), found, network.factor)


def _copy_tokenizers(texts: Mapping[Reader, TextPart], folder: Path, source: Path) -> list[str]:
    """Puts a tokenizer beside each encoder; the names of the folders.

    `source` holds the files of CLIP's, or folders of tokenizers by diffusers' names.
    """
    found = []
    for reader, text in texts.items():
        part = reader.folder.replace("text_encoder", "tokenizer")
        if (source / part).is_dir():
            shutil.copytree(source / part, folder / part)
            found.append(part)
        elif reader.pad:
            _copy_clip_tokenizer(folder / part, source, reader.pad, text.json["max_position_embeddings"])
            found.append(part)
    if not found:
        raise ValueError("the file holds no text encoder that this tokenizer is for (--tokenizer)")
    return found


def _copy_clip_tokenizer(folder: Path, source: Path, pad: str, length: object) -> None:
    words = {"bos_token": START, "eos_token": END, "pad_token": pad, "unk_token": END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True, **words}
    _write_json(folder / "special_tokens_map.json", words)
    _write_json(folder / "tokenizer_config.json", config)
    for name in VOCABULARY:
        if not (source / name).is_file():
            raise FileNotFoundError(f"there is no {source / name} (--tokenizer FOLDER)")
        shutil.copyfile(source / name, folder / name)


def _write(file: Path, config: Json, arrays: Arrays) -> None:
    _write_json(file.parent / "config.json", config)
    # 8-bit floats, which few programs read, lose nothing by this.
    safetensors.write(file, {n: a.astype(np.float16) if a.dtype.itemsize == 1 else a for n, a in arrays.items()})


def _write_json(file: Path, content: Json) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n")
