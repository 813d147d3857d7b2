"""Seamless VAE for ComfyUI: what the host imports."""

from .nodes import NODES

NODE_CLASS_MAPPINGS: dict[str, type] = {node.ID: node for node in NODES}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {node.ID: node.DISPLAY_NAME for node in NODES}
WEB_DIRECTORY = "./web"

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
