"""Beside other runtimes for CPUs: ncnn, OpenVINO and torch.compile, in float32 and bfloat16, with their errors.

    pip install --no-deps ncnn pnnx openvino openvino-telemetry     # any of them may be missing
    python benchmarks/runtimes.py FOLDER [--config full] [--size 512] [--direction decode encode] [--turns 3]

ncnn runs a file that pnnx makes of a traced module, for one fixed size. That takes minutes, so the files are kept in
FOLDER. OpenVINO converts in memory. All run on as many threads as torch has, in one process and in turns, each turn
beginning with another one; figures are medians. torch.compile is Inductor, which needs a C++ compiler. Errors are
differences to the modules in float64, their root mean square and the largest.
"""

from __future__ import annotations

import argparse
import copy
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import vae_core
from vae_core import AutoencoderKL

NCNN, OPENVINO, COMPILED = "ncnn", "OpenVINO", "torch.compile"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


Runner = Callable[[Tensor], Tensor]


class MissingError(Exception):
    """A runtime that is not installed, or a file that is not there."""


class Half(nn.Module):
    """One direction as a module of tensors: images to moments, or latents to images."""

    def __init__(self, vae: AutoencoderKL, direction: str) -> None:
        super().__init__()
        encode = direction == "encode"
        modules = (vae.encoder, vae.quant_conv) if encode else (vae.post_quant_conv, vae.decoder)
        self.parts = nn.ModuleList(each for each in modules if each is not None)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


def converted_name(config: str, direction: str, size: int) -> str:
    """The folder of a conversion below that of all of them."""
    return f"{config}-{direction}-{size}"


def convert_for_ncnn(half: nn.Module, x: Tensor, folder: Path) -> None:
    """Write model.ncnn.param and model.ncnn.bin for inputs of x's shape; nothing if they are there.

    Raises:
        MissingError: pnnx is not installed, or failed.
    """
    if (folder / "model.ncnn.bin").exists():
        return
    try:
        import pnnx  # type: ignore[import-not-found]
    except ImportError as error:
        raise MissingError(f"pnnx: {error}") from None
    with tempfile.TemporaryDirectory() as work:
        torch.jit.trace(half, x, check_trace=False).save(f"{work}/model.pt")  # type: ignore[union-attr]
        shape = ",".join(map(str, x.shape))
        command = [pnnx.EXEC_PATH, "model.pt", f"inputshape=[{shape}]", "fp16=0"]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True)
        if done.returncode or not Path(work, "model.ncnn.bin").exists():
            raise MissingError(f"pnnx failed: {(done.stdout + done.stderr)[-300:]}")
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("model.ncnn.param", "model.ncnn.bin"):  # the one that is looked for comes last
            shutil.move(f"{work}/{name}", folder / name)


def ncnn_runner(folder: Path, dtype: torch.dtype) -> Runner:
    """A converted model, on batches of one."""
    try:
        import ncnn  # type: ignore[import-not-found]
    except ImportError as error:
        raise MissingError(f"ncnn: {error}") from None
    net = ncnn.Net()
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
        setattr(net.opt, option, False)
    net.opt.use_bf16_storage = dtype == torch.bfloat16
    net.opt.num_threads = torch.get_num_threads()
    if net.load_param(str(folder / "model.ncnn.param")) or net.load_model(str(folder / "model.ncnn.bin")):
        raise MissingError(f"{folder} is not a model that ncnn loads")

    def run(x: Tensor) -> Tensor:
        with net.create_extractor() as extractor:
            extractor.input("in0", ncnn.Mat(x[0].float().contiguous().numpy()).clone())
            _, result = extractor.extract("out0")
            return torch.from_numpy(result.numpy().copy())[None]

    return run


def openvino_runner(half: nn.Module, x: Tensor, dtype: torch.dtype) -> Runner:
    """OpenVINO on the CPU; without the hint it takes bfloat16 where the processor has it."""
    try:
        import openvino  # type: ignore[import-not-found]
    except ImportError as error:
        raise MissingError(f"OpenVINO: {error}") from None
    precision = "bf16" if dtype == torch.bfloat16 else "f32"
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    model = openvino.compile_model(openvino.convert_model(half, example_input=x), "CPU", options)
    return lambda x: torch.from_numpy(model(x.numpy())[0].copy())


def compiled_runner(half: nn.Module, dtype: torch.dtype) -> Runner:
    """Inductor, in channels_last, on weights of the row's precision."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++")):
        raise MissingError("torch.compile: no C++ compiler is there")
    half = half.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run: Any = torch.compile(half)
    return lambda x: run(x.to(dtype).to(memory_format=torch.channels_last)).float()


def runners(vae: AutoencoderKL, direction: str, x: Tensor, dtype: torch.dtype, folder: Path) -> dict[str, Runner]:
    """Every system that is there, by its name; what is missing is said."""
    half, channels_last = Half(vae, direction), copy.deepcopy(Half(vae, direction))
    channels_last = channels_last.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ours = copy.deepcopy(vae).to(dtype)

    def strips(x: Tensor) -> Tensor:
        if direction == "encode":
            return vae_core.encode(ours, x.to(dtype)).parameters
        return vae_core.decode(ours, x.to(dtype))

    def ncnn() -> Runner:
        convert_for_ncnn(half, x, folder)
        return ncnn_runner(folder, dtype)

    found: dict[str, Runner] = {
        "Seamless VAE": strips,
        "modules, channels_last": lambda x: channels_last(x.to(dtype).to(memory_format=torch.channels_last)),
    }
    makers: dict[str, Callable[[], Runner]] = {
        NCNN: ncnn,
        OPENVINO: lambda: openvino_runner(half, x, dtype),
        COMPILED: lambda: compiled_runner(copy.deepcopy(half), dtype),
    }
    for name, make in makers.items():
        try:
            found[name] = make()
        except MissingError as missing:
            print(f"left out: {name} ({missing})", file=sys.stderr)
    return found


@torch.no_grad()
def measure(systems: dict[str, Runner], x: Tensor, exact: Tensor, turns: int) -> list[tuple[str, float, float, float]]:
    """For each system its name, the median of its seconds, and its errors. A first run warms it and gives these."""
    rows = []
    results = {name: run(x).double() - exact for name, run in systems.items()}
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    names = list(systems)
    for turn in range(turns):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            systems[name](x)
            seconds[name].append(time.perf_counter() - start)
    for name, error in results.items():
        rows.append(
            (name, statistics.median(seconds[name]), error.square().mean().sqrt().item(), error.abs().max().item())
        )
    return rows


def main() -> None:
    from peers import CONFIGS, make_input, ours

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--config", choices=CONFIGS, default="full")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--direction", nargs="+", choices=["decode", "encode"], default=["decode", "encode"])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    print("| case | system | seconds | times ours | RMS error | largest error |\n| --- | --- | --- | --- | --- | --- |")
    for direction in options.direction:
        config = CONFIGS[options.config]
        folder = options.folder / converted_name(options.config, direction, options.size)
        vae, x = ours(config), make_input(config, direction, options.size)
        with torch.no_grad():
            exact = copy.deepcopy(Half(vae, direction)).double()(x.double())
        for dtype in options.dtype:
            rows = measure(runners(vae, direction, x, DTYPES[dtype], folder), x, exact, options.turns)
            for name, seconds, mean, largest in rows:
                case = f"{direction} {options.size}, {dtype}"
                print(
                    f"| {case} | {name} | {seconds:.2f} | {seconds / rows[0][1]:.2f} | {mean:.1e} | {largest:.1e} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
