"""Other runtimes for CPUs as systems of `engine.py`: ncnn, OpenVINO, and Inductor by torch.compile.

    pip install --no-deps ncnn pnnx openvino openvino-telemetry     # any of them may be missing

ncnn runs a file that pnnx makes of a traced module, for one fixed size. That takes minutes at 512x512 and more than
24 GiB at 1024x1024, so it is made for a small size, and sizes in it are changed. The files are kept in `build/ncnn`,
or where SEAMLESS_VAE_NCNN says. OpenVINO converts in memory, Inductor needs a C++ compiler. All run on as many threads
as torch has.
"""

from __future__ import annotations

import copy
import importlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vae_core import AutoencoderKL

NCNN, OPENVINO, COMPILED = "ncnn", "OpenVINO", "torch.compile"
RUNTIMES = (NCNN, OPENVINO, COMPILED)
FOLDER = Path(os.environ.get("SEAMLESS_VAE_NCNN") or Path(__file__).resolve().parents[1] / "build" / "ncnn")

Runner = Callable[[Tensor], Tensor]


class MissingError(Exception):
    """A runtime that is not installed, or that cannot run this."""


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


def maker(name: str, vae: AutoencoderKL, dtype: torch.dtype) -> Callable[[str, torch.Size], Runner]:
    """What makes the model ready for a direction and a shape of inputs, which takes a while the first time.

    Raises:
        MissingError: the runtime is not installed. The function raises it for what the runtime cannot run.
    """
    if name == COMPILED:
        _check_compiler()
    else:
        _imported(name.lower())
    make = {NCNN: _ncnn, OPENVINO: _openvino, COMPILED: _compiled}[name]

    return cache(lambda direction, shape: make(vae, direction, torch.zeros(shape), dtype))


def _imported(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingError(f"{package}: {error}") from None


# ncnn.


def _ncnn(vae: AutoencoderKL, direction: str, x: Tensor, dtype: torch.dtype) -> Runner:
    widths = "-".join(map(str, vae.config.block_out_channels))
    folder = FOLDER / f"{direction}-{widths}"
    factor = 2 ** (len(vae.config.block_out_channels) - 1) if direction == "encode" else 1
    _convert_for_ncnn(Half(vae, direction), x.new_zeros(1, x.shape[1], _HEIGHT * factor, _WIDTH * factor), folder)
    ncnn = _imported("ncnn")
    net = ncnn.Net()
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
        setattr(net.opt, option, False)
    net.opt.use_bf16_storage = dtype == torch.bfloat16
    net.opt.num_threads = torch.get_num_threads()
    described = _for_size((folder / _DESCRIPTION).read_text(), x.shape[2] // factor, x.shape[3] // factor)
    if net.load_param_mem(described) or net.load_model(str(folder / _WEIGHTS)):
        raise MissingError(f"{folder} is not a model that ncnn loads")

    def run(x: Tensor) -> Tensor:
        image = x[0].float().contiguous().numpy()  # kept: what ncnn makes of it is no copy of all of it
        with net.create_extractor() as extractor:
            extractor.input("in0", ncnn.Mat(image).clone())
            _, result = extractor.extract("out0")
            return torch.from_numpy(result.numpy().copy())[None]

    return run


_DESCRIPTION, _WEIGHTS = "model.ncnn.param", "model.ncnn.bin"
# Latent pixels for which the file is made; no width of a model is one of these numbers, or their product.
_HEIGHT, _WIDTH = 24, 40


def _convert_for_ncnn(half: nn.Module, x: Tensor, folder: Path) -> None:
    """Write the two files of a model, for inputs of x's shape; nothing if they are there."""
    if (folder / _WEIGHTS).exists():
        return
    pnnx = _imported("pnnx")
    with tempfile.TemporaryDirectory() as work:
        torch.jit.trace(half, x, check_trace=False).save(f"{work}/model.pt")  # type: ignore[union-attr]
        shape = ",".join(map(str, x.shape))
        command = [pnnx.EXEC_PATH, "model.pt", f"inputshape=[{shape}]", "fp16=0"]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True)
        if done.returncode or not Path(work, _WEIGHTS).exists():
            raise MissingError(f"pnnx failed: {(done.stdout + done.stderr)[-300:]}")
        folder.mkdir(parents=True, exist_ok=True)
        for name in (_DESCRIPTION, _WEIGHTS):  # the one that is looked for comes last
            shutil.move(f"{work}/{name}", folder / name)


def _for_size(described: str, height: int, width: int) -> str:
    """A description for other latent pixels: the attention's reshaping and products alone have any numbers of them."""
    lines = []
    for line in described.splitlines():
        kind = line.partition(" ")[0]
        if kind == "Reshape":
            line = re.sub(rf"\b1={_WIDTH} 2={_HEIGHT}\b", f"1={width} 2={height}", line)
            line = re.sub(rf"\b1={_HEIGHT * _WIDTH}\b", f"1={height * width}", line)
        elif kind == "Gemm":
            line = re.sub(rf"\b7={_HEIGHT * _WIDTH}\b", f"7={height * width}", line)
        lines.append(line)
    return "\n".join([*lines, ""])


# OpenVINO.


def _openvino(vae: AutoencoderKL, direction: str, x: Tensor, dtype: torch.dtype) -> Runner:
    """Without the hint it takes bfloat16 where the processor has it."""
    openvino = _imported("openvino")
    precision = "bf16" if dtype == torch.bfloat16 else "f32"
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    model = openvino.compile_model(openvino.convert_model(Half(vae, direction), example_input=x), "CPU", options)
    return lambda x: torch.from_numpy(model(x.float().numpy())[0].copy())


# Inductor.


def _check_compiler() -> None:
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++")):
        raise MissingError("torch.compile: there is no C++ compiler")


def _compiled(vae: AutoencoderKL, direction: str, x: Tensor, dtype: torch.dtype) -> Runner:
    """In channels_last. It is compiled by its first run."""
    half = copy.deepcopy(Half(vae, direction)).to(dtype)
    half = half.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = partial(_run_compiled, torch.compile(half), dtype)
    run(x)
    return run


def _run_compiled(half: Any, dtype: torch.dtype, x: Tensor) -> Tensor:
    return half(x.to(dtype).to(memory_format=torch.channels_last))
