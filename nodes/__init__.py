"""The host layer: nodes that unwrap what is on the host's wires, call vae_core, and wrap the results."""

from . import routes, widgets
from .decode import VAEDecode, VAEDecodeTiled
from .encode import VAEEncode, VAEEncodeTiled
from .inpaint import VAEInpaintComposite, VAEInpaintEncode
from .inspect_vae import VAEInspect
from .latent_load import LatentLoad
from .latent_save import LatentSave
from .load import VAELoad
from .posterior import PosteriorPreview, VAESamplePosterior
from .round_trip import VAERoundTrip
from .save import VAESave
from .scale import LatentScale
from .shortage import say_shortage
from .swap import VAESwap

NODES: tuple[type, ...] = (
    VAELoad,
    VAEEncode,
    VAEDecode,
    VAEEncodeTiled,
    VAEDecodeTiled,
    VAESamplePosterior,
    VAESwap,
    VAEInpaintEncode,
    VAEInpaintComposite,
    LatentScale,
    VAERoundTrip,
    PosteriorPreview,
    VAEInspect,
    VAESave,
    LatentLoad,
    LatentSave,
)

for node in NODES:
    widgets.check_values(node)
    say_shortage(node)
routes.register()

__all__ = ["NODES"]
