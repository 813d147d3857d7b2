"""Checkpoint files: what is in them, which key is which weight, reading them and writing them.

Nothing here knows the model class; `vae_core.loading` joins the two.
"""
