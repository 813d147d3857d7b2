"""Our VAE in diffusers' pipelines, in the place of theirs: the same image."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from given.inputs import image
from given.pairs import narrow, ours_like, theirs_of
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from vae_core import AutoencoderKL, from_diffusers

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
    return {
        "tokenizer": tokenizer,
        "text_encoder": CLIPTextModel(text_config(len(tokens))).eval(),
        "unet": unet(),
        "scheduler": DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False),
        "safety_checker": None,
        "feature_extractor": None,
    }


def text_config(words: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=words,
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        num_hidden_layers=2,
        max_position_embeddings=16,
        projection_dim=16,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
        pad_token_id=words - 1,
    )


UNET: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
}


def unet(**fields: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        **{**UNET, "sample_size": 8, "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), **fields}
    ).eval()


def small_unet(parts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The parts of a pipeline, with a UNet of its own."""
    return {**parts, "unet": unet(**fields)}


def xl_parts(parts: dict[str, Any]) -> dict[str, Any]:
    """Those of SDXL: a second text encoder, and a UNet that takes sizes."""
    torch.manual_seed(0)
    second = CLIPTextModelWithProjection(text_config(len(parts["tokenizer"]))).eval()
    network = unet(
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    return {
        "tokenizer": parts["tokenizer"],
        "tokenizer_2": parts["tokenizer"],
        "text_encoder": parts["text_encoder"],
        "text_encoder_2": second,
        "unet": network,
        "scheduler": EulerDiscreteScheduler(beta_schedule="scaled_linear"),
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
        image=image(1, 72, 64) / 2 + 0.5,
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


IMAGE = image(1, 64, 64) / 2 + 0.5
MASK = torch.zeros(1, 1, 64, 64).index_fill_(3, torch.arange(20, 44), 1.0)


def kinds_of_pipelines(parts: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any], dict[str, Any]]]:
    """name -> the pipeline's class, its parts but the VAE, and the arguments of a call."""
    control = ControlNetModel(**UNET, conditioning_embedding_out_channels=(8, 8, 16, 16)).eval()
    upscaling = {
        **small_unet(parts, in_channels=7, num_class_embeds=1000, sample_size=32),
        "low_res_scheduler": DDPMScheduler(),
        "watermarker": None,
    }
    change: dict[str, Any] = {"image": IMAGE, "strength": 0.6}
    return {
        "SD": (StableDiffusionPipeline, parts, {}),
        "img2img": (StableDiffusionImg2ImgPipeline, parts, change),
        "inpaint": (StableDiffusionInpaintPipeline, parts, {**change, "mask_image": MASK, "height": 64, "width": 64}),
        "inpaint, 9 channels": (
            StableDiffusionInpaintPipeline,
            small_unet(parts, in_channels=9),
            {"image": IMAGE, "mask_image": MASK, "height": 64, "width": 64},
        ),
        "ControlNet": (StableDiffusionControlNetPipeline, {**parts, "controlnet": control}, {"image": IMAGE}),
        "upscale": (StableDiffusionUpscalePipeline, upscaling, {"image": image(1, 32, 32) / 2 + 0.5}),
        "SDXL": (StableDiffusionXLPipeline, xl_parts(parts), {"height": 64, "width": 64}),
        "SDXL img2img": (StableDiffusionXLImg2ImgPipeline, xl_parts(parts), change),
    }


KINDS = ("SD", "img2img", "inpaint", "inpaint, 9 channels", "ControlNet", "upscale", "SDXL", "SDXL img2img")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.thorough
def test_every_kind_gives_the_same_image(kind: str, parts: dict[str, Any]) -> None:
    pipeline, others, arguments = kinds_of_pipelines(parts)[kind]
    theirs = theirs_of(narrow(16, 16, 32) if kind == "upscale" else narrow(16, 16, 32, 32))
    found = []
    for vae in (ours_like(theirs), from_diffusers(theirs), theirs):
        pipe = pipeline(vae=vae, **others)
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        found.append(pipe("a b", num_inference_steps=3, generator=generator, output_type="np", **arguments).images)
    assert_same_image(found[0], found[2])
    assert_same_image(found[1], found[2])


def test_a_pipeline_saves_our_vae_and_diffusers_loads_it(
    parts: dict[str, Any], vaes: tuple[AutoencoderKL, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = StableDiffusionPipeline(vae=vaes[0], **parts)  # type: ignore[arg-type]
    expected = text_to_image(pipe)
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderKL"]
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    assert type(loaded.vae) is type(vaes[1]) and type(loaded.vae) is not AutoencoderKL
    assert_same_image(text_to_image(loaded), expected)
    pipe.save_pretrained(tmp_path / "half", variant="fp16", max_shard_size="100KB")
    assert StableDiffusionPipeline.from_pretrained(tmp_path / "half", variant="fp16", safety_checker=None).vae.config


def test_our_vae_is_given_to_a_pipeline_that_is_loaded(
    parts: dict[str, Any], vaes: tuple[AutoencoderKL, Any], tmp_path: Path
) -> None:
    StableDiffusionPipeline(vae=vaes[1], **parts).save_pretrained(tmp_path)  # type: ignore[arg-type]
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path, vae=vaes[0], safety_checker=None)
    assert loaded.vae is vaes[0]
    loaded.fuse_qkv_projections(unet=False)
    fused = text_to_image(loaded)
    loaded.unfuse_qkv_projections(unet=False)
    assert_same_image(fused, text_to_image(loaded))
    assert StableDiffusionImg2ImgPipeline.from_pipe(loaded).vae is vaes[0]


def test_one_line_for_a_pipeline_that_exists(parts: dict[str, Any], vaes: tuple[AutoencoderKL, Any]) -> None:
    pipe = StableDiffusionPipeline(vae=vaes[1], **parts)  # type: ignore[arg-type]
    expected = text_to_image(pipe)
    pipe.vae = from_diffusers(pipe.vae)
    pipe.vae.enable_tiling()
    assert_same_image(text_to_image(pipe), expected)
    assert pipe.vae.decoder.conv_in.weight is vaes[1].decoder.conv_in.weight


def test_a_saved_pipeline_is_loaded_with_ours(
    parts: dict[str, Any], vaes: tuple[AutoencoderKL, Any], tmp_path: Path
) -> None:
    pipe = StableDiffusionPipeline(vae=vaes[0], **parts)  # type: ignore[arg-type]
    expected = text_to_image(pipe)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.save_pretrained(tmp_path)
        loaded = StableDiffusionPipeline.from_pretrained(tmp_path, vae=AutoencoderKL.from_pretrained(tmp_path / "vae"))
    assert_same_image(text_to_image(loaded), expected)
