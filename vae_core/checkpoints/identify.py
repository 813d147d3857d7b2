"""What a file is that is not a whole AutoencoderKL: a phrase for the error message, and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .tensor_file import TensorInfo

Tensors = Mapping[str, TensorInfo]


@dataclass(frozen=True)
class Identity:
    """What a file seems to be, such as "a LoRA", and the remedy, if a VAE was wanted."""

    what: str
    remedy: str


MOST = 500_000  # characters of names that are looked at

WHOLE_VAE = "Give the file of a whole VAE."
OTHER_MODEL = "An AutoencoderKL loader cannot run it; use the nodes or classes made for it."
NO_VAE = "It has no VAE in it. Give a VAE file, or a full checkpoint that contains one."


def _any(pattern: str) -> Callable[[Tensors], bool]:
    compiled = re.compile(pattern)
    return lambda tensors: any(compiled.search(name) for name in tensors)


def _convolutions_of(dimensions: int) -> Callable[[Tensors], bool]:
    """Most of the convolution-like weights have this many dimensions."""

    def test(tensors: Tensors) -> bool:
        weights = (info for name, info in tensors.items() if name.endswith((".weight", ".weight_v")))
        kernels = [len(info.shape) for info in weights if len(info.shape) > 2]
        return bool(kernels) and kernels.count(dimensions) * 2 > len(kernels)

    return test


def _both(*tests: Callable[[Tensors], bool]) -> Callable[[Tensors], bool]:
    return lambda tensors: all(test(tensors) for test in tests)


def gives_posterior(tensors: Tensors) -> bool | None:
    """Whether an encoder gives two numbers for each latent channel, a mean and a variance; None if nothing tells."""
    given = tensors.get("encoder.conv_out.weight")
    taken = tensors.get("decoder.conv_in.weight")
    if given is None or taken is None or len(given.shape) != 4 or len(taken.shape) != 4:
        return None
    return None if given.shape[0] not in (taken.shape[1], 2 * taken.shape[1]) else given.shape[0] != taken.shape[1]


_is_autoencoder = _any(r"(^|\.)(en|de)coder\.")

# The first that is true. What is most telling comes first; what other kinds share comes last.
RULES: tuple[tuple[Callable[[Tensors], bool], Identity], ...] = (
    (
        _any(r"(^|[./])conv_(in|out)[./]kernel(:0)?$"),
        Identity(
            "weights of Flax or Keras, under their names",
            "Save it once with PyTorch weights; vae_core.flax loads a folder of Flax weights.",
        ),
    ),
    (
        _any(
            r"\.(qweight|qzeros|wscales|W_q|_?weight_q?data|weight_packed|weight_zero_point|weight_scale_2)$|"
            r"\.(SCB|weight_format)$|"
            r"\.weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.\w+|SCB|_data|_scale)$|"
            r"\.weight[.:](int_data|qdata|tensor_impl|layout_tensor|packed_weight)\b|"
            r"\._packed_params(\.|$)"
        ),
        Identity(
            "quantised (by torch, bitsandbytes, GPTQ, torchao or the like)",
            "Get the VAE in float16, bfloat16 or float32.",
        ),
    ),
    (
        _any(r"\.(weight_fake_quant|activation_post_process)\."),
        Identity(
            "a model that is prepared for quantisation, with torch's observers beside its weights",
            "Save the model that it was made from.",
        ),
    ),
    (
        _any(
            r"\.lora_(down|up|A|B|embedding_[AB]|magnitude_vector)(\.|$)|(^|\.)lora_(unet|te\d?|vae)_|\.dora_scale$|"
            r"\.(hada_w1|lokr_w|b?oft_(blocks|[RS])|ia3_l|vera_lambda)"
        ),
        Identity("a LoRA or another adapter", "Load the VAE that it was made for, and put the adapter on that."),
    ),
    (
        _any(r"\.weight_(orig|u)$|\.parametrizations\.\w+\.\d+\.\w+$"),
        Identity(
            "a model under training with parametrizations (spectral norm or the like)",
            "Remove them where the model was made (torch.nn.utils.parametrize.remove_parametrizations), and save it "
            "again.",
        ),
    ),
    (
        _any(r"(^|\.)vocoder\.|\.layers\.\d+\.layers\.\d+\.(alpha|beta)$|\.(conv_t?1|snake1)\.(weight_[vg]|alpha)$"),
        Identity("an audio autoencoder", OTHER_MODEL),
    ),
    (
        _any(
            r"^taesd_(en|de)coder\.|^(en|de)coder\.layers\.\d+\.(conv\.\d+\.)?weight$|^(decoder\.)?[13]\.conv\.[024]\.weight$"
        ),
        Identity("TAESD (AutoencoderTiny), a small preview model", f"{OTHER_MODEL} {WHOLE_VAE}"),
    ),
    (
        _any(
            r"(^|\.)(\w*state\.\d+\.\w+|\w*state\.([\w.]+\.)?(exp_avg(_sq)?|momentum_buffer|square_avg)|"
            r"(single_partition_of_)?fp32(_flat)?_groups\.\d+|"
            r"optimizer_states?\.[\w.]*\.(exp_avg(_sq)?|momentum_buffer|step|square_avg))$"
        ),
        Identity("the state of an optimizer", "Give the file of the model that was saved beside it."),
    ),
    (
        _any(r"(^|\.)_?flat_param(_\d+)?$"),
        Identity(
            "a part of a model that FSDP has flattened",
            "Save the whole state dict where it was trained (StateDictType.FULL_STATE_DICT).",
        ),
    ),
    (
        lambda tensors: any(info.shape == (0,) for name, info in tensors.items() if name.endswith("conv_in.weight")),
        Identity(
            "a part of a model that DeepSpeed has spread over several files (ZeRO, stage 3)",
            "Make one file of them with the zero_to_fp32.py that is beside them.",
        ),
    ),
    (
        _any(r"(^|\.)shadow_params\.\d+$"),
        Identity("a moving average without names (EMA's shadow parameters)", "Give the model's own file."),
    ),
    (_any(r"^decoder_unet\."), Identity("a consistency decoder (ConsistencyDecoderVAE)", OTHER_MODEL)),
    (_any(r"(^|\.)decoder\.condition_encoder\."), Identity("an AsymmetricAutoencoderKL", OTHER_MODEL)),
    (
        _both(
            _any(r"(^|\.)(v?quant(ize|izer)\w*)\.(\w+\.){0,2}_?(embeddings?|codebooks?|embed)(\.|$)"),
            lambda tensors: not gives_posterior(tensors),
        ),
        Identity("a VQ model (VQ-GAN, MoVQ: latents from a codebook)", OTHER_MODEL),
    ),
    (
        _any(r"\.(time_stack|time_mixer|mix_factor|time_mix_conv|temporal_res_block|time_conv_out)(\.|$)"),
        Identity("a video VAE: Stable Video Diffusion's temporal decoder", OTHER_MODEL),
    ),
    (
        _any(r"(^|\.)decoder\.(middle|upsamples|mid_block|up_blocks)\.[\w.]*\.gamma$"),
        Identity("a video VAE: Wan (also Qwen-Image)", OTHER_MODEL),
    ),
    (_any(r"(un)?patcher3d\.|(^|\.)net\.unpatcher"), Identity("a video VAE: Cosmos's tokenizer", OTHER_MODEL)),
    (
        _any(r"(^|\.)per_channel_statistics\.|(^|\.)decoder\.up_blocks\.\d+\.res_blocks\."),
        Identity("a video VAE: LTX-Video", OTHER_MODEL),
    ),
    (
        _both(_convolutions_of(5), _any(r"(^|\.)blocks\.\d+\.blocks\.\d+\.stack\.")),
        Identity("a video VAE: Mochi", OTHER_MODEL),
    ),
    (
        _both(_convolutions_of(5), _any(r"(^|\.)decoder\.(conv_in|[\w.]+\.conv1)\.conv\.weight$")),
        Identity("a video VAE with causal 3D convolutions: Hunyuan, CogVideoX or their like", OTHER_MODEL),
    ),
    (
        _both(_convolutions_of(5), _is_autoencoder),
        Identity("a video VAE (its convolutions are 3D)", OTHER_MODEL),
    ),
    (
        _both(_convolutions_of(3), _is_autoencoder),
        Identity("an audio autoencoder (its convolutions are 1D)", OTHER_MODEL),
    ),
    (
        _any(r"(en|de)coder\.stages\.\d+\.op_list\.|to_qkv_multiscale|conv_inverted|(en|de)coder\.project_in\.conv"),
        Identity("a DC-AE (AutoencoderDC, as Sana uses)", OTHER_MODEL),
    ),
    (
        _any(r"(^|\.)(previewer|effnet)\.|^(encoder\.)?backbone\.\d+\.\d+\.block\."),
        Identity("Stable Cascade's stage C coder", OTHER_MODEL),
    ),
    (_any(r"^geo_decoder\."), Identity("a 3D shape VAE (Hunyuan3D)", OTHER_MODEL)),
    (
        _any(r"(^|\.)(control_model|controlnet_cond_embedding|controlnet_blocks|input_hint_block)\."),
        Identity("a ControlNet", NO_VAE),
    ),
    (
        _any(
            r"(^|\.)(joint_blocks|double_blocks|single_blocks|transformer_blocks|double_stream_blocks|adaLN_modulation)\."
        ),
        Identity("a diffusion transformer without its VAE", NO_VAE),
    ),
    (
        _any(r"(^|\.)(time_embed|time_embedding|input_blocks|output_blocks|add_embedding)\.|^model\.diffusion_model\."),
        Identity("a diffusion model (UNet) without its VAE", NO_VAE),
    ),
    (
        _any(r"(^|\.)vision_model\.|(^|\.)visual\.transformer\.|image_encoder\."),
        Identity("a CLIP vision model", NO_VAE),
    ),
    (
        _any(
            r"(^|\.)(text_model|SelfAttention|self_attn|self_attention|token_embedding|resblocks)(\.|$)|^model\.layers\."
        ),
        Identity("a text encoder or language model", NO_VAE),
    ),
    (
        _any(r"(^|\.)(RRDB_trunk|rdb\d|RDB\d|conv_up1|conv_hr|residual_group)(\.|$)"),
        Identity("an upscaling model", NO_VAE),
    ),
    (_any(r"^(string_to_param|emb_params|clip_[lg])(\.|$)"), Identity("a textual-inversion embedding", NO_VAE)),
    (_any(r"^latents?(_tensor|_format_version_\d+)?$"), Identity("a file of latents", "Decode it with a VAE instead.")),
)


def identify(tensors: Tensors) -> Identity | None:
    """What a file seems to be, by the names and shapes of its tensors; None if nothing known."""
    tensors = _some(tensors)
    for test, identity in RULES:
        if test(tensors):
            return identity
    return _half(tensors)


def _some(tensors: Tensors) -> Tensors:
    """As many of the tensors as can be looked at in a moment: all of any real file's."""
    if sum(map(len, tensors)) <= MOST:
        return tensors
    left = MOST
    found = {}
    for name, info in tensors.items():
        left -= len(name)
        if left < 0:
            break
        found[name] = info
    return found


def _half(tensors: Tensors) -> Identity | None:
    counts = {
        half: sum(1 for name in tensors if re.search(rf"(^|\.){half}\.", name)) for half in ("encoder", "decoder")
    }
    loose = any(re.match(r"(conv_in|conv_out|down\.0|up\.0|mid|down_blocks|up_blocks|mid_block)\.", n) for n in tensors)
    if counts["encoder"] and not counts["decoder"]:
        return Identity(f"an encoder alone ({counts['encoder']} encoder tensors, no decoder)", WHOLE_VAE)
    if counts["decoder"] and not counts["encoder"]:
        return Identity(f"a decoder alone ({counts['decoder']} decoder tensors, no encoder)", WHOLE_VAE)
    if loose and not counts["encoder"]:
        half = "a decoder" if any(re.match(r"up(_blocks)?\.", name) for name in tensors) else "an encoder"
        return Identity(f"{half} alone, its keys without `encoder.` or `decoder.`", WHOLE_VAE)
    return None
