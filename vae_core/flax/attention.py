"""Single-head self-attention over all pixels of a feature map."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from .layers import group_norm

# Longer sequences are processed in chunks of so many queries, so that memory has room for their scores.
QUERIES_AT_ONCE = 1024


class FlaxAttentionBlock(nn.Module):
    """x + project(attention(norm(x))) on a map [B, H, W, C]."""

    channels: int
    num_groups: int = 32
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.group_norm = group_norm(self.num_groups, self.dtype)
        self.query, self.key, self.value, self.proj_attn = (nn.Dense(self.channels, dtype=self.dtype) for _ in range(4))

    def __call__(self, hidden_states: Array) -> Array:
        batch, height, width, channels = hidden_states.shape
        tokens = self.group_norm(hidden_states).reshape(batch, height * width, channels)
        tokens = attend(self.query(tokens), self.key(tokens), self.value(tokens))
        return self.proj_attn(tokens).reshape(hidden_states.shape) + hidden_states


def attend(query: Array, key: Array, value: Array) -> Array:
    """softmax(Q K^T / sqrt(channels)) V over [B, N, C] with one head; scores and softmax are in float32 at least.

    The result is the same in pieces, because each query has a softmax of its own.
    """

    wide = jnp.promote_types(query.dtype, jnp.float32)

    def piece(queries: Array) -> Array:
        scores = jnp.einsum("bqc,bkc->bqk", queries, key, preferred_element_type=wide)
        weights = jax.nn.softmax(scores * key.shape[-1] ** -0.5, axis=-1).astype(value.dtype)
        return jnp.einsum("bqk,bkc->bqc", weights, value)

    batch, positions, channels = query.shape
    if positions <= QUERIES_AT_ONCE:
        return piece(query)
    pieces = -(-positions // QUERIES_AT_ONCE)
    padded = jnp.pad(query, ((0, 0), (0, pieces * QUERIES_AT_ONCE - positions), (0, 0)))
    stacked = padded.reshape(batch, pieces, QUERIES_AT_ONCE, channels).swapaxes(0, 1)
    results = jax.lax.map(jax.checkpoint(piece), stacked)  # [pieces, B, queries, C]
    return results.swapaxes(0, 1).reshape(batch, -1, channels)[:, :positions]
