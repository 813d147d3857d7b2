"""Tiling: where tiles are (`grid`) and the blended tiling of diffusers (`blend`)."""
