"""Convolutional networks and transformers on images of 16 x 16."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.models.entry import Entry

IMAGE, CLASSES = 16, 10


def images_and_classes(batch_size):
    return torch.randn(batch_size, 3, IMAGE, IMAGE), torch.randint(CLASSES, (batch_size,))


def images_and_masks(batch_size):
    return torch.randn(batch_size, 3, IMAGE, IMAGE), torch.randint(CLASSES, (batch_size, IMAGE, IMAGE))


def images_times_noise(batch_size):
    shape = (batch_size, 3, IMAGE, IMAGE)
    return torch.randn(shape), torch.rand(batch_size) * 1000, torch.randn(shape)


def cross_entropy(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


def noise_error(model, batch):
    images, times, noise = batch
    return functional.mse_loss(model(images, times), noise)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def convolution(inputs, outputs, stride=1, groups=1, kernel=3):
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, CLASSES),
    )  # fmt: skip


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.first, self.second = convolution(inputs, outputs, stride), convolution(outputs, outputs)
        self.shortcut = nn.Identity() if inputs == outputs else convolution(inputs, outputs, stride, kernel=1)

    def forward(self, x):
        hidden = functional.relu(self.first(x), inplace=True)
        return functional.relu(self.second(hidden) + self.shortcut(x), inplace=True)


def resnet():
    return nn.Sequential(
        convolution(3, 16), nn.ReLU(inplace=True), BasicBlock(16, 16, 1), BasicBlock(16, 32, 2), BasicBlock(32, 32, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES),
    )  # fmt: skip


class Inverted(nn.Module):
    """MobileNet's block: widen, convolve each channel by itself, narrow."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        wide = 4 * inputs
        self.layers = nn.Sequential(
            convolution(inputs, wide, kernel=1), nn.ReLU6(inplace=True),
            convolution(wide, wide, stride, groups=wide), nn.Hardswish(inplace=True),
            convolution(wide, outputs, kernel=1),
        )  # fmt: skip
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.layers(x) if self.residual else self.layers(x)


def mobilenet():
    return nn.Sequential(
        convolution(3, 8), nn.Hardswish(), Inverted(8, 8, 1), Inverted(8, 16, 2), Inverted(16, 16, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES),
    )  # fmt: skip


def twice(inputs, outputs):
    return nn.Sequential(convolution(inputs, outputs), nn.ReLU(), convolution(outputs, outputs), nn.ReLU())


class SegmentationUNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([twice(3, 8), twice(8, 16), twice(16, 32)])
        self.grow = nn.ModuleList([nn.ConvTranspose2d(32, 16, 2, stride=2), nn.ConvTranspose2d(16, 8, 2, stride=2)])
        self.up = nn.ModuleList([twice(32, 16), twice(16, 8)])
        self.head = nn.Conv2d(8, CLASSES, 1)

    def forward(self, x):
        fine = self.down[0](x)
        middle = self.down[1](functional.max_pool2d(fine, 2))
        x = self.down[2](functional.max_pool2d(middle, 2))
        x = self.up[0](torch.cat([self.grow[0](x), middle], dim=1))
        return self.head(self.up[1](torch.cat([self.grow[1](x), fine], dim=1)))


class TimedResidual(nn.Module):
    def __init__(self, inputs, outputs, time=32):
        super().__init__()
        self.first_norm, self.second_norm = nn.GroupNorm(4, inputs), nn.GroupNorm(4, outputs)
        self.first, self.second = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.time = nn.Linear(time, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x, time):
        hidden = self.first(functional.silu(self.first_norm(x))) + self.time(functional.silu(time))[:, :, None, None]
        return self.shortcut(x) + self.second(functional.dropout(functional.silu(self.second_norm(hidden)), 0.1))


class PlaceAttention(nn.Module):
    def __init__(self, width, heads=2):
        super().__init__()
        self.norm, self.heads = nn.GroupNorm(4, width), heads
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1)).mT.unbind(1)
        attended = functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(attended.mT.flatten(1, 2).view_as(x))


class DiffusionUNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 32))
        self.stem, self.shrink = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.down, self.middle, self.up = TimedResidual(16, 16), TimedResidual(16, 32), TimedResidual(48, 16)
        self.attention, self.head = PlaceAttention(32), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, images, times):
        angles = times[:, None] * 10000 ** (-torch.arange(8, device=times.device) / 8)
        time = self.time(torch.cat([angles.sin(), angles.cos()], dim=-1))
        skip = self.down(self.stem(images), time)
        x = self.attention(self.middle(self.shrink(skip), time))
        x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.head(self.up(torch.cat([x, skip], dim=1), time))


class ViT(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 17, width) * 0.02)
        layer = {"dim_feedforward": 64, "dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(width, 4, **layer) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, images):
        patches = self.patches(images).flatten(2).mT
        x = torch.cat([self.token.expand(len(patches), -1, -1), patches], dim=1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


def classifier(make_model, **options):
    options = {"make_batch": images_and_classes, "forward_loss": cross_entropy, **options}
    return Entry(make_model=make_model, **options)


VISION = {
    "cnn": classifier(cnn),
    "resnet": classifier(resnet, make_optimizer=sgd),
    "mobilenet": classifier(mobilenet, make_optimizer=lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3)),
    "segmentation_unet": classifier(SegmentationUNet, make_batch=images_and_masks),
    "diffusion_unet": Entry(make_model=DiffusionUNet, make_batch=images_times_noise, forward_loss=noise_error),
    "vit": classifier(ViT),
}
