"""image -> moments."""

from __future__ import annotations

from torch import Tensor, nn

from .blocks import CHECKPOINT, DownBlock, UNetMidBlock2D, run_block
from .config import NORM_EPS, AutoencoderKLConfig
from .damage import checked
from .diffusers_names import DiffusersHalf
from .layers import conv2d, group_norm
from .ldm_names import LDMEncoder


class Encoder(LDMEncoder, DiffusersHalf, nn.Module):
    """[B, in_channels, H, W] in [-1, 1] -> [B, 2 * latent_channels, H // factor, W // factor].

    Kingma & Welling's recognition model in the form of Esser et al., Taming Transformers, appendix A.
    """

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        widths = config.block_out_channels
        groups = config.norm_num_groups
        self.conv_in = conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(
                previous,
                width,
                config.layers_per_block,
                groups,
                config.act_fn,
                add_attention=block_type.startswith("Attn"),
                add_downsample=level < len(widths) - 1,
            )
            for level, (previous, width, block_type) in enumerate(
                zip((widths[0], *widths), widths, config.down_block_types, strict=False)
            )
        )
        self.mid_block = UNetMidBlock2D(widths[-1], groups, config.act_fn, config.mid_block_add_attention)
        self.conv_norm_out = group_norm(groups, widths[-1], eps=NORM_EPS)
        self.conv_act = nn.SiLU()  # whatever act_fn is, as in diffusers
        self.conv_out = conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func = CHECKPOINT

    def forward(self, sample: Tensor) -> Tensor:
        x = self.conv_in(sample)
        for block in (*self.down_blocks, self.mid_block):
            x = run_block(self, block, x)
        return checked(self, "encoder", self.conv_out(self.conv_act(self.conv_norm_out(x))))
