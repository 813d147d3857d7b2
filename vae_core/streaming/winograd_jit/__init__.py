"""The transforms around the matrix products of a fast convolution, compiled by numba (the optional extra `fast`).

Functions that run without the interpreter lock; the first three are for a rectangle of a map:

    convolve      a 3x3 convolution with the norm and SiLU before it and the residual after it: F(4x4, 3x3), 36 products
                  for a tile of 4x4 outputs
    upsample      a 3x3 convolution of a doubled map: 25 products for a tile
    downsample    a 3x3 convolution with stride 2: 81 products for a tile
    pack          lays the weights of these out
    multiply      matrix products with such weights
    measure       sums for statistics of what other kernels have made
    soften        a step of an online softmax

The first three take a few tiles at a time: inputs are transformed, multiplied (`multiply.py`) and transformed back
while they are in the second cache. A map is the addresses of its rows, wherever these are; a row outside of the image
has none and counts as zero. A map may have more channels than are worked on, which are whole vectors.

An array without elements stands for what is not there. (For None numba would compile each function a second time,
which takes as long as a decode.)

`numba_functions.load_compiled` loads this folder under a name of its own, by which what numba keeps on disk is found.
"""

from .convolve import BLOCK, convolve, transform_inputs, transform_outputs
from .downsample import PATCH, PATCH_CHANNELS, downsample, downsample_inputs, downsample_outputs
from .lanes import BFLOAT16, LANES
from .measure import measure
from .multiply import COLUMNS, GAP, ROWS, multiply
from .packing import pack
from .softmax import soften
from .upsample import upsample, upsample_inputs, upsample_outputs

__all__ = [
    "BFLOAT16",
    "BLOCK",
    "COLUMNS",
    "GAP",
    "LANES",
    "PATCH",
    "PATCH_CHANNELS",
    "ROWS",
    "convolve",
    "downsample",
    "downsample_inputs",
    "downsample_outputs",
    "measure",
    "multiply",
    "pack",
    "soften",
    "transform_inputs",
    "transform_outputs",
    "upsample",
    "upsample_inputs",
    "upsample_outputs",
]
