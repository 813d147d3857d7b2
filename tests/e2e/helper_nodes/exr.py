"""A saver of floats for hosts that have none."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import folder_paths
import torch


class EXRSaver:
    """As the one of newer cores, which has the same inputs, for a host that has none: float images to linear light."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "image", "save", (), True
    RELATIVE_PYTHON_MODULE = "comfy_extras.nodes_images"  # on the page it is one of the core's

    @classmethod
    def INPUT_TYPES(cls):
        required = {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})}
        choices = {
            "format": ["png", "exr"],
            "format.bit_depth": ["32-bit float"],
            "format.input_color_space": ["sRGB", "HDR", "linear"],
        }
        return {"required": {**required, **{name: (values,) for name, values in choices.items()}}}

    def save(self, images, filename_prefix, **_):
        bent = ((images.abs() + 0.055) / 1.055) ** 2.4
        linear = torch.where(images > 0.04045, bent, images / 12.92)
        for number, image in enumerate(linear):
            height, width, _ = image.shape
            codec = av.CodecContext.create("exr", "w")
            codec.width, codec.height, codec.pix_fmt, codec.time_base = width, height, "gbrpf32le", Fraction(1)
            frame = av.VideoFrame.from_ndarray(image.float().numpy(), format=codec.pix_fmt)
            frame.pts, frame.time_base = 0, codec.time_base
            data = b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])
            file = f"{filename_prefix}_{number + 1:05}_.exr"
            (Path(folder_paths.get_output_directory()) / file).write_bytes(data)
        return {}
