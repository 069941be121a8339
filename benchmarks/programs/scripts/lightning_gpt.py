"""A Lightning module, trained, validated and saved on two GPUs: `lightning_gpt.py ddp`, `lightning_gpt.py fsdp`."""

import sys
import tempfile

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

WIDTH, LAYERS, LENGTH, VOCABULARY = 512, 6, 256, 32000


class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        layers = [nn.TransformerEncoderLayer(WIDTH, 8, 4 * WIDTH, 0.1, batch_first=True) for _ in range(LAYERS)]
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids):
        hidden = self.embedding(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(hidden)

    def step(self, batch):
        (ids,) = batch
        return nn.functional.cross_entropy(self(ids).flatten(0, 1), ids.flatten())

    def training_step(self, batch, index):
        loss = self.step(batch)
        self.log("train_loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch, index):
        self.log("val_loss", self.step(batch), prog_bar=True, sync_dist=True)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-4)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)]


def main():
    kind = sys.argv[1]
    strategy = FSDPStrategy(auto_wrap_policy={nn.TransformerEncoderLayer}) if kind == "fsdp" else DDPStrategy()
    data = TensorDataset(torch.randint(0, VOCABULARY, (64, LENGTH)))
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            accelerator="gpu",
            devices=2,
            strategy=strategy,
            precision="bf16-mixed",
            max_epochs=1,
            accumulate_grad_batches=2,
            gradient_clip_val=None if kind == "fsdp" else 1.0,
            callbacks=[ModelCheckpoint(folder, monitor="val_loss")],
            default_root_dir=folder,
            logger=False,
        )
        trainer.fit(Model(), DataLoader(data, 8, shuffle=True), DataLoader(data, 8))
        trainer.strategy.barrier()


if __name__ == "__main__":
    main()
