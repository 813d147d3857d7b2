"""The exact streaming engine: whole-image results in strips. See `docs/streaming.md`."""

from .engine import decode, encode, plan_decode, plan_encode
from .mode import kernels
from .plan import Plan

__all__ = ["Plan", "decode", "encode", "kernels", "plan_decode", "plan_encode"]
