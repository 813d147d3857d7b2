"""What the LATENT and VAE_POSTERIOR wires carry: dicts of tensors, checked before anything heavy starts.

`samples` are raw z, [B, C, h, w]; for FLUX.2, as in its host, the packed and normalised latent. A posterior is a latent
whose `samples` are the mean, with `logvar` beside them. Keys that are not known here travel on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..vae_core import AutoencoderKL, AutoencoderKLConfig
from ..vae_core.errors import ShapeError
from ..vae_core.image import FittedImage
from ..vae_core.latent import from_diffusion, logvar_to_diffusion, to_diffusion
from ..vae_core.posterior import DiagonalGaussianDistribution, seeded
from ..vae_core.tensor_kinds import value_obstacle

Latent = dict[str, Any]

# Of an image that was padded: its height and width, and those of the latent to which they apply.
FIT_KEY = "seamless_fit"
HOST_FACTOR_KEY = "downscale_ratio_spacial"  # the host's own name of the downscale factor


def samples_of(latent: Mapping[str, Any], dimensions: Sequence[int] = (4,)) -> Tensor:
    """The tensor of a latent. One frame of a video is an image, where images are taken.

    Raises:
        ShapeError: not a latent of images: nested, of several frames or of audio, or empty.
    """
    samples = latent.get("samples") if isinstance(latent, Mapping) else None
    if samples is None:
        raise ShapeError(
            f"this is not a latent: {type(latent).__name__} without samples. Connect a LATENT output, such as that of "
            f"Seamless VAE Encode."
        )
    if getattr(samples, "is_nested", False):
        raise ShapeError(
            "this latent is nested: it contains tensors of several shapes, such as video and audio. Split it with the "
            "nodes made for its model, and connect the images alone."
        )
    why = value_obstacle(samples)
    if why is not None or samples.is_complex():
        found = f"is a tensor of {samples.dtype}" if why is None else why.what
        raise ShapeError(f"this is not a latent: what it has as samples {found}. Connect a LATENT output.")
    if samples.ndim == 5 and 5 not in dimensions and samples.shape[2] == 1:
        samples = samples[:, :, 0]
    if samples.ndim not in dimensions:
        frames = samples.shape[2] if samples.ndim == 5 else 0
        what = {3: "audio", 5: f"a video of {frames} frames"}.get(samples.ndim, "something else")
        raise ShapeError(
            f"this is a latent of {what}: its shape {tuple(samples.shape)} has {samples.ndim} dimensions, and a latent "
            f"of images has 4: batch, channels, height, width. Use the VAE and the nodes made for its model."
        )
    if 0 in samples.shape:
        raise ShapeError(
            f"this latent is empty: its shape is {tuple(samples.shape)}. Connect a latent with at least one image."
        )
    return samples


def is_packed(config: AutoencoderKLConfig) -> bool:
    """Whether the wire carries this family's latents packed and normalised: FLUX.2."""
    return config.has_batch_norm


def wire_channels(config: AutoencoderKLConfig) -> int:
    """Channels of latents on the wire."""
    rows, columns = config.patch_size or (1, 1)
    return config.latent_channels * rows * columns


def wire_factor(config: AutoencoderKLConfig) -> int:
    """The downscale factor of latents on the wire: pixels along one side of a latent pixel."""
    return config.downscale_factor * (config.patch_size or (1, 1))[0]


def raw_shape(config: AutoencoderKLConfig, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of raw z, for a shape [B, C, h, w] on the wire. FLUX.2's may be raw already, as its channels tell."""
    batch, channels, height, width = shape
    if not is_packed(config) or channels != wire_channels(config):
        return tuple(shape)
    rows, columns = config.patch_size or (1, 1)
    return batch, config.latent_channels, height * rows, width * columns


def to_wire(model: AutoencoderKL, z: Tensor) -> Tensor:
    """Raw z as the wire carries it."""
    if not is_packed(model.config):
        return z
    return to_diffusion(z, model.config, model.bn.running_mean, model.bn.running_var)


def from_wire(model: AutoencoderKL, samples: Tensor) -> Tensor:
    """Raw z from the wire; see `raw_shape`."""
    if not is_packed(model.config) or samples.shape[1] != wire_channels(model.config):
        return samples
    return from_diffusion(samples, model.config, model.bn.running_mean, model.bn.running_var)


def posterior_to_wire(model: AutoencoderKL, posterior: DiagonalGaussianDistribution) -> DiagonalGaussianDistribution:
    """The posterior of raw z as that of what the wire carries."""
    if not is_packed(model.config):
        return posterior
    logvar = logvar_to_diffusion(posterior.logvar, model.config, model.bn.running_var)
    return DiagonalGaussianDistribution(torch.cat([to_wire(model, posterior.mean), logvar], dim=1))


def posterior_of(latent: Mapping[str, Any]) -> DiagonalGaussianDistribution:
    """The distribution of a VAE_POSTERIOR, in float32.

    Raises:
        ShapeError: not a posterior, or a `logvar` of another shape than the mean.
    """
    mean = samples_of(latent)
    logvar: Any = latent.get("logvar")
    why = value_obstacle(logvar)
    if why is not None or logvar.shape != mean.shape or logvar.is_complex():
        found = f"{tuple(logvar.shape)} of {logvar.dtype}" if why is None else f"unusable: it {why.what}"
        raise ShapeError(
            f"the log-variance of this posterior is {'missing' if logvar is None else found}, but its mean has shape "
            f"{tuple(mean.shape)}. Connect the posterior output of Seamless VAE Encode."
        )
    return DiagonalGaussianDistribution(torch.cat([mean.float(), logvar.to(mean.device).float()], dim=1))


def mean_of(posterior: Mapping[str, Any]) -> Latent:
    """A VAE_POSTERIOR as the latent of its mean."""
    return {key: value for key, value in posterior.items() if key != "logvar"}


def sample(posterior: DiagonalGaussianDistribution, seed: int, indices: Sequence[int]) -> Tensor:
    """One z for each item, whose noise depends on the seed and the item's index alone."""
    return posterior.sample([seeded(seed, index) for index in indices])


def batch_indices(latent: Mapping[str, Any]) -> list[int]:
    """The numbers that the items of a latent have in the batch that they come from."""
    count = len(latent["samples"])
    indices = latent.get("batch_index")
    if isinstance(indices, Sequence) and len(indices) == count and all(isinstance(each, int) for each in indices):
        return list(indices)
    return list(range(count))


def repeat(latent: Mapping[str, Any], count: int) -> Latent:
    """The batch `count` times, one after the other, with its mask and numbers, as the host's own node repeats it."""
    if count == 1:
        return dict(latent)
    samples = latent["samples"]
    indices = batch_indices(latent)
    step = max(indices) - min(indices) + 1
    found: Latent = {**latent, "samples": samples.repeat(count, 1, 1, 1)}
    found["batch_index"] = [index + step * turn for turn in range(count) for index in indices]
    mask = latent.get("noise_mask")
    if isinstance(mask, Tensor) and mask.ndim and mask.shape[0] == len(samples) > 1:
        found["noise_mask"] = mask.repeat(count, *[1] * (mask.ndim - 1))
    return found


def fit_keys(image: FittedImage, samples: Tensor) -> Latent:
    """What a latent remembers of an image that was padded, so that decoding removes the padding."""
    if image.size == tuple(image.pixels.shape[-2:]):
        return {}
    return {FIT_KEY: (*image.size, *samples.shape[-2:])}


def fit_of(item: Mapping[str, Any], samples: Tensor) -> Latent:
    """The same, of an item of a collection whose image was padded; `samples` are its latent on the wire."""
    width, height = item.get("resized", (0, 0))
    padded = 0 < width <= item["bucket"][0] and 0 < height <= item["bucket"][1] and [width, height] != item["bucket"]
    return {FIT_KEY: (height, width, *samples.shape[-2:])} if padded else {}


def restore_fit(latent: Mapping[str, Any], image: Tensor) -> Tensor:
    """A decoded image [B, H, W, C] without the padding that its latent remembers."""
    height, width = fitted_size(latent, *image.shape[1:3])
    return image if (height, width) == tuple(image.shape[1:3]) else image[:, :height, :width].contiguous()


def fitted_size(latent: Mapping[str, Any], height: int, width: int) -> tuple[int, int]:
    """What is left of a decoded image of this size without the padding that its latent remembers."""
    fit = latent.get(FIT_KEY)
    if not isinstance(fit, Sequence) or len(fit) != 4 or tuple(fit[2:]) != tuple(latent["samples"].shape[-2:]):
        return height, width  # none, or the latent was scaled or cropped since
    fits = all(isinstance(side, int) and 0 < side <= most for side, most in zip(fit, (height, width), strict=False))
    return (fit[0], fit[1]) if fits else (height, width)
