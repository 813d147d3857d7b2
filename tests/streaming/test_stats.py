from __future__ import annotations

import pytest
import torch
from torch import nn

from vae_core.config import NORM_EPS
from vae_core.streaming.stats import (
    ChannelStats,
    StatsTable,
    StripStats,
    TableStats,
    all_finite,
    is_measured,
    join_items,
    merge_all,
)


def strip(offset: float, rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(2, rows, 5, 8, generator=generator) * torch.arange(1, 9) + offset


@pytest.mark.parametrize("offset", [0.0, 30.0, -1e4])
def test_merging_strips_gives_the_statistics_of_the_whole(offset):
    parts = [strip(offset, rows) for rows in (1, 7, 2)]
    whole = torch.cat(parts, dim=1).double().flatten(1, 2)
    merged = merge_all([StripStats.of(part).finished() for part in parts])
    assert merged.count == 50
    # float32 keeps about 1e-7 of the offset
    torch.testing.assert_close(merged.mean, whole.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(merged.m2 / 50, whole.var(1, correction=0), rtol=1e-5, atol=abs(offset) ** 2 * 1e-13)


def test_sums_in_float64_keep_what_float32_would_lose():
    values = strip(1e4, 9).double().flatten(1, 2)
    stats = ChannelStats.from_sums(45, values.sum(1), values.square().sum(1))
    torch.testing.assert_close(stats.m2 / 45, values.var(1, correction=0), rtol=1e-6, atol=0)


def test_sums_of_equal_values_have_no_deviation():
    """Rounding may leave less than nothing; what is taken for it must be nothing, not a variance of its own."""
    values = torch.full((1, 45, 2), 0.1, dtype=torch.float64)
    stats = ChannelStats.from_sums(45, values.sum(1), values.square().sum(1))
    assert (stats.m2 >= 0).all() and (stats.m2 < 1e-14).all()


def test_variances_of_tiles_are_not_averaged():
    low, high = (StripStats.of(torch.full((1, 2, 2, 1), value)).finished() for value in (0.0, 4.0))
    assert (low.merge(high).m2 / 8).item() == 4.0  # each tile's own variance is zero


def test_affine_is_group_norm():
    norm = nn.GroupNorm(4, 8, eps=NORM_EPS)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = strip(3.0, 6) * 1e-3  # small enough that a wrong eps shows
    scale, shift = StripStats.of(x).finished().affine(norm)
    with torch.no_grad():
        want = norm.double()(x.double().permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    got = x.double() * scale[:, None, None] + shift[:, None, None]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    norm.eps = 1e-5
    wrong = StripStats.of(x).finished().affine(norm)[0]
    assert ((wrong - scale).abs() > 1e-4 * scale.abs()).any()


def test_numbers_that_are_not_finite_show():
    x = torch.zeros(1, 2, 2, 3)
    fine = StripStats.of(x).finished()
    x[0, 1, 1, 2] = float("inf")
    infinite = StripStats.of(x).finished()
    x[0, 1, 1, 2] = float("nan")
    assert all_finite([]) == []
    assert all_finite([fine, infinite, StripStats.of(x).finished(), fine]) == [True, False, False, True]


def test_a_table_that_is_merged_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device with float64: the same statistics, of all strips or of some that follow one another."""
    parts = [strip(20.0, rows) for rows in (1, 7, 2)]
    table = StatsTable(3, (2, 8), torch.float32, torch.device("cpu"))
    for index, part in enumerate(parts):
        table.put(index, StripStats.of(part))
    wanted = {strips: table.merged(strips) for strips in ((0, 1, 2), (1, 2), (1,))}
    monkeypatch.setattr("vae_core.streaming.stats.WITH_FLOAT64", ("cpu",))
    for strips, want in wanted.items():
        got = table.merged(strips)
        assert got.count == want.count and got.mean.dtype == torch.float64
        torch.testing.assert_close(got.mean, want.mean, rtol=1e-14, atol=0)
        torch.testing.assert_close(got.m2, want.m2, rtol=1e-12, atol=0)


def of_whole(values: torch.Tensor) -> ChannelStats:
    """The statistics of [B, H, W, C] from their definition."""
    flat = values.double().flatten(1, 2)
    return ChannelStats(flat.shape[1], flat.mean(1), (flat - flat.mean(1, keepdim=True)).square().sum(1))


def assert_same(got: ChannelStats, want: ChannelStats, rounding: float) -> None:
    assert got.count == want.count and got.mean.dtype == got.m2.dtype == torch.float64
    torch.testing.assert_close(got.mean, want.mean, rtol=rounding, atol=rounding)
    torch.testing.assert_close(got.m2, want.m2, rtol=10 * rounding, atol=0)


@pytest.mark.parametrize("with_memory", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 2, 1), (2, 3, 5, 3), (2, 3, 5, 16), (3, 1, 7, 32), (2, 3, 40, 16)])
def test_a_strip_of_any_type(shape: tuple[int, ...], dtype: torch.dtype, with_memory: bool) -> None:
    """By compiled code and without it; sums are in float32, or in float64 for strips in that."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 20
    values = (values + 10 * torch.arange(shape[1])[:, None, None]).to(dtype)  # the first rows are unlike the others
    wide = torch.promote_types(dtype, torch.float32)
    memory = torch.full((shape[0], shape[1] * shape[2], shape[3]), torch.nan, dtype=wide) if with_memory else None
    before = values.clone()
    got = StripStats.of(values, memory)
    assert got.mean.dtype == got.rest.dtype == got.squares.dtype == wide
    assert_same(got.finished(), of_whole(values), 1e-12 if wide == torch.float64 else 1e-6)
    assert torch.equal(values, before)
    assert not is_measured(torch.float64, shape[3]) and not is_measured(dtype, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("counted", [False, True])
def test_a_table_of_strips(counted: bool, dtype: torch.dtype) -> None:
    parts = [strip(20.0, rows).to(dtype) for rows in (1, 7, 2)]
    table = StatsTable(3, (2, 8), dtype, torch.device("cpu"), counted)
    assert table.values.shape == (3, 3 + counted, 2, 8)
    assert table.values.nbytes == StatsTable.bytes(3, (2, 8), dtype, counted)
    if not counted:
        assert table.values.nbytes == StatsTable.bytes(3, (2, 8), dtype)
    for index, part in enumerate(parts):
        stats = StripStats.of(part)
        if counted:
            row = table.row(index, stats.count)
            row[:3] = torch.stack(stats[1:])
            row[3] = stats.count
        else:
            table.put(index, stats)
        again = table.of(index)
        assert again.count == stats.count and all(map(torch.equal, again[1:], stats[1:]))
    rounding = 1e-12 if dtype == torch.float64 else 1e-6
    assert_same(table.merged(range(3)), of_whole(torch.cat(parts, dim=1)), rounding)
    assert_same(table.merged([1]), of_whole(parts[1]), rounding)
    if counted:
        left = TableStats(table)
        torch.testing.assert_close(left.mean, of_whole(torch.cat(parts, dim=1)).mean, rtol=rounding, atol=rounding)
        assert left.finite() and not left.on_cpu and table.merged([0]).on_cpu
        table.values[1, 2, 0, 0] = torch.inf
        assert not left.finite()


def test_a_batch_is_its_items() -> None:
    whole = torch.cat([strip(offset, 4) for offset in (0.0, 5.0)])
    items = [StripStats.of(item[None]).finished() for item in whole]
    joined = join_items(items)
    assert_same(joined, of_whole(whole), 1e-6)
    assert joined.mean.shape == (4, 8)


@pytest.mark.parametrize("channels", [4, 8])
def test_affine_of_several_groups_and_items(channels: int) -> None:
    """Groups whose channels have other means, of items that differ: nothing of one is in another."""
    norm = nn.GroupNorm(channels // 2, channels, eps=NORM_EPS)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(3, 4, 5, channels) * torch.arange(1, channels + 1) + torch.arange(3.0)[:, None, None, None] * 7
    scale, shift = of_whole(x).affine(norm)
    assert scale.shape == shift.shape == (3, channels) and scale.dtype == shift.dtype == torch.float64
    with torch.no_grad():
        want = norm.double()(x.double().permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(x.double() * scale[:, None, None] + shift[:, None, None], want, rtol=1e-9, atol=1e-9)
