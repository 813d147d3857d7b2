"""The command `seamless-vae`: one file per subcommand, each with `add(subparsers)` and `run(arguments)`."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from .say import PrintableFormatter, complain

EXAMPLES = """\
examples:
  seamless-vae roundtrip                                    try the bundled VAE on the bundled photograph
  seamless-vae roundtrip photo.jpg --vae sdxl_vae.safetensors
  seamless-vae encode a.png b.png -o latents.safetensors
  seamless-vae decode latents.safetensors -o image.png
  seamless-vae info model.safetensors
  seamless-vae convert vae_folder vae.safetensors
  seamless-vae encode-dataset photos --out latents --size 512

exit codes: 0 done; 1 an error, in one line (--debug shows the traceback); 2 a usage error; 130 interrupted.
"""
INTERRUPTED = 130
BROKEN_PIPE = 141
SAID_OF_AN_INTERRUPT = "seamless-vae: interrupted; no file was left half written"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. `argv` is without the program's name."""
    debug = False
    try:
        with _left_at_once():
            _take_any_name()
            parser = build_parser()
        arguments = parser.parse_args(argv)
        debug = getattr(arguments, "debug", False)
        _log_to_stderr()
        code = arguments.run(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        complain(SAID_OF_AN_INTERRUPT)
        return INTERRUPTED
    except BrokenPipeError:
        _close_stdout()
        return BROKEN_PIPE
    except Exception as error:
        if debug:
            raise
        complain(f"seamless-vae: error: {_sentence(error)}")
        return 1


@contextmanager
def _left_at_once() -> Iterator[None]:
    """While torch is imported for the first time, an interrupt ends the process: nothing has been begun.

    As an exception it would come up in the midst of what other packages do while they are imported: some take it for
    another error, some end the process by a signal.
    """
    is_plain = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if "torch" in sys.modules or not is_plain or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(*_: object) -> None:
    with suppress(OSError):
        os.write(2, f"{SAID_OF_AN_INTERRUPT}\n".encode())  # sys.stderr may be about to be changed
    os._exit(INTERRUPTED)


def _sentence(error: Exception) -> str:
    from ..errors import VAEError, in_one_line

    message = in_one_line(error)
    if isinstance(error, (VAEError, OSError)):
        file = getattr(error, "filename", None)
        return message if file is None else f"{message}: {file}"
    return f"{type(error).__name__}: {message} (unexpected; --debug shows where)"


def _take_any_name() -> None:
    """Let names of files be printed that are not text in the encoding of the streams."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _close_stdout() -> None:
    """The output is closed: what is left in the buffer goes nowhere, so that the interpreter ends without a word."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    from .. import __version__
    from . import convert, decode, decode_dataset, encode, encode_dataset, info, roundtrip, verify_dataset

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
        handler.setFormatter(PrintableFormatter("seamless-vae: %(message)s"))
        logger.addHandler(handler)
