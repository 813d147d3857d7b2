from __future__ import annotations

import pytest
import torch
from torch import nn

from vae_core.attention import NORM_EPS
from vae_core.streaming.stats import ChannelStats, StatsTable, StripStats, all_finite, merge_all


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
