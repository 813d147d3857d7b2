"""The photographs that the demo VAE is trained on and judged by, all of them from packages.

    apt-get install plasma-workspace-wallpapers mate-backgrounds lomiri-wallpapers lomiri-wallpapers-16.04 \
        lomiri-wallpapers-20.04
    pip install scikit-image scikit-learn

Paintings, drawings and renderings that the wallpaper packages also hold are left out by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

WALLPAPERS = {
    "plasma-workspace-wallpapers": (
        "/usr/share/wallpapers/{}/contents/images/2560x1600.jpg",
        "BytheWater ColdRipple ColorfulCups DarkestHour EveningGlow FallenLeaf Grey Kite OneStandsOut Path summer_1am",
    ),
    "mate-backgrounds": (
        "/usr/share/backgrounds/mate/nature/{}.jpg",
        "Aqua Blinds Dune FreshFlower Garden GreenMeadow LadyBird RainDrops Storm TwoWings Wood YellowFlower",
    ),
    "lomiri-wallpapers": (
        "/usr/share/backgrounds/{}.jpg",
        "Bridge_by_Sander_Klootwijk Dragonfly_by_Bolly Kleiber_by_Lukas_Baubkus Picture_0B_by_freespace "
        "Picture_1A_by_freespace Wine_by_Jakkub_Mede aitzgorri_by_Aitzol_Berasategi free_by_Peter_Nerlich "
        "friends_by_Aitzol_Berasategi greentock_by_Peter_Nerlich life_by_Aitzol_Berasategi "
        "picosdeeuropa_by_Aitzol_Berasategi seeding_by_Clements_Engelhardt sunset_by_Aitzol_Berasategi",
    ),
}
SKIMAGE_TRAINING = (
    "brick.png camera.png coins.png grass.png gravel.png hubble_deep_field.jpg ihc.png retina.jpg text.png"
)
# Never trained on; the model card's figures are over these.
HELD_OUT = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "china.jpg", "flower.jpg")


def _package_data() -> tuple[Path, Path]:
    import skimage
    import sklearn

    return Path(str(skimage.__file__)).parent / "data", Path(str(sklearn.__file__)).parent / "datasets" / "images"


def training_paths() -> list[Path]:
    """Every training photograph. Raises FileNotFoundError that names the package of the first one missing."""
    paths = []
    for package, (pattern, names) in WALLPAPERS.items():
        for name in names.split():
            path = Path(pattern.format(name))
            if not path.exists():
                raise FileNotFoundError(f"{path} is missing. Install {package}.")
            paths.append(path)
    return paths + [_package_data()[0] / name for name in SKIMAGE_TRAINING.split()]


def held_out() -> Iterator[tuple[str, Image.Image]]:
    """(name, image) of each photograph that the model never saw."""
    for name in HELD_OUT:
        path = next(folder / name for folder in _package_data() if (folder / name).exists())
        yield path.stem, Image.open(path).convert("RGB")


def pyramid(path: Path, sides: tuple[int, ...] = (1536, 900, 520)) -> list[np.ndarray]:
    """The photograph at several sizes of its longer side, none above its own: arrays [H, W, 3] of uint8."""
    with Image.open(path) as opened:
        opened.draft("RGB", (sides[0], sides[0]))
        image = opened.convert("RGB")
    levels = []
    for side in sides:
        factor = side / max(image.size)
        size = tuple(max(160, round(length * factor)) for length in image.size)
        if factor <= 1:
            levels.append(np.asarray(image.resize(size, Image.Resampling.LANCZOS)))
    return levels or [np.asarray(image)]
