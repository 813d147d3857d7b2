"""Nodes that the tests put into the host: what they need is made from a seed, and what came out is written or told."""

from __future__ import annotations

import importlib
from typing import Any

from .compiled import CompiledCalls, CountedCompiler
from .exr import EXRSaver
from .given import (
    Conditioning,
    ControlHint,
    CopiedVAE,
    HalfMask,
    LatentControlNet,
    OwnLoop,
    RandomCheckpoint,
    SeededImage,
    SeededLatent,
    ThirdPartyVAE,
)
from .told import Alive, Keep, Memory

NODE_CLASS_MAPPINGS = {
    "TestAlive": Alive,
    "TestCountedCompiler": CountedCompiler,
    "TestCompiledCalls": CompiledCalls,
    "TestConditioning": Conditioning,
    "TestControlHint": ControlHint,
    "TestThirdPartyVAE": ThirdPartyVAE,
    "TestLatentControlNet": LatentControlNet,
    "TestRandomCheckpoint": RandomCheckpoint,
    "TestCopiedVAE": CopiedVAE,
    "TestOwnLoop": OwnLoop,
    "TestSeededImage": SeededImage,
    "TestSeededLatent": SeededLatent,
    "TestHalfMask": HalfMask,
    "TestKeep": Keep,
    "TestMemory": Memory,
}
core: Any = importlib.import_module("nodes")  # the host's, not this pack's
if core.NODE_CLASS_MAPPINGS.setdefault("SaveImageAdvanced", EXRSaver) is EXRSaver:
    core.NODE_DISPLAY_NAME_MAPPINGS["SaveImageAdvanced"] = "Save Image (Advanced)"
