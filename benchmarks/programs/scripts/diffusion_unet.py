"""Denoising diffusion with a diffusers U-Net, a noise schedule and EMA weights."""

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel


def main():
    model = UNet2DModel(
        sample_size=64, in_channels=3, out_channels=3, layers_per_block=2, block_out_channels=(128, 256, 384, 512),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    ).cuda()  # fmt: skip
    noise_schedule = DDPMScheduler(num_train_timesteps=1000)
    average = EMAModel(model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    schedule = get_cosine_schedule_with_warmup(optimizer, 10, 100)
    for step in range(5):
        images = torch.rand(16, 3, 64, 64, device="cuda") * 2 - 1
        noise = torch.randn_like(images)
        times = torch.randint(0, 1000, (16,), device="cuda").long()
        noisy = noise_schedule.add_noise(images, noise, times)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = F.mse_loss(model(noisy, times).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        average.step(model.parameters())
        print(step, loss.item())


if __name__ == "__main__":
    main()
