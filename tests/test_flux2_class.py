"""FLUX.2's VAE under the name of diffusers' class for it, by which pipelines save and load it."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKLFlux2, DiffusionPipeline
from given.models import FLUX2_SMALL_DECODER, MODELS, make

from vae_core import AutoencoderKL, from_diffusers, load_vae


class Pipeline(DiffusionPipeline):
    def __init__(self, vae: torch.nn.Module) -> None:
        super().__init__()
        self.register_modules(vae=vae)

    def __call__(self) -> None: ...


def test_a_pipeline_saves_and_loads_it(tmp_path: Path) -> None:
    ours = make(MODELS["FLUX.2"])
    assert type(ours).__name__ == "AutoencoderKLFlux2" and isinstance(ours, AutoencoderKL)
    declared = [diffusers.AutoencoderKL, AutoencoderKLFlux2]  # by a pipeline, which asks whether the type is among them
    assert [type(ours) in declared[:1], type(ours) in declared[1:]] == [False, True]
    Pipeline(ours).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text(encoding="utf-8"))
    assert index["vae"] == ["diffusers", "AutoencoderKLFlux2"]
    theirs: Any = AutoencoderKLFlux2.from_pretrained(tmp_path / "vae").eval()
    z = torch.randn(1, 32, 4, 4)
    with torch.no_grad():
        # Two ways through float32 arithmetic, of values near 1.
        torch.testing.assert_close(theirs.decode(z).sample, ours.decode(z).sample, rtol=1e-4, atol=2e-5)
    for again in (load_vae(tmp_path), AutoencoderKL.from_pretrained(tmp_path, subfolder="vae"), from_diffusers(theirs)):
        assert type(again) is type(ours)
        assert torch.equal(again.decode(z).sample, ours.decode(z).sample)


def test_the_class_is_that_of_the_config() -> None:
    small = make(FLUX2_SMALL_DECODER)
    assert type(small).__name__ == small.config.class_name == "AutoencoderKLFlux2"
    assert type(make(MODELS["SD 1.x"])) is AutoencoderKL
    assert type(AutoencoderKL.from_config(small.config)) is type(small)
    assert type(copy.deepcopy(small)) is type(small)
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    assert type(torch.load(file, weights_only=False)) is type(small)
