"""Files of latents: ComfyUI's, diffusers' and our own, and kohya's caches."""

from __future__ import annotations

import io
import json
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from given.models import fields, make
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from fuzz.beside import VALUES
from fuzz.limits import limits, put
from vae_core import AutoencoderKL, VAEError
from vae_core.cli.latent_file import raw_latent, read_latents

NAMES = [*("latent_tensor", "samples", "latents", "latent_format_version_0", "alpha.0", "alpha.1", "x", "")]
NUMBERED = ["latent_tensor.0", "latent_tensor.1", "latent_tensor.000001", "latents.999999", "samples.1000000"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.uint8, torch.int64, torch.bool]
SIDES = st.sampled_from([0, 1, 2, 3, 4, 5, 16])


@cache
def model() -> AutoencoderKL:
    return make(fields(32))


def check(path: Path) -> None:
    """Read a file, and what each of its latents is for a model: raw z, or a VAEError."""
    with limits(path.stat().st_size):
        try:
            for latent in read_latents(path):
                z = raw_latent(latent, model())
                assert z.ndim == 4 and z.shape[1] == 4 and z.dtype == torch.float32
        except VAEError as error:
            assert len(str(error)) < 900


def changed(raw: bytearray, data: st.DataObject) -> bytes:
    for _ in range(data.draw(st.integers(0, 2))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    return bytes(raw[: data.draw(st.sampled_from([None, None, None, len(raw) // 2, len(raw) - 1]))])


@given(data=st.data())
def latent_files(data: st.DataObject) -> None:
    tensors = {}
    for name in data.draw(st.lists(st.sampled_from(NAMES + NUMBERED), max_size=3, unique=True)):
        shape = data.draw(st.one_of(st.just((1, 4, 2, 3)), st.lists(SIDES, max_size=5)))
        dtype = data.draw(st.sampled_from(DTYPES))
        tensors[name] = torch.zeros(tuple(shape), dtype=torch.float32).to(dtype)
    about = data.draw(
        st.one_of(
            VALUES,
            st.fixed_dictionaries(
                {"sizes": st.one_of(VALUES, st.just([[16, 16]])), "names": st.one_of(VALUES, st.just(["a"]))}
            ),
        )
    )
    metadata = {"seamless_vae": data.draw(st.sampled_from([json.dumps(about), "{", "[" * 5000]))}
    form = data.draw(st.sampled_from(["safetensors", "torch"]))
    if form == "safetensors":
        raw = save(tensors, metadata if data.draw(st.booleans()) else None)
    else:
        buffer = io.BytesIO()
        torch.save(data.draw(st.sampled_from([tensors, {"state_dict": tensors}, list(tensors.values())])), buffer)
        raw = buffer.getvalue()
    check(put("x.latent", changed(bytearray(raw), data)))


ARRAYS = st.sampled_from(
    ["latents", "original_size", "crop_ltrb", "latents_flipped", "alpha_mask", "latents_2x3", "original_size_2x3"]
)
KINDS = st.sampled_from(["f4", "f2", "f8", "i8", "u1", "c8", "S3", "U2", "O", "M8[s]", ">f4"])


@given(data=st.data())
def npz(data: st.DataObject) -> None:
    arrays: dict[str, Any] = {
        "latents": np.zeros((4, 2, 3), np.float32),
        "original_size": np.array((24, 16)),
        "crop_ltrb": np.array((0, 0, 24, 16)),
    }
    for name in data.draw(st.lists(ARRAYS, max_size=3)):
        arrays.pop(name, None)
        if data.draw(st.booleans()):
            kind = np.dtype(data.draw(KINDS))
            arrays[name] = np.zeros(data.draw(st.lists(SIDES, max_size=4)), kind)
    buffer = io.BytesIO()
    with zipfile.ZipFile(
        buffer, "w", data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    ) as archive:
        for name, array in arrays.items():
            entry = io.BytesIO()
            np.save(entry, array, allow_pickle=True)
            raw = bytearray(entry.getvalue())
            if data.draw(st.integers(0, 4)) == 0:
                header = data.draw(
                    st.sampled_from(
                        [b"(4, 2, 3)", b"(-1, 2, 3)", b"(99999999, 99999999, 3)", b"(2.5,)", b"{}", b"4", b"('a',)"]
                    )
                )
                raw = bytearray(bytes(raw).replace(str(array.shape).encode(), header))
            archive.writestr(f"{name}.npy", bytes(raw))
    name = data.draw(st.sampled_from(["a_0024x0016_sd.npz", "a_0024x0016_flux.npz", "a.npz"]))
    check(put(name, changed(bytearray(buffer.getvalue()), data)))
