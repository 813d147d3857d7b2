"""What training reads: every image once, in an order that can be repeated, shared out and resumed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from given.collection import encode
from torch.utils.data import DataLoader

from vae_core import AutoencoderKL, ConfigError, DatasetError
from vae_core.datasets import LatentDataset, LatentStream


@pytest.fixture(scope="module")
def out(images: Path, vae: AutoencoderKL, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty images with moments, flipped."""
    out = tmp_path_factory.mktemp("collection") / "out"
    encode(images, out, vae, keep="moments", flip=True, shard_images=4)
    return out


def keys(stream: LatentStream, workers: int = 0) -> list[list[str]]:
    return [batch["key"] for batch in DataLoader(stream, batch_size=None, num_workers=workers)]


def test_map_style(out: Path) -> None:
    dataset = LatentDataset(out)
    assert len(dataset) == 20
    found = [item["key"] for item in dataset]
    assert found == [dataset.image(i)["key"] for i in range(20)] == sorted(found)
    assert dataset[-1]["key"] == found[-1]
    for wrong in (20, -21):
        with pytest.raises(IndexError):
            dataset[wrong]
    shuffled = DataLoader(dataset, batch_size=None, shuffle=True, num_workers=2)
    assert sorted(item["key"] for item in shuffled) == found


def test_moments_are_sampled_freshly_each_epoch(out: Path) -> None:
    dataset = LatentDataset(out)
    samples = []
    for epoch in range(200):
        dataset.set_epoch(epoch)
        samples.append(dataset[3]["latents"])
    dataset.set_epoch(0)
    assert torch.equal(dataset[3]["latents"], samples[0]), "the same epoch, the same sample"
    assert not torch.equal(samples[0], samples[1])
    record, image = dataset._records[0], dataset._records[0]["images"][3]
    mean, logvar = dataset.collection.read_images(record, [image])[0]["moments"].chunk(2)
    stacked = torch.stack(samples)
    z = (stacked - mean) / torch.exp(0.5 * logvar)
    # 200 samples of each of 4 * 64 values or more: their mean is within 5 deviations of a mean of so many.
    assert abs(float(z.mean())) < 5 / (z.numel() ** 0.5)
    assert abs(float(z.std()) - 1) < 5 / (2 * z.numel()) ** 0.5
    assert not torch.equal(dataset[3]["latents"], dataset[3]["latents_flipped"])


def test_scaled(out: Path) -> None:
    raw, scaled = LatentDataset(out), LatentDataset(out, scaled=True)
    torch.testing.assert_close(scaled[0]["latents"], (raw[0]["latents"] - 0.25) * 0.5)


@pytest.mark.parametrize("window", [1, 2, 32])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_image_once(batch_size: int, window: int, out: Path) -> None:
    stream = LatentStream(out, batch_size=batch_size, window=window)
    counted = Counter(key for batch in keys(stream) for key in batch)
    assert len(counted) == 20 and set(counted.values()) == {1}
    for batch in stream:
        assert batch["latents"].ndim == 4 and len(batch["latents"]) == len(batch["key"]) <= batch_size


def test_orders(out: Path) -> None:
    def flat(**options: Any) -> list[str]:
        stream = LatentStream(out, **options)
        return [key for batch in keys(stream) for key in batch]

    assert flat(seed=1) == flat(seed=1) != flat(seed=2)
    in_order = flat(shuffle=False)
    assert in_order == sorted(in_order) != flat()
    stream = LatentStream(out)
    first = keys(stream)
    stream.set_epoch(1)
    assert keys(stream) != first


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_change_nothing(workers: int, out: Path) -> None:
    alone, shared = LatentStream(out, batch_size=2), LatentStream(out, batch_size=2)
    assert keys(shared, workers) == keys(alone)


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_share(world_size: int, out: Path) -> None:
    ranks = [keys(LatentStream(out, rank=rank, world_size=world_size)) for rank in range(world_size)]
    counted = Counter(key for rank in ranks for batch in rank for key in batch)
    assert len(counted) == 20 and set(counted.values()) == {1}
    even = [
        keys(LatentStream(out, batch_size=2, drop_last=True, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len({len(rank) for rank in even}) == 1
    assert all(len(batch) == 2 for rank in even for batch in rank)


@pytest.mark.parametrize(("workers", "then"), [(0, 0), (2, 0), (0, 2), (2, 3)])
def test_resumed_within_an_epoch(workers: int, then: int, out: Path) -> None:
    """From the state of any batch, with as many workers or others, the rest of the epoch follows."""
    options: dict[str, Any] = {"batch_size": 2, "seed": 5, "rank": 1, "world_size": 2}
    stream = LatentStream(out, **options)
    stream.set_epoch(3)
    whole = [batch["key"] for batch in DataLoader(stream, batch_size=None, num_workers=0)]
    states = [batch["state"] for batch in DataLoader(stream, batch_size=None, num_workers=workers)]
    assert len(states) == len(whole) > 3
    for i in (0, 2, len(states) - 1):
        resumed = LatentStream(out, **options)
        resumed.load_state_dict(states[i])
        assert resumed.state_dict() == states[i]
        assert keys(resumed, then) == whole[i + 1 :]


def test_the_samples_of_a_resumed_epoch_are_the_same(out: Path) -> None:
    stream = LatentStream(out, batch_size=2)
    batches = list(stream)
    stream.load_state_dict(batches[1]["state"])
    for again, before in zip(stream, batches[2:], strict=True):
        assert torch.equal(again["latents"], before["latents"])


def test_refusals(out: Path, images: Path, vae: AutoencoderKL, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rank 2 is not one of 2"):
        LatentStream(out, rank=2, world_size=2)
    with pytest.raises(ConfigError, match="batches of 0"):
        LatentStream(out, batch_size=0)
    with pytest.raises(DatasetError, match=r"has no manifest\.json"):
        LatentDataset(tmp_path)
    encode(images, tmp_path / "out", vae)
    manifest = tmp_path / "out" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text[: text.index(',\n "totals"')] + "\n}\n")
    with pytest.raises(DatasetError, match="is not finished"):
        LatentStream(tmp_path / "out")
    manifest.write_text(text.replace('"version": 1', '"version": 2', 1))
    with pytest.raises(DatasetError, match="version 2"):
        LatentDataset(tmp_path / "out")
