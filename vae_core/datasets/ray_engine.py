"""The engine of many machines: Ray Data reads, resizes, encodes and writes, and decides where and when.

    read (a task a split) -> map_batches(prepare, tasks) -> map_batches(encode, an actor a device) -> map_batches(write)

A row is a shard, so that its bytes cannot depend on who had it. Back-pressure, retries, autoscaling are Ray's.
"""

from __future__ import annotations

import itertools
import pickle
import re
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DatasetError, VAEError
from .collection import MANIFEST, Collection
from .encode import Encoder, Shard
from .extras import require
from .local import Work
from .prepare import Result, prepare_all
from .progress import Progress
from .settings import Settings
from .sources import read_split
from .transfer import Raw
from .weights import PackedVAE

# More read tasks than this are more than Ray's driver likes; then a task reads several splits in turn.
_TASKS = 10_000
_PACKAGE = Path(__file__).resolve().parents[1]


def run(
    collection: Collection,
    work: Sequence[Work],
    packed: PackedVAE,
    address: str | None,
    encoders: int | None,
    progress: Progress,
) -> None:
    """Encode splits and commit their shards.

    Args:
        address: of a cluster, as `ray.init` takes it; None to start Ray on this machine.
        encoders: actors that encode, at most; None for one a device of the cluster.

    Raises:
        DatasetError: what `local.run` raises, and a cluster that cannot be joined.
        MissingDependencyError: Ray is not installed.
    """
    ray = require("ray", "scale", "the engine ray")
    data = require("ray.data", "scale", "the engine ray")
    started = not ray.is_initialized()
    if started:
        _join(ray, address)
    try:
        _quieten(data)
        rows = _pipeline(ray, data, collection, work, packed, encoders)
        for row in rows.iter_rows():
            if row["trouble"]:
                raise DatasetError(row["trouble"])
            progress.advance(int(row["images"] + row["failures"]), int(row["failures"]))
            progress.committed(1, int(row["bytes"]))
            progress.busy += float(row["seconds"])
    except ray.exceptions.RayError as error:
        raise _cause(error) from error
    finally:
        if started:
            ray.shutdown()


def _join(ray: Any, address: str | None) -> None:
    if address is not None and (server := re.fullmatch(r"(?:ray://)?([^:/]+):(\d+)", address)):
        try:  # Ray itself would end this process
            socket.create_connection((server[1], int(server[2])), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise DatasetError(_NO_CLUSTER.format(address, error)) from None
    # What a cluster's machines run is this very package, whatever they have installed.
    options = {"runtime_env": {"py_modules": [str(_PACKAGE)]}} if address else {"include_dashboard": False}
    try:
        ray.init(address=address, log_to_driver=False, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise DatasetError(_NO_CLUSTER.format(address, error)) from None


_NO_CLUSTER = "no Ray cluster answers at {}: {}. Start one with `ray start --head`."


def _quieten(data: Any) -> None:
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def _pipeline(
    ray: Any, data: Any, collection: Collection, work: Sequence[Work], packed: PackedVAE, encoders: int | None
) -> Any:
    settings, resources = collection.settings, ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    # Readers and writers need room beside the encoders; one that fills the machine shares it with them.
    device = {"num_gpus": 1} if gpus else {"num_cpus": max(1, min(settings.threads, cpus - 1))}
    most = encoders or gpus or max(1, (cpus - 1) // device["num_cpus"])
    # A task reads one split, or several in turn where there are very many.
    groups = [list(work[i :: min(len(work), _TASKS)]) for i in range(min(len(work), _TASKS))]
    source = _make_source(data, groups, settings)
    channels = packed.config["in_channels"]
    return (
        data.read_datasource(source, override_num_blocks=len(groups))
        .map_batches(_prepare, batch_size=1, fn_args=(settings, channels), num_cpus=1)
        .map_batches(
            _Encode,
            batch_size=1,
            fn_constructor_args=(ray.put(packed), settings, bool(gpus)),
            concurrency=(1, most) if most > 1 else 1,
            # An actor that is lost is started again, and does again what it had. (Without options of its own, Ray
            # would put `_prepare` into it.)
            max_restarts=-1,
            max_task_retries=-1,
            **device,
        )
        .map_batches(_write, batch_size=1, fn_args=(str(collection.out), collection.manifest), num_cpus=0.25)
    )


def _make_source(data: Any, groups: Sequence[list[Work]], settings: Settings) -> Any:
    """The splits as a source of Ray Data: a task a group, a block a shard."""
    from ray.data.block import BlockMetadata

    class Splits(data.Datasource):
        def get_name(self) -> str:
            return "Splits"

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            nothing = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [data.ReadTask(_Read(group, settings), nothing) for group in groups]

    return Splits()


class _Read:
    """The shards of some splits, as they come: blocks of one row, their images in it."""

    def __init__(self, group: list[Work], settings: Settings) -> None:
        self.group, self.settings = group, settings

    def __call__(self) -> Iterable[Any]:
        try:
            for work in self.group:
                for chunk, first, raws, last in shards_of(work, self.settings):
                    yield _row((work.split.number, chunk, first, raws, last))
        except VAEError as error:
            yield _row(_Trouble(str(error)))


def shards_of(work: Work, settings: Settings) -> Iterator[tuple[int, int, list[Raw], bool]]:
    """The raw images of each shard of a split: (number, position of the first, images, whether it is the last)."""
    size, chunk = settings.shard_images, work.chunk
    raws = itertools.islice(read_split(work.split, settings.column), chunk * size, None)
    images = list(itertools.islice(raws, size))
    while True:
        following = list(itertools.islice(raws, size))
        yield chunk, chunk * size, images, not following
        if not following:
            return
        chunk, images = chunk + 1, following


@dataclass(frozen=True)
class _Trouble:
    """What ends the run, passed on like a shard: of an exception, Ray would keep no more than its text."""

    sentence: str


def _prepare(rows: dict[str, Any], settings: Settings, channels: int) -> Any:
    given = pickle.loads(rows["shard"][0])
    if isinstance(given, _Trouble):
        return _row(given)
    split, chunk, first, raws, last = given
    results: list[Result] = list(prepare_all(raws, settings, channels, first))
    return _row((split, chunk, results, last))


class _Encode:
    """The actor of one device."""

    def __init__(self, packed: Any, settings: Settings, on_gpu: bool) -> None:
        import ray

        if not isinstance(packed, PackedVAE):
            packed = ray.get(packed)
        self.settings = settings
        self.encoder = Encoder(packed.unpack("cuda" if on_gpu else "cpu"), settings)

    def __call__(self, rows: dict[str, Any]) -> Any:
        given = pickle.loads(rows["shard"][0])
        if isinstance(given, _Trouble):
            return _row(given)
        split, chunk, results, last = given
        before = self.encoder.seconds
        try:
            shard = Shard(split, chunk, self.settings, last=last).encode_all(results, self.encoder)
        except VAEError as error:
            return _row(_Trouble(str(error)))
        return _row((shard, self.encoder.seconds - before))


def _write(rows: dict[str, Any], out: str, manifest: dict[str, Any]) -> dict[str, Any]:
    given = pickle.loads(rows["shard"][0])
    try:
        if isinstance(given, _Trouble):
            raise DatasetError(given.sentence)
        shard, seconds = given
        collection = Collection(Path(out), manifest)
        if not (collection.records / MANIFEST).is_file():
            raise DatasetError(
                f"a machine of the cluster ({socket.gethostname()}) does not see {out}. Give an --out that all of its "
                f"machines see under the same path."
            )
        record = collection.commit(shard)
    except VAEError as error:
        return {"images": [0], "failures": [0], "bytes": [0], "seconds": [0.0], "trouble": [str(error)]}
    size = sum(file["bytes"] for file in record["files"])
    return {
        "images": [len(record["images"])],
        "failures": [len(record["failures"])],
        "bytes": [size],
        "seconds": [seconds],
        "trouble": [""],
    }


def _row(value: Any) -> Any:
    """A block of one row: anything that can be pickled."""
    import pyarrow

    return pyarrow.table({"shard": pyarrow.array([pickle.dumps(value)], pyarrow.large_binary())})


def _cause(error: BaseException) -> DatasetError:
    """A sentence about what made Ray give up."""
    lines = [line.strip() for line in str(error).splitlines()]
    named = (
        [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)] or lines[-1:] or [type(error).__name__]
    )
    return DatasetError(
        f"Ray gave up: {named[-1].rstrip('.')}. What was finished stays valid: run the same command with --resume."
    )
