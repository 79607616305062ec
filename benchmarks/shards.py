"""Random batches of latents: shards, against one file a clip (peer) and a bare memory map (floor)."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.harness import compare
from qdm_pipeline.randomness import generator
from qdm_pipeline.video.shards import write_shards

CLIPS, BATCH, BATCHES = 2000, 32, 20


def run(shape: tuple[int, ...], dtype: torch.dtype, folder: Path) -> None:
    latents = torch.randn(CLIPS, *shape, generator=generator(0, 0, 0, "benchmark")).to(dtype)
    samples = (({"latent": latent}, {"split": "train"}) for latent in latents)
    shards = write_shards(folder / "shards", samples, {}, shard_size=500)
    files = [folder / f"{index}.pt" for index in range(CLIPS)]
    for file, latent in zip(files, latents, strict=True):
        torch.save(latent.clone(), file)
    bits = latents.view(torch.int16 if latents.element_size() == 2 else torch.int32).numpy()
    bits.tofile(folder / "floor.bin")
    floor = np.memmap(folder / "floor.bin", bits.dtype, "r", shape=bits.shape)
    order = torch.randint(CLIPS, (BATCHES, BATCH), generator=generator(0, 1, 0, "benchmark"))
    compare(
        f"{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}, batch {BATCH}",
        "clips/s",
        BATCHES * BATCH,
        ours=lambda: [shards.gather("latent", rows) for rows in order],
        peer=lambda: [torch.stack([torch.load(files[row]) for row in rows]) for rows in order],
        floor=lambda: [torch.from_numpy(floor[rows.numpy()]) for rows in order],
        goal=5.0,
    )


if __name__ == "__main__":
    for shape, dtype in (((16, 3, 4, 4), torch.float32), ((16, 5, 32, 32), torch.bfloat16)):
        with TemporaryDirectory() as folder:
            run(shape, dtype, Path(folder))
