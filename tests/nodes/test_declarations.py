"""What saved workflows rely on: ids, names and order of inputs, order of outputs. And what every node must tell."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from given.nodes import Makers
from host.stand_in import Host, Pack

TILED = "mode tile_size overlap memory_budget circular"
CONTRACT = {
    "SeamlessVAELoad": ("vae_name dtype device latent_scale", "VAE"),
    "SeamlessVAEEncode": ("pixels vae sample_mode seed fit", "LATENT VAE_POSTERIOR MASK"),
    "SeamlessVAEDecode": ("samples vae clamp", "IMAGE"),
    "SeamlessVAEEncodeTiled": (f"pixels vae sample_mode seed fit {TILED}", "LATENT VAE_POSTERIOR MASK"),
    "SeamlessVAEDecodeTiled": (f"samples vae clamp {TILED}", "IMAGE"),
    "SeamlessVAESamplePosterior": ("posterior sample_mode seed temperature count", "LATENT"),
    "SeamlessVAESwap": ("samples from_vae to_vae", "LATENT IMAGE"),
    "SeamlessVAEInpaintEncode": ("pixels vae mask grow feather", "LATENT"),
    "SeamlessVAEInpaintComposite": ("samples vae original mask", "IMAGE"),
    "SeamlessLatentScale": ("samples vae to", "LATENT"),
    "SeamlessVAERoundTrip": ("pixels vae", "IMAGE IMAGE FLOAT FLOAT"),
    "SeamlessPosteriorPreview": ("posterior", "IMAGE"),
    "SeamlessVAEInspect": ("vae samples", "STRING"),
    "SeamlessVAESave": ("vae filename_prefix format dtype", "STRING"),
    "SeamlessLatentLoad": ("folder start count join sample_mode seed flipped vae", "LATENT STRING STRING"),
    "SeamlessLatentSave": ("samples vae filename_prefix layout kohya_family dtype names", "STRING STRING"),
}
CHOICES = {
    ("SeamlessVAELoad", "dtype"): ["auto", "float32", "bfloat16", "float16"],
    ("SeamlessVAEEncode", "sample_mode"): ["mean", "sample"],
    ("SeamlessVAEEncode", "fit"): ["crop", "pad", "error"],
    ("SeamlessVAEDecodeTiled", "mode"): ["exact", "blended"],
    ("SeamlessVAEDecodeTiled", "circular"): ["none", "x", "y", "both"],
    ("SeamlessVAESamplePosterior", "sample_mode"): ["sample", "mean"],
    ("SeamlessLatentScale", "to"): ["diffusion", "raw"],
    ("SeamlessVAESave", "format"): ["diffusers", "single_file"],
    ("SeamlessVAESave", "dtype"): ["auto", "float32", "bfloat16", "float16"],
    ("SeamlessLatentLoad", "join"): ["batch", "list"],
    ("SeamlessLatentLoad", "sample_mode"): ["mean", "sample"],
    ("SeamlessLatentSave", "layout"): ["shards", "webdataset", "kohya"],
    ("SeamlessLatentSave", "kohya_family"): ["auto", "sd", "sdxl", "flux", "sd3", "lumina"],
    ("SeamlessLatentSave", "dtype"): ["float32", "float16", "bfloat16"],
}


def inputs_of(node: Any) -> dict[str, Any]:
    groups = node.INPUT_TYPES()
    return {**groups.get("required", {}), **groups.get("optional", {})}


def test_ids(pack: Pack) -> None:
    assert list(pack.root.NODE_CLASS_MAPPINGS) == list(CONTRACT)
    assert pack.root.NODE_DISPLAY_NAME_MAPPINGS.keys() == CONTRACT.keys()
    assert len(set(pack.root.NODE_DISPLAY_NAME_MAPPINGS.values())) == len(CONTRACT)
    assert pack.root.WEB_DIRECTORY == "./web"


@pytest.mark.parametrize("node_id", CONTRACT)
def test_inputs_and_outputs(pack: Pack, host: Host, node_id: str) -> None:
    node = pack.root.NODE_CLASS_MAPPINGS[node_id]
    names, outputs = CONTRACT[node_id]
    inputs = inputs_of(node)
    assert " ".join(inputs) == names and " ".join(node.RETURN_TYPES) == outputs
    assert len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS) == len(node.RETURN_TYPES)
    assert node.CATEGORY == "latent/seamless"
    assert len(node.DESCRIPTION) > 40 and node.DESCRIPTION.endswith((".", ")."))
    assert len(node.SEARCH_ALIASES) >= 4
    parameters = inspect.signature(getattr(node, node.FUNCTION)).parameters
    takes_others = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name, (kind, options) in inputs.items():
        assert options["tooltip"].endswith("."), name
        assert name in parameters or takes_others
        if isinstance(kind, list):
            assert options["default"] == kind[0]
        elif kind in ("INT", "FLOAT"):
            assert options["min"] <= options["default"] <= options["max"]
        default = parameters[name].default if name in parameters else inspect.Parameter.empty
        if default not in (inspect.Parameter.empty, None):
            assert default == options["default"], name


@pytest.mark.parametrize("node_id,name", CHOICES)
def test_choices(pack: Pack, node_id: str, name: str) -> None:
    assert inputs_of(pack.root.NODE_CLASS_MAPPINGS[node_id])[name][0] == CHOICES[node_id, name]


def test_the_defaults_of_tiles_are_those_of_the_function(pack: Pack, make: Makers) -> None:
    declared = inputs_of(pack.root.NODE_CLASS_MAPPINGS["SeamlessVAEDecodeTiled"])
    parameters = inspect.signature(pack.module("nodes.tiling").options_of).parameters
    for name in TILED.split():
        assert parameters[name].default == declared[name][1]["default"]


def test_families_to_choose(pack: Pack, host: Host) -> None:
    kinds = inputs_of(pack.root.NODE_CLASS_MAPPINGS["SeamlessVAELoad"])["latent_scale"][0]
    assert kinds == ["auto", "SD 1.x", "SD 2.x", "Playground 2.5", "SDXL", "SD x4 upscaler", "FLUX.1", "SD3"]


HOST_MODULES = {"comfy", "comfy_execution", "folder_paths", "server", "nodes", "execution", "comfy_extras"}
