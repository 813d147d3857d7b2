"""The engine of many machines: Ray Data reads, resizes, encodes and writes, and decides where and when.

    read and prepare (a task a split) -> map_batches(encode, an actor a device) -> map_batches(write)

A row is a shard, so that its bytes cannot depend on who had it. Back-pressure, retries, autoscaling are Ray's.
"""

from __future__ import annotations

import dataclasses
import inspect
import pickle
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DatasetError, MissingDependencyError, VAEError, in_one_line
from ..optional import optional_import
from .collection import MANIFEST, Collection
from .encode import BatchEncoder, Shard
from .local import Work
from .prepare import Result, prepare_all
from .progress import RunProgress
from .settings import Settings
from .sources import from_position, read_split
from .weights import PackedVAE

LEAST_RAY = "2.40"
# More read tasks than this are more than Ray's driver likes; then a task reads several splits in turn.
_TASKS = 10_000
_SHARED = 0.5  # of a machine's only CPU, for an encoder
_PACKAGE = Path(__file__).resolve().parents[1]


def run(
    collection: Collection,
    work: Sequence[Work],
    packed: PackedVAE,
    address: str | None,
    encoders: int | None,
    progress: RunProgress,
) -> None:
    """Encode splits and commit their shards.

    Args:
        address: of a cluster, as `ray.init` takes it; None to start Ray on this machine.
        encoders: actors that encode, at most; None for one a device of the cluster.

    Raises:
        DatasetError: what `local.run` raises, and a cluster that cannot be joined.
        MissingDependencyError: Ray is not installed, or too old.
    """
    ray = optional_import("ray", "The engine ray", "scale")
    check_release(ray.__version__)
    data = optional_import("ray.data", "The engine ray", "scale")
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


def check_release(version: str) -> None:
    """Raise MissingDependencyError for a release of Ray that is older than those that the engine is tested with."""
    if [int(part) for part in re.findall(r"\d+", version)[:2]] < [int(part) for part in LEAST_RAY.split(".")]:
        raise MissingDependencyError(
            f"the engine ray needs Ray {LEAST_RAY} or newer, and {version} is installed. Install another with: "
            f'pip install --upgrade "seamless-vae[scale]"'
        )


def _join(ray: Any, address: str | None) -> None:
    if address is not None and (server := re.fullmatch(r"(?:ray://)?([^:/]+):(\d+)", address)):
        try:  # Ray itself would end this process
            socket.create_connection((server[1], int(server[2])), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise DatasetError(_NO_CLUSTER.format(address, error)) from None
    # What a cluster's machines run is this very package, whatever they have installed.
    options = {"runtime_env": {"py_modules": [str(_PACKAGE)]}} if address else {"include_dashboard": False}
    try:
        # Without an address Ray would join a cluster that happens to run here.
        ray.init(address=address or "local", log_to_driver=False, **options)
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
    settings = collection.settings
    device, most = share_out([each["Resources"] for each in ray.nodes() if each["Alive"]], settings.threads)
    most = encoders or most
    # A task reads one split, or several in turn where there are very many.
    groups = [list(work[i :: min(len(work), _TASKS)]) for i in range(min(len(work), _TASKS))]
    source = _make_source(data, groups, settings, packed.config["in_channels"])
    reading: dict[str, Any] = {}
    if device.get("num_cpus") == _SHARED:  # a reader would ask for the whole CPU
        named = "num_cpus" in inspect.signature(data.read_datasource).parameters  # in newer releases of Ray
        reading = {"num_cpus": 0.25} if named else {"ray_remote_args": {"num_cpus": 0.25}}
    return (
        data.read_datasource(source, override_num_blocks=len(groups), **reading)
        .map_batches(
            _Encode,
            batch_size=1,
            fn_constructor_args=(ray.put(packed), settings, "num_gpus" in device),
            concurrency=(1, most) if most > 1 else 1,
            # An actor that is lost is started again, and does again what it had.
            max_restarts=-1,
            max_task_retries=-1,
            **device,
        )
        .map_batches(_write, batch_size=1, fn_args=(str(collection.out), collection.manifest), num_cpus=0.25)
    )


def share_out(nodes: Sequence[Mapping[str, float]], threads: int) -> tuple[dict[str, float], int]:
    """(what an encoder asks of its machine, how many encoders there are at most).

    Readers and writers need room beside the encoders: one CPU of each machine, a part of the only one.

    Args:
        nodes: what each machine of the cluster has, as `ray.nodes` says it.
        threads: of an encoder on CPUs.
    """
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if gpus:
        return {"num_gpus": 1}, gpus
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    if max(cpus, default=0) < 2:
        return {"num_cpus": _SHARED}, max(1, len(cpus))
    each = min(threads, max(cpus) - 1)  # an actor is on one machine, whatever the others have
    return {"num_cpus": each}, max(1, sum((count - 1) // each for count in cpus if count > 1))


def _make_source(data: Any, groups: Sequence[list[Work]], settings: Settings, channels: int) -> Any:
    """The splits as a source of Ray Data: a task a group, a block a shard."""
    from ray.data.block import BlockMetadata

    class Splits(data.Datasource):
        def get_name(self) -> str:
            return "Splits"

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            # Nothing is known of the blocks; releases of Ray differ in what could be.
            nothing: Any = BlockMetadata(**{each.name: None for each in dataclasses.fields(BlockMetadata)})
            return [data.ReadTask(_Read(group, settings, channels), nothing) for group in groups]

    return Splits()


class _Read:
    """The shards of some splits, as they come: blocks of one row, their images in it.

    Each image is resized as soon as it is read, so that files of images are in memory one at a time.
    """

    def __init__(self, group: list[Work], settings: Settings, channels: int) -> None:
        self.group = group
        self.settings = settings
        self.channels = channels

    def __call__(self) -> Iterable[Any]:
        try:
            for work in self.group:
                for chunk, results, last in shards_of(work, self.settings, self.channels):
                    yield _row((work.split.number, chunk, results, last))
        except VAEError as error:
            yield _row(_Trouble(str(error)))


def shards_of(work: Work, settings: Settings, channels: int) -> Iterator[tuple[int, list[Result], bool]]:
    """The prepared images of each shard of a split: (number, images, whether it is the last)."""
    size = settings.shard_images
    chunk = work.chunk
    raws = read_split(work.split, settings.column, from_position(chunk * size))
    images: list[Result] = []
    for result in prepare_all(raws, settings, channels, chunk * size):
        if len(images) == size:  # it is known only now that it was not the last
            yield chunk, images, False
            chunk = chunk + 1
            images = []
        images.append(result)
    yield chunk, images, True


@dataclass(frozen=True)
class _Trouble:
    """What ends the run, passed on like a shard: of an exception, Ray would keep no more than its text."""

    sentence: str


class _Encode:
    """The actor of one device."""

    def __init__(self, packed: Any, settings: Settings, on_gpu: bool) -> None:
        import ray

        if not isinstance(packed, PackedVAE):
            packed = ray.get(packed)
        self.settings = settings
        self.encoder = BatchEncoder(packed.unpack("cuda" if on_gpu else "cpu"), settings)

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
        f"Ray gave up: {in_one_line(named[-1])}. What was finished stays valid: run the same command with --resume."
    )
