"""The JAX twin behind the command line: images to latents and back, compiled for each of their shapes."""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import Tensor

from ..config import AutoencoderKLConfig
from ..errors import ConfigError
from ..image import FittedImage
from .common import DEMO


class JaxModel:
    """A VAE that runs in JAX. Tensors go in and come out on the CPU, in float32.

    Attributes:
        config: of the VAE.
        compiling: seconds that compilation took so far.

    Raises:
        MissingDependencyError: JAX or Flax is not installed.
        ConfigError: a device that JAX lacks, or a memory budget, which only the engine for PyTorch takes.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        if arguments.memory is not None:
            raise ConfigError("--memory works with --backend torch only. Leave it out, or change the backend.")
        from ..flax import load_vae

        self.device = _device(arguments.device)
        self._model, params = load_vae(arguments.vae or DEMO, dtype=arguments.dtype, variant=arguments.variant)
        self.config: AutoencoderKLConfig = self._model.config
        self.compiling = 0.0
        self._params = self._put(params)
        self._sample = arguments.sample
        self._seed = arguments.seed

    def encode(self, image: FittedImage) -> Tensor:
        """Raw z of an image, [1, C, h, w]: the posterior's mean, or a sample by JAX's key of the seed."""

        def encode(params: Any, x: Any, key: Any) -> Any:
            posterior = self._model.apply({"params": params}, x, method=self._model.encode).latent_dist
            return posterior.sample(key) if self._sample else posterior.mode()

        return self._run(encode, image.pixels, self._put(_key(self._seed)))

    def decode(self, z: Tensor) -> Tensor:
        """Pixels of raw z, [1, C, H, W] in about [-1, 1]."""

        def decode(params: Any, z: Any) -> Any:
            return self._model.apply({"params": params}, z, method=self._model.decode).sample

        return self._run(decode, z)

    def _run(self, function: Any, x: Tensor, *others: Any) -> Tensor:
        import jax
        import numpy as np

        arguments = (self._params, self._put(x.float().cpu().numpy()), *others)
        start = time.perf_counter()
        compiled = jax.jit(function).lower(*arguments).compile()
        self.compiling += time.perf_counter() - start
        return torch.from_numpy(np.array(compiled(*arguments), np.float32))

    def _put(self, arrays: Any) -> Any:
        import jax

        return jax.device_put(arrays, self.device)


def _key(seed: int) -> Any:
    """JAX's key of a seed up to 2^64 - 1; `PRNGKey` itself takes 32 bits where JAX has no 64-bit integers."""
    import jax

    key = jax.random.PRNGKey(seed % 2**31)
    if seed >= 2**31:
        for part in (seed >> 31 & 2**32 - 1, seed >> 63):
            key = jax.random.fold_in(key, part)
    return key


def _device(name: str) -> Any:
    """The device of JAX by torch's or JAX's name: auto, cpu, cuda:1, gpu, tpu, ..."""
    import jax

    if name == "auto":
        return jax.devices()[0]
    platform, _, index = name.partition(":")
    try:
        return jax.devices(platform)[int(index or 0)]
    except (RuntimeError, IndexError, ValueError):
        present = ", ".join(f"{device.platform}:{device.id}" for device in jax.devices())
        raise ConfigError(f"JAX has no device {name!r} here; it has {present}. Use one of them, or auto.") from None
