"""The original files of EDM against small networks written here after the paper, pickled as its program does."""

import functools
import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra parity")

from edm_networks import DhariwalUNet, EDMPrecond, SongUNet, VEPrecond, VPPrecond  # noqa: E402

from jaxdiff.core.types import Level  # noqa: E402
from jaxdiff.networks.apply import apply_fn  # noqa: E402
from jaxdiff.originals import open_original  # noqa: E402

quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


COMMON = dict(img_resolution=16, in_channels=3, label_dim=0, augment_dim=0, channel_mult_emb=2, num_blocks=1)
SONG = COMMON | dict(model_channels=32, channel_mult=[2, 2], attn_resolutions=[8])
NCSN = dict(
    embedding_type="fourier", channel_mult_noise=2, encoder_type="residual", resample_filter=[1, 3, 3, 1], augment_dim=9
)
SMALL = {
    "ddpm++": lambda: EDMPrecond(SongUNet(**SONG, **{}), sigma_data=0.5),
    "ddpm++, classes": lambda: EDMPrecond(SongUNet(**SONG | {"label_dim": 5}), sigma_data=0.5),
    "ncsn++": lambda: EDMPrecond(SongUNet(**SONG | NCSN), sigma_data=0.5),
    "adm": lambda: EDMPrecond(
        DhariwalUNet(**COMMON, model_channels=64, channel_mult=[1, 2], attn_resolutions=[8]), sigma_data=0.5
    ),
    "adm, classes": lambda: EDMPrecond(
        DhariwalUNet(
            **COMMON | {"label_dim": 5, "augment_dim": 9}, model_channels=64, channel_mult=[1, 2], attn_resolutions=[8]
        ),
        sigma_data=0.5,
    ),
    "vp": lambda: VPPrecond(SongUNet(**SONG), beta_min=0.1, beta_d=19.9, M=1000),
    "ve": lambda: VEPrecond(SongUNet(**SONG), sigma_min=0.02, sigma_max=100),
}


def filled(net):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return net.eval()


@pytest.mark.parametrize("name", SMALL)
def test_small_denoisers(name, tmp_path, save_persistent):
    torch.set_num_threads(1)
    theirs = filled(SMALL[name]())
    options = {"use_labels": True, "resolution": 16}
    original = open_original(save_persistent(theirs, tmp_path / "net.pkl", dataset_kwargs=options))
    assert (original.size, original.channels) == (16, 3)
    classes, augment = original.network.num_classes, original.network.augment_dim

    rng = np.random.default_rng(1)
    x, sigma = rng.standard_normal((3, 16, 16, 3), np.float32), np.array([0.1, 1.5, 7.0], np.float32)
    cond, label, aug = {}, None, None
    if classes:
        cond["label"] = jnp.array([3, 0, -1])
        label = torch.zeros(3, classes)
        label[0, 3] = label[1, 0] = 1.0
    if augment:
        cond["augment"] = rng.standard_normal((3, augment), np.float32)
        aug = torch.from_numpy(cond["augment"])
    with torch.no_grad():
        wide = torch.from_numpy(sigma)[:, None, None, None]
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2)), wide, label, aug).numpy().transpose(0, 2, 3, 1)

    # Any path has the level of this ratio: x is alpha times theirs.
    t = original.path.invert(jnp.asarray(sigma))
    level = original.path(t)
    np.testing.assert_allclose(level.sigma / level.alpha, sigma, rtol=1e-4)
    apply = quickly(apply_fn(original.network, original.prediction))
    alpha, sigma = (np.asarray(a)[:, None, None, None] for a in level)
    out = apply(original.params, alpha * x, level, level, cond)
    a, b = (np.broadcast_to(np.asarray(v), (3,))[:, None, None, None] for v in original.prediction.row(Level(*level)))
    x0 = (b * alpha * x - sigma * out) / (alpha * b - sigma * a)
    assert np.abs(x0 - expected).max() / np.abs(expected).max() < 1e-4


class Evil:
    """Unpickled as usual, it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("inside", [False, True])
def test_a_file_that_would_run_code_is_refused_by_name(tmp_path, save_persistent, inside):
    net, marker = SMALL["ddpm++"](), tmp_path / "ran"
    if inside:  # among the attributes of a module
        net.model.evil = Evil(marker)
    path = save_persistent(net, tmp_path / "net.pkl", **({} if inside else {"loss_fn": Evil(marker)}))
    with pytest.raises(ValueError, match=r"names (posix|nt)\.system") as caught:
        open_original(path)
    assert str(caught.value).startswith(str(path)) and not marker.exists()


def test_the_source_in_a_file_is_not_run(tmp_path, save_persistent):
    # The fixture's source would end the program, and its function would fail the test.
    path = save_persistent(SMALL["ddpm++"](), tmp_path / "net.pkl")
    with pytest.raises(AssertionError, match="was called"), path.open("rb") as file:
        pickle.load(file)
    open_original(path)


def test_other_classes_and_options_are_named(tmp_path, save_persistent):
    net = SMALL["ddpm++"]()
    net.model._init_kwargs["encoder_type"] = "skip"
    with pytest.raises(ValueError, match="encoder_type = 'skip'"):
        open_original(save_persistent(net, tmp_path / "a.pkl"))
    net.model._init_kwargs.pop("encoder_type")
    net.model.map_layer0.bias = None
    with pytest.raises(ValueError, match="bias is missing"):
        open_original(save_persistent(net, tmp_path / "b.pkl"))
    with pytest.raises(ValueError, match="SongUNet is not supported"):
        open_original(save_persistent(net.model, tmp_path / "c.pkl"))
