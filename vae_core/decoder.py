"""z -> image."""

from __future__ import annotations

from torch import Tensor, nn

from .blocks import CHECKPOINT, UNetMidBlock2D, UpBlock, check_no_embedding, run_block
from .config import NORM_EPS, AutoencoderKLConfig
from .damage import checked
from .diffusers_names import DiffusersHalf
from .layers import conv2d, group_norm
from .ldm_names import LDMDecoder


class Decoder(LDMDecoder, DiffusersHalf, nn.Module):
    """[B, latent_channels, h, w] -> [B, out_channels, h * factor, w * factor], about [-1, 1], not clamped."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        widths = config.decoder_widths[::-1]  # coarsest first
        groups = config.norm_num_groups
        self.conv_in = conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.up_blocks = nn.ModuleList(
            UpBlock(
                previous,
                width,
                config.layers_per_block + 1,
                groups,
                config.act_fn,
                add_attention=block_type.startswith("Attn"),
                add_upsample=level < len(widths) - 1,
            )
            for level, (previous, width, block_type) in enumerate(
                zip((widths[0], *widths), widths, config.up_block_types, strict=False)
            )
        )
        self.mid_block = UNetMidBlock2D(widths[0], groups, config.act_fn, config.mid_block_add_attention)
        self.conv_norm_out = group_norm(groups, widths[-1], eps=NORM_EPS)
        self.conv_act = nn.SiLU()  # whatever act_fn is, as in diffusers
        self.conv_out = conv2d(widths[-1], config.out_channels, 3, padding=1)
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func = CHECKPOINT

    def forward(self, sample: Tensor, latent_embeds: Tensor | None = None) -> Tensor:
        check_no_embedding(latent_embeds)
        x = self.conv_in(sample)
        x = run_block(self, self.mid_block, x)
        # The part before may be kept in half precision. There are no parameters while FSDP or DataParallel runs the
        # module, and of several types where diffusers' layerwise casting makes each layer cast by itself.
        dtypes = {weight.dtype for weight in self.up_blocks.parameters()}
        x = x.to(dtypes.pop()) if len(dtypes) == 1 else x
        for block in self.up_blocks:
            x = run_block(self, block, x)
        return checked(self, "decoder", self.conv_out(self.conv_act(self.conv_norm_out(x))))
