"""What someone has changed in a model is never ignored: the modules then run as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize
from vaes import fields, make

import vae_core
from vae_core import AutoencoderKL
from vae_core.attention import AttnProcessor, AttnProcessor2_0
from vae_core.streaming import engine, winograd
from vae_core.streaming.stock import find_change

CONFIG = fields(32, 32, layers_per_block=1)
SIZE = 24  # latent positions along a side: enough for the engine to take it
Half = Any  # Encoder | Decoder; attributes of their blocks are looked up by name
Calls = list[str]
Change = Callable[[Half, Calls], AbstractContextManager[None]]

pytestmark = pytest.mark.skipif(not winograd.available(), reason="numba is not installed")


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

    handle = torch_module.register_module_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def global_pre_hook(half: Half, calls: Calls) -> Iterator[None]:
    def hook(module: nn.Module, args: tuple) -> tuple | None:
        calls.append("hook")
        return (args[0] * 1.01,) if isinstance(module, nn.Conv2d) else None

    handle = torch_module.register_module_forward_pre_hook(hook)
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


def latent(size: int = SIZE) -> Tensor:
    return torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(1))


def image(size: int = 2 * SIZE) -> Tensor:
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(2)) * 2 - 1


def runs(vae: AutoencoderKL, encoding: bool) -> tuple[Half, Callable[[], Tensor], tuple[Callable[[], Tensor], ...]]:
    """A half of the model, the plain pass through it, and the two ways that may take the engine."""
    if encoding:
        x = image()
        return (
            vae.encoder,
            lambda: vae.encode_plain(x),
            (lambda: vae.encode(x).latent_dist.parameters, lambda: vae_core.encode(vae, x).parameters),
        )
    z = latent()
    return vae.decoder, lambda: vae.decode_plain(z), (lambda: vae.decode(z).sample, lambda: vae_core.decode(vae, z))


@pytest.fixture
def engine_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Filled with a name for each program that is executed."""
    seen: list[str] = []
    real = engine.Execution.run

    def run(self: Any, *args: Any, **kwargs: Any) -> None:
        seen.append("run")
        real(self, *args, **kwargs)

    monkeypatch.setattr(engine.Execution, "run", run)
    return seen


@pytest.mark.parametrize("encoding", [False, True], ids=["decode", "encode"])
@torch.no_grad()
def test_an_unchanged_model_takes_the_engine(encoding: bool, engine_runs: list[str]) -> None:
    half, plain, ways = runs(make(CONFIG), encoding)
    assert find_change(half) is None
    for way in ways:
        engine_runs.clear()
        result = way()
        assert engine_runs
        assert (result - plain()).abs().max() < 1e-4


@pytest.mark.parametrize("encoding", [False, True], ids=["decode", "encode"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@torch.no_grad()
def test_a_change_is_never_ignored(change: Change, encoding: bool, engine_runs: list[str]) -> None:
    half, plain, ways = runs(make(CONFIG), encoding)
    before, calls = plain(), []
    with change(half, calls):
        assert find_change(half)
        want = plain()
        assert (want - before).abs().max() > 1e-3  # or ignoring it would not show
        for way in ways:
            calls.clear()
            assert torch.equal(way(), want)
            assert bool(calls) is (change not in SILENT)
    assert not engine_runs


@pytest.mark.parametrize("encoding", [False, True], ids=["decode", "encode"])
@torch.no_grad()
def test_a_change_that_was_undone_is_forgotten(encoding: bool, engine_runs: list[str]) -> None:
    half, _, ways = runs(make(CONFIG), encoding)
    with forward_hook(half, []):
        ways[0]()
    assert not engine_runs and find_change(half) is None
    ways[0]()
    assert engine_runs


@pytest.mark.xfail(reason="only encoder and decoder are looked at", strict=False)
@pytest.mark.parametrize("encoding", [False, True], ids=["decode", "encode"])
@torch.no_grad()
def test_the_convolutions_beside_the_halves_are_looked_at_too(encoding: bool) -> None:
    vae = make(CONFIG)
    conv = vae.quant_conv if encoding else vae.post_quant_conv
    assert conv is not None
    conv.register_forward_hook(lambda module, args, output: output * 1.5)
    _, plain, ways = runs(vae, encoding)
    for way in ways:
        assert torch.equal(way(), plain())


@pytest.mark.xfail(reason="the three separate projections are read, not the fused one", strict=False)
@torch.no_grad()
def test_a_fused_projection_that_was_changed() -> None:
    vae = make(CONFIG)
    vae.fuse_qkv_projections()
    vae.decoder.mid_block.attentions[0].to_qkv.weight.mul_(3.0)  # type: ignore[union-attr, operator]
    _, plain, ways = runs(vae, False)
    for way in ways:
        assert (way() - plain()).abs().max() < 1e-4


@pytest.mark.xfail(reason="decode of the package calls no hook of the whole model, and moves z to meta", strict=False)
@torch.no_grad()
def test_offloaded_weights() -> None:
    accelerate = pytest.importorskip("accelerate")
    want = make(CONFIG).decode_plain(latent())
    vae = make(CONFIG)
    accelerate.cpu_offload(vae, torch.device("cpu"))
    assert (vae.decode(latent()).sample - want).abs().max() < 1e-4
    assert (vae_core.decode(vae, latent()) - want).abs().max() < 1e-4


@torch.no_grad()
def test_a_change_in_one_half_leaves_the_engine_to_the_other(engine_runs: list[str]) -> None:
    vae = make(CONFIG)
    with forward_hook(vae.encoder, []):
        vae.encode(image())
        assert not engine_runs
        vae.decode(latent())
        assert engine_runs


def _wider_eps(half: Half) -> None:
    half.mid_block.resnets[0].norm1.eps = 0.1


def _other_groups(half: Half) -> None:
    half.conv_norm_out.num_groups = 8


def _stock_activation(half: Half) -> None:
    half.conv_act = nn.GELU()


def _reference_processor(half: Half) -> None:
    half.mid_block.attentions[0].processor = AttnProcessor()


def _new_weights(half: Half) -> None:
    with torch.no_grad():
        conv_of(half).weight.mul_(2.0)


@pytest.mark.parametrize("encoding", [False, True], ids=["decode", "encode"])
@pytest.mark.parametrize("change", [_wider_eps, _other_groups, _stock_activation, _reference_processor, _new_weights])
@torch.no_grad()
def test_what_the_engine_knows_is_followed(
    change: Callable[[Half], None], encoding: bool, engine_runs: list[str]
) -> None:
    """Values of stock modules are read at each call, not remembered."""
    half, plain, ways = runs(make(CONFIG), encoding)
    ways[1]()
    change(half)
    for way in ways:
        engine_runs.clear()
        assert (way() - plain()).abs().max() < 1e-4
        assert engine_runs


@torch.no_grad()
def test_a_changed_model_cannot_wrap_by_itself() -> None:
    vae = make(CONFIG)
    with forward_hook(vae.decoder, []), pytest.raises(vae_core.TilingError, match="a hook.*unset wrap"):
        vae_core.decode(vae, latent(), wrap="x")


@torch.no_grad()
def test_a_changed_model_is_told_of_and_reports_its_end(caplog: pytest.LogCaptureFixture) -> None:
    vae, calls = make(CONFIG), []
    with forward_hook(vae.decoder, []):
        vae_core.decode(vae, latent(), progress=lambda done, total: calls.append((done, total)))
    assert "conv_out has a hook" in caplog.text
    assert calls and calls[-1][0] == calls[-1][1]
