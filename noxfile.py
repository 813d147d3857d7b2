"""The matrix of what the pack claims to run on: `nox -l` lists the sessions, docs/reliability.md has their results.

No session may install a CUDA build of torch by accident: torch comes from `SEAMLESS_VAE_TORCH_INDEX`, an index of CPU
builds, or is the one that pip finds where `--torch-of-pip` is among the arguments.
"""

from __future__ import annotations

import os

import nox  # pyright: ignore[reportMissingImports]

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
TORCHES = ["2.4.0", "2.13.0"]  # the oldest that pyproject.toml admits, and the one of constraints.txt
NEWEST_PYTHON_OF_TORCH = {"2.4.0": "3.12"}
# Reads every container, streams, declares the nodes: what differs between releases shows here. None needs diffusers.
QUICK = [
    *("tests/test_masks.py", "tests/checkpoints/test_plain.py", "tests/checkpoints/test_strict.py"),
    *("tests/checkpoints/test_key_map.py", "tests/streaming/test_second_architecture.py"),
    *("tests/streaming/test_progress.py", "tests/nodes/test_declarations.py"),
]
nox.options.sessions = ["lint", "security"]
nox.options.reuse_existing_virtualenvs = True


def install(session: nox.Session, torch: str, *packages: str) -> None:
    """torch of a release, of a CPU build, and then packages, which must not change it."""
    index = os.environ.get("SEAMLESS_VAE_TORCH_INDEX")
    if index:
        session.install(f"torch=={torch}", "--index-url", index)
    elif "--torch-of-pip" in session.posargs:
        session.install(f"torch=={torch}")
    else:
        session.skip("set SEAMLESS_VAE_TORCH_INDEX to an index of torch's CPU builds, or pass -- --torch-of-pip")
    session.install(f"torch=={torch}", "-e", ".", "pytest>=8", "hypothesis", *packages)


@nox.session(python=PYTHONS)
@nox.parametrize("torch", TORCHES)
@nox.parametrize("numba", [True, False], ids=["numba", "torch-alone"])
def quick(session: nox.Session, torch: str, numba: bool) -> None:
    """Every Python with the oldest and the newest torch, with the compiled transforms and without."""
    newest = NEWEST_PYTHON_OF_TORCH.get(torch)
    if newest and tuple(map(int, str(session.python).split("."))) > tuple(map(int, newest.split("."))):
        session.skip(f"torch {torch} has no build for Python {session.python}")
    install(session, torch, *(["numba>=0.60"] if numba else []))
    session.run("python", "-m", "pytest", "-q", "-m", "not slow", *QUICK)


@nox.session(python="3.11")
@nox.parametrize("host", ["v0.3.44", "master"], ids=["oldest-host", "newest-host"])
def host(session: nox.Session, host: str) -> None:
    """The nodes in a real ComfyUI. `COMFYUI_PATH` is a clone, in which the release is checked out."""
    checkout = os.environ.get("COMFYUI_PATH")
    if not checkout:
        session.skip("set COMFYUI_PATH to a clone of ComfyUI")
    install(session, TORCHES[-1], "aiohttp", "numba>=0.60")
    session.run("git", "-C", checkout, "checkout", "-q", host, external=True)
    session.install("-r", f"{checkout}/requirements.txt")
    session.run("python", "-m", "pytest", "-q", "tests/e2e")


@nox.session(python="3.11")
def lint(session: nox.Session) -> None:
    session.install("ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(python="3.11")
def security(session: nox.Session) -> None:
    """bandit on what is shipped, and the advisories on what constraints.txt pins, where PyPI's are reached."""
    session.install("-c", "constraints.txt", "bandit[toml]", "pip-audit")
    session.run("bandit", "-q", "-c", "pyproject.toml", "-r", "vae_core", "nodes", "__init__.py")
    session.run("pip-audit", "--no-deps", "--disable-pip", "-r", "constraints.txt")
