"""Search and EMA of a training step; peer: vector-quantize-pytorch; floor: a product of tokens and codes."""

import math
import sys
from itertools import product
from statistics import median

import torch
from vector_quantize_pytorch import VectorQuantize

from benchmarks.harness import peak_memory, report, spread, take_turns
from qdm_pipeline.models.quantizer import QuantizerSettings, VectorQuantizer
from qdm_pipeline.randomness import generator

TO_FLOOR = {8: math.inf, 32: 1.25, 256: 1.15}  # 8 is shown, without a goal
TO_PEER = {8: 13, 32: 13, 256: 5}


def step(count: int, size: int, dim: int) -> None:
    """One case: ``count`` tokens of ``dim`` numbers, ``size`` codes."""
    settings = QuantizerSettings(
        kind="vq", codebook_size=size, codebook_dim=dim, groups=1, decay=0.9, revival_threshold=0.1
    )
    ours, peer = VectorQuantizer(dim, settings), VectorQuantize(dim, size, decay=0.9)
    ours.initialised.fill_(True)
    peer.train()
    draw = generator(0, count, 0, "benchmark")
    tokens, codebook = torch.randn(count, dim, generator=draw), torch.randn(size, dim, generator=draw)

    def reset() -> None:  # both moved codebooks would part ways by rounding
        for state in (ours.codebook[0], ours.sums[0], peer._codebook.embed[0], peer._codebook.embed_avg[0]):
            state.copy_(codebook)
        ours.counts.fill_(1)
        peer._codebook.cluster_size.fill_(1)

    def our_step() -> torch.Tensor:
        codes = ours(tokens, collect=True).codes[:, 0]
        ours.commit(0, 0)
        return codes

    def peer_step() -> torch.Tensor:
        codes: torch.Tensor = peer(tokens[None])[1][0]
        return codes

    with torch.no_grad():
        reset()
        flips = int((our_step() != peer_step()).sum())
        case = f"{count} tokens, {size} codes, {dim} numbers, {flips} choices differ"
        reset()
        rounds = 9 if count * size < 1 << 28 else 3
        acts = {"ours": our_step, "peer": peer_step, "floor": lambda: tokens @ codebook.T}
        seconds = take_turns(acts, rounds)
        median_of = {name: median(times) for name, times in seconds.items()}
        noise = spread(seconds["ours"])
        to_floor, to_peer = median_of["ours"] / median_of["floor"], median_of["peer"] / median_of["ours"]
        report(case, "seconds, against the floor", median_of, to_floor, noise, f"<= {TO_FLOOR[dim]}")
        report(case, "seconds, against the peer", median_of, to_peer, noise, f">= {TO_PEER[dim]}")
        reset()
        memory = {name: peak_memory(acts[name]) for name in ("ours", "peer")}
        allowed = 32 + 4 * (4 * count * dim + 8 * size * dim) / 2**20  # copies of tokens and of the codebook
        memory["floor"] = count * size * 4 / 2**20
        report(
            case, "extra MiB, against 32 + O(tokens + codes)", memory, memory["ours"] / allowed, 0.0, "<= 1"
        )
        ratio = memory["peer"] / max(memory["ours"], 0.1)
        if count == 32768 and size == 16384:
            report(case, "extra MiB, against the peer", memory, ratio, 0.0, ">= 100")


if __name__ == "__main__":
    if sys.argv[1:]:  # one case: tokens, codes, numbers
        step(*map(int, sys.argv[1:]))
    else:
        for count, size, dim in product((4096, 32768), (4096, 16384), (8, 32, 256)):
            step(count, size, dim)
