"""LDM's names for the parts of a VAE: what walks a model by them gets what the model itself gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from given.inputs import image
from given.pairs import CONFIGS, model
from torch import Tensor, nn

from vae_core.patched import find_patch

NAMES = [name for name, fields in CONFIGS.items() if "patch_size" not in fields]


def resnet(block: Any, x: Tensor) -> Tensor:
    h = block.conv1(block.swish(block.norm1(x)))
    h = block.conv2(block.dropout(block.swish(block.norm2(h))))
    if block.in_channels != block.out_channels:
        x = block.conv_shortcut(x) if block.use_conv_shortcut else block.nin_shortcut(x)
    return x + h


def attention(block: Any, x: Tensor) -> Tensor:
    h = block.norm(x)
    q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (block.q, block.k, block.v))
    h = ((q @ k.transpose(1, 2)) * block.in_channels**-0.5).softmax(dim=-1) @ v
    h = h.transpose(1, 2).reshape(x.shape)
    maps = (layer(block.norm(x)) for layer in (block.q, block.k, block.v))
    torch.testing.assert_close(block.optimized_attention(*maps), h, rtol=1e-4, atol=1e-5)  # ComfyUI's own
    return x + block.proj_out(h)


def level(part: Any, count: int, x: Tensor) -> Tensor:
    assert len(part.block) == count
    for i in range(count):
        x = resnet(part.block[i], x)
        if len(part.attn) > 0:
            x = attention(part.attn[i], x)
    return x


def middle(mid: Any, x: Tensor) -> Tensor:
    x = resnet(mid.block_1, x)
    if hasattr(mid, "attn_1"):
        x = attention(mid.attn_1, x)
    return resnet(mid.block_2, x)


def decode(net: Any, z: Tensor) -> Tensor:
    x = middle(net.mid, net.conv_in(z))
    for i in reversed(range(net.num_resolutions)):
        x = level(net.up[i], net.num_res_blocks + 1, x)
        assert hasattr(net.up[i], "upsample") == (i != 0)
        if i != 0:
            x = net.up[i].upsample(x)
    assert not net.give_pre_end and not net.tanh_out
    return net.conv_out(F.silu(net.norm_out(x)))


def encode(net: Any, x: Tensor) -> Tensor:
    x = net.conv_in(x)
    for i in range(net.num_resolutions):
        x = level(net.down[i], net.num_res_blocks, x)
        assert hasattr(net.down[i], "downsample") == (i != net.num_resolutions - 1)
        if hasattr(net.down[i], "downsample"):
            x = net.down[i].downsample(x)
    return net.conv_out(F.silu(net.norm_out(middle(net.mid, x))))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_walk_by_ldms_names(name: str) -> None:
    vae: Any = model(name)
    torch.manual_seed(1)
    z = torch.randn(1, vae.config.latent_channels, 5, 6)
    torch.testing.assert_close(decode(vae.decoder, z), vae.decoder(z), rtol=1e-4, atol=1e-5)
    x = torch.randn(1, vae.config.in_channels, 32, 48)
    torch.testing.assert_close(encode(vae.encoder, x), vae.encoder(x), rtol=1e-4, atol=1e-5)


class Halved(nn.Module):
    """A part with half of what the one in its place gives."""

    def __init__(self, part: Any) -> None:
        super().__init__()
        self.part = part

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.part(*args, **kwargs) / 2


# LDM's name -> diffusers' for the same part, of the model "f4".
EXCHANGED = {
    "decoder.mid": "decoder.mid_block",
    "decoder.mid.block_1": "decoder.mid_block.resnets.0",
    "decoder.mid.block_2.norm1": "decoder.mid_block.resnets.1.norm1",
    "decoder.mid.attn_1": "decoder.mid_block.attentions.0",
    "decoder.mid.attn_1.norm": "decoder.mid_block.attentions.0.group_norm",
    "decoder.norm_out": "decoder.conv_norm_out",
    "decoder.up.1": "decoder.up_blocks.1",
    "decoder.up.2.block.1": "decoder.up_blocks.0.resnets.1",
    "decoder.up.1.upsample": "decoder.up_blocks.1.upsamplers.0",
    "decoder.up.0.block.0.nin_shortcut": "decoder.up_blocks.2.resnets.0.conv_shortcut",
    "decoder.up.0.block.0.swish": "decoder.up_blocks.2.resnets.0.nonlinearity",
    "encoder.down.0.downsample": "encoder.down_blocks.0.downsamplers.0",
    "encoder.down.1.block.0": "encoder.down_blocks.1.resnets.0",
    "encoder.mid.block_2.conv2": "encoder.mid_block.resnets.1.conv2",
    "encoder.norm_out": "encoder.conv_norm_out",
}


def put(vae: nn.Module, name: str, part: Any) -> Any:
    """Set an attribute as a host's patcher does; what was there before."""
    owner, _, last = name.rpartition(".")
    found: Any = vae
    for each in owner.split("."):
        found = getattr(found, each)
    before = getattr(found, last)
    setattr(found, last, part(before) if isinstance(part, type) else part)
    return before


def outputs(vae: Any) -> list[Tensor]:
    torch.manual_seed(1)
    z = torch.randn(1, vae.config.latent_channels, 5, 6)
    return [vae.decode(z).sample, vae.encode(image()).latent_dist.mean]


@pytest.mark.parametrize("name", EXCHANGED)
def test_what_is_set_under_ldms_name_takes_the_parts_place(name: str) -> None:
    vae, other = model("f4"), model("f4")
    keys, before = list(vae.state_dict()), outputs(vae)
    part = put(vae, name, Halved)
    put(other, EXCHANGED[name], Halved)
    now = outputs(vae)
    torch.testing.assert_close(now, outputs(other), rtol=1e-4, atol=1e-5)
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(now, before, strict=True))
    put(vae, name, part)
    assert list(vae.state_dict()) == keys
    assert find_patch(vae.decoder) is None and find_patch(vae.encoder) is None
    torch.testing.assert_close(outputs(vae), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mid.attn_1.q", "mid.attn_1.proj_out", "mid.block_1.in_channels"])
def test_names_that_only_show_something_refuse(name: str) -> None:
    vae = model("f4")
    with pytest.raises(AttributeError, match="cannot be set"):
        put(vae.decoder, name, nn.Identity())
    with pytest.raises(AttributeError, match="Decoder.up only shows"):
        setattr(vae.decoder, "up", nn.ModuleList())  # noqa: B010
    with pytest.raises(AttributeError, match="attentions"):
        model("no mid attention").decoder.mid.attn_1 = nn.Identity()


def test_an_attention_of_maps_that_is_set_is_what_runs() -> None:
    vae: Any = model("f4")
    before, attention = outputs(vae)[0], vae.decoder.mid.attn_1
    own, processor, calls = attention.optimized_attention, attention.processor, []

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calls.append(q.shape)
        return own(q, k, v)

    attention.optimized_attention = attend
    torch.testing.assert_close(outputs(vae)[0], before, rtol=1e-4, atol=1e-5)
    assert calls and attention.optimized_attention is attend
    attention.optimized_attention = lambda q, k, v: torch.zeros_like(v)
    assert not torch.allclose(outputs(vae)[0], before, atol=1e-3)
    attention.optimized_attention = own
    assert attention.processor is processor
    torch.testing.assert_close(outputs(vae)[0], before, rtol=1e-4, atol=1e-5)


def test_the_names_are_views() -> None:
    vae: Any = model("f4")
    keys = list(vae.state_dict())
    decoder = vae.decoder
    assert decoder.mid.attn_1.q.weight.data_ptr() == decoder.mid_block.attentions[0].to_q.weight.data_ptr()
    assert decoder.mid.attn_1.proj_out.weight.shape == (32, 32, 1, 1)
    assert decoder.up[0].block[0] is decoder.up_blocks[-1].resnets[0] and decoder.norm_out is decoder.conv_norm_out
    decoder.mid_block.resnets[0] = nn.Identity()  # a part that is exchanged is seen by both names
    assert decoder.mid.block_1 is decoder.mid_block.resnets[0]
    vae = model("f4")
    _ = vae.decoder.mid, vae.decoder.up, vae.encoder.down
    assert list(vae.state_dict()) == keys and vae.encode(image()).latent_dist is not None
    with pytest.raises(AttributeError, match="no attribute 'nin_shortcut'"):
        _ = vae.decoder.mid.block_1.nin_shortcut
