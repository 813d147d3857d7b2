"""What another node can put on a wire: dicts of tensors, images, masks, and values of linked widgets."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from given.nodes import Makers
from host.stand_in import Pack, installed
from hypothesis import given
from hypothesis import strategies as st

from fuzz.limits import folder, limits

DTYPES = [
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn),
    *(torch.uint8, torch.int64, torch.bool, torch.complex64),
]
VALUES = [0.0, 1.0, -1.0, 0.5, float("nan"), float("inf"), 1e30, -1e30, 65504.0]
STRANGE = [None, 5, "x", [], {}, b"x", 1.5]


@cache
def pack() -> Pack:
    return Pack()


@cache
def vae() -> Any:
    """A VAE on the wire that has run once: what is imported and compiled for that belongs to no case."""
    made = Makers(pack()).vae(block_out_channels=(32, 32))
    image = torch.rand(1, 16, 16, 3)
    given = {"vae": made, "sample_mode": "sample", "seed": 0, "fit": "pad"}
    for node in ("SeamlessVAEEncode", "SeamlessVAEEncodeTiled"):
        latent, posterior, _ = pack().run(node, pixels=image, **given)
    pack().run("SeamlessVAEDecodeTiled", samples=latent, vae=made, mode="blended", tile_size=8, overlap=4)
    pack().run("SeamlessPosteriorPreview", posterior=posterior)
    return made


@st.composite
def tensors(draw: st.DrawFn, usual: tuple[int, ...]) -> Any:
    """Mostly of the usual shape and type; a view of another memory layout; or something else than a tensor."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(STRANGE))
    shape = list(usual)
    if draw(st.booleans()):
        shape[draw(st.integers(0, len(shape) - 1))] = draw(st.integers(0, 17))
    if draw(st.integers(0, 4)) == 0:
        shape = draw(st.lists(st.integers(0, 5), max_size=6))
    dtype = draw(st.sampled_from(DTYPES)) if draw(st.integers(0, 3)) == 0 else torch.float32
    found = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    if found.numel() and dtype.is_floating_point and draw(st.integers(0, 2)) == 0:
        found.view(-1)[draw(st.integers(0, found.numel() - 1))] = draw(st.sampled_from(VALUES))
    if found.ndim > 1 and draw(st.booleans()):
        found = found.transpose(0, -1).contiguous().transpose(0, -1)
    return found


@st.composite
def latent_dicts(draw: st.DrawFn) -> Any:
    """A LATENT, or a VAE_POSTERIOR, and what other packs put beside."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.sampled_from(STRANGE))
    found = {"samples": draw(tensors((1, 4, 5, 6)))}
    if draw(st.booleans()):
        found["logvar"] = draw(tensors((1, 4, 5, 6)))
    numbers = st.one_of(st.integers(-3, 20), st.sampled_from([2**70, -(2**70), 1.5, None, "1", True]))
    extra = {
        "seamless_fit": st.one_of(st.lists(numbers, max_size=5), st.just((9, 11, 5, 6)), numbers),
        "batch_index": st.one_of(st.lists(numbers, max_size=3), numbers),
        "noise_mask": tensors((1, 1, 5, 6)),
        "downscale_ratio_spacial": numbers,
        "type": st.sampled_from(["audio", 5, None]),
    }
    for name in draw(st.lists(st.sampled_from(sorted(extra)), max_size=3, unique=True)):
        found[name] = draw(extra[name])
    if draw(st.integers(0, 19)) == 0:
        del found["samples"]
    return found


# Nodes that refuse what is not finite; the others pass it on, as their arithmetic gives it.
FINITE = ("SeamlessVAEEncode", "SeamlessVAEEncodeTiled", "SeamlessVAEDecode", "SeamlessVAEDecodeTiled")


def run(node: str, **inputs: Any) -> None:
    """Run a node: its results, or a VAEError."""
    with installed("new", folder() / "host"):
        made = vae()
        inputs = {name: made if value is VAE else value for name, value in inputs.items()}
        error_of_pack = pack().module("vae_core.errors").VAEError
        with limits(), torch.inference_mode():
            try:
                results = pack().run(node, **inputs)
            except error_of_pack as error:
                assert len(str(error)) < 900
                return
    for result in results:
        image = result.get("samples") if isinstance(result, dict) else result
        if isinstance(image, torch.Tensor) and image.is_floating_point() and node in FINITE:
            assert torch.isfinite(image).all()


VAE = object()
SEEDS = st.sampled_from([0, 1, 2**64 - 1, 2**63])
TEMPERATURES = st.sampled_from([0.0, 1.0, 100.0, -1.0, float("nan"), float("inf")])


@given(latent=latent_dicts(), node=st.sampled_from(["decode", "sample", "preview", "scale"]), data=st.data())
def latents(latent: Any, node: str, data: st.DataObject) -> None:
    """Every node that takes a latent or a posterior."""
    if node == "decode":
        run("SeamlessVAEDecode", samples=latent, vae=VAE, clamp=data.draw(st.booleans()))
    elif node == "sample":
        mode, seed, temperature = data.draw(st.tuples(st.sampled_from(["mean", "sample"]), SEEDS, TEMPERATURES))
        count = data.draw(st.integers(-1, 3))
        run(
            "SeamlessVAESamplePosterior",
            posterior=latent,
            sample_mode=mode,
            seed=seed,
            temperature=temperature,
            count=count,
        )
    elif node == "preview":
        run("SeamlessPosteriorPreview", posterior=latent)
    else:
        run("SeamlessLatentScale", samples=latent, vae=VAE, to=data.draw(st.sampled_from(["diffusion", "raw", "x"])))


TILING = st.fixed_dictionaries(
    {},
    optional={
        "mode": st.sampled_from(["exact", "blended", "x"]),
        "tile_size": st.sampled_from([0, 1, 2, 8, 16, 16384, -8]),
        "overlap": st.sampled_from([0, 2, 8, 128, 8192, -1]),
        "memory_budget": st.sampled_from([0.0, 1e-9, 0.0001, 0.001, 1.0, 4096.0, -1.0, float("nan"), float("inf")]),
        "circular": st.sampled_from(["none", "x", "y", "both", "z"]),
    },
)


@given(
    pixels=tensors((1, 10, 12, 3)),
    latent=latent_dicts(),
    mask=tensors((1, 10, 12)),
    tiling=TILING,
    node=st.sampled_from(["encode", "tiled", "decode tiled", "inpaint", "composite"]),
    fit=st.sampled_from(["crop", "pad", "error", "x"]),
    mode=st.sampled_from(["mean", "sample", "x"]),
    grow=st.sampled_from([0, 1, 6, 1024, -1]),
)
def node_inputs(
    pixels: Any, latent: Any, mask: Any, tiling: dict[str, Any], node: str, fit: str, mode: str, grow: int
) -> None:
    """Every node that takes images, masks or options."""
    if node == "encode":
        run("SeamlessVAEEncode", pixels=pixels, vae=VAE, sample_mode=mode, seed=0, fit=fit)
    elif node == "tiled":
        run("SeamlessVAEEncodeTiled", pixels=pixels, vae=VAE, sample_mode=mode, seed=0, fit=fit, **tiling)
    elif node == "decode tiled":
        run("SeamlessVAEDecodeTiled", samples=latent, vae=VAE, clamp=True, **tiling)
    elif node == "inpaint":
        run("SeamlessVAEInpaintEncode", pixels=pixels, vae=VAE, mask=mask, grow=grow, feather=grow)
    else:
        run("SeamlessVAEInpaintComposite", samples=latent, vae=VAE, original=pixels, mask=mask)
