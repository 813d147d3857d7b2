"""The names that LDM's classes have for the parts of a VAE, as views: for code that walks a model by them.

Tools for ComfyUI and its kin go through `decoder.mid.block_1`, `decoder.up[i].block[j].nin_shortcut` and so on. Each
name here gives the part itself under diffusers' name, or computes with its very weights; nothing is copied or added to
the state dict. What is set under such a name takes the part's place; a name that only shows something refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

RESOLUTION = 256  # side of the images of LDM's own configurations; nothing is computed from it


class RenamedPart(property):
    """An attribute under another name; an AttributeError where there is None of it."""

    def __init__(self, name: str, index: int | None = None) -> None:
        def find(owner: Any) -> Any:
            found = getattr(owner, name)
            if index is not None:
                found = found[index] if found is not None and len(found) > index else None
            if found is None:
                raise AttributeError(name)  # torch makes the sentence, with the name that was asked for
            return found

        def put(owner: Any, value: Any) -> None:
            find(owner)
            if index is None:
                setattr(owner, name, value)
            else:
                getattr(owner, name)[index] = value

        super().__init__(find, put)


class Fixed(property):
    """An attribute that has the same value in every part of this kind."""

    def __init__(self, value: Any) -> None:
        super().__init__(lambda owner: value)


class _Names:
    """What is set under a view's name goes where the view looks; a module would go beside it, and never run.

    What a name shows already may be set again under it.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        view = getattr(type(self), name, None)
        if not isinstance(view, property):
            super().__setattr__(name, value)
        elif view.fset is not None:
            view.fset(self, value)
        elif not _is_equal(value, getattr(self, name)):
            raise AttributeError(
                f"{type(self).__name__}.{name} only shows what is under another name, so that it cannot be set. "
                f"Set the part itself, by diffusers' name for it."
            )


def _is_equal(value: Any, shown: Any) -> bool:
    plain = isinstance(value, bool | int | float | tuple) and isinstance(shown, bool | int | float | tuple)
    return value is shown or (plain and value == shown)


class FinestFirst(nn.ModuleList):
    """The decoder's levels as LDM counts them. What is set here is set in the decoder."""

    _levels: nn.ModuleList  # the decoder's own

    def __init__(self, levels: nn.ModuleList) -> None:
        super().__init__(list(levels)[::-1])
        self.__dict__["_levels"] = levels  # no child, which would be found twice

    def __setattr__(self, name: str, value: Any) -> None:  # `up[i] = level` as well
        super().__setattr__(name, value)
        if name.isdigit():
            self._levels[len(self) - 1 - int(name)] = value


class Projection:
    """A linear layer as the 1x1 convolution that LDM has in its place: [B, C, H, W] -> [B, C', H, W]."""

    kernel_size = stride = dilation = (1, 1)
    padding = output_padding = (0, 0)
    groups = 1
    padding_mode = "zeros"
    transposed = False

    def __init__(self, linear: nn.Linear) -> None:
        self._linear = linear
        self.in_channels = linear.in_features
        self.out_channels = linear.out_features

    @property
    def weight(self) -> Tensor:
        """[C', C, 1, 1], a view."""
        return self._linear.weight[:, :, None, None]

    @property
    def bias(self) -> Tensor | None:
        return self._linear.bias

    @property
    def training(self) -> bool:
        return self._linear.training

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias)

    __call__ = forward


class LDMResnetBlock(_Names):
    """Names of LDM's ResnetBlock. `nin_shortcut` is there where the widths differ."""

    conv1: nn.Conv2d
    dropout = Fixed(nn.Dropout(0.0))  # an AutoencoderKL has none
    use_conv_shortcut = Fixed(False)
    nin_shortcut = RenamedPart("conv_shortcut")
    swish = RenamedPart("nonlinearity")

    @property
    def in_channels(self) -> int:
        return self.conv1.in_channels

    @property
    def out_channels(self) -> int:
        return self.conv1.out_channels


MapAttention = Callable[[Tensor, Tensor, Tensor], Tensor]


def attend_maps(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(Q^T K / sqrt(channels)) V of maps [B, C, H, W], every pixel a token."""
    q, k, v = (rearrange(each, "b c h w -> b 1 (h w) c") for each in (query, key, value))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b 1 (h w) c -> b c h w", h=query.shape[-2])


class MapProcessor:
    """An attention processor that has the attention of maps computed by another function.

    Attributes:
        before: the processor in whose place it is.
    """

    def __init__(self, attend: MapAttention, before: Any) -> None:
        self.attend = attend
        self.before = before

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        normalized = attn.norm(hidden_states)
        attended = self.attend(attn.q(normalized), attn.k(normalized), attn.v(normalized))
        return hidden_states + attn.proj_out(attended)


class LDMAttention(_Names):
    """Names of LDM's AttnBlock."""

    to_q: nn.Linear
    to_k: nn.Linear
    to_v: nn.Linear
    to_out: nn.ModuleList
    processor: Any
    norm = RenamedPart("group_norm")

    @property
    def in_channels(self) -> int:
        return self.to_q.in_features

    @property
    def q(self) -> Projection:
        return Projection(self.to_q)

    @property
    def k(self) -> Projection:
        return Projection(self.to_k)

    @property
    def v(self) -> Projection:
        return Projection(self.to_v)

    @property
    def proj_out(self) -> Projection:
        return Projection(self.to_out[0])  # type: ignore[arg-type]

    @property
    def optimized_attention(self) -> MapAttention:
        """What computes the attention of maps, under ComfyUI's name for it; another may be set."""
        processor = self.processor
        return processor.attend if isinstance(processor, MapProcessor) else attend_maps

    @optimized_attention.setter
    def optimized_attention(self, attend: MapAttention) -> None:
        current = self.processor
        stock = current.before if isinstance(current, MapProcessor) else current
        self.processor = stock if attend is attend_maps else MapProcessor(attend, stock)


class LDMResample(_Names):
    """Names of LDM's Downsample, and its Upsample's with `scale_factor`."""

    with_conv = Fixed(True)


class LDMLevel(_Names):
    """Names of LDM's levels. `attn` is empty where a level has no attention."""

    attentions: nn.ModuleList | None
    block = RenamedPart("resnets")

    @property
    def attn(self) -> nn.ModuleList:
        return nn.ModuleList() if self.attentions is None else self.attentions

    @attn.setter
    def attn(self, value: nn.ModuleList) -> None:
        self.attentions = value


class LDMMiddle(_Names):
    """Names of LDM's middle block. `attn_1` is there where it has an attention."""

    block_1 = RenamedPart("resnets", 0)
    attn_1 = RenamedPart("attentions", 0)
    block_2 = RenamedPart("resnets", 1)


class _Half(_Names):
    conv_in: nn.Conv2d
    conv_out: nn.Conv2d
    temb_ch = Fixed(0)
    carried = Fixed(False)  # whether frames of a video are carried over from one part of it to the next
    resolution = Fixed(RESOLUTION)
    mid = RenamedPart("mid_block")
    norm_out = RenamedPart("conv_norm_out")


class LDMEncoder(_Half):
    """Names of LDM's Encoder."""

    down_blocks: nn.ModuleList
    down = RenamedPart("down_blocks")

    @property
    def time_compress(self) -> int:
        """By how much ComfyUI's encoder makes a video shorter; it says the number of an image's sides for one, too."""
        return 2 ** (self.num_resolutions - 1)

    @property
    def ch(self) -> int:
        return self.conv_in.out_channels

    @property
    def in_channels(self) -> int:
        return self.conv_in.in_channels

    @property
    def in_ch_mult(self) -> tuple[float, ...]:
        """1, and the width of each level, in widths of the first: whole numbers where they are multiples of it."""
        widths = [level.resnets[0].out_channels for level in self.down_blocks]  # type: ignore[index, union-attr]
        return (1, *(width / self.ch if width % self.ch else width // self.ch for width in widths))

    @property
    def num_resolutions(self) -> int:
        return len(self.down_blocks)

    @property
    def num_res_blocks(self) -> int:
        return len(self.down_blocks[0].resnets)  # type: ignore[arg-type]


class LDMDecoder(_Half):
    """Names of LDM's Decoder, which counts its levels from the finest and has one more block in each than it says."""

    up_blocks: nn.ModuleList
    give_pre_end = Fixed(False)
    tanh_out = Fixed(False)

    @property
    def in_channels(self) -> int:
        """Of images, as LDM's decoder says too; the latent's are those of `conv_in`."""
        return self.conv_out.out_channels

    @property
    def z_shape(self) -> tuple[int, int, int, int]:
        """Of the latent of one image with sides of `resolution`."""
        side = RESOLUTION // 2 ** (self.num_resolutions - 1)
        return 1, self.conv_in.in_channels, side, side

    def get_last_layer(self) -> Tensor:
        """What adversarial training balances its losses by."""
        return self.conv_out.weight

    @property
    def ch(self) -> int:
        return self.conv_out.in_channels

    @property
    def up(self) -> FinestFirst:
        return FinestFirst(self.up_blocks)

    @property
    def num_resolutions(self) -> int:
        return len(self.up_blocks)

    @property
    def num_res_blocks(self) -> int:
        return len(self.up_blocks[0].resnets) - 1  # type: ignore[arg-type]
