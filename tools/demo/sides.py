"""Train the last levels of a finished decoder on, so that no faint line stands in a plain area at a side.

    python tools/demo/sides.py RUN_FOLDER --start vae_core/demo [--steps 1000]

The encoder finds the level of the colours by its padding, and the decoder's padding tells it where a side is; what it
makes of that is a pattern of a few levels that depends on an image's colours and stands at the same distance from a
side in every row. A loss of pixels does not see it, an eye does. Whole photographs as they are, turned over or not,
have it as users' images do; crops in other colours have it in all colours at once, and hardly at all in the mean. How
strong it is depends on the size of an image, so each is seen at two.

The encoder and all before the last levels stay as they are, so latents that were made before still decode, and what
goes into the last levels is computed once. Resumes by itself from the run folder.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from gradients import use_products
from lines import LENGTH, SIDE
from photographs import pyramid, training_paths
from torch import Tensor, nn
from tqdm import tqdm
from train import FACTOR, LOG_EVERY, SAVE_EVERY_SECONDS, Schedule, forget_after, reconstruction_loss, save

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from vae_core import AutoencoderKL, load_vae

LEVELS = 2  # of the decoder, from its end, that learn
LEARNING_RATE = 2e-4
WARMUP_STEPS = 20
DECAY_SHARE = 0.6  # over the last share of the steps the learning rate falls to zero
EMA_DECAY = 0.98
BATCH = 2
WEIGHT = 1000.0  # of `line_loss`
PLAIN = 0.02  # mean difference of neighbours at which an area counts half
NEIGHBOURS = 15  # lines about one, whose mean is its level
LEVEL_SHARE = 0.7  # of that which is taken off: a line is seen by what it differs from its neighbours
LONGER_SIDES = (1040, 520)  # pixels of the photographs
RIGHT = 3.0  # weight of the right side, where the encoder pads alone


def activity(image: Tensor) -> Tensor:
    """Mean difference of neighbours [B, 1, H, W], of [B, C, H, W]."""
    down, right = F.pad(image.diff(dim=2).abs(), (0, 0, 0, 1)), F.pad(image.diff(dim=3).abs(), (0, 1))
    return (down + right).mean(1, keepdim=True)


def line_loss(output: Tensor, target: Tensor) -> Tensor:
    """Squared mean errors of pieces of lines at the sides of images [B, C, H, W], each by how plain it is there."""
    error, busy = output - target, activity(target)
    loss = output.new_zeros(())
    for sideways in (False, True):
        if sideways:
            error, busy = error.transpose(2, 3), busy.transpose(2, 3)
        whole = error.shape[2] // LENGTH * LENGTH
        for part, weight in ((slice(None, SIDE), 1.0), (slice(-SIDE, None), 1.0 if sideways else RIGHT)):
            pieces = error[:, :, :whole, part].unflatten(2, (-1, LENGTH)).mean(3)
            about = _averaged(busy[:, :, :whole, part], 9).unflatten(2, (-1, LENGTH)).mean(3)
            pieces = pieces - LEVEL_SHARE * _averaged(pieces, NEIGHBOURS).detach()
            loss = loss + weight * (pieces.square() / (1 + (about / PLAIN).square())).mean()
    return loss


def _averaged(x: Tensor, columns: int) -> Tensor:
    return F.avg_pool2d(x, (1, columns), 1, (0, columns // 2), count_include_pad=False)


def photographs() -> Iterator[Tensor]:
    """Training photographs [1, 3, H, W] in bytes at all sizes: as they are, turned over, some mirrored."""
    for number, path in enumerate(training_paths()):
        for image in pyramid(path, LONGER_SIDES):
            height, width = (side // FACTOR * FACTOR for side in image.shape[:2])
            pixels = torch.from_numpy(image[:height, :width].copy()).permute(2, 0, 1)[None]
            yield pixels
            yield pixels.flip(2, 3)
            if number % 2 == 0:
                yield pixels.flip(3)


def halves(model: AutoencoderKL) -> tuple[nn.Sequential, nn.Sequential]:
    """The decoder before its last levels, and these."""
    decoder = model.decoder
    before = [decoder.conv_in, decoder.mid_block, *decoder.up_blocks[:-LEVELS]]
    return nn.Sequential(*before), nn.Sequential(
        *decoder.up_blocks[-LEVELS:], decoder.conv_norm_out, decoder.conv_act, decoder.conv_out
    )


@torch.no_grad()
def run_before(model: AutoencoderKL, images: list[Tensor]) -> list[Tensor]:
    """What goes into the last levels for each image, in bfloat16."""
    before, _ = halves(model)
    return [
        before(model.encode(image.float() / 127.5 - 1).latent_dist.mode()).bfloat16()
        for image in tqdm(images, desc="before the last levels", unit="image")
    ]


def train(folder: Path, beginning: Path, steps: int) -> None:
    """Train in a run folder, from where it was left; `checkpoint.pt` has the averaged model as "average"."""
    folder.mkdir(parents=True, exist_ok=True)
    model = load_vae(beginning, dtype=torch.float32).requires_grad_(False)
    images = list(photographs())
    inputs = run_before(model, images)
    model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    _, last = halves(model)
    last.requires_grad_(True)
    parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
    use_products(model)
    optimizer = torch.optim.Adam(parameters.values(), LEARNING_RATE, betas=(0.9, 0.99))
    average = {name: each.detach().clone() for name, each in model.state_dict().items()}
    schedule = Schedule(steps, decay_share=DECAY_SHARE, warmup=WARMUP_STEPS)
    start, checkpoint = 0, folder / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average, start = state["average"], state["step"]
    forget_after(folder / "log.csv", start)

    saved = time.monotonic()
    with open(folder / "log.csv", "a", newline="") as file, tqdm(total=steps, initial=start, unit="step") as bar:
        log = csv.writer(file)
        for step in range(start, steps):
            chosen = np.random.default_rng((1, step)).integers(len(images), size=BATCH)
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * schedule.learning_rate(step)
            optimizer.zero_grad()
            losses = torch.zeros(2)
            for index in chosen:
                target = images[index].float() / 127.5 - 1
                output = last(inputs[index].float().contiguous(memory_format=torch.channels_last))
                reconstruction, lines = reconstruction_loss(output, target), line_loss(output, target)
                ((reconstruction + WEIGHT * lines) / BATCH).backward()
                losses += torch.stack([reconstruction.detach(), lines.detach()]) / BATCH
            torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optimizer.step()
            with torch.no_grad():
                decay = min(EMA_DECAY, (step + 1) / (step + 10))
                for name, each in parameters.items():
                    average[name].lerp_(each, 1 - decay)
            log.writerow([step, *(f"{loss:.4g}" for loss in losses.tolist())])
            bar.update()
            if step % LOG_EVERY == 0:
                bar.set_postfix(lines=f"{losses[1]:.3g}")
            if time.monotonic() - saved > SAVE_EVERY_SECONDS or step + 1 == steps:
                file.flush()
                learned = optimizer.state_dict()
                save(checkpoint, model=model.state_dict(), optimizer=learned, average=average, step=step + 1)
                saved = time.monotonic()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where checkpoint and log are kept")
    parser.add_argument("--start", type=Path, required=True, help="a finished model to train on")
    parser.add_argument("--steps", type=int, default=1000)
    arguments = parser.parse_args()
    train(arguments.folder, arguments.start, arguments.steps)
