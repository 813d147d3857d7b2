"""How passes are cut for the fast convolutions, and how their weights are laid out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from given.passes import pass_inputs
from torch import Tensor, nn

from vae_core.streaming import compiled_winograd, internals, winograd
from vae_core.streaming.compiled_winograd import CompiledWinograd
from vae_core.streaming.maps import PlannedMap
from vae_core.streaming.products import PackedProducts
from vae_core.streaming.program import Convolve
from vae_core.streaming.transforms import TILE
from vae_core.units import round_up


def test_weights_are_laid_out_for_threads_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN may want another layout for each number of threads, and makes it in every call if it gets a wrong one."""
    if not internals.products_available():
        pytest.skip("torch has no oneDNN")
    seen = []
    real = torch.ops.mkldnn._reorder_convolution_weight

    def spy(*arguments: Any) -> Tensor:
        seen.append(torch.get_num_threads())
        return real(*arguments)

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_convolution_weight", spy)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        PackedProducts.pack(torch.randn(1, 32, 32), rows=16)
        assert (seen, torch.get_num_threads()) == ([1 if internals.thread_setters() else 3], 3)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_ends_a_layout_leaves_the_number_of_threads(error: type[BaseException], monkeypatch: Any) -> None:
    if not internals.products_available():
        pytest.skip("torch has no oneDNN")

    def fails(*_: Any) -> None:
        assert torch.get_num_threads() == 1 or not internals.thread_setters()
        raise error

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_convolution_weight", fails)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(error):
            PackedProducts.pack(torch.randn(1, 32, 32), rows=16)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [6, 12])
@pytest.mark.parametrize("down", [1, 2, 5, 64])
@pytest.mark.parametrize("across", [1, 7, 16, 128, 300])
def test_blocks_of_tiles(across: int, down: int, rows: int) -> None:
    """No larger than asked for; and over whole strips fewer products are made in vain than by taking whole lines."""
    most = 48
    tall, wide, _ = compiled_winograd._block(down, across, most, rows)
    assert 1 <= tall <= down and 1 <= wide <= across and tall * wide <= most

    def made(tall: int, wide: int) -> int:
        heights = [min(tall, down - start) for start in range(0, down, tall)]
        widths = [min(wide, across - start) for start in range(0, across, wide)]
        return sum(round_up(height * width, rows) for height in heights for width in widths)

    lines = min(across, most)
    assert made(tall, wide) <= made(max(1, min(most // lines, down)), lines)


@pytest.mark.skipif(not winograd.compiled(), reason="numba is not installed")
@pytest.mark.parametrize("workers", [1, 2, 4, 8, 16])
@pytest.mark.parametrize(("side", "channels"), [(64, 512), (96, 512), (128, 512), (128, 256), (256, 256), (512, 128)])
def test_every_worker_has_strips(side: int, channels: int, workers: int) -> None:
    """About as many as every other one, of whole lines of tiles."""
    conv = nn.Conv2d(channels, channels, 3, padding=1, device="meta")
    norm, whole = nn.GroupNorm(32, channels, device="meta"), PlannedMap.whole((1, side, side, channels))
    step = Convolve("source", "target", conv, norm=norm, act=nn.SiLU())
    made = CompiledWinograd(pass_inputs(step, whole, whole, workers=workers))
    tiles = [-(-(stop - start) // TILE) for start, stop in made.layout.rows]
    assert sum(tiles) == side // TILE
    per_worker = [sum(tiles[worker::workers]) for worker in range(workers)]
    assert max(per_worker) <= 1.3 * -(-side // TILE // workers)


def test_widths_of_images_lose_no_products() -> None:
    for across in (16, 32, 64, 128, 256):
        tall, wide, _ = compiled_winograd._block(48, across, 48, 12)
        assert across % wide == 0 and tall * wide % 12 == 0
