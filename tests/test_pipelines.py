"""Our VAE in diffusers' pipelines, in the place of theirs: the same image."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline, UNet2DConditionModel
from pairs import images, narrow, ours_like, theirs_of
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from vae_core import AutoencoderKL

# One step of a byte is 1/255. The images are float arrays in [0, 1].
TOLERANCE = 1e-5
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything of a Stable Diffusion pipeline but the VAE, tiny and random."""
    folder = tmp_path_factory.mktemp("tokenizer")
    words = [chr(code) for code in range(97, 123)]
    tokens = [*words, *(f"{word}</w>" for word in words), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=16)
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        num_hidden_layers=2,
        max_position_embeddings=16,
        bos_token_id=len(tokens) - 2,
        eos_token_id=len(tokens) - 1,
        pad_token_id=len(tokens) - 1,
    )
    unet = UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": CLIPTextModel(text).eval(),
        "unet": unet.eval(),
        "scheduler": DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False),
        "safety_checker": None,
        "feature_extractor": None,
    }


@pytest.fixture
def vaes() -> tuple[AutoencoderKL, Any]:
    theirs = theirs_of(narrow(16, 16, 32, 32))
    return ours_like(theirs), theirs


def text_to_image(pipe: Any, size: tuple[int, int] = (64, 88)) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        "a b c",
        height=size[0],
        width=size[1],
        num_inference_steps=2,
        num_images_per_prompt=2,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images


def image_to_image(pipe: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        "a b c",
        image=images(1, 72, 64) / 2 + 0.5,
        strength=0.6,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images


def assert_same_image(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape and theirs.std() > 0.01
    assert np.abs(ours - theirs).max() <= TOLERANCE


def enable(pipe: Any, modes: str) -> None:
    for mode in modes.split():
        if hasattr(pipe, f"enable_vae_{mode}"):
            getattr(pipe, f"enable_vae_{mode}")()
        else:
            getattr(pipe.vae, f"enable_{mode}")()
        assert getattr(pipe.vae, f"use_{mode}")
    if isinstance(pipe.vae, AutoencoderKL):
        pipe.vae.tiling_mode = "blended"  # as diffusers tiles


def test_exact_tiling_in_a_pipeline(parts: dict[str, Any], vaes: tuple[AutoencoderKL, Any]) -> None:
    pipes = [StableDiffusionPipeline(vae=vae, **parts) for vae in vaes]  # type: ignore[arg-type]
    pipes[0].vae.enable_tiling()
    assert_same_image(*(text_to_image(pipe) for pipe in pipes))


@pytest.mark.parametrize("modes", ["", "slicing", "tiling", "slicing tiling"])
def test_text_to_image(parts: dict[str, Any], vaes: tuple[AutoencoderKL, Any], modes: str) -> None:
    pipes = [StableDiffusionPipeline(vae=vae, **parts) for vae in vaes]  # type: ignore[arg-type]
    for pipe in pipes:
        enable(pipe, modes)
    assert_same_image(*(text_to_image(pipe) for pipe in pipes))


@pytest.mark.parametrize("modes", ["", "tiling"])
def test_image_to_image(parts: dict[str, Any], vaes: tuple[AutoencoderKL, Any], modes: str) -> None:
    pipes = [StableDiffusionImg2ImgPipeline(vae=vae, **parts) for vae in vaes]  # type: ignore[arg-type]
    for pipe in pipes:
        enable(pipe, modes)
    assert_same_image(*(image_to_image(pipe) for pipe in pipes))


def test_a_pipeline_moves_and_converts_our_vae(parts: dict[str, Any], vaes: tuple[AutoencoderKL, Any]) -> None:
    pipe = StableDiffusionPipeline(vae=vaes[0], **parts)  # type: ignore[arg-type]
    expected = text_to_image(pipe)
    assert pipe.to(torch.float64).vae.dtype == torch.float64
    assert pipe.to("cpu", torch.float32).vae.dtype == torch.float32
    assert_same_image(text_to_image(pipe), expected)
    again = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    assert again.vae is pipe.vae


def test_a_saved_pipeline_holds_our_vae(parts: dict[str, Any], vaes: tuple[AutoencoderKL, Any], tmp_path: Path) -> None:
    pipe = StableDiffusionPipeline(vae=vaes[0], **parts)  # type: ignore[arg-type]
    expected = text_to_image(pipe)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.save_pretrained(tmp_path)
        vaes[0].save_pretrained(tmp_path / "vae")
        loaded = StableDiffusionPipeline.from_pretrained(tmp_path, vae=AutoencoderKL.from_pretrained(tmp_path / "vae"))
    assert_same_image(text_to_image(loaded), expected)
