"""Train the demo VAE. Resumes by itself from the run folder; Ctrl-C loses at most a minute.

    python tools/demo/train.py RUN_FOLDER [--steps 8000] [--device cuda --batch 16]
    python tools/demo/train.py RUN_FOLDER --start vae_core/demo [--steps 2000 --rate 0.5]  # train a finished model on
    python tools/demo/train.py RUN_FOLDER --start vae_core/demo --windows 0.5  # so that parts decode by themselves
    python tools/demo/train.py RUN_FOLDER --start vae_core/demo --decoder --lines 64  # so that no line stands at a side

Every loss is in the log (`log.csv`); `card.py` makes the shipped files and the model card of it. The last third of the
steps sees large crops, the last quarter lets the learning rate fall to zero; a model that is trained on sees large
crops alone, at a third of the learning rate (or --rate), which falls to zero from its first step. To end a run early,
start it again with fewer --steps. On an accelerator a step of many times the crops takes about as long as one of few:
--batch.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from gradients import use_products
from muon import Muon
from photographs import held_out, pyramid, training_paths
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from vae_core import AutoencoderKL, DiagonalGaussianDistribution, load_vae
from vae_core.attention import Attention
from vae_core.blocks import ResnetBlock

CONFIG = {
    "block_out_channels": (32, 64, 128, 128),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": 16,
    "norm_num_groups": 8,  # 32 groups of 32 channels would erase each channel's mean
    "sample_size": 256,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "force_upcast": False,
}
MATRIX_LEARNING_RATE = 0.02
VECTOR_LEARNING_RATE = 3e-3
WARMUP_STEPS = 100
EMA_DECAY = 0.9995
KL_WEIGHT = 1e-4  # per latent value in nats, against errors per colour value in [-1, 1]
# (side, batch) of successive steps: the same number of pixels.
SMALL_CROPS = ((64, 16), (128, 4))
LARGE_CROPS = ((256, 1), (128, 4), (256, 1))
FACTOR = 8  # pixels along one side of a latent pixel
ALL = slice(None)
LOG_EVERY = 10
EVALUATE_EVERY = 250
SAVE_EVERY_SECONDS = 60


@dataclass(frozen=True)
class Schedule:
    """What a run does when.

    Attributes:
        steps: how many there are.
        large_from: the share of them before large crops.
        decay_share: over the last share of them the learning rate falls to zero.
        rate: share of the full learning rate at most.
        windows: share of the steps that decode a part of the latent alone.
        lines: weight of `line_loss`.
        warmup: steps over which the learning rate rises.
    """

    steps: int
    large_from: float = 2 / 3
    decay_share: float = 0.25
    rate: float = 1.0
    windows: float = 0.0
    lines: float = 0.0
    warmup: int = WARMUP_STEPS

    def crop(self, step: int) -> tuple[int, int]:
        """Side and number of the crops of a step."""
        crops = SMALL_CROPS if step < self.large_from * self.steps else LARGE_CROPS
        return crops[step % len(crops)]

    def learning_rate(self, step: int) -> float:
        """The share of the full learning rate at a step: a short rise, a plateau, a fall to zero."""
        decay = max(0.0, min(1.0, (self.steps - step) / (self.decay_share * self.steps)))
        return self.rate * min(1.0, (step + 1) / self.warmup) * decay


def random_crops(levels: list[list[Tensor]], side: int, batch: int, rng: np.random.Generator) -> Tensor:
    """Crops [batch, 3, side, side] in [-1, 1]: any photograph, any size, turned, flipped, in other colours.

    Args:
        levels: the photographs [H, W, 3] in bytes, each in several sizes, where the crops are to be.
    """
    large = [[image for image in sizes if min(image.shape[:2]) >= side] for sizes in levels]
    large = [sizes for sizes in large if sizes]
    crops, colours = [], []
    for _ in range(batch):
        sizes = large[rng.integers(len(large))]
        image = sizes[rng.integers(len(sizes))]
        top = rng.integers(image.shape[0] - side + 1)
        left = rng.integers(image.shape[1] - side + 1)
        crop = image[top : top + side, left : left + side].rot90(int(rng.integers(4)))
        crops.append(crop.flip(1) if rng.random() < 0.5 else crop)
        colours.append(recolouring(rng) if rng.random() < 0.75 else np.eye(3, 4))
    pixels = torch.stack(crops).permute(0, 3, 1, 2).float() / 127.5 - 1
    colour = torch.from_numpy(np.stack(colours)).to(pixels)
    turned = torch.einsum("bij,bjhw->bihw", colour[:, :, :3], pixels) + colour[:, :, 3, None, None]
    return turned.clamp_(-1, 1)


def random_window(size: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of a quarter to the whole of a latent: what blended tiles decode by themselves.

    A model that has not seen such parts may keep an image's colours at its edges alone, where its norms find them.
    """
    sides = rng.integers(size // 2, size + 1, 2)
    first = rng.integers(0, size - sides + 1)
    rows, columns = (slice(int(start), int(start + side)) for start, side in zip(first, sides, strict=True))
    return rows, columns


def scaled(part: slice) -> slice:
    """Rows or columns of a latent as those of its image."""
    return part if part == ALL else slice(FACTOR * part.start, FACTOR * part.stop)


def recolouring(rng: np.random.Generator) -> np.ndarray:
    """Other colours, as a matrix [3, 4] for a colour in [-1, 1] and a one: few photographs hold few, a VAE needs all.

    Channels are shuffled and may be inverted, then saturation, contrast and each channel's level change.
    """
    shuffled = np.eye(3)[rng.permutation(3)] * (1 if rng.random() < 0.7 else -1)
    saturation = rng.uniform(0.3, 2.0)
    saturated = saturation * np.eye(3) + (1 - saturation) / 3
    return np.hstack([rng.uniform(0.6, 1.2) * saturated @ shuffled, rng.uniform(-0.4, 0.4, (3, 1))])


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Squared error and L1 at four scales, and L1 of the differences between neighbours, which keeps edges sharp.

    The squared error in full size, which PSNR is made of, has half of the weight. The coarse scales hold the colours
    of areas, which the norms of the model make hard to learn.
    """
    error = output - target
    loss = 16 * error.square().mean()
    loss = loss + 0.25 * (error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean())
    for _ in range(4):
        loss = loss + 0.25 * error.abs().mean() + 4 * error.square().mean()
        error = F.avg_pool2d(error, 2)
    return loss


def line_loss(output: Tensor, target: Tensor) -> Tensor:
    """Squared mean errors of each column and of each row: what is seen as a line, however faint."""
    error = output - target
    return error.mean(2).square().mean() + error.mean(3).square().mean()


@torch.no_grad()
def start_near_identity(model: AutoencoderKL) -> None:
    """Let every residual branch begin at zero, the rest keep the size of signals, and constants survive the last norms.

    A GroupNorm divides by an image's own contrast; a pair of constant channels in each group (+c, -c) bounds that,
    so that brightness and colour pass from the first step.
    """
    for module in model.modules():
        if isinstance(module, ResnetBlock):
            last = module.conv2
        elif isinstance(module, Attention):
            last = module.to_out[0]
        else:
            continue
        torch.nn.init.zeros_(last.weight)  # pyright: ignore[reportArgumentType]
        torch.nn.init.zeros_(last.bias)  # pyright: ignore[reportArgumentType]
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.weight.any():
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    for block in (model.encoder.mid_block, model.decoder.up_blocks[-1]):
        last = block.resnets[-1].conv2  # pyright: ignore
        assert isinstance(last, torch.nn.Conv2d) and last.bias is not None
        bias = last.bias
        size = len(bias) // CONFIG["norm_num_groups"]
        bias[0::size] = 2.0
        bias[1::size] = -2.0


@torch.inference_mode()
def evaluate(model: AutoencoderKL) -> dict[str, float]:
    """PSNR in dB of each held-out photograph, cropped to whole latents, rounded to bytes."""
    device = next(model.parameters()).device
    scores = {}
    for name, image in held_out():
        pixels = np.asarray(image)
        pixels = pixels[: pixels.shape[0] // 8 * 8, : pixels.shape[1] // 8 * 8]
        x = torch.from_numpy(pixels.copy()).to(device).permute(2, 0, 1)[None].float()
        y = (model(x / 127.5 - 1).sample.float() + 1) * 127.5
        error = (y.round().clamp(0, 255) - x).square().mean()
        scores[name] = float(10 * torch.log10(255**2 / error))
    return scores


def forget_after(path: Path, step: int) -> None:
    """Drop a log's rows from a step on: they were written after the checkpoint that a run resumes from."""
    if path.exists():
        rows = path.read_text().splitlines()
        path.write_text(
            "".join(f"{row}\n" for row in rows if row.split(",")[0].isdigit() and int(row.split(",")[0]) < step)
        )


def save(path: Path, **state: object) -> None:
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16; other processors would do so in many more steps than float32."""
    return device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()


def train(
    folder: Path,
    schedule: Schedule,
    beginning: Path | None,
    device: torch.device,
    batches: int = 1,
    *,
    decoder_alone: bool = False,
) -> None:
    """Train in a run folder, from where it was left.

    Args:
        batches: how many times the crops of `schedule` a step sees.
        decoder_alone: the encoder stays as it is, and latents that were made before still decode.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model, steps = AutoencoderKL(**CONFIG), schedule.steps
    if beginning is None:
        start_near_identity(model)
    else:
        model.load_state_dict(load_vae(beginning, dtype=torch.float32).state_dict())
    model = model.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    model.encoder.requires_grad_(not decoder_alone)
    half = has_fast_bfloat16(device)
    if not half:
        use_products(model)
    average = AutoencoderKL(**CONFIG).requires_grad_(False).eval().to(device)
    average.load_state_dict(model.state_dict())
    learning = [each for each in model.parameters() if each.requires_grad]
    matrices = Muon((each for each in learning if each.ndim > 1), MATRIX_LEARNING_RATE)
    vectors = torch.optim.Adam([each for each in learning if each.ndim == 1], VECTOR_LEARNING_RATE, betas=(0.9, 0.99))
    optimizers = (matrices, vectors)
    start = 0
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for optimizer, its_state in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(its_state)
        start = state["step"]
    forget_after(folder / "log.csv", start)
    forget_after(folder / "psnr.csv", start + 1)

    levels = [[torch.from_numpy(image.copy()).to(device) for image in pyramid(path)] for path in training_paths()]
    written: list[tuple[int, Tensor]] = []  # steps and losses that are not in the log yet: reading one waits for it
    with (
        open(folder / "log.csv", "a", newline="") as log_file,
        open(folder / "psnr.csv", "a", newline="") as psnr_file,
        tqdm(total=steps, initial=start, unit="step") as bar,
    ):
        log, psnr = csv.writer(log_file), csv.writer(psnr_file)
        saved = time.monotonic()
        for step in range(start, steps):
            side, batch = schedule.crop(step)
            rng = np.random.default_rng((0, step))
            x = random_crops(levels, side, batch * batches, rng)
            x = x.contiguous(memory_format=torch.channels_last)
            rows, columns = random_window(side // FACTOR, rng) if rng.random() < schedule.windows else (ALL, ALL)
            matrices.param_groups[0]["lr"] = MATRIX_LEARNING_RATE * schedule.learning_rate(step)
            vectors.param_groups[0]["lr"] = VECTOR_LEARNING_RATE * schedule.learning_rate(step)
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                (posterior,) = model.encode(x, return_dict=False)
                posterior = DiagonalGaussianDistribution(posterior.parameters.float())
                (output,) = model.decode(posterior.sample()[:, :, rows, columns], return_dict=False)
            output, target = output.float(), x[:, :, scaled(rows), scaled(columns)]
            reconstruction = reconstruction_loss(output, target)
            kl = posterior.kl().mean() / posterior.mean[0].numel()
            model.zero_grad()
            (reconstruction + KL_WEIGHT * kl + schedule.lines * line_loss(output, target)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            with torch.no_grad():
                decay = min(EMA_DECAY, (step + 1) / (step + 10))
                torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)

            written.append((step, torch.stack([reconstruction.detach(), kl.detach()])))
            if len(written) == LOG_EVERY or step + 1 == steps:
                log.writerows([each, f"{loss:.5f}", f"{nats:.4f}"] for each, (loss, nats) in written)
                written.clear()
                bar.update(step + 1 - bar.n)
            if (step + 1) % EVALUATE_EVERY == 0 or step + 1 == steps:
                scores = evaluate(average)
                psnr.writerow([step + 1, *(f"{score:.3f}" for score in scores.values())])
                psnr_file.flush()
                bar.set_postfix(psnr=f"{np.mean(list(scores.values())):.2f}")
            if (not written and time.monotonic() - saved > SAVE_EVERY_SECONDS) or step + 1 == steps:
                log_file.flush()
                save(
                    checkpoint,
                    model=model.state_dict(),
                    average=average.state_dict(),
                    optimizers=[optimizer.state_dict() for optimizer in optimizers],
                    step=step + 1,
                )
                saved = time.monotonic()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where checkpoint and log are kept")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--start", type=Path, help="a finished model to train on")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--batch", type=int, default=1, help="how many times the crops of a step on a processor")
    parser.add_argument("--rate", type=float, help="share of the full learning rate (default: 1, with --start 0.3)")
    parser.add_argument("--windows", type=float, default=0.0, help="share of steps that decode a part of the latent")
    parser.add_argument("--decoder", action="store_true", help="leave the encoder as it is")
    parser.add_argument("--lines", type=float, default=0.0, help="weight of the mean errors of columns and rows")
    arguments = parser.parse_args()
    extras = {"windows": arguments.windows, "lines": arguments.lines}
    if arguments.start is None:
        schedule = Schedule(arguments.steps, rate=arguments.rate or 1.0, **extras)
    else:
        schedule = Schedule(arguments.steps, large_from=0, decay_share=1, rate=arguments.rate or 0.3, **extras)
    train(
        arguments.folder,
        schedule,
        arguments.start,
        arguments.device,
        arguments.batch,
        decoder_alone=arguments.decoder,
    )
