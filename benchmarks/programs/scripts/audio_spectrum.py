"""Separation of voices: stft, a mask from convolutions, istft, a loss in time and in frequency."""

import torch
from torch import nn

WINDOW, HOP = 1024, 256


class Separator(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW))
        self.net = nn.Sequential(
            nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.Conv2d(32, 32, 5, padding=2), nn.ReLU(),
            nn.Conv2d(32, 2, 5, padding=2), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, mix):
        spectrum = torch.stft(mix, WINDOW, HOP, window=self.window, return_complex=True)
        masks = self.net(spectrum.abs().unsqueeze(1))
        voices = (masks * spectrum.unsqueeze(1)).flatten(0, 1)
        return torch.istft(voices, WINDOW, HOP, window=self.window, length=mix.shape[-1]).unflatten(0, (-1, 2))


def main():
    model = Separator().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(5):
        voices = torch.randn(8, 2, 4 * 16000, device="cuda")
        found = model(voices.sum(1))
        spectra = [torch.fft.rfft(x).abs() for x in (found, voices)]
        loss = (found - voices).abs().mean() + nn.functional.l1_loss(*spectra)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(step, loss.item())


if __name__ == "__main__":
    main()
