import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import drift
from torch.utils.checkpoint import checkpoint

from qdm_pipeline.models.quantizer import QuantizerSettings, VectorQuantizer
from qdm_pipeline.models.search import CHUNK_SCORES, nearest


def make(**changes):
    settings = (
        dict(kind="vq", codebook_size=16, codebook_dim=3, groups=2, decay=0.9, revival_threshold=0.1)
        | changes
    )
    torch.manual_seed(0)
    return VectorQuantizer(12, QuantizerSettings(**settings))


def test_nearest_agrees_with_all_distances_in_float64():
    tokens, codebook = torch.randn(3, 500, 8), torch.randn(3, 40, 8)
    distances = torch.cdist(tokens.double(), codebook.double())
    assert torch.equal(nearest(tokens, codebook), distances.argmin(-1))


def test_chunks_do_not_change_the_choice(monkeypatch):
    tokens, codebook = torch.randn(2, 101, 4), torch.randn(2, 16, 4)
    whole = nearest(tokens, codebook)
    monkeypatch.setitem(CHUNK_SCORES, "cpu", 7 * 32 * 2)
    assert torch.equal(nearest(tokens, codebook), whole)


def test_output_is_the_code_exactly_and_the_gradient_goes_straight_through():
    quantizer = make()
    embedding = torch.randn(5, 7, 12, requires_grad=True)
    quantized = quantizer(embedding)
    assert torch.equal(quantized.output, quantizer.decode_codes(quantized.codes))
    quantized.output.sum().backward()
    expected = quantizer.project_out.weight.sum(0) @ quantizer.project_in.weight
    assert torch.allclose(embedding.grad, expected.expand_as(embedding), atol=1e-6)


def test_an_embedding_is_the_sum_of_what_its_codes_add():
    quantizer, codes = make(), torch.randint(16, (20, 2))
    embeddings = quantizer.group_embeddings()
    added = sum(embeddings[group, codes[:, group]] for group in range(2)) + quantizer.project_out.bias
    assert torch.allclose(quantizer.decode_codes(codes), added, atol=1e-6)


def test_commitment_pulls_tokens_only():
    quantizer = make()
    before = quantizer.codebook.clone()
    quantizer(torch.randn(9, 12)).commitment.backward()
    assert quantizer.project_in.weight.grad is not None and quantizer.project_out.weight.grad is None
    assert torch.equal(quantizer.codebook, before)


def test_only_commit_moves_the_codebook_and_only_from_collected_tokens():
    quantizer = make()
    before = quantizer.codebook.clone()
    quantizer(torch.randn(50, 12))
    assert float(quantizer.commit(0, 0)["codebook/replaced"]) == 0
    quantizer(torch.randn(50, 12), collect=True)
    assert torch.equal(quantizer.codebook, before)
    quantizer.commit(0, 1)
    assert not torch.equal(quantizer.codebook, before)


def test_update_is_the_moving_average_of_its_definition():
    quantizer = make(groups=1, revival_threshold=0.0)
    with torch.no_grad():
        quantizer.initialised.fill_(True)
        counts, sums = quantizer.counts.double(), quantizer.sums.double()
        embedding = torch.randn(200, 12)
        codes = quantizer(embedding, collect=True).codes[:, 0]
        tokens = quantizer.project_in(embedding).double()
        quantizer.commit(0, 0)
    one_hot = torch.nn.functional.one_hot(codes, 16).double()
    counts = 0.9 * counts + 0.1 * one_hot.sum(0)
    sums = 0.9 * sums + 0.1 * (one_hot.T @ tokens)
    smoothed = (counts + 1e-5) * counts.sum() / (counts.sum() + 16e-5)
    assert torch.allclose(quantizer.codebook[0].double(), (sums[0] / smoothed[0, :, None]), atol=1e-5)


def test_first_commit_puts_the_codes_onto_data():
    quantizer = make()
    embedding = torch.randn(300, 12)
    quantizer(embedding, collect=True)
    quantizer.commit(0, 0)
    tokens = quantizer.project_in(embedding).view(300, 2, 3).transpose(0, 1)
    assert torch.cdist(quantizer.codebook, tokens).amin(-1).max() < 1e-3


def test_dead_codes_are_revived_from_data():
    quantizer = make(codebook_size=8)
    quantizer(torch.randn(400, 12), collect=True)
    quantizer.commit(0, 0)
    with torch.no_grad():
        quantizer.codebook[:, 0] += 100
        quantizer.sums[:, 0] = quantizer.codebook[:, 0] * quantizer.counts[:, 0, None]
    replaced = 0.0
    for step in range(1, 60):
        quantizer(torch.randn(400, 12), collect=True)
        replaced += quantizer.commit(0, step)["codebook/replaced"]
    assert replaced >= 1
    assert quantizer(torch.randn(4000, 12)).codes[:, 0].unique().numel() == 8


def test_non_finite_tokens_are_counted_and_left_out():
    clean, dirty = make(), make()
    embedding = torch.randn(100, 12)
    clean(embedding, collect=True)
    dirty(
        torch.cat([embedding, torch.full((1, 12), float("nan")), torch.full((1, 12), float("inf"))]),
        collect=True,
    )
    clean.commit(0, 0)
    assert dirty.commit(0, 0)["codebook/left_out"] == 2
    assert dirty.codebook.isfinite().all() and torch.equal(dirty.counts, clean.counts)


def test_two_ranks_move_as_one():
    whole, parts = make(revival_threshold=0.0), [make(revival_threshold=0.0) for _ in range(2)]
    for quantizer in [whole, *parts]:
        quantizer.initialised.fill_(True)
    embedding = torch.randn(90, 12)
    whole(embedding, collect=True)
    whole.commit(0, 0)
    for part, rows in zip(parts, embedding.split([60, 30]), strict=True):
        part(rows, collect=True)
    seen = []
    parts[0].commit(0, 0, 0, 2, lambda batch: seen.append(batch.clone()))
    parts[1].commit(0, 0, 1, 2, lambda batch: batch.add_(seen[0]))
    assert torch.allclose(parts[1].codebook, whole.codebook, atol=1e-6)


def test_state_stays_float32_under_casts_and_autocast():
    quantizer = make().bfloat16()
    assert quantizer.codebook.dtype == quantizer.counts.dtype == torch.float32
    quantizer = make()
    embedding = torch.randn(200, 12)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer(embedding).codes, make()(embedding).codes)


def test_state_dict_resumes_exactly():
    first = make()
    for step in range(3):
        first(torch.randn(100, 12), collect=True)
        first.commit(0, step)
    second = make()
    second.load_state_dict(first.state_dict())
    embedding = torch.randn(100, 12)
    for quantizer in (first, second):
        quantizer(embedding, collect=True)
        quantizer.commit(0, 3)
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    "wrong", [{"codebook_size": 1}, {"groups": 0}, {"decay": 1.0}, {"revival_threshold": -1}]
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make(**wrong)


def test_masked_tokens_neither_teach_nor_count():
    whole, masked = make(), make()
    embedding = torch.randn(80, 12)
    mask = torch.arange(80) < 50
    whole(embedding[:50], collect=True)
    quantized = masked(embedding, collect=True, mask=mask)
    assert torch.equal(masked.collected, whole.collected) and masked.tally[0] == 0
    alone = whole(embedding[:50])
    assert torch.allclose(quantized.commitment, alone.commitment)
    (quantized.commitment + alone.commitment).backward()
    assert torch.allclose(masked.project_in.weight.grad, whole.project_in.weight.grad, atol=1e-6)
    assert make()(embedding, mask=torch.zeros(80, dtype=torch.bool)).commitment == 0


def test_without_a_change_of_width_there_are_no_projections():
    settings = QuantizerSettings(
        kind="vq", codebook_size=16, codebook_dim=3, groups=4, decay=0.9, revival_threshold=0.1
    )
    quantizer = VectorQuantizer(12, settings)
    assert not list(quantizer.parameters())
    quantized = quantizer(torch.randn(5, 12))
    rows = quantizer.group_embeddings()
    added = sum(rows[g, quantized.codes[:, g]] for g in range(4)) + quantizer.bias
    assert torch.equal(quantized.output, added) and quantized.output.shape == (5, 12)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_in_backward_collects_nothing_twice(reentrant):
    quantizer, embedding = make(), torch.randn(40, 12, requires_grad=True)
    output = checkpoint(lambda x: quantizer(x, collect=True).output, embedding, use_reentrant=reentrant)
    once = quantizer.collected.clone()
    output.sum().backward()
    assert torch.equal(quantizer.collected, once) and once[..., -1].sum() == 80


def test_one_non_finite_token_changes_no_other_code():
    quantizer, embedding = make(), torch.randn(100, 12)
    codes = quantizer(embedding).codes
    embedding[17] = float("inf")
    dirty = quantizer(embedding).codes
    others = torch.arange(100) != 17
    assert torch.equal(dirty[others], codes[others]) and 0 <= dirty.min() and dirty.max() < 16


@pytest.mark.parametrize("size", [2, 31, 32, 100])
def test_search_takes_any_number_of_codes(size):
    tokens, codebook = torch.randn(2, 60, 5), torch.randn(2, size, 5)
    assert torch.equal(nearest(tokens, codebook), torch.cdist(tokens.double(), codebook.double()).argmin(-1))


def test_error_is_relative_to_the_spread_of_the_tokens():
    quantizer = make(groups=1)
    embedding = torch.randn(500, 12)
    quantizer(embedding, collect=True)
    quantizer.commit(0, 0)
    with torch.no_grad():
        tokens = quantizer.project_in(embedding).double()
    codes = quantizer(embedding, collect=True).codes[:, 0]
    chosen = quantizer.codebook[0, codes].double()
    expected = (tokens - chosen).square().sum() / (tokens - tokens.mean(0)).square().sum()
    assert float(quantizer.commit(0, 1)["codebook/error"]) == pytest.approx(float(expected), rel=1e-4)
    assert torch.equal(quantizer.take_usage().sum(), torch.tensor(1000.0)) and not quantizer.usage.any()


def test_compiles_as_one_graph_with_the_same_answers():
    plain, compiled = make(), make()
    graph = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for step in range(3):
        embedding = torch.randn(50, 12)
        a, b = plain(embedding, collect=True), graph(embedding, collect=True)
        assert torch.equal(a.codes, b.codes) and torch.allclose(a.output, b.output, atol=1e-6)
        plain.commit(0, step)
        compiled.commit(0, step)
    assert torch.allclose(plain.codebook, compiled.codebook, atol=1e-6)
    assert torch._dynamo.explain(compiled)(embedding, collect=True).graph_break_count == 0


def ranks(world, folder):
    """The states of the processes of tests/models/quantizer_rank.py."""
    script = Path(__file__).with_name("quantizer_rank.py")
    commands = [[sys.executable, script, str(rank), str(world), folder] for rank in range(world)]
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait(120) for process in processes] == world * [0]
    return [torch.load(folder / f"{rank}-of-{world}.pt") for rank in range(world)]


def test_processes_move_one_codebook(tmp_path):
    """Uneven shares and an empty one; modules built before and after the process group."""
    (alone,) = ranks(1, tmp_path)
    for world in (2, 4):
        found = ranks(world, tmp_path)
        for state in found:
            assert state["calls"] == alone["calls"]  # one collective a step
            for name in ("plain", "reviving"):
                assert all(torch.equal(state[name][key], found[0][name][key]) for key in state[name])
        together, single = (state["plain"]["codebook"].double() for state in (found[0], alone))
        assert float((together - single).norm() / single.norm()) <= 1e-6


def test_a_small_codebook_follows_its_drifting_tokens():
    found = drift.follow(256, drift=True, decay=0.9, threshold=0.25)
    assert found["utilization"] == 1 and found["perplexity"] > 0.85 and found["churn"] < 0.004
    slow = drift.follow(256, drift=True, decay=0.999, threshold=0.0)
    assert slow["error"] > 1.3 * found["error"]
