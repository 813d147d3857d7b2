"""Another loader's AutoencoderKL, recognised by its weights and run with these very weights, without a copy of them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..vae_core import AutoencoderKL
from ..vae_core.adopt import recognise, tensors_of
from ..vae_core.checkpoints.key_map import with_counters
from ..vae_core.checkpoints.memory import planned_weights
from ..vae_core.errors import VAEError
from ..vae_core.layers import without_values
from ..vae_core.streaming.internals import WeightPlace, weight_places


class Borrowed:
    """Our model of another loader's: on the meta device, except while `weights` lends it the loader's tensors.

    Attributes:
        model: in eval mode. Its modules stay the same, so that a job can be prepared before it has its weights.
    """

    def __init__(self, first_stage: nn.Module, keys: Mapping[str, str], model: AutoencoderKL) -> None:
        self.model = model
        self._first_stage = weakref.ref(first_stage)
        self._keys = keys
        self._places = weight_places(model)
        self._lock = threading.Lock()
        self._runs = 0

    def refresh(self) -> None:
        """Take over the precision of the loader's weights, by which jobs are planned."""
        dtype = next(iter(self._current().values())).dtype
        with self._lock:
            if not self._runs and dtype != self.model.dtype:
                _empty(self._places, dtype)

    @contextmanager
    def weights(self) -> Iterator[AutoencoderKL]:
        """The model with the loader's weights as they are now, wherever they are. Several threads may run at a time."""
        with self._lock:
            if not self._runs:
                _fill(self._places, self._current(), self.model.dtype)
            self._runs += 1
        try:
            yield self.model
        finally:
            with self._lock:
                self._runs -= 1
                if not self._runs:
                    _empty(self._places, self.model.dtype)

    def _current(self) -> dict[str, Tensor]:
        """The loader's weights by our keys. They may be moved, patched or exchanged between two runs."""
        first = self._first_stage()
        assert first is not None
        return planned_weights(self._keys, tensors_of(first))


_Weights = dict[str, tuple[torch.Size, type]]
# Models of other loaders that were looked at -> what their weights were then, and our model or why there is none.
_known: weakref.WeakKeyDictionary[nn.Module, tuple[_Weights, Borrowed | str]] = weakref.WeakKeyDictionary()


def borrowed(first_stage: nn.Module) -> tuple[Borrowed | None, str]:
    """Our model of another loader's, or None and the reason, as the end of a sentence.

    Parts of a model can be exchanged, and put back: it is looked at again whenever its weights are others.
    """
    weights = {name: (tensor.shape, type(tensor)) for name, tensor in tensors_of(first_stage).items()}
    then, found = _known.get(first_stage, (None, ""))
    if then != weights:
        found = _recognise(first_stage)
        _known[first_stage] = weights, found
    if isinstance(found, str):
        return None, found
    found.refresh()
    return found, ""


def copied(model: AutoencoderKL, device: torch.device, dtype: torch.dtype | None) -> AutoencoderKL:
    """A model in eval mode with the same weights on a device, in another precision if one is given."""
    with without_values():
        made = AutoencoderKL.from_config(model.config).eval()
    weights = {key: weight.to(device) for key, weight in model.state_dict(keep_vars=True).items()}
    _fill(weight_places(made), weights, dtype)
    made.__dict__["guesses"] = getattr(model, "guesses", {})
    return made


def _fill(places: list[WeightPlace], weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    weights = with_counters(weights, [place.key for place in places])
    for place in places:
        weight = weights[place.key]
        place.fill(weight.detach().to(dtype) if weight.is_floating_point() else weight)


def _empty(places: list[WeightPlace], dtype: torch.dtype) -> None:
    for place in places:
        kept = dtype if place.value.is_floating_point() else place.value.dtype
        place.fill(torch.empty_like(place.value, dtype=kept, device="meta"))


def _recognise(first_stage: nn.Module) -> Borrowed | str:
    try:
        found = recognise(first_stage)
    except VAEError as error:
        return str(error).partition(". ")[0]
    with without_values():
        model = AutoencoderKL.from_config(found.config).eval()
    model.__dict__["guesses"] = found.guesses
    return Borrowed(first_stage, found.keys, model)
