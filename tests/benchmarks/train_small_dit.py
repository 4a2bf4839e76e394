"""Train a small class-conditional diffusion transformer on pixels: a generative backbone whose training is known.

    accelerate launch -m tests.benchmarks.train_small_dit DATA --output FOLDER [--steps N] [--image-size 32]

DATA is an imagefolder (one folder per class) or a parquet file with the columns `image` and `label`. A
`DiTTransformer2DModel` without a VAE (patch 2) learns to predict the noise (Ho et al. 2020; Peebles and Xie 2023); an
exponential moving average of its weights is saved as a diffusers folder. `--smoke` runs 50 steps on the CPU and fails
unless the loss falls. Run again with the same --output to go on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset, Image, load_dataset
from diffusers import DDIMScheduler, DDPMScheduler, DiTTransformer2DModel
from diffusers.training_utils import EMAModel
from PIL import Image as Pillow
from torch import Tensor
from tqdm import tqdm


@dataclasses.dataclass(frozen=True)
class Size:
    """Size of a transformer; `small` is the DiT-S/2 of the paper."""

    num_layers: int
    num_heads: int
    head_dim: int


SIZES = {"tiny": Size(4, 4, 16), "small": Size(12, 6, 64)}
NUM_TRAIN_TIMESTEPS = 1000
NULL_CLASS_SHARE = 0.1


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--sample-every", type=int, default=5_000)
    parser.add_argument("--save-every", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="50 steps of a tiny model on the CPU")
    options = parser.parse_args()
    if options.smoke:
        options.size, options.steps, options.batch_size = "tiny", 50, 16
        options.sample_every = options.save_every = 50
    losses = train(options)
    if not losses:
        print(f"{options.output} holds {options.steps} steps already.")
        return
    first, last = statistics.mean(losses[:10]), statistics.mean(losses[-10:])
    print(f"loss: first 10 steps {first:.4f}, last 10 steps {last:.4f}")
    if options.smoke and not last < first:
        raise SystemExit("The loss did not fall.")


def train(options: argparse.Namespace) -> list[float]:
    """Train to the number of steps asked for, going on from the last saved state; return losses."""
    on_cpu = options.smoke or not torch.cuda.is_available()
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no" if on_cpu else "bf16")
    set_seed(options.seed)
    images, labels, num_classes = load_images(options.data, options.image_size, 512 if options.smoke else None)
    model = build_model(SIZES[options.size], options.image_size, num_classes)
    noising = DDPMScheduler(num_train_timesteps=NUM_TRAIN_TIMESTEPS, beta_schedule="squaredcos_cap_v2")
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.0)
    average = EMAModel(model.parameters(), decay=0.9995, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    model, optimizer = accelerator.prepare(model, optimizer)
    average.to(accelerator.device)
    accelerator.register_for_checkpointing(average)
    state, start = options.output / "state", 0
    if (state / "step.txt").exists():
        accelerator.load_state(str(state))
        start = int((state / "step.txt").read_text())
    images, labels = images.to(accelerator.device), labels.to(accelerator.device)
    losses = []
    steps = tqdm(
        range(start, options.steps),
        disable=None if accelerator.is_main_process else True,
        initial=start,
        total=options.steps,
    )
    for step, (pixels, classes) in zip(steps, batches(images, labels, options, accelerator, start), strict=False):
        loss = denoising_loss(model, noising, pixels, classes, num_classes)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:  # Linear warm-up: a transformer diverges without.
            group["lr"] = options.learning_rate * min(1.0, (step + 1) / 500 if not options.smoke else 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(model.parameters())
        losses.append(loss.item() if options.smoke or step % 50 == 0 else math.nan)
        if accelerator.is_main_process and (step + 1) % options.save_every == 0:
            accelerator.save_state(str(state))
            (state / "step.txt").write_text(str(step + 1))
            save(accelerator.unwrap_model(model), average, noising, options.output)
        if accelerator.is_main_process and (step + 1) % options.sample_every == 0:
            sheet = sample_sheet(accelerator.unwrap_model(model), average, noising, num_classes, options)
            sheet.save(options.output / f"samples-{step + 1:06d}.png")
    return [loss for loss in losses if not math.isnan(loss)]


def load_images(source: Path, size: int, at_most: int | None = None) -> tuple[Tensor, Tensor, int]:
    """Return the images as uint8 (images, 3, size, size), their classes, and the number of classes."""
    if source.is_dir():
        rows: Dataset = load_dataset("imagefolder", data_dir=str(source), split="train")
    else:
        rows = load_dataset("parquet", data_files=str(source), split="train").cast_column("image", Image())
    rows = rows.select(range(min(len(rows), at_most or len(rows))))
    images = torch.empty(len(rows), 3, size, size, dtype=torch.uint8)
    for position, row in enumerate(tqdm(rows, desc="reading", disable=None)):
        picture = row["image"].convert("RGB")
        if picture.size != (size, size):
            picture = picture.resize((size, size), Pillow.Resampling.BICUBIC)
        images[position] = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    labels = torch.tensor(rows["label"][:])
    return images, labels, int(labels.max()) + 1


def build_model(size: Size, image_size: int, num_classes: int) -> DiTTransformer2DModel:
    """A transformer on pixels: patches of 2, no VAE, class `num_classes` stands for "no class"."""
    return DiTTransformer2DModel(
        num_attention_heads=size.num_heads,
        attention_head_dim=size.head_dim,
        num_layers=size.num_layers,
        in_channels=3,
        out_channels=3,
        patch_size=2,
        sample_size=image_size,
        num_embeds_ada_norm=num_classes,
    )


def batches(
    images: Tensor, labels: Tensor, options: argparse.Namespace, accelerator: Accelerator, start: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches in [-1, 1], half of them mirrored; what a step draws does not depend on where the run began."""
    for step in range(start, options.steps):
        seed = (options.seed * options.steps + step) * accelerator.num_processes + accelerator.process_index
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(images), (options.batch_size,), generator=generator).to(images.device)
        pixels = images[chosen].float() / 127.5 - 1
        mirrored = (torch.rand(len(pixels), generator=generator) < 0.5).to(pixels.device)
        yield torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels), labels[chosen]


def denoising_loss(
    model: torch.nn.Module, noising: DDPMScheduler, pixels: Tensor, classes: Tensor, num_classes: int
) -> Tensor:
    """Mean squared error of the predicted noise; some classes are hidden, so that guidance is possible."""
    noise = torch.randn_like(pixels)
    timesteps = torch.randint(NUM_TRAIN_TIMESTEPS, (len(pixels),), device=pixels.device)
    hidden = torch.rand(len(pixels), device=pixels.device) < NULL_CLASS_SHARE
    classes = torch.where(hidden, num_classes, classes)
    noisy = noising.add_noise(pixels, noise, timesteps)
    predicted = model(noisy, timestep=timesteps, class_labels=classes).sample
    return torch.nn.functional.mse_loss(predicted.float(), noise)


def save(model: DiTTransformer2DModel, average: EMAModel, noising: DDPMScheduler, folder: Path) -> None:
    """Write the averaged weights and the scheduler as a diffusers folder."""
    average.store(model.parameters())
    average.copy_to(model.parameters())
    model.save_pretrained(folder / "transformer")
    average.restore(model.parameters())
    noising.save_pretrained(folder / "scheduler")


@torch.no_grad()
def sample_sheet(
    model: DiTTransformer2DModel, average: EMAModel, noising: DDPMScheduler, num_classes: int, options: Any
) -> Pillow.Image:
    """Draw eight pictures of each of ten classes with the averaged weights: 50 DDIM steps, guidance 2."""
    rows = min(num_classes, 10)
    device = next(model.parameters()).device
    classes = torch.arange(rows, device=device).repeat_interleave(8)
    null = torch.full_like(classes, num_classes)
    generator = torch.Generator().manual_seed(options.seed)
    pixels = torch.randn(len(classes), 3, options.image_size, options.image_size, generator=generator).to(device)
    sampler = DDIMScheduler.from_config(noising.config)
    sampler.set_timesteps(5 if options.smoke else 50)
    average.store(model.parameters())
    average.copy_to(model.parameters())
    for timestep in sampler.timesteps:
        both = model(
            pixels.repeat(2, 1, 1, 1),
            timestep=timestep.to(device).expand(2 * len(classes)),
            class_labels=torch.cat([classes, null]),
        ).sample
        guided, plain = both.chunk(2)
        pixels = sampler.step(plain + 2.0 * (guided - plain), timestep, pixels).prev_sample
    average.restore(model.parameters())
    tiles = ((pixels.clamp(-1, 1) + 1) * 127.5).byte().cpu().permute(0, 2, 3, 1).numpy()
    size = options.image_size
    sheet = tiles.reshape(rows, 8, size, size, 3).transpose(0, 2, 1, 3, 4).reshape(rows * size, 8 * size, 3)
    return Pillow.fromarray(sheet)


if __name__ == "__main__":
    main()
