"""A timm model with what a recipe has: AMP, channels last, mixup, EMA, smoothed labels: timm_loop.py MODEL BATCH."""

import sys

import timm
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV2, NativeScaler


def main():
    name, batch = sys.argv[1], int(sys.argv[2])
    torch.backends.cudnn.benchmark = True
    model = timm.create_model(name, num_classes=1000).cuda().to(memory_format=torch.channels_last)
    average = ModelEmaV2(model, decay=0.999)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    scaler, mixup, criterion = NativeScaler(), Mixup(0.8, 1.0, label_smoothing=0.1), SoftTargetCrossEntropy()
    for step in range(5):
        images = torch.randn(batch, 3, 224, 224, device="cuda").to(memory_format=torch.channels_last)
        images, labels = mixup(images, torch.randint(0, 1000, (batch,), device="cuda"))
        with torch.autocast("cuda"):
            loss = criterion(model(images), labels)
        optimizer.zero_grad()
        scaler(loss, optimizer, clip_grad=1.0, parameters=model.parameters())
        average.update(model)
        print(step, loss.item())


if __name__ == "__main__":
    main()
