"""What diffusers' classes say of the parts of a VAE, as attributes: for code that asks ours the same.

Everything here is constant or read off the weights, because an autoencoder's blocks have no time embedding, no
conditioning and one head.
"""

from __future__ import annotations

from torch import nn


class DiffusersHalf:
    """Attributes of diffusers' Encoder and Decoder."""

    num_res_blocks: int

    @property
    def layers_per_block(self) -> int:
        return self.num_res_blocks


class DiffusersLevel:
    """Attributes of diffusers' UpDecoderBlock2D."""

    resolution_idx = None


class DiffusersMiddle:
    """Attributes of diffusers' UNetMidBlock2D."""

    attentions: nn.ModuleList

    @property
    def add_attention(self) -> bool:
        return len(self.attentions) > 0


class DiffusersResnetBlock:
    """Attributes of diffusers' ResnetBlock2D."""

    conv_shortcut: nn.Conv2d | None
    pre_norm = True
    up = down = skip_time_act = False
    output_scale_factor = 1.0
    time_embedding_norm = "default"
    time_emb_proj = upsample = downsample = None

    @property
    def use_in_shortcut(self) -> bool:
        return self.conv_shortcut is not None


class DiffusersResample:
    """Attributes of diffusers' Upsample2D and Downsample2D."""

    conv: nn.Conv2d
    use_conv = True
    norm = None

    @property
    def channels(self) -> int:
        return self.conv.in_channels

    @property
    def out_channels(self) -> int:
        return self.conv.out_channels


class DiffusersAttention:
    """Attributes of diffusers' Attention, by which its processors choose what to compute."""

    to_q: nn.Linear
    heads = sliceable_head_dim = 1
    residual_connection = True
    rescale_output_factor = 1.0
    upcast_attention = False
    upcast_softmax = True
    use_bias = scale_qk = added_proj_bias = True
    is_cross_attention = is_causal = only_cross_attention = pre_only = False
    spatial_norm = norm_q = norm_k = norm_cross = norm_added_q = norm_added_k = None
    add_q_proj = add_k_proj = add_v_proj = to_add_out = added_kv_proj_dim = context_pre_only = None
    dropout = 0.0

    @property
    def inner_dim(self) -> int:
        return self.to_q.in_features

    inner_kv_dim = query_dim = cross_attention_dim = out_dim = out_context_dim = inner_dim
