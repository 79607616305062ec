"""The search kernels of a GPU against float64 on the CPU; `make test-gpu` runs these where only torch is."""

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

from qdm_pipeline.models import search_gpu
from qdm_pipeline.models.quantizer import QuantizerSettings, VectorQuantizer
from qdm_pipeline.models.search import nearest


def nearness(tokens, codebook):
    """-|x - e|^2 / 2 up to a constant a token: float64 [G, N, K]."""
    tokens, codebook = tokens.double(), codebook.double()
    return tokens @ codebook.mT - codebook.square().sum(-1)[:, None] / 2


@pytest.mark.parametrize("shape", [(8, 5000, 16384, 2), (1, 999, 1000, 5), (2, 70, 65, 8), (1, 300, 512, 12),
                                   (2, 4000, 8192, 16), (1, 999, 1001, 32), (1, 500, 4096, 48),
                                   (2, 2000, 16384, 256), (1, 100, 1000, 384)], ids=str)  # fmt: skip
@pytest.mark.parametrize("kind", ["normal", "far from zero", "all equal", "in clusters"])
def test_every_choice_is_the_nearest_code_in_float32(shape, kind, monkeypatch):
    monkeypatch.setattr(search_gpu, "CHUNK", 1000)
    groups, count, size, dim = shape
    draw = torch.Generator().manual_seed(0)
    tokens, codebook = (torch.randn(groups, n, dim, generator=draw) for n in (count, size))
    if kind == "far from zero":  # every score is within what bfloat16 rounds away
        tokens, codebook = tokens + 10, 0.1 * codebook + 10
    elif kind == "all equal":
        codebook = codebook[:, :1].expand(-1, size, -1).contiguous()
    elif kind == "in clusters":
        codebook = codebook[:, torch.arange(size) // 50] + 1e-3 * codebook
    codes = nearest(tokens.cuda(), codebook.cuda()).cpu()
    scores = nearness(tokens, codebook)
    lost = scores.amax(-1) - scores.gather(-1, codes.unsqueeze(-1)).squeeze(-1)
    rounding = tokens.norm(dim=-1).amax() * codebook.norm(dim=-1).amax() * dim * 2.0**-23
    assert lost.max() <= rounding
    if kind == "all equal":
        assert not codes.any()


def test_tokens_that_are_not_finite_get_some_code():
    for dim in (2, 32):
        tokens = torch.randn(1, 100, dim, device="cuda")
        tokens[0, 3, 0], tokens[0, 7, 1] = torch.nan, torch.inf
        codebook = torch.randn(1, 64, dim, device="cuda")
        codes = nearest(tokens, codebook)
        assert 0 <= codes.min() and codes.max() < 64
        whole = torch.ones(100, dtype=torch.bool)
        whole[[3, 7]] = False
        assert torch.equal(codes[0, whole].cpu(), nearness(tokens.cpu(), codebook.cpu()).argmax(-1)[0, whole])


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


def test_a_codebook_learns_what_it_learns_on_a_cpu_and_twice_the_same():
    cpu, gpu, again = quantizer(), quantizer().cuda(), quantizer().cuda()
    torch.use_deterministic_algorithms(True)
    try:
        found, known = run(gpu, "cuda"), run(cpu, "cpu")
        run(again, "cuda")
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(gpu.buffers(), again.buffers(), strict=True))
    torch.testing.assert_close(gpu.codebook.cpu(), cpu.codebook, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["codebook/error"].cpu(), known["codebook/error"], rtol=1e-5, atol=0)


def test_autocast_flips_no_code_and_a_compiler_takes_it_whole():
    model = quantizer().cuda()
    x = torch.randn(1000, 8, device="cuda")
    codes = model(x).codes
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(model(x).codes, codes)
    assert torch.equal(torch.compile(model, fullgraph=True)(x).codes, codes)
