"""`seamless-vae verify-dataset`: whether a collection is whole."""

from __future__ import annotations

import argparse

from ..datasets.progress import in_bytes
from ..datasets.verify import verify_dataset
from .common import add_command
from .say import say

EXAMPLES = """\
  seamless-vae verify-dataset latents

Every file is read and its SHA-256 compared. The exit code is 1 if anything is wrong.
"""


def add(subparsers) -> argparse.ArgumentParser:
    parser = add_command(
        subparsers,
        "verify-dataset",
        "check a collection of latents",
        "Check every shard of a collection that encode-dataset wrote: hashes, counts and shapes.",
        EXAMPLES,
    )
    parser.add_argument("collection", metavar="DIR", help="a folder that encode-dataset wrote")
    return parser


def run(arguments: argparse.Namespace) -> int:
    found = verify_dataset(arguments.collection)
    for fault in found.faults:
        say(fault)
    counts = f"{found.images} images in {found.shards} shards, {in_bytes(found.bytes)}, {found.failures} failures"
    say(f"{counts}: {'as they were written' if not found.faults else f'{len(found.faults)} faults'}")
    return 1 if found.faults else 0
