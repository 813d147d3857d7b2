"""A stand-in for Inductor whose graphs are counted."""

from __future__ import annotations

import importlib
from typing import Any


class CountedCompiler:
    """From here on `torch.compile` makes graphs that are run as they are, and counted, where Inductor takes minutes."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "count", ("VAE",)
    calls = graphs = 0

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"vae": ("VAE",)}}

    def count(self, vae):
        inductor: Any = importlib.import_module("torch._inductor.compile_fx")
        inductor.compile_fx = self.compiled
        CountedCompiler.calls = CountedCompiler.graphs = 0
        return (vae,)

    @staticmethod
    def compiled(graph, _, **__):
        def run(*inputs):
            CountedCompiler.calls += 1
            return graph.forward(*inputs)

        CountedCompiler.graphs += 1
        return run


class CompiledCalls:
    """Tells how many graphs were compiled and how often one was run, once what comes in is there."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "test", "tell", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}, "optional": {"image": ("IMAGE",), "latent": ("LATENT",)}}

    def tell(self, image=None, latent=None):
        return {"ui": {"calls": [CountedCompiler.calls], "graphs": [CountedCompiler.graphs]}}
