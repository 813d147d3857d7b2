"""The sizes that images are resized and cropped to: one size, or kohya's buckets of one area and many shapes.

The arithmetic is that of kohya-ss/sd-scripts (`BucketManager` in library/train_util.py, `make_bucket_resolutions` in
library/model_util.py), so that its trainers find latents of the very shapes that they expect.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass

from ..errors import ConfigError, brief

KOHYA_LEAST = 256
KOHYA_MOST = 1024


@dataclass(frozen=True)
class Fit:
    """How one image is brought to its bucket.

    Attributes:
        bucket: (width, height) of the result.
        resized: (width, height) after resizing, which covers the bucket.
        crop: (left, top) of the bucket in the resized image.
    """

    bucket: tuple[int, int]
    resized: tuple[int, int]
    crop: tuple[int, int]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The bucket in the resized image: left, top, right, bottom."""
        left, top = self.crop
        return left, top, left + self.bucket[0], top + self.bucket[1]


@dataclass(frozen=True)
class Buckets:
    """Sizes to choose from by an image's shape.

    Attributes:
        width, height: the one size; with a step, the area that no bucket exceeds (kohya's `resolution`).
        step: sides of buckets are multiples of it (`bucket_reso_steps`); 0 for the one size alone.
        least, most: of a bucket's side (`min_bucket_reso`, `max_bucket_reso`).
        upscale: enlarge images that are smaller; otherwise they keep their size, cut to the step
            (`bucket_no_upscale`).

    Raises:
        ConfigError: numbers that make no buckets.
    """

    width: int
    height: int
    step: int = 0
    least: int = KOHYA_LEAST
    most: int = KOHYA_MOST
    upscale: bool = True

    def __post_init__(self) -> None:
        numbers = (self.width, self.height, self.least, self.most)
        if any(not isinstance(number, int) or number < 1 for number in numbers) or self.step < 0:
            raise ConfigError(f"sizes of {numbers} with a step of {self.step} make no buckets; give positive numbers.")
        if not self.step:
            if not self.upscale:
                raise ConfigError("one size without upscaling cannot fit smaller images. Give buckets instead.")
            return
        if min(self.width, self.height) < self.least or max(self.width, self.height) > self.most:
            raise ConfigError(
                f"buckets of {self.width}x{self.height} have sides from {self.least} to {self.most}, which does not "
                f"include {self.width}x{self.height}. Give the sides too, as WxH:STEP:LEAST:MOST."
            )

    @classmethod
    def parse(cls, text: str, upscale: bool = True) -> Buckets:
        """Read "512", "512x768", "1024x1024:64" or "1024x1024:64:256:2048" (area, step, least and most side).

        Without them, the sides are kohya's defaults: 256 to 1024, or the area's own where that is outside.
        """
        match = re.fullmatch(
            r"(\d{1,5})(?:x(\d{1,5}))?(?::(\d{1,4})(?::(\d{1,5}):(\d{1,5}))?)?", text.strip(), re.ASCII
        )
        if match is None:
            raise ConfigError(
                f"{brief(text)} is not a size. Give one side (512), a size (512x768), or buckets (1024x1024:64, or "
                f"1024x1024:64:256:2048 with the least and the most side)."
            )
        width, height, step, least, most = (None if part is None else int(part) for part in match.groups())
        assert width is not None
        height = width if height is None else height
        if step is None:
            return cls(width, height, upscale=upscale)
        if not step:
            raise ConfigError(
                f"{brief(text)} has a step of 0; give 64, 32, or another multiple of the downscale factor."
            )
        if least is None or most is None:
            least = min(KOHYA_LEAST, width, height)
            most = max(KOHYA_MOST, width, height)
        return cls(width, height, step, least // step * step, -(-most // step) * step, upscale)

    def check(self, factor: int) -> None:
        """Raise ConfigError if latents of these sizes would not be whole for a downscale factor."""
        sides = (self.step,) if self.step else (self.width, self.height)
        for side in sides:
            if side % factor:
                raise ConfigError(
                    f"a size of {self} is not a multiple of {factor}, the downscale factor of this VAE. "
                    f"Round it to {max(factor, side // factor * factor)} or {-(-side // factor) * factor}."
                )

    def fit(self, size: tuple[int, int]) -> Fit:
        """Bucket, resizing and crop for an image of (width, height)."""
        width, height = size
        bucket, resized = self._enlarging(width, height) if self.upscale else self._shrinking(width, height)
        # Rounding may leave a side one pixel short of the bucket; what is resized always covers it.
        resized = (max(resized[0], bucket[0]), max(resized[1], bucket[1]))
        return Fit(bucket, resized, ((resized[0] - bucket[0]) // 2, (resized[1] - bucket[1]) // 2))

    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Every bucket (width, height) there is to choose from, in order."""
        return _shapes(self.width, self.height, self.step, self.least, self.most)

    def _enlarging(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        aspect = width / height
        shapes = self.shapes()
        same = (width, height) in shapes
        bucket = (width, height) if same else min(shapes, key=lambda shape: abs(shape[0] / shape[1] - aspect))
        scale = bucket[1] / height if aspect > bucket[0] / bucket[1] else bucket[0] / width
        return bucket, (_round(width * scale), _round(height * scale))

    def _shrinking(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        resized = (width, height)
        area = self.width * self.height
        aspect = width / height
        if width * height > area:
            ideal = math.sqrt(area * aspect)
            by_width = self._down(ideal)
            by_height = self._down(area / ideal)
            across = self._down(by_width / aspect)
            along = self._down(by_height * aspect)
            if not (by_width and by_height and across and along):
                raise ConfigError(
                    f"an image of {width}x{height} is too narrow for buckets of {self}. "
                    f"Use a smaller step, or leave it out."
                )
            if abs(by_width / across - aspect) < abs(along / by_height - aspect):
                resized = (by_width, _round(by_width / aspect))
            else:
                resized = (_round(by_height * aspect), by_height)
        bucket = (resized[0] // self.step * self.step, resized[1] // self.step * self.step)
        if not all(bucket):
            raise ConfigError(
                f"an image of {width}x{height} is smaller than one step of buckets of {self}, and enlarging is off. "
                f"Use a smaller step, or leave it out."
            )
        return bucket, resized

    def _down(self, side: float) -> int:
        return _round(side) // self.step * self.step

    def __str__(self) -> str:
        text = f"{self.width}x{self.height}"
        return f"{text}:{self.step}:{self.least}:{self.most}" if self.step else text


def kohya_crop(bucket: tuple[int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """`crop_ltrb` of kohya's files: where an image of (width, height) would be if it were fitted into the bucket.

    As Stability's preprocessing has it (`BucketManager.get_crop_ltrb`): floats, whole left and top rounded down.
    """
    aspect = size[0] / size[1]
    if bucket[0] / bucket[1] > aspect:
        width = bucket[1] * aspect
        height = float(bucket[1])
    else:
        width = float(bucket[0])
        height = bucket[0] / aspect
    left = (bucket[0] - width) // 2
    top = (bucket[1] - height) // 2
    return left, top, left + width, top + height


@functools.lru_cache
def _shapes(width: int, height: int, step: int, least: int, most: int) -> tuple[tuple[int, int], ...]:
    if not step:
        return ((width, height),)
    area = width * height
    square = int(math.sqrt(area) // step) * step
    shapes = {(square, square)}
    for side in range(least, most + 1, step):
        other = min(most, area // side // step * step)
        if other >= least:
            shapes |= {(side, other), (other, side)}
    return tuple(sorted(shape for shape in shapes if all(shape)))


def _round(x: float) -> int:
    return int(x + 0.5)
