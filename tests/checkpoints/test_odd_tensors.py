"""Weights without numbers, or of a class that computes in its own way: on the meta device, sparse, spread, quantised.

Each is named, with what to do, wherever it turns up: in a file, in a state dict, in a model that is saved.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from given.files import assert_same_weights, refusal
from given.models import fields, make
from torch import Tensor, nn

import vae_core
from vae_core import AutoencoderKL, CheckpointError, UnsafeCheckpointError, load_vae, save_single_file

NAME = "decoder.mid_block.attentions.0.to_q.weight"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


class Int8Tensor(Tensor):
    """Weights as torchao makes them: a tensor of another shape and type is in it, and it computes in its own way."""

    def __new__(cls, numbers: Tensor) -> Int8Tensor:
        return Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=numbers.dtype)  # type: ignore[attr-defined]

    def __init__(self, numbers: Tensor) -> None:
        self.packed, self.scale = (numbers * 64).to(torch.int8), torch.tensor(1 / 64)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.detach.default:
            return args[0]
        if function is torch.ops.aten.t.default:  # in nn.Linear
            return (args[0].packed * args[0].scale).t()
        raise NotImplementedError(str(function))


@pytest.fixture
def ao(monkeypatch: pytest.MonkeyPatch) -> None:
    """The class under the name by which files of torchao's weights name it."""
    for name in ("torchao", "torchao.quantization"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(Int8Tensor, "__module__", "torchao.quantization")
    monkeypatch.setattr(sys.modules["torchao.quantization"], "Int8Tensor", Int8Tensor, raising=False)


@pytest.fixture
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A group of processes, of which this one is all."""
    distributed = pytest.importorskip("torch.distributed.device_mesh")
    if not torch.distributed.is_gloo_available():
        pytest.skip("torch without gloo")
    place = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=place.as_uri(), rank=0, world_size=1)
    yield distributed.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def spread(weight: Tensor) -> Tensor:
    tensor = pytest.importorskip("torch.distributed.tensor")
    if not hasattr(tensor, "distribute_tensor"):
        pytest.skip("torch < 2.5")
    return tensor.distribute_tensor(weight, tensor.init_device_mesh("cpu", (1,)), [tensor.Shard(0)])


# A weight -> what it is made; what is said of it in a file; and in memory.
KINDS: dict[str, tuple[Callable[[Tensor], Tensor], str, str]] = {
    "meta": (
        lambda weight: weight.to("meta"),
        "were saved without values: they were on torch's meta device",
        "have no values here: they are offloaded, or were never loaded. Bring the model onto a device first",
    ),
    "a parameter on meta": (
        lambda weight: nn.Parameter(weight.to("meta")),
        "were saved without values: they were on torch's meta device",
        "have no values here",
    ),
    "sparse": (lambda weight: weight.to_sparse(), "are of the layout sparse. Make them dense", "layout sparse_coo"),
    "rows": (lambda weight: weight.to_sparse_csr(), "are of the layout sparse. Make them dense", "layout sparse_csr"),
    "quantised": (
        Int8Tensor,
        "are of the class Int8Tensor: quantised or packed, and not torch's own tensors. Dequantise",
        "are of the class Int8Tensor: quantised or packed, and not torch's own tensors. Dequantise",
    ),
    "spread": (
        spread,
        "are spread over processes (DTensor). Gather them first",
        "are spread over processes (DTensor). Gather them first",
    ),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, ao: None) -> str:
    if request.param == "spread":
        request.getfixturevalue("mesh")
    return request.param


@pytest.mark.parametrize("form", ["zip", "before 1.6", "deeper", "folder"])
def test_in_a_file(form: str, kind: str, tmp_path: Path) -> None:
    vae = make(fields(32))
    change, said, _ = KINDS[kind]
    weights: dict[str, Any] = {**vae.state_dict(), NAME: change(vae.state_dict()[NAME])}
    path = tmp_path / "a.pt"
    if form == "folder":
        path = tmp_path / "folder"
        vae.save_pretrained(path, safe_serialization=False)
        torch.save(weights, path / "diffusion_pytorch_model.bin")
    elif form == "before 1.6":
        torch.save(weights, path, _use_new_zipfile_serialization=False)
    else:
        torch.save({"epoch": 3, "model": weights} if form == "deeper" else weights, path)
    with pytest.raises(CheckpointError) as error:
        load_vae(path)
    assert not isinstance(error.value, UnsafeCheckpointError)
    assert f"has 1 weights, such as {NAME}, that {said}" in refusal(path)


def test_all_of_a_file(kind: str, tmp_path: Path) -> None:
    change, said, _ = KINDS[kind]
    matrices = {name: weight for name, weight in make(fields(32)).state_dict().items() if weight.ndim == 2}
    weights = {**make(fields(32)).state_dict(), **{name: change(weight) for name, weight in matrices.items()}}
    torch.save(weights, tmp_path / "a.pt")
    assert f"has {len(matrices)} weights, such as encoder.mid_block" in refusal(tmp_path / "a.pt")
    assert said in refusal(tmp_path / "a.pt")


def test_beside_a_model_it_does_not_matter(kind: str, tmp_path: Path) -> None:
    """Moments of an optimizer, and a second copy of the model."""
    vae = make(fields(32))
    odd = KINDS[kind][0](torch.ones(4, 4))
    torch.save({"state_dict": vae.state_dict(), "optimizer": {"state": {0: {"exp_avg": odd}}}}, tmp_path / "a.pt")
    assert_same_weights(load_vae(tmp_path / "a.pt"), vae)


def test_an_average_with_values_beside_a_model_without(tmp_path: Path) -> None:
    vae = make(fields(32))
    absent = {name: weight.to("meta") for name, weight in vae.state_dict().items()}
    torch.save({"state_dict": absent, "ema": vae.state_dict()}, tmp_path / "a.pt")
    assert_same_weights(load_vae(tmp_path / "a.pt"), vae)
    assert_same_weights(AutoencoderKL.from_single_file({"state_dict": absent, "ema": vae.state_dict()}), vae)


def test_in_a_state_dict_and_in_a_model(kind: str, tmp_path: Path) -> None:
    change, _, said = KINDS[kind]
    vae = make(fields(32))
    layer: Any = vae.get_submodule(NAME.removesuffix(".weight"))
    changed = change(layer.weight.detach())
    layer.weight = changed if isinstance(changed, nn.Parameter) else nn.Parameter(changed, requires_grad=False)
    with pytest.raises(CheckpointError) as error:
        AutoencoderKL.from_single_file({**vae.state_dict(), NAME: changed})
    assert f"the state dict has 1 weights, such as {NAME}, that" in str(error.value) and said in str(error.value)
    for save in (save_single_file, AutoencoderKL.save_pretrained):
        with pytest.raises(CheckpointError) as error:
            save(vae, tmp_path / "out")
        assert said in str(error.value) and f"1 weights, such as {NAME}, " in str(error.value)
    assert not list(tmp_path.iterdir())


def test_weights_that_compute_in_their_own_way_are_run_by_the_modules(ao: None) -> None:
    """The engine multiplies weights with each other and lays them out again, which such a class does not know."""
    vae = make(fields(32))
    layer: Any = vae.get_submodule(NAME.removesuffix(".weight"))
    layer.weight = nn.Parameter(Int8Tensor(layer.weight.detach()), requires_grad=False)
    z = torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        expected = vae.decode_reference(z)
        assert torch.equal(vae_core.decode(vae, z), expected) and torch.equal(vae.decode(z).sample, expected)


@pytest.mark.parametrize("whole", [False, True])
def test_what_fsdp_shards_is_gathered_as_the_sentence_says(whole: bool, mesh: Any, tmp_path: Path) -> None:
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("torch without fully_shard")
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    vae, plain = make(fields(32)), make(fields(32))
    z = torch.randn(1, 4, 6, 6)
    fsdp.fully_shard(vae if whole else vae.decoder, mesh=mesh)
    with torch.no_grad():
        if not whole:
            torch.testing.assert_close(vae_core.decode(vae, z), plain.decode(z).sample)
        assert vae(torch.zeros(1, 3, 8, 8)).sample.shape == (1, 3, 8, 8)
    with pytest.raises(CheckpointError, match=r"are spread over processes \(DTensor\). Gather them first"):
        vae.save_pretrained(tmp_path / "spread")
    gathered = get_model_state_dict(vae, options=StateDictOptions(full_state_dict=True))
    assert_same_weights(AutoencoderKL.from_single_file(gathered), plain)
    other = make(fields(32))
    other.load_state_dict(gathered)
    other.save_pretrained(tmp_path / "whole")
    assert_same_weights(load_vae(tmp_path / "whole"), plain)


def replica(module: Any) -> Any:
    """A copy as DataParallel makes one for each device."""
    twin = module._replicate_for_data_parallel()
    for name, child in module.named_children():
        setattr(twin, name, replica(child))
    for name, weight in module.named_parameters(recurse=False):
        setattr(twin, name, weight.view_as(weight))
    return twin


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_a_half_that_has_no_parameters_while_it_runs(half: str, mesh: Any, tmp_path: Path) -> None:
    """FSDP's first version, and the copies that DataParallel runs, keep weights as plain attributes."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    vae, plain = make(fields(32)), make(fields(32))
    x = torch.randn(1, 4 if half == "decoder" else 3, 8, 8)
    run: Callable[[AutoencoderKL], Tensor] = (
        (lambda model: model.decode(x).sample) if half == "decoder" else (lambda model: model.encode(x)[0].mean)
    )
    assert torch.equal(replica(getattr(plain, half))(x), getattr(plain, half)(x))
    setattr(vae, half, FullyShardedDataParallel(getattr(vae, half), device_id=torch.device("cpu")))
    torch.testing.assert_close(run(vae), run(plain))
    vae.save_pretrained(tmp_path)
    assert_same_weights(load_vae(tmp_path), plain)


def dynamic(vae: Any, dtype: torch.dtype) -> Any:
    quantization = pytest.importorskip("torch.ao.quantization")
    return quantization.quantize_dynamic(vae, {nn.Linear}, dtype=dtype)


def static(vae: Any, convert: bool) -> Any:
    quantization = pytest.importorskip("torch.ao.quantization")
    vae.qconfig = quantization.default_qconfig
    quantization.prepare(vae, inplace=True)
    if convert:
        with torch.no_grad():
            vae(torch.zeros(1, 3, 8, 8))
        quantization.convert(vae, inplace=True)
    return vae


def for_training(vae: Any) -> Any:
    quantization = pytest.importorskip("torch.ao.quantization")
    vae.qconfig = quantization.get_default_qat_qconfig()
    return quantization.prepare_qat(vae.train(), inplace=True)


QUANTISED = "quantised (by torch, bitsandbytes, GPTQ, torchao or the like)"
PREPARED = "a model that is prepared for quantisation, with torch's observers beside its weights"
BY_TORCH: dict[str, tuple[Callable[[Any], Any], str]] = {
    "matrices as int8": (lambda vae: dynamic(vae, torch.qint8), QUANTISED),
    "matrices as float16": (lambda vae: dynamic(vae, torch.float16), QUANTISED),
    "all as int8": (lambda vae: static(vae, convert=True), QUANTISED),
    "observed": (lambda vae: static(vae, convert=False), PREPARED),
    "trained for it": (for_training, PREPARED),
}


@pytest.mark.parametrize("kind", BY_TORCH)
def test_what_torch_quantises_is_called_that(kind: str, tmp_path: Path) -> None:
    """And not a model of another config, though its matrices are under other names."""
    change, what = BY_TORCH[kind]
    vae = change(make(fields(32)))
    torch.save(vae.state_dict(), tmp_path / "a.pt")
    make(fields(32)).save_pretrained(tmp_path / "folder", safe_serialization=False)
    torch.save(vae.state_dict(), tmp_path / "folder" / "diffusion_pytorch_model.bin")
    for path in (tmp_path / "a.pt", tmp_path / "folder"):
        assert f"It seems to be {what}." in refusal(path) and "its config has" not in refusal(path).lower()
    for save in (save_single_file, AutoencoderKL.save_pretrained):
        with pytest.raises(CheckpointError, match=r"quantised or packed|seem to be .*quantis|\(adapters, quantisation"):
            save(vae, tmp_path / "out")


def test_a_pipelines_vae_that_torch_has_quantised_is_not_taken_over() -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.AutoencoderKL(block_out_channels=(32,), norm_num_groups=8)
    with pytest.raises(CheckpointError, match=r"attentions\.0\.to_q is quantised"):
        vae_core.from_diffusers(dynamic(theirs, torch.qint8))


def test_a_model_with_a_wider_layer_is_not_called_quantised(tmp_path: Path) -> None:
    """A first convolution for more channels, as inpainting and depth models are given one."""
    vae = make(fields(32))
    vae.encoder.conv_in = nn.Conv2d(9, 32, 3, padding=1)
    with pytest.raises(CheckpointError, match=r"encoder.conv_in.weight: \(32, 9, 3, 3\) and not \(32, 3, 3, 3\)"):
        vae.save_pretrained(tmp_path)
    other = AutoencoderKL.from_config(vae.config, in_channels=9)
    other.load_state_dict(vae.state_dict())
    other.save_pretrained(tmp_path)
    assert load_vae(tmp_path).config.in_channels == 9
