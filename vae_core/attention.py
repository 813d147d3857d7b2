"""Single-head self-attention over all positions of a feature map, and the processors that compute it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import einops.layers.torch  # noqa: F401  # else imported by the first `rearrange`, when no file may be open any more
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .config import NORM_EPS
from .diffusers_names import DiffusersAttention
from .errors import ConfigError
from .layers import group_norm, linear
from .ldm_names import LDMAttention
from .optional import optional_import
from .streaming.internals import is_transformed


class AttentionProcessor(Protocol):
    """What computes an Attention. diffusers' own processors fit as well as those below."""

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor: ...


class AttnProcessor2_0:
    """The default: torch's fused attention, which never makes the whole score matrix."""

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        tokens = attn.normalized_tokens(hidden_states)
        query = attn.to_q(tokens)
        key = attn.to_k(tokens)
        value = attn.to_v(tokens)
        return attn.project_out(_fused_attention(query, key, value), hidden_states)


class FusedAttnProcessor2_0:
    """As the default, with query, key and value from one matrix product (see `fuse_qkv_projections`)."""

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        query, key, value = attn.to_qkv(attn.normalized_tokens(hidden_states)).chunk(3, dim=-1)
        return attn.project_out(_fused_attention(query, key, value), hidden_states)


class AttnProcessor:
    """Attention spelled out as two matrix products and a softmax: the reference, quadratic in memory."""

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        tokens = attn.normalized_tokens(hidden_states)
        scores = attn.get_attention_scores(attn.to_q(tokens), attn.to_k(tokens))
        return attn.project_out(scores @ attn.to_v(tokens), hidden_states)


class BackendAttnProcessor:
    """As the default, by one of diffusers' attention backends: "flash", "sage", ..."""

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        dispatch = optional_import("diffusers.models.attention_dispatch", "Attention backends", "diffusers")
        tokens = attn.normalized_tokens(hidden_states)
        query, key, value = (layer(tokens).unsqueeze(2) for layer in (attn.to_q, attn.to_k, attn.to_v))  # B N 1 C
        attended = dispatch.dispatch_attention_fn(
            query, key, value, backend=dispatch.AttentionBackendName(self.backend)
        )
        return attn.project_out(attended.squeeze(2), hidden_states)


STOCK_PROCESSORS = (AttnProcessor2_0, FusedAttnProcessor2_0, AttnProcessor)


def _fused_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(channels)) V over [B, N, C], with one head."""
    return F.scaled_dot_product_attention(query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)).squeeze(1)


class Attention(LDMAttention, DiffusersAttention, nn.Module):
    """x + project(attention(norm(x))) on a map [B, C, H, W]."""

    def __init__(self, channels: int, norm_num_groups: int) -> None:
        super().__init__()
        self.group_norm = group_norm(norm_num_groups, channels, eps=NORM_EPS)
        self.to_q = linear(channels, channels)
        self.to_k = linear(channels, channels)
        self.to_v = linear(channels, channels)
        self.to_out = nn.ModuleList([linear(channels, channels), nn.Dropout(0.0)])

        self.scale = channels**-0.5
        self.fused_projections = False
        self.processor: AttentionProcessor = AttnProcessor2_0()

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **cross_attention_kwargs: Any,
    ) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]. The other arguments are diffusers', for its processors; None here."""
        if encoder_hidden_states is None and attention_mask is None and not cross_attention_kwargs:
            return self.processor(self, hidden_states)
        return self.processor(
            self,
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            **cross_attention_kwargs,
        )

    # The steps that the processors above share.
    def normalized_tokens(self, hidden_states: Tensor) -> Tensor:
        """The normalised map as a sequence of positions, [B, H*W, C]; what is one already is normalised alike."""
        if hidden_states.ndim == 3:
            return self.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        return rearrange(self.group_norm(hidden_states), "b c h w -> b (h w) c")

    def project_out(self, tokens: Tensor, residual: Tensor) -> Tensor:
        """Project [B, H*W, C], lay it out as a map and add the block's input."""
        tokens = self.to_out[1](self.to_out[0](tokens))
        if residual.ndim == 3:
            return tokens + residual
        attended = rearrange(tokens, "b (h w) c -> b c h w", h=residual.shape[-2])
        if not torch.compiler.is_compiling() and is_transformed():
            attended = attended.contiguous()  # vmap cannot normalise a map whose channels lie together
        return attended + residual

    # What diffusers' processors call.
    def get_processor(self) -> AttentionProcessor:
        return self.processor

    def set_processor(self, processor: AttentionProcessor) -> None:
        self.processor = processor

    def prepare_attention_mask(self, attention_mask: Tensor | None, *args: Any, **kwargs: Any) -> Tensor | None:
        return attention_mask

    def head_to_batch_dim(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return tensor

    def batch_to_head_dim(self, tensor: Tensor) -> Tensor:
        return tensor

    def get_attention_scores(self, query: Tensor, key: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """softmax(Q K^T / sqrt(channels)) for [B, N, C], with the softmax in float32: [B, N, N]."""
        scores = (query @ key.transpose(-1, -2)) * self.scale
        if attention_mask is not None:
            scores = scores + attention_mask
        return scores.float().softmax(dim=-1).to(query.dtype)

    @torch.no_grad()
    def fuse_projections(self, fuse: bool = True) -> None:
        """Make `to_qkv`, one layer in place of three; `fuse=False` drops it. The three layers stay."""
        self.fused_projections = fuse
        if not fuse:
            if hasattr(self, "to_qkv"):
                del self.to_qkv
            return
        layers = (self.to_q, self.to_k, self.to_v)
        channels = self.to_q.in_features
        weight = self.to_q.weight
        self.to_qkv = nn.Linear(channels, 3 * channels, device=weight.device, dtype=weight.dtype)
        self.to_qkv.weight.copy_(torch.cat([layer.weight for layer in layers]))
        self.to_qkv.bias.copy_(torch.cat([layer.bias for layer in layers]))


class AttentionMixin:
    """The methods by which diffusers' models choose how attention is computed."""

    _unfused_processors: dict[str, AttentionProcessor] | None = None

    def _attentions(self) -> dict[str, Attention]:
        assert isinstance(self, nn.Module)
        return {f"{name}.processor": module for name, module in self.named_modules() if isinstance(module, Attention)}

    @property
    def attn_processors(self) -> dict[str, AttentionProcessor]:
        """The processor of every attention, by its name: `encoder.mid_block.attentions.0.processor`, ..."""
        return {name: attention.processor for name, attention in self._attentions().items()}

    def set_attn_processor(self, processor: AttentionProcessor | Mapping[str, AttentionProcessor]) -> None:
        """Set one processor for all attentions, or one for each by the names of `attn_processors`.

        Raises:
            ConfigError: a mapping does not name exactly the attentions of this model.
        """
        attentions = self._attentions()
        if not isinstance(processor, Mapping):
            processor = dict.fromkeys(attentions, processor)
        if processor.keys() != attentions.keys():
            raise ConfigError(
                f"processors were given for {sorted(processor)}, but this model's attentions are "
                f"{sorted(attentions)}. Give one for each, or a single one for all."
            )
        for name, attention in attentions.items():
            attention.processor = processor[name]

    def set_default_attn_processor(self) -> None:
        """Drop any custom processor for the reference one (AttnProcessor, as diffusers does)."""
        self.set_attn_processor(AttnProcessor())

    def fuse_qkv_projections(self) -> None:
        """Compute query, key and value in one matrix product. Undone by `unfuse_qkv_projections`."""
        if self._unfused_processors is None:
            self._unfused_processors = self.attn_processors
        for attention in self._attentions().values():
            attention.fuse_projections(True)
        self.set_attn_processor(FusedAttnProcessor2_0())

    def unfuse_qkv_projections(self) -> None:
        """Return to three projections and to the processors there were before; nothing if not fused."""
        if self._unfused_processors is None:
            return
        for attention in self._attentions().values():
            attention.fuse_projections(False)
        self.set_attn_processor(self._unfused_processors)
        self._unfused_processors = None
