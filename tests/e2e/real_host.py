"""A real ComfyUI as a process, and workflows run in it over HTTP and its websocket."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from safetensors import safe_open
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
START_SECONDS, RUN_SECONDS = 240, 600


def checkout() -> Path:
    """The checkout of ComfyUI to test with. Without one, what asks for it is skipped."""
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        pytest.skip("COMFYUI_PATH is not set; it names a checkout of ComfyUI to test with")
    return Path(path)


def other_packs() -> list[Path]:
    """Folders of other node packs to test with, which COMFYUI_PACKS names, separated as those of PATH are."""
    return [Path(each).resolve() for each in os.environ.get("COMFYUI_PACKS", "").split(os.pathsep) if each]


@dataclass
class Run:
    """What came of a workflow: the websocket's messages, and what the nodes gave to the page."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    previews: list[bytes] = field(default_factory=list)
    seconds: float = 0.0

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [message["data"] for message in self.messages if message["type"] == kind]

    @property
    def shown(self) -> dict[str, dict[str, Any]]:
        """Node id -> its `ui`."""
        return {message["node"]: message["output"] for message in self.of("executed")}

    @property
    def error(self) -> str | None:
        errors = self.of("execution_error")
        return errors[0]["exception_message"].strip() if errors else None

    @property
    def interrupted(self) -> bool:
        return bool(self.of("execution_interrupted"))


class Workflow:
    """A workflow in the API's form: `node = workflow.add(class, **inputs)`; `node[i]` is a link to its output i."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}

    def add(self, class_type: str, **inputs: Any) -> list[list[Any]]:
        node_id = str(len(self.nodes) + 1)
        self.nodes[node_id] = {"class_type": class_type, "inputs": inputs}
        return [[node_id, index] for index in range(8)]


class Comfy:
    """A running host.

    Attributes:
        folder: its base directory, with models, input and output.
    """

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], port: int) -> None:
        self.folder, self.process = folder, process
        self.address = f"http://127.0.0.1:{port}"
        self._numbers = itertools.count()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.address + path, timeout=60) as answer:
            return json.load(answer)

    def free(self) -> None:
        """What the menu's "Unload models and free memory" does."""
        body = json.dumps({"unload_models": True, "free_memory": True}).encode()
        request = urllib.request.Request(f"{self.address}/free", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=60).close()

    def kept(self, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What a TestKeep node wrote."""
        with safe_open(self.folder / "output" / f"{name}.safetensors", framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118

    def run(self, workflow: Workflow, on_message: Callable[[dict[str, Any]], bool] | None = None) -> Run:
        """Run a workflow to its end. `on_message` is called with each message; its True cancels the run.

        Raises:
            AssertionError: the host refuses the workflow.
        """
        return asyncio.run(self._run(workflow, on_message))

    async def _run(self, workflow: Workflow, on_message: Callable[[dict[str, Any]], bool] | None) -> Run:
        client, run, start = uuid.uuid4().hex, Run(), time.monotonic()
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=RUN_SECONDS)) as session,
            session.ws_connect(f"{self.address}/ws?clientId={client}", max_msg_size=0) as socket_,
        ):
            body = {"prompt": workflow.nodes, "client_id": client}
            async with session.post(f"{self.address}/prompt", json=body) as answer:
                queued = await answer.json()
                assert answer.status == 200, queued
            prompt_id = queued["prompt_id"]
            async for message in socket_:
                if message.type == aiohttp.WSMsgType.BINARY:
                    run.previews.append(message.data)
                    continue
                if message.type != aiohttp.WSMsgType.TEXT:
                    break
                event = json.loads(message.data)
                run.messages.append(event)
                if on_message is not None and on_message(event):
                    on_message = None
                    await session.post(f"{self.address}/interrupt")
                data = event.get("data") or {}
                if data.get("prompt_id") == prompt_id and event["type"] in (
                    *("execution_success", "execution_error", "execution_interrupted"),
                ):
                    break
        run.seconds = time.monotonic() - start
        return run

    def log(self) -> str:
        return (self.folder / "host.log").read_text(errors="replace")


@contextlib.contextmanager
def running(checkout: Path, folder: Path, *arguments: str) -> Iterator[Comfy]:
    """A host with this pack and `other_packs`, until the block ends."""
    for name in ("custom_nodes", "input", "output", "temp", "user", "models/vae", "models/checkpoints"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    pack = folder / "custom_nodes" / "seamless-vae"
    pack.mkdir()
    for name in ("__init__.py", "pyproject.toml", "nodes", "vae_core", "web", "locales", "example_workflows"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, pack / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, pack / name)
    helpers = shutil.copytree(HERE / "helper_nodes", folder / "custom_nodes" / "helper_nodes")
    shutil.copy(HERE.parent / "given" / "in_use.py", helpers)
    for other in other_packs():
        shutil.copytree(
            other, folder / "custom_nodes" / other.name, ignore=shutil.ignore_patterns(".git", "__pycache__")
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(os.environ.get("COMFYUI_PYTHON", sys.executable), str(HERE / "launch.py"), str(checkout), "--cpu"),
        *("--disable-api-nodes", "--base-directory", str(folder), "--port", str(port), "--disable-auto-launch"),
        *("--database-url", "sqlite:///:memory:", *arguments),
    ]
    with open(folder / "host.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    comfy = Comfy(folder, process, port)
    try:
        _wait(comfy)
        yield comfy
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(comfy: Comfy) -> None:
    for _ in range(START_SECONDS * 2):
        if comfy.process.poll() is not None:
            break
        try:
            comfy.get("/system_stats")
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise RuntimeError(f"the host did not start:\n{comfy.log()[-4000:]}")
