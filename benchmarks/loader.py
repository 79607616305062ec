"""Random batches of latents with caption embeddings, as training reads them: ours, other formats, a floor.

The floor is one memory map for each field, indexed by batches of random rows. All read in the process that
trains, as ours does. A peer that is not installed is skipped with a line; webdataset and litdata are best
installed apart (litdata with ``--no-deps``: it asks for torchvision). Peers without random access shuffle as
they offer to.
"""

import importlib.util
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.harness import report, spread
from qdm_pipeline.randomness import epoch_rows, generator
from qdm_pipeline.video.shards import ShardSet, write_shards

SAMPLES, SHAPE, TEXT, BATCH = 5120, (16, 5, 32, 32), 384, 32
STEPS, ROUNDS = 60, 5
Loader = Callable[[], Iterable[Any]]


def main(folder: Path) -> None:
    latents = torch.randn(SAMPLES, *SHAPE, generator=generator(0, 0, 0, "latents")).half()
    texts = torch.randn(SAMPLES, TEXT, generator=generator(0, 0, 0, "texts")).half()
    makers = {
        "ours": ours, "floor": floor, "datasets": arrow, "webdataset": webdataset, "litdata": litdata
    }  # fmt: skip
    loaders: dict[str, Loader] = {}
    for name, make in makers.items():
        if name in ("ours", "floor") or importlib.util.find_spec(name):
            loaders[name] = make(folder / name, latents, texts)
        else:
            print(json.dumps({"case": name, "skipped": "not installed"}), flush=True)
    compare(loaders)


def compare(loaders: dict[str, Loader]) -> None:
    """Take turns; a round is the start of the loader and ``STEPS`` batches, timed from the first batch on."""
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for round_ in range(ROUNDS + 1):
        for name, load in loaders.items():
            rate = measure(load())
            if round_:
                rates[name].append(rate)
    middle = {name: median(values) for name, values in rates.items()}
    noise = spread(rates["ours"])
    goals = {"floor": ">= 0.5", "datasets": ">= 5", "webdataset": ">= 10", "litdata": ">= 10"}
    for name, goal in goals.items():
        if name in middle:
            pair = {"ours": middle["ours"], name: middle[name]}
            case = f"{'x'.join(map(str, SHAPE))} float16 + {TEXT}, over {name}"
            report(case, "samples/s", pair, middle["ours"] / middle[name], noise, goal)


def measure(batches: Iterable[Any]) -> float:
    """Samples a second behind the first batch, every value of which is looked at once."""
    stream: Iterator[Any] = iter(batches)
    next(stream)
    begun = perf_counter()
    for _ in range(STEPS):
        next(stream)
    return STEPS * BATCH / (perf_counter() - begun)


def ours(folder: Path, latents: Tensor, texts: Tensor) -> Loader:
    samples = (
        ({"latent": latent, "text": text}, {"split": "train"})
        for latent, text in zip(latents, texts, strict=True)
    )
    shards = write_shards(folder, samples, {}, 512)
    batches = [torch.tensor(rows) for rows in order()]  # as `Batches` gives them
    return lambda: ({name: shards.gather(name, rows) for name in ("latent", "text")} for rows in batches)


def order() -> list[list[int]]:
    return [epoch_rows(SAMPLES, step * BATCH, BATCH, 0).tolist() for step in range(STEPS + 8)]


def floor(folder: Path, latents: Tensor, texts: Tensor) -> Loader:
    folder.mkdir()
    latents.numpy().tofile(folder / "latents")
    texts.numpy().tofile(folder / "texts")
    maps = {
        "latent": np.memmap(folder / "latents", np.float16, "r").reshape(SAMPLES, *SHAPE),
        "text": np.memmap(folder / "texts", np.float16, "r").reshape(SAMPLES, TEXT),
    }
    batches = [np.array(rows) for rows in order()]
    return lambda: ({name: torch.from_numpy(field[rows]) for name, field in maps.items()} for rows in batches)


def arrow(folder: Path, latents: Tensor, texts: Tensor) -> Loader:
    import datasets

    datasets.disable_progress_bars()
    kinds = {
        "latent": datasets.Array4D(SHAPE, "float16"),
        "text": datasets.List(datasets.Value("float16"), length=TEXT),
    }

    def rows() -> Iterator[dict[str, Any]]:
        for latent, text in zip(latents.numpy(), texts.numpy(), strict=True):
            yield {"latent": latent, "text": text}

    made = datasets.Dataset.from_generator(
        rows, datasets.Features(kinds), cache_dir=str(folder), writer_batch_size=256
    )
    table = made.with_format("torch")
    return lambda: DataLoader(table, sampler=order(), batch_size=None)


def webdataset(folder: Path, latents: Tensor, texts: Tensor) -> Loader:
    import webdataset as wds

    folder.mkdir()
    with wds.ShardWriter(str(folder / "%05d.tar"), maxcount=512, verbose=0) as sink:
        for index, (latent, text) in enumerate(zip(latents.numpy(), texts.numpy(), strict=True)):
            sink.write({"__key__": f"{index:06d}", "latent.npy": latent, "text.npy": text})

    def load() -> Iterable[Any]:
        tars = sorted(map(str, folder.glob("*.tar")))
        data = wds.WebDataset(tars, shardshuffle=len(tars), seed=0, empty_check=False)
        batched = data.shuffle(256).decode().to_tuple("latent.npy", "text.npy").batched(BATCH)
        return DataLoader(batched, batch_size=None)

    return load


def litdata(folder: Path, latents: Tensor, texts: Tensor) -> Loader:
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import Cache

    cache = Cache(str(folder), chunk_bytes="64MB")
    for index, (latent, text) in enumerate(zip(latents, texts, strict=True)):
        cache[index] = {"latent": latent.clone(), "text": text.clone()}
    cache.done()
    cache.merge()

    def load() -> Iterable[Any]:
        data = StreamingDataset(str(folder), shuffle=True, drop_last=True, seed=0)
        return StreamingDataLoader(data, batch_size=BATCH)

    return load


def cold(folder: Path) -> None:
    """Nothing in the page cache: ours, and the disk's own random read (the floor), row after row."""
    folder.mkdir()
    latents = torch.randn(SAMPLES, *SHAPE, generator=generator(0, 0, 0, "latents")).half()
    write_shards(folder / "ours", (({"latent": x}, {"split": "train"}) for x in latents), {}, 512)
    latents.numpy().tofile(folder / "raw")
    size = latents[0].numel() * 2

    def through_shards() -> None:
        shards = ShardSet(folder / "ours")
        batches = [torch.tensor(rows) for rows in order()]
        for rows, later in itertools.zip_longest(batches, batches[1:], fillvalue=batches[0][:0]):
            shards.ahead("latent", later)  # as trainers do
            shards.gather("latent", rows)

    def through_file() -> None:
        with (folder / "raw").open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for row in itertools.chain(*order()):
                os.pread(file.fileno(), size, row * size)

    rates: dict[str, list[float]] = {"ours": [], "floor": []}
    for _ in range(ROUNDS):
        for name, act in (("ours", through_shards), ("floor", through_file)):
            forget(folder)
            begun = perf_counter()
            act()
            rates[name].append(len(order()) * BATCH / (perf_counter() - begun))
    middle = {name: median(values) for name, values in rates.items()}
    ratio = middle["ours"] / middle["floor"]
    case = f"{'x'.join(map(str, SHAPE))} float16, cold"
    report(case, "samples/s", middle, ratio, spread(rates["ours"]), ">= 0.9")


def forget(folder: Path) -> None:
    """Drop the files of a folder from the page cache."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory(folder: Path) -> None:
    """Anonymous memory that loading 200 batches takes, over sets of 2,000 and 32,000 samples of 1x4x8x8."""
    grown = {}
    for count in (2_000, 32_000):
        latent = torch.zeros(1, 4, 8, 8, dtype=torch.bfloat16)
        samples = (({"latent": latent}, {"split": "train", "id": i}) for i in range(count))
        shards = write_shards(folder / str(count), samples, {}, 1000)
        before = anonymous()
        train = shards.rows("train")
        for step in range(200):
            shards.gather("latent", train[epoch_rows(count, step * BATCH, BATCH, 0)])
        grown[count] = (anonymous() - before) / 1024
    row = {
        "case": "anonymous memory of loading",
        "metric": "MiB",
        **{str(k): round(v, 2) for k, v in grown.items()},
    }
    print(json.dumps(row | {"bytes a sample": round((grown[32_000] - grown[2_000]) * 2**20 / 30_000, 1)}))


def anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


if __name__ == "__main__":
    with TemporaryDirectory(dir="/var/tmp") as temporary:  # /tmp may be memory
        memory(Path(temporary) / "memory")
        cold(Path(temporary) / "cold")
        main(Path(temporary))
