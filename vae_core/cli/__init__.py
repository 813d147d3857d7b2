"""The command `seamless-vae`: one file per subcommand, each with `add(subparsers)` and `run(arguments)`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from ..errors import VAEError
from . import convert, decode, decode_dataset, encode, encode_dataset, info, roundtrip, verify_dataset

EXAMPLES = """\
examples:
  seamless-vae roundtrip                                    try the bundled VAE on the bundled photograph
  seamless-vae roundtrip photo.jpg --vae sdxl_vae.safetensors
  seamless-vae encode a.png b.png -o latents.safetensors
  seamless-vae decode latents.safetensors -o image.png
  seamless-vae info model.safetensors
  seamless-vae convert vae_folder vae.safetensors
  seamless-vae encode-dataset photos --out latents --size 512

exit codes: 0 done; 1 an error, told in one line (--debug shows the traceback); 2 a wrong command line; 130 interrupted.
"""
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. `argv` is without the program's name."""
    arguments = build_parser().parse_args(argv)
    debug = getattr(arguments, "debug", False)
    _log_to_stderr()
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("seamless-vae: interrupted; no file was left half written", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if debug:
            raise
        known = isinstance(error, (VAEError, OSError))
        message = " ".join(str(error).split()) or type(error).__name__
        if not known:
            message = f"{type(error).__name__}: {message} (unexpected; --debug shows where)"
        print(f"seamless-vae: error: {message}", file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    from .. import __version__

    parser = argparse.ArgumentParser(
        prog="seamless-vae",
        description="Encode images to latents and back with an AutoencoderKL; inspect and convert its checkpoints.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (roundtrip, encode, decode, info, convert, encode_dataset, decode_dataset, verify_dataset):
        subparser = command.add(subparsers)
        subparser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        subparser.set_defaults(run=command.run)
    return parser


def _log_to_stderr() -> None:
    logger = logging.getLogger("seamless_vae")
    if not logger.handlers and not logging.getLogger().handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("seamless-vae: %(message)s"))
        logger.addHandler(handler)
