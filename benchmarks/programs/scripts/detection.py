"""torchvision's detection models, images of different sizes with boxes (and masks): detection.py MODEL."""

import sys

import torch
from torchvision.models import detection


def example(with_masks):
    height, width = (int(n) for n in torch.randint(400, 640, (2,)))
    corner = torch.rand(5, 2) * 200
    boxes = torch.cat([corner, corner + 30 + torch.rand(5, 2) * 150], 1)
    target = {"boxes": boxes.cuda(), "labels": torch.randint(1, 91, (5,)).cuda()}
    if with_masks:
        target["masks"] = torch.randint(0, 2, (5, height, width), dtype=torch.uint8).cuda()
    return torch.rand(3, height, width).cuda(), target


def main():
    torch.manual_seed(0)
    name = sys.argv[1]
    model = getattr(detection, name)(weights=None, weights_backbone=None).cuda()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02, momentum=0.9)
    for step in range(5):
        images, targets = zip(*(example("mask" in name) for _ in range(4)), strict=True)
        losses = model(list(images), list(targets))
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(step, {key: round(value.item(), 3) for key, value in losses.items()})


if __name__ == "__main__":
    main()
