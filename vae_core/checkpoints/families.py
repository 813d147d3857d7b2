"""The published families of AutoencoderKL: what tensor shapes cannot tell, and what tells the families apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..config import AutoencoderKLConfig

METADATA = "metadata"
REST = "the rest of the checkpoint"


@dataclass(frozen=True)
class Family:
    """A family of models that share a latent space.

    Attributes:
        fields: the config fields that no tensor shape shows.
        latent_channels, quant_convs, batch_norm: what its shapes show.
        block_out_channels: its widths, all with 32 groups in their norms; a model of other widths may be of it too.
        architectures: how a file's `modelspec.architecture` begins, the one to write first.
        siblings: beginnings of keys beside the VAE that only a full checkpoint of this family has.
    """

    name: str
    fields: Mapping[str, Any]
    latent_channels: int
    architectures: tuple[str, ...]
    siblings: tuple[str, ...]
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    quant_convs: bool = True
    batch_norm: bool = False

    @property
    def scaling(self) -> dict[str, Any]:
        """The config fields by which its latents are scaled, those that it does without as None."""
        names = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
        return {name: self.fields.get(name) for name in names}

    @property
    def levels(self) -> int:
        return len(self.block_out_channels)

    def has_shapes_of(self, config: AutoencoderKLConfig) -> bool:
        """Whether a model of this config could be of the family."""
        return (
            config.latent_channels == self.latent_channels
            and len(config.block_out_channels) == self.levels
            and config.use_quant_conv == config.use_post_quant_conv == self.quant_convs
            and config.has_batch_norm == self.batch_norm
        )

    def has_scaling_of(self, config: AutoencoderKLConfig) -> bool:
        """Whether a config scales its latents as the family does."""
        return config.has_batch_norm or (config.scaling_factor, config.shift_factor) == (
            self.fields["scaling_factor"],
            self.fields.get("shift_factor"),
        )


# Of families with the same shapes the first is the default where nothing else tells: FLUX.1's VAE is what most
# 16-channel files are, and SD 1's latents are what most tools assume of 4 channels.
FAMILIES = (
    Family(
        "SD 1.x",
        {"scaling_factor": 0.18215, "sample_size": 512},
        latent_channels=4,
        architectures=("stable-diffusion-v1",),
        siblings=("cond_stage_model.transformer.",),
    ),
    Family(
        "SD 2.x",
        {"scaling_factor": 0.18215, "sample_size": 768},
        latent_channels=4,
        architectures=("stable-diffusion-v2",),
        siblings=("cond_stage_model.model.",),
    ),
    Family(
        "Playground 2.5",
        {
            "scaling_factor": 0.5,
            "sample_size": 1024,
            "latents_mean": (-1.6574, 1.886, -1.383, 2.5155),
            "latents_std": (8.4927, 5.9022, 6.5498, 5.2299),
        },
        latent_channels=4,
        architectures=("playground-v2-5", "playground-v2.5"),
        siblings=("edm_mean", "edm_std"),  # before SDXL, whose other keys such a checkpoint has too
    ),
    Family(
        "SDXL",
        {"scaling_factor": 0.13025, "sample_size": 1024},
        latent_channels=4,
        architectures=("stable-diffusion-xl", "sdxl"),
        siblings=("conditioner.embedders.", "model.diffusion_model.double_layers."),  # the latter is AuraFlow's
    ),
    Family(
        "SD x4 upscaler",
        {"scaling_factor": 0.08333, "sample_size": 256},
        latent_channels=4,
        architectures=("stable-diffusion-x4", "stable-diffusion-v2-x4"),
        siblings=("low_scale_model.",),
        block_out_channels=(128, 256, 512),
    ),
    Family(
        "FLUX.1",
        {"scaling_factor": 0.3611, "shift_factor": 0.1159, "sample_size": 1024},
        latent_channels=16,
        architectures=("flux-1", "flux.1", "flux1"),
        siblings=("model.diffusion_model.double_blocks.", "double_blocks."),
        quant_convs=False,
    ),
    Family(
        "SD3",
        {"scaling_factor": 1.5305, "shift_factor": 0.0609, "sample_size": 1024},
        latent_channels=16,
        architectures=("stable-diffusion-v3", "stable-diffusion-3", "sd3"),
        siblings=("model.diffusion_model.joint_blocks.", "joint_blocks."),
        quant_convs=False,
    ),
    Family(
        "FLUX.2",
        {"scaling_factor": 1.0, "sample_size": 1024},
        latent_channels=32,
        architectures=("flux-2", "flux.2", "flux2"),
        siblings=("model.diffusion_model.single_stream_modulation.", "single_stream_modulation."),
        batch_norm=True,
    ),
)


@dataclass(frozen=True)
class FamilyMatch:
    """A family (None: none known), where it comes from, and the families that it may as well be."""

    family: Family | None
    origin: str
    others: tuple[Family, ...] = ()

    @property
    def is_certain(self) -> bool:
        """Whether the file itself names the family, in its metadata or by what else is in it."""
        return self.origin in (METADATA, REST)


def match_family(
    config: AutoencoderKLConfig, siblings: Collection[str] = (), metadata: Mapping[str, str] | None = None
) -> FamilyMatch:
    """The family of a model of these shapes, by the file's metadata, then by the keys beside the VAE, then by shape."""
    possible = tuple(family for family in FAMILIES if family.has_shapes_of(config))
    architecture = (metadata or {}).get("modelspec.architecture", "").lower()
    for family in possible:
        if architecture.startswith(family.architectures):
            return FamilyMatch(family, METADATA)
    for family in possible:
        if any(key.startswith(family.siblings) for key in siblings):
            return FamilyMatch(family, REST)
    if not possible:
        return FamilyMatch(None, "default")
    others = possible[1:]
    return FamilyMatch(possible[0], "family default (a guess)" if others else "family default", others)


def family_of_config(config: AutoencoderKLConfig) -> Family | None:
    """The family that a complete config belongs to, by its shapes and its scaling."""
    alike = [family for family in FAMILIES if family.has_shapes_of(config) and family.has_scaling_of(config)]
    exact = [family for family in alike if family.fields["sample_size"] == config.sample_size]  # SD 1 or SD 2
    return next(iter(exact or alike), None)
