"""Nodes that most example workflows have."""

from __future__ import annotations

from typing import Any

from stage import Node

SHOWN = (330, 330)


def source_image() -> Node:
    return Node("image", "LoadImage", values={"image": "example.png"}, size=(300, 340))


def vae(key: str = "vae", title: str = "") -> Node:
    return Node(key, "SeamlessVAELoad", values={"vae_name": "demo"}, title=title)


def scaled(width: int, height: int) -> Node:
    size = {"upscale_method": "area", "width": width, "height": height, "crop": "disabled"}
    return Node("scaled", "ImageScale", {"image": ("image", 0)}, size)


def preview(key: str, source: str, output: int = 0, title: str = "", size: tuple[int, int] = SHOWN) -> Node:
    return Node(key, "PreviewImage", {"images": (source, output)}, title=title, size=size)


def encoded(source: str, tiled: bool = False, vae_of: tuple[str, int] = ("vae", 0), **values: Any) -> Node:
    type_ = "SeamlessVAEEncodeTiled" if tiled else "SeamlessVAEEncode"
    fixed = {"control_after_generate": "fixed"}
    return Node("encode", type_, {"pixels": (source, 0), "vae": vae_of}, {**fixed, **values})


def decoded(key: str, source: str, tiled: bool = False, vae_of: tuple[str, int] = ("vae", 0), **values: Any) -> Node:
    type_ = "SeamlessVAEDecodeTiled" if tiled else "SeamlessVAEDecode"
    return Node(key, type_, {"samples": (source, 0), "vae": vae_of}, values)
