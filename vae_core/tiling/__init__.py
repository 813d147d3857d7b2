"""Tiling: where tiles lie (`grid`) and the blended tiling of diffusers (`blend`)."""
