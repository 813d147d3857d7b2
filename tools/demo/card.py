"""Make the shipped demo VAE, its images and its model card from a training run.

    pip install matplotlib scikit-image scikit-learn        # and the wallpapers, see photographs.py
    python tools/demo/card.py RUN_FOLDER [--took "about 6 hours on two CPU cores"] [--root REPOSITORY]
    python tools/demo/card.py RUN_FOLDER --first "..." --rate "..." --batch 16 [--took "..."]     # a model trained on
    python tools/demo/card.py RUN_FOLDER --first "..." --rate "..." --part 0.6          # a part of the way there alone
    python tools/demo/card.py RUN_FOLDER --first "..." --sides                          # a run of sides.py

Writes vae_core/demo/ (config.json, half-precision weights, README.md, chelsea.png) and docs/images/ (roundtrip.png,
demo_training.png if the run was long enough for a PSNR, demo_reconstructions.png). Every figure in the card is measured
here, with the files as shipped.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from judge import EDGE, ENLARGED, OVERLAP, TILE, Blended, Score, judge
from lines import LENGTH, SIDE
from photographs import HELD_OUT, SKIMAGE_TRAINING, WALLPAPERS, held_out, pyramid, training_paths
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import sides
from train import CONFIG, KL_WEIGHT, LARGE_CROPS, SMALL_CROPS

from vae_core import AutoencoderKL, load_vae
from vae_core.cli import main as seamless_vae
from vae_core.image import from_pil, to_pil, write_image

ROOT = Path(__file__).resolve().parents[2]
MAX_BYTES = 12_000_000
LATENT_SIDE = 520  # longer side of the photographs over which latents are measured
NOTABLE_SHIFT = 0.05  # of the deviation
SMOOTHING = 100  # steps of the loss curve that are averaged

CREDITS = {
    "astronaut": "NASA, no known copyright restrictions; scikit-image",
    "chelsea": "Stefan van der Walt, CC0; scikit-image",
    "coffee": "Rachel Michetti, CC0; scikit-image",
    "rocket": "SpaceX, public domain; scikit-image",
    "china": "danielbuechele, CC BY 2.0; scikit-learn",
    "flower": "vultilion, CC BY 2.0; scikit-learn",
}
LICENCES = {
    "plasma-workspace-wallpapers": "GPL-2+",
    "mate-backgrounds": "GPL-2+",
    "lomiri-wallpapers": "CC BY 4.0, CC BY-SA 3.0, CC BY-SA 4.0 or CC0, by image",
}


@dataclass(frozen=True)
class Training:
    """What a run folder does not say of a training.

    Attributes:
        first: of a model that was trained on, how it was trained before; None of one that began at random.
        rate: the learning rate of a model that was trained on, if it is not the one that train.py chooses.
        took: time and device.
        batch: how many times the crops of `LARGE_CROPS` and `SMALL_CROPS` a step saw.
        part: how far from the weights that were trained on to those of the run the shipped ones are.
        sides: the run is one of sides.py.
    """

    first: str | None = None
    rate: str | None = None
    took: str | None = None
    batch: int = 1
    part: float = 1.0
    sides: bool = False

    def text(self, steps: int) -> str:
        """Sentences on the steps, for the card."""
        small, large = (
            " or ".join(f"{batch * self.batch} of {side}x{side}" for side, batch in dict.fromkeys(crops))
            for crops in (SMALL_CROPS, LARGE_CROPS)
        )
        took = "" if self.took is None else f" It took {self.took}."
        if self.first is None:
            return f"{steps:,} steps of crops: {small}, in turn, then {large}, in turn.{took}"
        if self.sides:
            return (
                f"First {self.first}. Then {steps:,} more steps of {sides.BATCH} whole photographs in their own colours, "
                f"of up to {' or '.join(map(str, sides.LONGER_SIDES))} pixels, by `tools/demo/sides.py`, in which the last "
                f"{sides.LEVELS} levels of the decoder alone learned, by Adam, with {sides.WEIGHT:,.0f} times the squared "
                f"mean errors of pieces of lines in plain areas at the sides added to the loss.{took}"
            )
        rate = "" if self.rate is None else f" The learning rate was {self.rate}."
        part = "" if self.part == 1 else f" The weights are {self.part:.0%} of the way from those before these steps."
        return f"First {self.first}. Then {steps:,} more steps of crops: {large}, in turn.{rate}{part}{took}"


@torch.no_grad()
def latent_statistics(vae: AutoencoderKL) -> tuple[float, float]:
    """(mean, deviation) of all latent values over the training photographs."""
    values = []
    for path in tqdm(training_paths(), desc="latents", unit="photograph"):
        fitted = from_pil(Image.fromarray(pyramid(path, (LATENT_SIDE,))[0]))
        values.append(vae.encode(fitted.pixels).latent_dist.sample(torch.Generator().manual_seed(0)).flatten())
    everything = torch.cat(values).double()
    return everything.mean().item(), everything.std().item()


def ship(run: Path, demo: Path, part: float) -> int:
    """Write config and weights to `demo`; returns the number of steps that they were trained for.

    Args:
        part: as that of `Training`; of less than 1 the weights in `demo` are those that were trained on.
    """
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    vae = AutoencoderKL(**CONFIG).eval()
    vae.load_state_dict(state["average"])
    if part != 1:
        before = load_vae(demo, dtype=torch.float32).state_dict()
        vae.load_state_dict({name: before[name].lerp(weight, part) for name, weight in vae.state_dict().items()})
    mean, std = latent_statistics(vae)
    shift = round(mean, 4) if abs(mean) > NOTABLE_SHIFT * std else None
    shipped = AutoencoderKL.from_config(vae.config, scaling_factor=round(1 / std, 4), shift_factor=shift)
    shipped.load_state_dict(vae.state_dict())
    shipped.to(torch.float16).save_pretrained(demo)
    for path in demo.glob("*.safetensors"):
        if path.stat().st_size > MAX_BYTES:
            raise SystemExit(f"{path} has {path.stat().st_size} bytes; {MAX_BYTES} are allowed.")
    return state["step"]


def read_rows(path: Path) -> np.ndarray:
    """Rows of numbers, the first the step. After an interruption some steps are there twice: the last ones count."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = {int(row[0]): [float(value) for value in row] for row in csv.reader(file) if row}
    return np.array([rows[step] for step in sorted(rows)])


def plot_training(run: Path, path: Path) -> None:
    """The loss, the divergence and the PSNR of the held-out photographs against steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    log, scores = read_rows(run / "log.csv"), read_rows(run / "psnr.csv")
    window = min(SMOOTHING, len(log))
    steps = np.convolve(log[:, 0], np.ones(window) / window, mode="valid")
    figure, axes = plt.subplots(1, 3, figsize=(14.5, 3.6), constrained_layout=True)
    for axis, column, title in ((axes[0], 1, "reconstruction loss"), (axes[1], 2, "KL, nats per latent value")):
        axis.plot(steps, np.convolve(log[:, column], np.ones(window) / window, mode="valid"), linewidth=1)
        axis.set(title=f"{title} (mean of {window} steps)", xlabel="step", ylim=(0, None))
    for column, name in enumerate(HELD_OUT, start=1):
        axes[2].plot(scores[:, 0], scores[:, column], linewidth=0.8, label=Path(name).stem)
    axes[2].plot(scores[:, 0], scores[:, 1:].mean(axis=1), "k", linewidth=2, label="mean")
    axes[2].set(title="PSNR of held-out photographs, dB", xlabel="step")
    axes[2].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))  # beside the curves
    for axis in axes:
        axis.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def card(
    vae: AutoencoderKL, scores: list[Score], blended: Blended, steps: int, training: Training, weights: Path
) -> str:
    """The text of the model card."""
    config = vae.config
    mean_psnr = np.mean([score.psnr for score in scores])
    mean_ssim = np.mean([score.ssim for score in scores])
    table = "\n".join(
        f"| {score.name} | {score.size[0]}x{score.size[1]} | {score.psnr:.2f} | {score.ssim:.3f} | {CREDITS[score.name]} |"
        for score in scores
    )
    data = "\n".join(
        f"| `{package}` | {LICENCES[package]} | {', '.join(names.split())} |"
        for package, (_, names) in WALLPAPERS.items()
    )
    factor = config.downscale_factor
    edges, mirrored = (
        " | ".join(f"{np.mean(side):.2f}" for side in zip(*each, strict=True))
        for each in ((score.edges for score in scores), (score.mirrored for score in scores))
    )
    scale = f"`scaling_factor` {config.scaling_factor}"
    if config.shift_factor is not None:
        scale += f", after `shift_factor` {config.shift_factor} has been taken off,"
    further = "" if training.first is None else " on"
    plot = f"Loss, divergence and PSNR while training{further} by tools/demo/train.py"
    return f"""\
# The demo VAE

A small AutoencoderKL, trained from nothing on freely licensed photographs, so that everything here can be tried without
a download. It is a genuine one of its kind: f{factor}, {config.latent_channels} latent channels, {vae.num_parameters():,} \
parameters, widths {", ".join(str(width) for width in config.block_out_channels)}, {weights.stat().st_size / 1e6:.1f} MB in \
half precision. It does not replace the VAE of any diffusion model, whose latents only its own VAE reads.

```python
from vae_core import load_vae

vae = load_vae("vae_core/demo", dtype="float32")
```

## How well it keeps a photograph

Photographs that it never saw, whole, with the weights as shipped run in float32; bytes compared with bytes.

| photograph | size | PSNR, dB | SSIM | by |
| --- | --- | --- | --- | --- |
{table}
| **mean** | | **{mean_psnr:.2f}** | **{mean_ssim:.3f}** | |

PSNR in dB of the outermost {EDGE} pixels at each side, and of the rest, as means over these photographs, each of which
has sides that are easier or harder than its middle; and of the same pixels when the photograph is mirrored, so that
they are at the opposite side:

| | left | right | top | bottom | inside |
| --- | --- | --- | --- | --- | --- |
| as it is | {edges} |
| mirrored | {mirrored} |

![Each original with its reconstruction to the right](../../docs/images/demo_reconstructions.png)

## How it was trained

`tools/demo/train.py`; Muon for the kernels, Adam for norms and biases; an average of the weights over time is what is \
shipped. {training.text(steps)}

The loss is L1 and squared error at four scales, the L1 of differences \
between neighbours, and {KL_WEIGHT:g} times the KL divergence from the standard normal per latent value. No perceptual \
network and no adversary had a part in it. Crops are flipped and turned, and three in four get other colours: channels \
exchanged or inverted, another saturation, contrast and level.

![{plot}](../../docs/images/demo_training.png)

{scale} brings the latents of the training photographs to a deviation of one, as measured over all of them.

## Data

| package | licence | photographs |
| --- | --- | --- |
{data}
| `scikit-image` | CC0, public domain or no known restrictions, as its documentation says | {", ".join(SKIMAGE_TRAINING.split())} |

The first three are Debian packages; the authors of each image are in their `copyright` files. The photograph that is
shipped here, `chelsea.png`, is by Stefan van der Walt, who gave it to the public domain (CC0); it was never trained on.

## Limits

- Trained with a loss that asks for the right value of every pixel: fine texture that the latent cannot hold (grass, \
fur, foliage, small print) comes back smooth, not invented.
- Few faces, people and drawings were among the photographs; flat graphics and text lose their sharpest edges.
- Trained on crops of at most {max(side for side, _ in LARGE_CROPS)} pixels, the last levels of the decoder then on whole photographs of up to \
{max(sides.LONGER_SIDES)}. Larger images work, because the model is a convolution but for one attention.
- Blended tiles of {TILE * factor} pixels with overlaps of {OVERLAP * factor}, each decoded by itself, differ from the whole by {blended.mean:.1f} of 255 \
levels in the mean over these photographs, by {blended.most:.0f} at most; exact tiles do not differ.
- Its encoder finds the level of the colours by the padding at the right edge of an image: `circular` is for *y* alone.
- {lines_at_sides(scores)}
- Its latents suit no published diffusion model.

The weights are under the licence of this repository, Apache-2.0.
"""


def lines_at_sides(scores: list[Score]) -> str:
    """How far lines in plain areas stand out, at the right side and at the others, and in enlarged photographs."""

    def largest(what: str, size: str = "lines") -> dict[str, float]:
        found = [getattr(score, size) for score in scores]
        return {side: max(getattr(lines[side], what) for lines in found) for side in found[0]}

    most, typical = largest("most"), largest("typical")
    others = [side for side in most if side != "right"]
    large_most, large_typical = largest("most", "enlarged")["right"], largest("typical", "enlarged")["right"]
    return (
        f"Lines of {LENGTH} pixels in plain areas within {SIDE} pixels of the right edge, where the encoder pads alone, "
        f"differ from their neighbours by {typical['right']:.1f} of 255 levels in the root mean square of the photograph "
        f"where they do most, by {most['right']:.1f} at most; at the other edges by "
        f"{max(typical[side] for side in others):.1f}, by {max(most[side] for side in others):.1f} at most. They grow "
        f"with the image: of the photographs enlarged to {ENLARGED} times their size, at the right edge, by "
        f"{large_typical:.1f} in the root mean square, by {large_most:.1f} at most."
    )


def make_roundtrip(demo: Path, path: Path) -> None:
    """The image of the README, by the command that the README gives."""
    with tempfile.TemporaryDirectory() as folder:
        code = seamless_vae(["roundtrip", str(demo / "chelsea.png"), "--vae", str(demo), "--out", folder])
        if code:
            raise SystemExit(code)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(folder) / "chelsea-roundtrip.png", path)


def make(run: Path, root: Path, training: Training) -> None:
    demo, images = root / "vae_core" / "demo", root / "docs" / "images"
    steps = ship(run, demo, training.part)
    vae = load_vae(demo, dtype=torch.float32)
    photograph = next(image for name, image in held_out() if name == "chelsea")
    write_image(to_pil(from_pil(photograph, multiple=1).pixels)[0], demo / "chelsea.png")
    scores = judge(vae, images / "demo_reconstructions.png")
    if not training.sides and (run / "psnr.csv").stat().st_size:
        plot_training(run, images / "demo_training.png")
    make_roundtrip(demo, images / "roundtrip.png")
    (weights,) = demo.glob("*.safetensors")
    (demo / "README.md").write_text(
        card(vae, scores, Blended.of(vae), steps, training, weights), encoding="utf-8", newline="\n"
    )
    for score in scores:
        print(f"{score.name:<12}{score.psnr:.2f} dB  {score.ssim:.3f}")
    print(f"{'mean':<12}{np.mean([score.psnr for score in scores]):.2f} dB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder that train.py was given")
    parser.add_argument("--took", help="time and device, for the card: about 6 hours on two CPU cores")
    parser.add_argument("--batch", type=int, default=1, help="as it was given to train.py")
    parser.add_argument("--first", help="of a model that was trained on: its steps, crops and KL weight before that")
    parser.add_argument("--rate", help="of a model that was trained on: the learning rate over its steps")
    parser.add_argument("--root", type=Path, default=ROOT, help="where to write (default: this repository)")
    parser.add_argument("--part", type=float, default=1.0, help="of the way from the model that was trained on")
    parser.add_argument("--sides", action="store_true", help="the run is one of sides.py")
    arguments = parser.parse_args()
    given = arguments.first, arguments.rate, arguments.took, arguments.batch, arguments.part, arguments.sides
    make(arguments.run, arguments.root, Training(*given))
