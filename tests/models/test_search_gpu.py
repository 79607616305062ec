"""The search kernels of a GPU against float64; `make test-gpu` runs these where only torch is.

Without a GPU, but with Triton (``pip install triton``), its interpreter runs small cases on the CPU.
"""

import os
import sys

import pytest
import torch

GPU = torch.cuda.is_available()
if not GPU and "triton" in sys.modules:
    pytest.skip("Triton was loaded without its interpreter; run this file alone", allow_module_level=True)
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"
triton = pytest.importorskip("triton", reason="needs Triton, and for all but small cases a GPU")

from qdm_pipeline.models import search_gpu  # noqa: E402
from qdm_pipeline.models.quantizer import QuantizerSettings, VectorQuantizer  # noqa: E402

DEVICE = "cuda" if GPU else "cpu"
SMALL = [(2, 20, 100, 2), (1, 9, 130, 12), (2, 12, 200, 16), (1, 10, 700, 40)]
LARGE = [(8, 5000, 16384, 2), (1, 999, 1000, 5), (2, 70, 65, 8), (1, 300, 512, 12), (2, 4000, 8192, 16),
         (1, 999, 1001, 32), (1, 500, 4096, 48), (2, 2000, 16384, 256), (1, 100, 1000, 384)]  # fmt: skip


@pytest.fixture(autouse=True)
def _few_at_a_time(monkeypatch):
    monkeypatch.setattr(search_gpu, "CHUNK", 1000 if GPU else 7)
    if not GPU:  # the interpreter multiplies bfloat16 as if it were integers (Triton 3.9)
        monkeypatch.setattr(search_gpu, "LOW", triton.language.float16)


def nearest(tokens, codebook):
    return search_gpu.nearest_gpu(tokens.to(DEVICE), codebook.to(DEVICE)).cpu()


def nearness(tokens, codebook):
    """-|x - e|^2 / 2 up to a constant a token: float64 [G, N, K]."""
    tokens, codebook = tokens.double(), codebook.double()
    return tokens @ codebook.mT - codebook.square().sum(-1)[:, None] / 2


@pytest.mark.parametrize("shape", LARGE if GPU else SMALL, ids=str)
@pytest.mark.parametrize("kind", ["normal", "far from zero", "all equal", "in clusters"])
def test_every_choice_is_the_nearest_code_in_float32(shape, kind):
    groups, count, size, dim = shape
    draw = torch.Generator().manual_seed(0)
    tokens, codebook = (torch.randn(groups, n, dim, generator=draw) for n in (count, size))
    if kind == "far from zero":  # every score is within what bfloat16 rounds away
        tokens, codebook = tokens + 10, 0.1 * codebook + 10
    elif kind == "all equal":
        codebook = codebook[:, :1].expand(-1, size, -1).contiguous()
    elif kind == "in clusters":
        codebook = codebook[:, torch.arange(size) // 50] + 1e-3 * codebook
    codes = nearest(tokens, codebook)
    scores = nearness(tokens, codebook)
    lost = scores.amax(-1) - scores.gather(-1, codes.unsqueeze(-1)).squeeze(-1)
    rounding = tokens.norm(dim=-1).amax() * codebook.norm(dim=-1).amax() * dim * 2.0**-23
    assert lost.max() <= rounding
    if kind == "all equal":
        assert not codes.any()


def test_tokens_that_are_not_finite_get_some_code():
    for dim in (2, 32):
        draw = torch.Generator().manual_seed(0)
        tokens, codebook = (torch.randn(1, n, dim, generator=draw) for n in (20, 64))
        tokens[0, 3, 0], tokens[0, 7, 1] = torch.nan, torch.inf
        codes = nearest(tokens, codebook)
        assert 0 <= codes.min() and codes.max() < 64
        whole = torch.ones(20, dtype=torch.bool)
        whole[[3, 7]] = False
        assert torch.equal(codes[0, whole], nearness(tokens, codebook).argmax(-1)[0, whole])


def quantizer():
    settings = QuantizerSettings(
        kind="vq", codebook_size=256, codebook_dim=2, groups=4, decay=0.9, revival_threshold=0.1
    )
    return VectorQuantizer(8, settings)


def run(model, device):
    draw = torch.Generator().manual_seed(0)
    for step in range(3):
        model(torch.randn(20000, 8, generator=draw).to(device), collect=True)
        metrics = model.commit(0, step)
    return metrics


@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_a_codebook_learns_what_it_learns_on_a_cpu_and_twice_the_same():
    cpu, gpu, again = quantizer(), quantizer().cuda(), quantizer().cuda()
    torch.use_deterministic_algorithms(True)
    try:
        found, known = run(gpu, "cuda"), run(cpu, "cpu")
        run(again, "cuda")
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(gpu.buffers(), again.buffers(), strict=True))
    same = torch.isclose(gpu.codebook.cpu(), cpu.codebook, rtol=1e-4, atol=1e-4)
    assert same.float().mean() > 0.99  # a token halfway between two codes may move either
    torch.testing.assert_close(found["codebook/error"].cpu(), known["codebook/error"], rtol=1e-5, atol=0)


@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_autocast_flips_no_code_and_a_compiler_takes_it_whole():
    model = quantizer().cuda()
    x = torch.randn(1000, 8, device="cuda")
    codes = model(x).codes
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(model(x).codes, codes)
    assert torch.equal(torch.compile(model, fullgraph=True)(x).codes, codes)
