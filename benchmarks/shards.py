"""Random batches of latents from shards; peers: Arrow tables, one file a clip; floor: a bare memory map."""

from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import numpy as np
import torch

from benchmarks.harness import compare
from qdm_pipeline.randomness import generator
from qdm_pipeline.video.shards import write_shards

CLIPS, BATCH, BATCHES = 2000, 32, 20


def run(shape: tuple[int, ...], dtype: torch.dtype, folder: Path) -> None:
    latents = torch.randn(CLIPS, *shape, generator=generator(0, 0, 0, "benchmark")).to(dtype)
    array = latents.numpy()

    samples = (({"latent": latent}, {"split": "train"}) for latent in latents)
    shards = write_shards(folder / "shards", samples, {}, shard_size=500)

    files = [folder / f"{index}.pt" for index in range(CLIPS)]
    for file, latent in zip(files, latents, strict=True):
        torch.save(latent.clone(), file)

    kind = datasets.Features({"latent": datasets.Array4D(shape, array.dtype.name)})
    datasets.Dataset.from_dict({"latent": array}, kind).save_to_disk(folder / "arrow")
    table = datasets.load_from_disk(folder / "arrow").with_format("torch")

    array.tofile(folder / "floor.bin")
    floor = np.memmap(folder / "floor.bin", array.dtype, "r", shape=array.shape)

    order = torch.randint(CLIPS, (BATCHES, BATCH), generator=generator(0, 1, 0, "benchmark"))
    peers = {
        "Arrow": lambda: [table[rows.tolist()]["latent"] for rows in order],
        "a .pt a clip": lambda: [torch.stack([torch.load(files[row]) for row in rows]) for rows in order],
    }
    for name, peer in peers.items():
        compare(
            f"{'x'.join(map(str, shape))} {array.dtype.name}, batch {BATCH}, against {name}",
            "clips/s",
            BATCHES * BATCH,
            ours=lambda: [shards.gather("latent", rows) for rows in order],
            peer=peer,
            floor=lambda: [torch.from_numpy(floor[rows.numpy()]) for rows in order],
            goal=">= 5",
        )


if __name__ == "__main__":
    datasets.disable_progress_bars()
    for shape, dtype in (((16, 3, 4, 4), torch.float32), ((16, 5, 32, 32), torch.float16)):
        with TemporaryDirectory() as folder:
            run(shape, dtype, Path(folder))
