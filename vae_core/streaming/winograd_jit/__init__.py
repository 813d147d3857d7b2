"""The transforms around the matrix products of a fast convolution, compiled by numba (the optional extra `fast`).

Four functions, each for the tiles of one strip, 16 channels (a vector) at a time, without the interpreter lock:

    transform_inputs     pixels -> what is multiplied         3x3 convolutions: F(4x4, 3x3), 36 products a tile
    transform_outputs    products -> pixels
    upsample_inputs      pixels -> what is multiplied         3x3 convolutions of a doubled map, 25 products a tile
    upsample_outputs     products -> pixels

Maps are [rows, W, channels], contiguous, and may have more channels than are worked on. A row that is not in the array
is outside the image and counts as zero. The channels that are worked on are whole vectors.

What is multiplied and the products have one of two layouts, [1, tiles, n * n, C] or [n, tiles, n, C], where the first
axis counts the lines of a tile: weights too large for one allocation are packed line by line (`winograd.py`).

An array without elements stands for what is not there. (For None numba would compile each function a second time,
which takes as long as a decode.)

`internals.load_compiled` loads this folder under a name of its own, by which what numba keeps on disk is found.
"""

from .convolve import BLOCK, transform_inputs, transform_outputs
from .lanes import LANES
from .upsample import upsample_inputs, upsample_outputs

__all__ = ["BLOCK", "LANES", "transform_inputs", "transform_outputs", "upsample_inputs", "upsample_outputs"]
