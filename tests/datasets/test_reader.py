"""What training reads: every image once, in an order that can be repeated, shared out and resumed."""

from __future__ import annotations

import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from given.collection import CONFIG, encode
from given.models import make
from PIL import Image
from torch.utils.data import DataLoader

from vae_core import AutoencoderKL, ConfigError, DatasetError
from vae_core.datasets import (
    Buckets,
    Collection,
    LatentDataset,
    LatentStream,
    safetensors_layout,
    webdataset_layout,
)  # fmt: skip
from vae_core.datasets.decode import sample_moments
from vae_core.datasets.encode import generator
from vae_core.latent import to_diffusion


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
    record, image = next(dataset.collection.all_records()), dataset.image(3)
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


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_that_persist_follow_the_epoch(workers: int, out: Path) -> None:
    """One DataLoader over two epochs gives what two give: another order, and new samples of moments."""

    def epochs(dataset: Any, persistent: bool) -> list[list[Any]]:
        options: dict[str, Any] = {"batch_size": None, "num_workers": workers}
        loader = DataLoader(dataset, persistent_workers=True, **options) if persistent and workers else None
        found = []
        for epoch in (0, 7, 2**70):
            dataset.set_epoch(epoch)
            found.append(list(loader if loader is not None else DataLoader(dataset, **options)))
        return found

    for make_one in (lambda: LatentDataset(out), lambda: LatentStream(out, batch_size=2)):
        fresh, kept = epochs(make_one(), False), epochs(make_one(), True)
        assert len(kept[0]) == len(kept[1]) >= 10
        for one, other in zip(fresh, kept, strict=True):
            assert [each["key"] for each in one] == [each["key"] for each in other]
            for a, b in zip(one, other, strict=True):
                assert torch.equal(a["latents"], b["latents"])
        first, second = ({str(each["key"]): each["latents"] for each in epoch} for epoch in kept[:2])
        assert not any(torch.equal(first[key], second[key]) for key in first if key in second)


def test_workers_that_persist_go_on_where_a_state_says(out: Path) -> None:
    stream = LatentStream(out, batch_size=2)
    loader = DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=True)
    whole = list(loader)
    stream.load_state_dict(whole[3]["state"])
    assert [each["key"] for each in loader] == [each["key"] for each in whole[4:]]
    stream.set_epoch(0)
    assert [each["key"] for each in loader] == [each["key"] for each in whole]


CHANGES: dict[str, dict[str, Any]] = {
    "seed": {"seed": 6},
    "batch_size": {"batch_size": 3},
    "world_size": {"world_size": 3},
    "window": {"window": 1},
    "shuffle": {"shuffle": False},
    "drop_last": {"drop_last": True},
}


@pytest.mark.parametrize("name", CHANGES)
def test_states_of_other_streams(name: str, out: Path) -> None:
    options: dict[str, Any] = {"batch_size": 2, "seed": 5, "rank": 1, "world_size": 2}
    state = next(iter(LatentStream(out, **options)))["state"]
    other = LatentStream(out, **{**options, **CHANGES[name]})
    with pytest.raises(ConfigError, match=f"belongs to another stream: {name} .* instead of"):
        other.load_state_dict(state)
    with pytest.raises(ConfigError, match="images None instead of 20"):
        other.load_state_dict({"epoch": 0, "batches": 3})
    assert other.state_dict()["batches"] == 0


@pytest.mark.parametrize("layout", ["shards", "webdataset"])
def test_a_shard_is_opened_once(
    layout: Any, images: Path, vae: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many images are read of it; and no record is parsed twice."""
    encode(images, tmp_path / "out", vae, layout=layout, shard_images=4)
    opened: Counter[str] = Counter()
    for module in (safetensors_layout, webdataset_layout):
        real = module.Opened.__init__
        monkeypatch.setattr(
            module.Opened, "__init__", lambda self, file, real=real: (opened.update([file.name]), real(self, file))[1]
        )
    parsed = Collection.read_record
    monkeypatch.setattr(
        Collection, "read_record", lambda self, *shard: (opened.update([str(shard)]), parsed(self, *shard))[1]
    )
    for dataset in (LatentDataset(tmp_path / "out"), LatentStream(tmp_path / "out", batch_size=3)):
        opened.clear()
        for _ in range(2):
            assert sum(1 for _ in dataset) > 5
        assert len(opened) == 2 * 6 and set(opened.values()) == {1}


def test_what_is_done_to_an_item_is_not_seen_by_the_next(out: Path) -> None:
    dataset = LatentDataset(out)
    dataset.set_epoch(None)
    before = dataset[5]["latents"].clone()
    dataset[5]["latents"].mul_(0)
    assert torch.equal(dataset[5]["latents"], before)
    copied = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copied[5]["latents"], before)


@pytest.mark.parametrize("layout", ["shards", "webdataset", "kohya"])
def test_masks_have_one_form(layout: Any, vae: AutoencoderKL, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    alpha = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    Image.fromarray(alpha).save(folder / "a.png")
    options = {"layout": "kohya", "kohya": "sd", "keep": "sample"} if layout == "kohya" else {"layout": layout}
    encode(folder, tmp_path / "out", vae, alpha_mask=True, buckets=Buckets(64, 64), **options)
    mask = LatentDataset(tmp_path / "out")[0]["alpha_mask"]
    assert mask.dtype == torch.float32
    assert torch.equal(mask, torch.from_numpy(alpha[..., 3]).float() / 255)


@pytest.mark.parametrize("reader", [LatentDataset, LatentStream])
def test_scaled_latents_of_flux2(reader: Any, images: Path, tmp_path: Path) -> None:
    """Its statistics are in the manifest, because no config has them."""
    flux2 = make({**CONFIG, "latent_channels": 8, "patch_size": (2, 2), "batch_norm_eps": 1e-4})
    assert flux2.bn.running_mean is not None and flux2.bn.running_var is not None
    flux2.bn.running_mean.uniform_(-1, 1)
    flux2.bn.running_var.uniform_(0.5, 2)
    encode(images, tmp_path / "out", flux2, buckets=Buckets(64, 64))
    for scaled, raw in zip(*(reader(tmp_path / "out", scaled=each) for each in (True, False)), strict=True):
        raw = raw["latents"].reshape(1, *raw["latents"].shape[-3:])
        expected = to_diffusion(raw, flux2.config, flux2.bn.running_mean, flux2.bn.running_var)
        assert torch.equal(scaled["latents"].reshape(expected.shape), expected)


def test_a_list_that_does_not_fit(out: Path, tmp_path: Path) -> None:
    for i, damage in enumerate((lambda text: "", lambda text: text[:40], lambda text: text.partition("\n")[2], None)):
        copy = shutil.copytree(out, tmp_path / str(i))
        place = copy / "shards.jsonl"
        place.write_text(damage(place.read_text())) if damage else place.unlink()
        for reader in (LatentDataset, LatentStream):
            with pytest.raises(DatasetError, match=r"shards.jsonl cannot be read.*--resume"):
                reader(copy)


def test_refusals(out: Path, images: Path, vae: AutoencoderKL, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rank 2 is not one of 2"):
        LatentStream(out, rank=2, world_size=2)
    for name, least, values in (
        ("batch_size", 1, (0, -1, 2.0, True, "2", None)), ("window", 1, (0, 1.5)), ("seed", None, (0.5, "a", None)),
    ):  # fmt: skip
        for value in values:
            options: dict[str, Any] = {name: value}
            with pytest.raises(ConfigError, match=f"{name} is .*; give a whole number{'' if least is None else ' of'}"):
                LatentStream(out, **options)
    stream = LatentStream(out, batch_size=np.int64(2))  # type: ignore[arg-type]
    good = stream.state_dict()
    for state in (None, "x", [], {}, {**good, "batches": -1}, {**good, "batches": "1"}, {**good, "epoch": None}):
        with pytest.raises(ConfigError):
            stream.load_state_dict(state)  # type: ignore[arg-type]
    assert stream.state_dict() == good
    with pytest.raises(ConfigError, match="epoch is '1'; give a whole number"):
        LatentDataset(out).set_epoch("1")  # type: ignore[arg-type]
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


@pytest.mark.parametrize(
    "change", [lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_device("meta")]
)
def test_settings_of_torch_change_no_sample(change: Callable[[], None]) -> None:
    moments = torch.zeros(8, 2, 2)
    wanted = sample_moments(moments, generator("ab"))
    change()
    try:
        found = sample_moments(moments, generator("ab"))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert found.dtype == wanted.dtype == torch.float32 and torch.equal(found, wanted)
