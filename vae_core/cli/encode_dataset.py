"""`seamless-vae encode-dataset`: a collection of images to a collection of latents."""

from __future__ import annotations

import argparse
from typing import get_args

from ..autoencoder_kl import AutoencoderKL
from ..checkpoints.families import family_of_config
from ..datasets import Buckets, Engine, choose_settings, encode_dataset
from ..datasets.dry_run import estimate
from ..datasets.kohya import family_of
from ..datasets.progress import RunProgress, in_bytes, in_time
from ..datasets.settings import STORED, Keep, KohyaFamily, Layout
from ..loading import inspect_vae
from .common import DEMO, add_command, add_config_arguments, add_model_arguments, load_model, memory_budget
from .say import say

EXAMPLES = """\
  seamless-vae encode-dataset photos --out latents --size 512 --vae sdxl_vae.safetensors
  seamless-vae encode-dataset photos --out latents --size 512 --vae sdxl_vae.safetensors --dry-run
  seamless-vae encode-dataset photos --out photos --layout kohya --buckets 1024x1024:64 --flip
  seamless-vae encode-dataset 's3://bucket/{000..999}.tar' --out /shared/latents --keep moments --engine ray

A run that was stopped in any way continues with the same command and --resume. What is written depends on the source,
the VAE and the options, not on the engine, the number of workers or how often it was stopped. Images that cannot be
read are listed in failures.jsonl and do not stop the run.
"""


def add(subparsers) -> argparse.ArgumentParser:
    parser = add_command(
        subparsers,
        "encode-dataset",
        "a collection of images to latents",
        "Encode a folder, a glob, tars, a table or a URL of images to sharded latents.",
        EXAMPLES,
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder, a glob, WebDataset tars, a .parquet or .csv table, or a URL of one of them that fsspec knows",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="a folder for the collection; for the layout kohya, that of the images",
    )
    parser.add_argument("--column", default="", help="of a table, the column that has the images' bytes or paths")
    parser.add_argument("--resume", action="store_true", help="continue a run that was stopped")
    parser.add_argument(
        "--dry-run", action="store_true", help="look at 32 images, say what would be done, write nothing"
    )
    _add_contents(parser)
    _add_engine(parser)
    add_model_arguments(parser)
    add_config_arguments(parser)
    return parser


def _add_contents(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is written")
    group.add_argument(
        "--layout",
        choices=get_args(Layout),
        default="shards",
        help="safetensors shards, WebDataset tars, or the cache files of kohya's trainers beside the "
        "images (default: %(default)s)",
    )
    sizes = group.add_mutually_exclusive_group()
    sizes.add_argument(
        "--size",
        metavar="N",
        help="one size for all, 512 or 512x768: images are resized to cover it and cropped to the centre "
        "(default: the size that the VAE was made for)",
    )
    sizes.add_argument(
        "--buckets",
        metavar="WxH:STEP[:LEAST:MOST]",
        help="sizes of up to this area, as kohya's trainers choose them: 1024x1024:64 has sides from 256 to 1024",
    )
    group.add_argument(
        "--no-upscale", action="store_true", help="with --buckets: keep smaller images as they are, cut to the step"
    )
    group.add_argument(
        "--keep",
        choices=get_args(Keep),
        help="the posterior's mean, a sample of it, or its moments, of which training takes a new sample in "
        "each epoch (default: mean; sample for kohya)",
    )
    group.add_argument(
        "--stored-dtype", choices=STORED, default="float32", help="of the latents in the files (default: %(default)s)"
    )
    group.add_argument("--flip", action="store_true", help="encode each image mirrored as well")
    group.add_argument("--alpha-mask", action="store_true", help="keep the opacity of each image")
    group.add_argument(
        "--kohya-family", choices=get_args(KohyaFamily), help="for the layout kohya (default: that of the VAE)"
    )
    group.add_argument(
        "--shard-size", type=int, metavar="N", help="images of a shard (default: about 256 MiB of pixels)"
    )
    group.add_argument("--batch", default="auto", metavar="N", help="images that are encoded at once (default: auto)")


def _add_engine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where it runs")
    group.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="this machine, or Ray (default: %(default)s)"
    )
    group.add_argument(
        "--ray-address", metavar="ADDR", help="of a cluster: auto, or ray://HOST:PORT (default: start Ray here)"
    )
    group.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that read and resize (local), or encoders (ray) (default: what the machine or the cluster has)",
    )


def run(arguments: argparse.Namespace) -> int:
    devices = () if arguments.device == "auto" else tuple(arguments.device.split(","))
    arguments.device = devices[0] if devices else arguments.device
    vae = load_model(arguments)
    size = arguments.buckets or arguments.size
    kohya = _kohya_family(arguments, vae)
    settings = choose_settings(
        vae,
        Buckets.parse(size, not arguments.no_upscale) if size else None,
        out=arguments.out,
        batch=None if arguments.batch == "auto" else _number(arguments.batch),
        memory_budget=memory_budget(arguments),
        shard_images=arguments.shard_size,
        layout=arguments.layout,
        keep=arguments.keep or ("sample" if arguments.layout == "kohya" else "mean"),
        stored=arguments.stored_dtype,
        flip=arguments.flip,
        alpha_mask=arguments.alpha_mask,
        kohya=kohya,
        column=arguments.column,
    )
    engine = Engine(arguments.engine, arguments.workers, devices, arguments.ray_address)
    if arguments.dry_run:
        say(*str(estimate(arguments.source, vae, settings, engine)).split("\n"))
        return 0
    progress = RunProgress()
    totals = encode_dataset(
        arguments.source, arguments.out, vae, settings, engine=engine, resume=arguments.resume, progress=progress
    )
    say(
        f"{totals['images']} images in {totals['shards']} shards, {in_bytes(totals['bytes'])}; "
        f"{progress.images} of them now, in {in_time(progress.seconds)}"
    )
    if totals["failures"]:
        say(f"{totals['failures']} images could not be encoded; failures.jsonl has the reasons")
    return 0


def _kohya_family(arguments: argparse.Namespace, vae: AutoencoderKL) -> str | None:
    if arguments.layout != "kohya":
        return arguments.kohya_family
    found = family_of_config(vae.config)
    name = found.name if found else inspect_vae(arguments.vae or DEMO, variant=arguments.variant).family
    return arguments.kohya_family or family_of(name, vae.config)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0  # which Settings refuses
