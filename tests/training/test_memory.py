"""How much of a batch goes through the network in one pass."""

import logging
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qdm_pipeline.configuration import build
from qdm_pipeline.models.predictor import Condition, PredictorConfig, QuantizedDiffusionPredictor
from qdm_pipeline.training import generate, memory
from qdm_pipeline.training.denoiser import GuidedDenoiser

QUANTIZER = dict(kind="vq", codebook_size=16, codebook_dim=2, groups=2, decay=0.9, revival_threshold=0.1)
SHAPE = (3, 2, 8, 8)


class Peak(TorchDispatchMode):
    """Counts the bytes of tensors that are made and alive inside, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen = weakref.WeakSet[torch.UntypedStorage]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self.seen:
                self.seen.add(storage)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.free, storage.nbytes())
        return result

    def free(self, count: int) -> None:
        self.now -= count


def model(patch: tuple[int, int, int], captions: bool) -> QuantizedDiffusionPredictor:
    size = dict(
        width=64, depth=2, heads=2, patch=patch, attention="full", embedding_dim=8, residual_dim=0,
        quantizer=QUANTIZER,
    )  # fmt: skip
    asked = (
        dict(classes=(), vocabulary=("a", "dot"), caption_length=4)
        if captions
        else dict(classes=("a",), vocabulary=(), caption_length=0)
    )
    return QuantizedDiffusionPredictor(build(PredictorConfig, {"size": size, "latent_channels": 3} | asked))


@pytest.mark.parametrize("captions", [False, True])
@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2)])
def test_the_memory_of_a_pass_is_foreseen(patch: tuple[int, int, int], captions: bool) -> None:
    network = model(patch, captions)
    most = []
    for clips in (8, 24):
        label = torch.zeros(clips, dtype=torch.int64)
        condition = Condition(words=label[:, None].expand(-1, 4)) if captions else Condition(label)
        with torch.no_grad(), Peak() as peak:
            network.features(torch.randn(clips, *SHAPE), torch.rand(clips), condition)
        most.append(peak.most)
    counted = (most[1] - most[0]) / 16
    foreseen = memory.USED * 1e9 / memory.samples_at_once(network.config.size, SHAPE, int(1e9))
    assert foreseen == pytest.approx(counted, rel=0.1)


def test_one_sample_always_goes() -> None:
    assert memory.samples_at_once(model((1, 1, 1), False).config.size, SHAPE, 1000) == 1


def test_passes_of_a_batch_give_what_one_gives() -> None:
    torch.manual_seed(0)
    network = model((1, 1, 1), False).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    seen: list[int] = []
    network.patch_in.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    x, t, condition = torch.randn(5, *SHAPE), torch.rand(5), Condition(torch.tensor([0, -1, 0, -1, 0]))
    with torch.no_grad():
        whole = GuidedDenoiser(network, condition, 2.0, "continuous")(x, t)
        parts = GuidedDenoiser(network, condition, 2.0, "continuous", at_once=2)(x, t)
    assert seen == [5, 5, 2, 2, 1, 2, 2, 1]
    assert torch.allclose(whole, parts, atol=1e-5)


def test_a_container_and_processes_have_their_part_of_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def free() -> int | None:
        return memory.free_bytes(torch.device("cpu"))

    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "LIMIT", tmp_path / "memory.max")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert free() is None
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:  6000 kB\n")
    assert free() == 6000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert free() == 6000 * 1024
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert free() == 4000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free() == 1000


def test_the_number_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    settings = build(
        generate.GenerationSettings,
        dict(
            name="teacher", sampler="ddim", steps=1, times=None, low=0.0, high=1.0, eta=0.0, guidance=1.0,
            path="continuous", asked=None, size=None, count=12, batch=8, at_once="auto", keep=(),
            precision="fp32",
            weights="full", compile=False, seed=0,
        ),
    )  # fmt: skip
    config = {"schedule": {"name": "flow", "shift": 1.0}, "latent_shape": list(SHAPE)}
    bytes_a_sample = memory.ALIVE * 128 * 64 * 4
    found = []
    with caplog.at_level(logging.INFO, logger="qdm_pipeline"):
        for free in (3.5 * bytes_a_sample / memory.USED, 2**40, None):
            monkeypatch.setattr(generate, "free_bytes", lambda device, free=free: free)
            found.append(generate.Generation(settings, model((1, 1, 1), False), config).at_once)
    assert found == [3, 8, 8]
    first, _, last = (record.message for record in caplog.records)
    assert first == "teacher: 3 samples in one pass, as 0.0 GiB are free (cpu)"
    assert last == "teacher: whole batches in one pass, as free memory is not known"
