"""Every public attribute of ComfyUI's own autoencoder is on ours, with an equal value, or is named with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from host import ldm_attributes
from host.ldm_attributes import FIELDS, PARTS, differences
from host.stand_in import Host, Pack
from torch import nn

RECORDED = json.loads(Path(ldm_attributes.__file__).with_suffix(".json").read_text(encoding="utf-8"))


@pytest.fixture
def first_stage(pack: Pack, new_host: Host) -> Any:
    return pack.module("nodes.first_stage").FirstStage(pack.module("vae_core").AutoencoderKL(**FIELDS)).train()


def test_every_attribute_of_the_hosts_own(first_stage: Any) -> None:
    assert tuple(RECORDED) == PARTS
    assert not differences(first_stage, RECORDED)


@torch.no_grad()
def test_its_calls_are_the_hosts(first_stage: Any) -> None:
    first_stage.eval()
    x = torch.randn(1, 3, 32, 48)
    z = first_stage.encode(x)
    assert torch.equal(first_stage.encode(x, return_reg_log=True)[0], z)
    moments, log = first_stage.encode(x, unregularized=True)
    assert log == {} and torch.equal(first_stage.regularization(moments)[0], z)
    again, image, _ = first_stage(x)
    assert torch.equal(again, z) and torch.equal(image, first_stage.decode(z))
    assert first_stage.get_last_layer() is first_stage.decoder.conv_out.weight
    with first_stage.ema_scope():
        assert torch.equal(first_stage.encode(x), z)


@pytest.mark.parametrize("name", ["quant_conv", "post_quant_conv", "bn"])
def test_a_part_that_a_model_lacks_is_no_attribute(name: str, pack: Pack, new_host: Host) -> None:
    fields = {**FIELDS, "use_quant_conv": False, "use_post_quant_conv": False}
    first = pack.module("nodes.first_stage").FirstStage(pack.module("vae_core").AutoencoderKL(**fields))
    assert not hasattr(first, name)


# A name that shows something and what else may be set under it.
FIXED: dict[str, Any] = {
    "decoder.give_pre_end": True,
    "decoder.tanh_out": True,
    "decoder.in_channels": 4,
    "decoder.resolution": 512,
    "encoder.in_ch_mult": (1, 1),
    "encoder.temb_ch": 128,
    "decoder.mid.block_1.dropout": nn.Dropout(0.5),
    "decoder.mid.block_1.use_conv_shortcut": True,
    "decoder.up.1.upsample.scale_factor": 3.0,
    "encoder.down.0.downsample.with_conv": False,
}


@pytest.mark.parametrize("name", FIXED)
def test_what_would_change_nothing_is_not_set(name: str, first_stage: Any) -> None:
    owner, _, last = name.rpartition(".")
    part = ldm_attributes.part_of(first_stage, owner)
    before = getattr(part, last)
    setattr(part, last, before)  # what is there already
    with pytest.raises(AttributeError, match="cannot be set"):
        setattr(part, last, FIXED[name])
    assert getattr(part, last) is before or getattr(part, last) == before
