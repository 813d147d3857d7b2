"""Prints every public attribute of ComfyUI's own autoencoder: `python ldm_attributes.py CHECKOUT`.

`tests/host/ldm_attributes.json` is what it printed, for a model with the fields of `FIELDS`.
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

from torch import Tensor, nn

# A small model, as LDM's configurations say it, and as ours do.
DDCONFIG = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
FIELDS: dict[str, Any] = {
    "block_out_channels": (32, 64, 128, 128),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
# One part of each kind, and those that differ.
PARTS = (
    *("", "regularization", "encoder", "decoder", "quant_conv", "post_quant_conv"),
    *("encoder.down.0", "encoder.down.3", "encoder.down.0.block.0", "encoder.down.1.block.0", "encoder.down.1.block.1"),
    *("encoder.down.0.downsample", "encoder.mid", "encoder.mid.block_1", "encoder.mid.attn_1", "encoder.mid.block_2"),
    *("decoder.up.0", "decoder.up.3", "decoder.up.0.block.0", "decoder.up.2.block.0", "decoder.up.1.upsample"),
    *("decoder.mid", "decoder.mid.block_1", "decoder.mid.attn_1", "decoder.mid.block_2"),
    *("encoder.conv_in", "encoder.norm_out", "decoder.conv_out", "decoder.mid.attn_1.q", "decoder.mid.attn_1.norm"),
    *("decoder.mid.attn_1.proj_out", "decoder.up.0.block.0.nin_shortcut", "decoder.mid.block_1.swish"),
    "decoder.mid.block_1.dropout",
)
# What of theirs ours has not, and why. A part of "*" is any.
WITHOUT: dict[tuple[str, str], str] = {
    **{
        ("*", name): "how the host casts weights at each call; ours have the type that they are computed in"
        for name in ("weight_function", "bias_function", "comfy_cast_weights", "forward_comfy_cast_weights")
    },
    ("*", "inplace"): "ours write nothing in place",
    **{
        (f"decoder.mid.attn_1.{name}", "reset_parameters"): "a view, which has no weights of its own"
        for name in ("q", "proj_out")
    },
    **{
        ("", name): "of training, and not implemented in the host either"
        for name in ("configure_optimizers", "instantiate_optimizer_from_config", "get_input", "on_train_batch_end")
    },
    ("", "get_autoencoder_params"): "raises AttributeError in the host",
}
PLAIN = (bool, int, float, str, type(None))


def part_of(model: Any, path: str) -> Any:
    for name in filter(None, path.split(".")):
        model = model[int(name)] if name.isdigit() else getattr(model, name)
    return model


def described(value: Any) -> Any:
    """What can be compared of an attribute: a plain value, the shape of a weight, the kind of anything else."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, tuple | list):
        return [described(item) for item in value]
    if isinstance(value, Tensor):
        return {"shape": list(value.shape)}
    if isinstance(value, nn.ModuleList):
        return {"parts": len(value)}
    return {"is": "method" if inspect.isroutine(value) else "part"}


def attributes(part: Any) -> dict[str, Any]:
    """Public attribute -> what it is, without those that every module has."""
    own = {name for cls in type(part).__mro__ if cls.__module__.startswith("comfy") for name in vars(cls)}
    names = {*own, *vars(part), *part._parameters, *part._buffers, *part._modules}
    found = {name: getattr(part, name) for name in sorted(names) if not name.startswith("_")}
    return {name: described(value) for name, value in found.items()}


def differences(model: Any, theirs: dict[str, dict[str, Any]]) -> list[str]:
    """Every attribute that a model has not as theirs has it."""
    found = []
    for path, names in theirs.items():
        part = part_of(model, path)
        for name, value in names.items():
            if (path, name) in WITHOUT or ("*", name) in WITHOUT:
                continue
            ours = described(getattr(part, name)) if hasattr(part, name) else "absent"
            if ours != value:
                found.append(f"{path or 'the model'}: {name} is {ours}, and not {value}")
    return found


def main(checkout: str) -> None:
    sys.path[:0] = [checkout]
    sys.argv[1:] = ["--cpu"]
    from comfy import options  # type: ignore[import-not-found]

    options.enable_args_parsing()
    from comfy.ldm.models.autoencoder import AutoencoderKL  # type: ignore[import-not-found]

    model = AutoencoderKL(ddconfig=DDCONFIG, embed_dim=DDCONFIG["z_channels"])
    found = {path: attributes(part_of(model, path)) for path in PARTS}
    lines = ",\n".join(f"{json.dumps(path)}: {json.dumps(each, sort_keys=True)}" for path, each in found.items())
    print(f"{{\n{lines}\n}}")  # noqa: T201


if __name__ == "__main__":
    main(str(Path(sys.argv[1]).resolve()))
