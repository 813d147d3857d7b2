"""A test for each advisory on files of weights, and the honest files that no scanner may refuse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._utils
from given.files import assert_same_weights, ldm
from given.hostile import (
    MARK,
    NONE,
    STOP,
    Zip,
    calls,
    dictionary,
    integer,
    legacy,
    named,
    refused,
    stacked,
    storage,
    tensor,
    text,
    zipped,
)
from given.models import fields, make

from vae_core import CheckpointError, UnsafeCheckpointError, inspect_vae, load_vae
from vae_core.checkpoints.open_file import open_tensor_file

# Advisories, and what they were about.


def test_cve_2025_32434_tar_archives_of_old_torch_are_not_opened(tmp_path: Path) -> None:
    import tarfile

    path = tmp_path / "x.pt"
    (tmp_path / "pickle").write_bytes(named("posix", "system") + text("x") + b"\x85R.")
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.add(tmp_path / "pickle", "pickle")
    assert "is a tar archive" in refused(path)


def test_cve_2026_24747_items_of_what_has_none_and_storages_that_lie(tmp_path: Path) -> None:
    one = tensor(storage(1), (1,), (1,))
    for program in (
        one + MARK + text("a") + NONE + b"u.",
        b"]" + integer(5) + NONE + b"s.",
        text("a") * 2 + NONE + b"s.",
    ):
        refused(zipped(program, tmp_path / "x.pt", {"archive/data/0": bytes(4)}))
    program = dictionary(a=tensor(storage(5), (5,), (1,))) + STOP
    refused(zipped(program, tmp_path / "x.pt", {"archive/data/0": bytes(16)}))


def test_cve_2026_4538_exported_programs_are_not_opened(tmp_path: Path) -> None:
    """A .pt2 archive has no weights in torch's form, and what is pickled in it is not looked for."""
    archive = Zip().add("x/archive_format", b"pt2").add("x/data/weights/model.pt", named("posix", "system") + b".")
    (tmp_path / "x.pt2").write_bytes(archive.bytes())
    assert "0 data.pkl in it" in refused(tmp_path / "x.pt2")


def test_cve_2025_1716_pip_is_not_named(tmp_path: Path) -> None:
    program = calls(named("pip", "main"), "install")["REDUCE"] + STOP
    assert "asks for pip.main" in refused(zipped(program, tmp_path / "x.pt"), UnsafeCheckpointError)


@pytest.mark.parametrize("name", ["x.safetensors", "x.bin", "x.txt", "x", "x.gguf"])
def test_cve_2025_10155_the_ending_of_a_name_changes_nothing(name: str, tmp_path: Path) -> None:
    program = calls(named("posix", "system"), "x")["REDUCE"] + STOP
    for pack in (zipped, legacy):
        assert "asks for posix.system" in refused(pack(program, tmp_path / name), UnsafeCheckpointError)


def test_cve_2025_10156_a_wrong_sum_hides_nothing(tmp_path: Path) -> None:
    program = calls(named("posix", "system"), "x")["REDUCE"] + STOP
    path = tmp_path / "x.pt"
    path.write_bytes(Zip().add("x/data.pkl", program, crc=1).bytes())
    assert "does not have the bytes that were written" in refused(path)
    path.write_bytes(Zip().add("x/data.pkl", program, crc=0).bytes())
    assert "asks for posix.system" in refused(path, UnsafeCheckpointError)


def test_cve_2025_10157_names_below_a_harmless_module_are_not_harmless(tmp_path: Path) -> None:
    for module, name in (
        ("asyncio.unix_events", "x"),
        ("numpy.f2py", "x"),
        ("torch.optim.os", "system"),
        ("uuid", "os"),
    ):
        refused(zipped(calls(stacked(module, name), "x")["REDUCE"] + STOP, tmp_path / "x.pt"), UnsafeCheckpointError)


def test_ghsa_5j3x_jp52_966f_calls_after_the_end_are_seen(tmp_path: Path) -> None:
    refused(zipped(b"}." + calls(named("posix", "system"), "x")["REDUCE"] + STOP, tmp_path / "x.pt"))


def test_ghsa_mxhj_88fx_4pcv_calls_whose_result_is_popped_are_seen(tmp_path: Path) -> None:
    for program in calls(named("posix", "system"), "x").values():
        path = zipped(program + b"0}" + STOP, tmp_path / "x.pt")
        assert "asks for posix.system" in refused(path, UnsafeCheckpointError)


# Honest files, beside all of this.


class Calls:
    """Pickles to a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def of_an_accelerator(weight: torch.Tensor) -> Calls:
    """How torch before 2.1 wrote tensors of Apple devices, and TPUs theirs."""
    return Calls(torch._utils._rebuild_device_tensor_from_numpy, weight.numpy(), weight.dtype, "mps:0", False)


def from_cpu(weight: torch.Tensor) -> Calls:
    """The same since torch 2.5."""
    if not hasattr(torch._utils, "_rebuild_device_tensor_from_cpu_tensor"):
        pytest.skip("torch < 2.5")
    return Calls(torch._utils._rebuild_device_tensor_from_cpu_tensor, weight, weight.dtype, "xla:0", False)


@pytest.mark.parametrize("legacy_form", [False, True])
@pytest.mark.parametrize(
    "wrap, protocol",  # NumPy's arrays by protocol 5 are byte arrays, which torch.save does not write
    [(of_an_accelerator, 2), (of_an_accelerator, 4), (from_cpu, 2), (torch.nn.Parameter, 3), (torch.nn.Parameter, 5)],
)
def test_tensors_of_tpus_and_apple_devices(wrap: Any, protocol: int, legacy_form: bool, tmp_path: Path) -> None:
    vae = make(fields(32))
    content = {"state_dict": {key: wrap(weight.detach()) for key, weight in ldm(vae).items()}, "step": 3}
    path = tmp_path / "x.ckpt"
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy_form)
    assert_same_weights(load_vae(path), vae)


def test_arrays_in_columns_and_halves(tmp_path: Path) -> None:
    import numpy as np

    values = np.asfortranarray(np.arange(6, dtype=np.float16).reshape(2, 3))
    call = Calls(torch._utils._rebuild_device_tensor_from_numpy, values, torch.bfloat16, "xla:0", False)
    torch.save({"a": call}, tmp_path / "x.pt")
    read = open_tensor_file(tmp_path / "x.pt").read(["a"])["a"]
    assert read.dtype == torch.bfloat16 and read.tolist() == [[0, 1, 2], [3, 4, 5]]


FRAMEWORKS = {
    "deepspeed.runtime.fp16.loss_scaler": "class LossScaler: pass\nclass DynamicLossScaler(LossScaler): pass",
    "deepspeed.runtime.zero.config": "import enum\nclass ZeroStageEnum(int, enum.Enum):\n    weights = 3",
    "torch_xla.core.xla_model": "class Device: pass",
    "omegaconf.dictconfig": "class DictConfig(dict): pass",
    "accelerate.utils.dataclasses": "class DistributedType: pass",
}


def test_what_frameworks_leave_is_passed_over(tmp_path: Path) -> None:
    """DeepSpeed's and others' objects beside the weights, made by stand-ins of their classes in another process."""
    vae = make(fields(32))
    for module, source in FRAMEWORKS.items():
        parts = module.split(".")
        for depth in range(1, len(parts)):
            folder = tmp_path.joinpath(*parts[:depth])
            folder.mkdir(exist_ok=True)
            (folder / "__init__.py").touch()
        tmp_path.joinpath(*parts).with_suffix(".py").write_text(source, encoding="utf-8")
    torch.save({"module": {f"module.{key}": weight for key, weight in ldm(vae).items()}}, tmp_path / "in.pt")
    script = (
        "import torch, datetime, collections\n"
        "from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler\n"
        "from deepspeed.runtime.zero.config import ZeroStageEnum\n"
        "from omegaconf.dictconfig import DictConfig\n"
        "from accelerate.utils.dataclasses import DistributedType\n"
        "scaler = DynamicLossScaler(); scaler.scale = 2.0\n"
        "extra = dict(loss_scaler=scaler, stage=ZeroStageEnum.weights, config=DictConfig(a=1),\n"
        "    now=datetime.datetime.now(), kind=DistributedType(), shapes={'a': torch.Size([1])},\n"
        "    counter=collections.Counter('aab'), ds_version='0.14',\n"
        "    generator=torch.Generator().get_state(), tuple_key={(0, 'a'): 1})\n"
        "torch.save({**torch.load('in.pt'), **extra}, 'out.pt')"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    assert_same_weights(load_vae(tmp_path / "out.pt"), vae)
    assert not {"deepspeed", "torch_xla"} & set(sys.modules)


def test_quantised_tensors_are_named_and_not_called_dangerous(tmp_path: Path) -> None:
    weights = {
        k: torch.quantize_per_tensor(w.float(), 0.1, 0, torch.qint8) if w.ndim == 4 else w
        for k, w in ldm(make(fields(32))).items()
    }
    torch.save(weights, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="quantised") as error:
        load_vae(tmp_path / "x.pt")
    assert not isinstance(error.value, UnsafeCheckpointError)
    assert inspect_vae(tmp_path / "x.pt").problem == str(error.value)
