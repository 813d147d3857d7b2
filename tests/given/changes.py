"""What people do to a model's modules, as context managers that take half a model and note the calls of their code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize

from vae_core.attention import AttnProcessor2_0

Half = Any  # Encoder | Decoder; attributes of their blocks are looked up by name
Calls = list[str]
Change = Callable[[Half, Calls], AbstractContextManager[None]]


def conv_of(half: Half) -> nn.Conv2d:
    """The last one, for no norm after it takes a factor out again."""
    return half.conv_out


@contextmanager
def forward_hook(half: Half, calls: Calls) -> Iterator[None]:
    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        calls.append("hook")
        return output * 1.5

    handle = conv_of(half).register_forward_hook(hook)
    yield
    handle.remove()


@contextmanager
def forward_pre_hook(half: Half, calls: Calls) -> Iterator[None]:
    def hook(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        calls.append("hook")
        return (args[0] * 1.5,)

    handle = conv_of(half).register_forward_pre_hook(hook)
    yield
    handle.remove()


@contextmanager
def hook_on_the_half(half: Half, calls: Calls) -> Iterator[None]:
    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        calls.append("hook")
        return output * 1.5

    handle = half.register_forward_hook(hook)
    yield
    handle.remove()


@contextmanager
def global_hook(half: Half, calls: Calls) -> Iterator[None]:
    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        calls.append("hook")
        return output * 1.01 if isinstance(module, nn.Conv2d) else None

    handle = torch_module.register_module_forward_hook(hook)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def global_pre_hook(half: Half, calls: Calls) -> Iterator[None]:
    def hook(module: nn.Module, args: tuple) -> tuple | None:
        calls.append("hook")
        return (args[0] * 1.01,) if isinstance(module, nn.Conv2d) else None

    handle = torch_module.register_module_forward_pre_hook(hook)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def parametrization(half: Half, calls: Calls) -> Iterator[None]:
    class Larger(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            calls.append("parametrization")
            return weight * 1.5

    parametrize.register_parametrization(conv_of(half), "weight", Larger())
    yield


@contextmanager
def lora(half: Half, calls: Calls) -> Iterator[None]:
    class Lora(nn.Module):
        def __init__(self, base: nn.Conv2d) -> None:
            super().__init__()
            self.base = base
            self.down = nn.Conv2d(base.in_channels, 4, 3, padding=1, bias=False)
            self.up = nn.Conv2d(4, base.out_channels, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            calls.append("lora")
            return self.base(x) + self.up(self.down(x))

    half.conv_out = Lora(conv_of(half))
    yield


@contextmanager
def lora_on_a_projection(half: Half, calls: Calls) -> Iterator[None]:
    class Lora(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            calls.append("lora")
            return 1.5 * super().forward(x)

    old = half.mid_block.attentions[0].to_v
    half.mid_block.attentions[0].to_v = Lora(old.in_features, old.out_features)
    yield


@contextmanager
def patched_forward(half: Half, calls: Calls) -> Iterator[None]:
    conv = conv_of(half)
    plain = conv.forward

    def forward(x: Tensor) -> Tensor:
        calls.append("forward")
        return plain(x) * 1.5

    conv.forward = forward  # type: ignore[method-assign]
    yield


@contextmanager
def patched_block(half: Half, calls: Calls) -> Iterator[None]:
    block = half.mid_block
    plain = block.forward

    def forward(x: Tensor) -> Tensor:
        calls.append("forward")
        return plain(x.flip(-1))

    block.forward = forward
    yield


@contextmanager
def patched_conv_forward(half: Half, calls: Calls) -> Iterator[None]:
    """As packs that make seamless textures do."""
    conv = conv_of(half)

    def circular(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        calls.append("conv")
        x = nn.functional.pad(x, (1, 1, 1, 1), mode="circular")
        return nn.functional.conv2d(x, weight, bias)

    conv._conv_forward = circular  # type: ignore[method-assign]
    yield


@contextmanager
def patched_class(half: Half, calls: Calls) -> Iterator[None]:
    plain = nn.Conv2d.forward

    def forward(self: nn.Conv2d, x: Tensor) -> Tensor:
        calls.append("class")
        return plain(self, x) * 1.01

    nn.Conv2d.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Conv2d.forward = plain  # type: ignore[method-assign]


@contextmanager
def patched_class_conv_forward(half: Half, calls: Calls) -> Iterator[None]:
    plain = nn.Conv2d._conv_forward

    def conv_forward(self: nn.Conv2d, *args: Any) -> Tensor:
        calls.append("class")
        return plain(self, *args) * 1.01

    nn.Conv2d._conv_forward = conv_forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Conv2d._conv_forward = plain  # type: ignore[method-assign]


@contextmanager
def circular_padding(half: Half, calls: Calls) -> Iterator[None]:
    conv_of(half).padding_mode = "circular"
    yield


@contextmanager
def dilation(half: Half, calls: Calls) -> Iterator[None]:
    conv_of(half).dilation = conv_of(half).padding = (2, 2)
    yield


@contextmanager
def no_bias(half: Half, calls: Calls) -> Iterator[None]:
    conv_of(half).bias = None
    yield


@contextmanager
def another_activation(half: Half, calls: Calls) -> Iterator[None]:
    class Clipped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls.append("activation")
            return x.clamp(-1, 1)

    half.conv_act = Clipped()
    yield


@contextmanager
def attention_processor(half: Half, calls: Calls) -> Iterator[None]:
    class Halved(AttnProcessor2_0):
        def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            calls.append("processor")
            return super().__call__(attn, hidden_states) * 0.5

    half.mid_block.attentions[0].processor = Halved()
    yield


@contextmanager
def accelerate_hook(half: Half, calls: Calls) -> Iterator[None]:
    hooks = pytest.importorskip("accelerate.hooks")

    class Hook(hooks.ModelHook):
        def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
            calls.append("accelerate")
            return output * 1.5

    hooks.add_hook_to_module(conv_of(half), Hook())
    yield


SILENT = (circular_padding, dilation, no_bias)  # changes that run no code of their own
CHANGES: tuple[Change, ...] = (
    forward_hook,
    forward_pre_hook,
    hook_on_the_half,
    global_hook,
    global_pre_hook,
    parametrization,
    lora,
    lora_on_a_projection,
    patched_forward,
    patched_block,
    patched_conv_forward,
    patched_class,
    patched_class_conv_forward,
    another_activation,
    attention_processor,
    accelerate_hook,
    *SILENT,
)
