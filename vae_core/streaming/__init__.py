"""The exact streaming engine: whole-image results in strips. See `docs/streaming.md`."""

from .choose import Way, kernels
from .half import Half
from .job import Job, prepare
from .options import Circular, Options
from .plan import Places, Plan
from .progress import Progress, ProgressCallback

__all__ = [
    "Circular",
    "Half",
    "Job",
    "Options",
    "Places",
    "Plan",
    "Progress",
    "ProgressCallback",
    "Way",
    "kernels",
    "prepare",
]
