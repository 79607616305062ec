"""`search.nearest` on a GPU, in Triton: scores stay in registers, and every choice is made in float32.

Short tokens are compared with all codes by multiply-add. For longer ones tensor cores compare them in
bfloat16; whoever could have won but for the rounding, which is bounded, is then compared again in float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

SHORT = 16  # numbers; tensor cores multiply no fewer
LOW = tl.bfloat16  # what tensor cores multiply
CHUNK = 1 << 17  # tokens whose lanes are held at a time


def nearest_gpu(tokens: Tensor, codebook: Tensor) -> Tensor:
    """As `search.nearest`: float32 tokens [G, N, D], codebook [G, K, D] -> int64 [G, N]."""
    tokens, codebook = tokens.contiguous(), codebook.contiguous()
    groups, count, dim = tokens.shape
    size = codebook.shape[1]
    codes = torch.empty(groups, count, dtype=torch.int64, device=tokens.device)
    if dim < SHORT:
        grid = (triton.cdiv(count, 32), groups)
        _compare[grid](tokens, codebook, codes, count, size, dim, 32, 128, num_warps=4)
        return codes
    block = triton.next_power_of_2(dim)
    width = 64 if block < 128 else 32  # lanes, of codes k = lane modulo width; each keeps its best two
    bits = (triton.cdiv(size, width) - 1).bit_length()
    rounded = torch.empty_like(codebook, dtype=torch.bfloat16 if LOW == tl.bfloat16 else torch.float16)
    offset = codebook.new_empty(groups, size)
    norms = codebook.new_empty(2, groups, size)
    _round[(size, groups)](codebook, rounded, offset, norms, size, groups, dim, block, num_warps=1)
    largest = norms.flatten(1).amax(1)
    lanes = tokens.new_empty(2, groups, min(count, CHUNK), width)
    rows = 128 if block <= 256 else 64
    for start in range(0, count, CHUNK):
        held = min(CHUNK, count - start)
        grid = (triton.cdiv(held, rows), groups)
        _screen[grid](
            tokens, rounded, offset, lanes, start, held, count, lanes.shape[2], size, groups, dim, block,
            bits, rows, width, num_warps=4, num_stages=3 if block <= 256 else 2,
        )  # fmt: skip
        _settle[(held, groups)](
            tokens, codebook, offset, lanes, largest, codes, start, count, lanes.shape[2], size, groups, dim,
            block, bits, width, 16 if block < 128 else 8, LOW, num_warps=1,
        )  # fmt: skip
    return codes


@triton.jit
def _compare(
    tokens, codebook, codes, count, size, dim: tl.constexpr, rows: tl.constexpr, lanes: tl.constexpr
):
    """Every code with ``rows`` tokens: x.e - |e|^2 / 2 by multiply-add."""
    group = tl.program_id(1).to(tl.int64)
    row, lane = tl.program_id(0) * rows + tl.arange(0, rows), tl.arange(0, lanes)
    x = tokens + (group * count + row) * dim
    best = tl.full((rows, lanes), -float("inf"), tl.float32)
    where = tl.zeros((rows, lanes), tl.int32)
    for tile in range(0, tl.cdiv(size, lanes)):
        code = tile * lanes + lane
        e = codebook + (group * size + code) * dim
        norm = tl.zeros((lanes,), tl.float32)
        score = tl.zeros((rows, lanes), tl.float32)
        for number in tl.static_range(dim):
            part = tl.load(e + number, code < size, 0.0)
            norm += part * part
            score += tl.load(x + number, row < count, 0.0)[:, None] * part[None, :]
        score += tl.where(code < size, -0.5 * norm, -float("inf"))[None, :]
        better = score > best
        best = tl.where(better, score, best)
        where = tl.where(better, tile, where)
    top = tl.max(best, 1)
    code = tl.where(best == top[:, None], where * lanes + lane[None, :], size - 1)
    tl.store(codes + group * count + row, tl.min(code, 1).to(tl.int64), row < count)


@triton.jit
def _round(codebook, rounded, offset, norms, size, groups, dim: tl.constexpr, block: tl.constexpr):
    """A code in bfloat16, -|e|^2 / 2, its norm and that of what rounding takes."""
    place = tl.program_id(1).to(tl.int64) * size + tl.program_id(0)
    number = tl.arange(0, block)
    e = tl.load(codebook + place * dim + number, number < dim, 0.0)
    low = e.to(rounded.dtype.element_ty)
    lost = e - low.to(tl.float32)
    square = tl.sum(e * e)
    tl.store(rounded + place * dim + number, low, number < dim)
    tl.store(offset + place, -0.5 * square)
    tl.store(norms + place, tl.sqrt(square))
    tl.store(norms + tl.cast(groups, tl.int64) * size + place, tl.sqrt(tl.sum(lost * lost)))


@triton.jit
def _screen(
    tokens, rounded, offset, lanes, start, held, count, stride, size, groups,
    dim: tl.constexpr, block: tl.constexpr, bits: tl.constexpr, rows: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """The best two scores of every lane, in bfloat16, with the tile they come from in their last bits."""
    group = tl.program_id(1).to(tl.int64)
    row, lane, number = (
        tl.program_id(0) * rows + tl.arange(0, rows), tl.arange(0, width), tl.arange(0, block),
    )  # fmt: skip
    at = tokens + (group * count + start + row[:, None]) * dim + number[None, :]
    x = tl.load(at, (row < held)[:, None] & (number < dim)[None, :], 0.0)
    x = x.to(rounded.dtype.element_ty)
    best = tl.full((rows, width), -3e38, tl.float32)
    second = tl.full((rows, width), -3e38, tl.float32)
    for tile in range(0, tl.cdiv(size, width)):
        code = tile * width + lane
        e = tl.load(
            rounded + (group * size + code[:, None]) * dim + number[None, :],
            (code < size)[:, None] & (number < dim)[None, :],
            0.0,
        )
        less = tl.load(offset + group * size + code, code < size, -3e38)  # finite: with bits set, inf is NaN
        score = tl.dot(x, tl.trans(e)) + less[None, :]
        score = ((score.to(tl.int32, bitcast=True) >> bits << bits) | tile).to(tl.float32, bitcast=True)
        second = tl.maximum(second, tl.minimum(best, score))
        best = tl.maximum(best, score)
    at = lanes + (group * stride + row[:, None]) * width + lane[None, :]
    tl.store(at, best, (row < held)[:, None])
    tl.store(at + tl.cast(groups, tl.int64) * stride * width, second, (row < held)[:, None])


@triton.jit
def _settle(
    tokens, codebook, offset, lanes, largest, codes, start, count, stride, size, groups,
    dim: tl.constexpr, block: tl.constexpr, bits: tl.constexpr, width: tl.constexpr, chunk: tl.constexpr,
    low: tl.constexpr,
):  # fmt: skip
    """One token with each code that may be nearest, in float32.

    That is the best of a lane, or, if its second may be nearest too, all of the lane.
    """
    group, row = tl.program_id(1).to(tl.int64), tl.program_id(0)
    lane, number = tl.arange(0, width), tl.arange(0, block)
    x = tl.load(tokens + (group * count + start + row) * dim + number, number < dim, 0.0)
    kept = x.to(low).to(tl.float32)
    norm, lost = tl.sqrt(tl.sum(kept * kept)), tl.sqrt(tl.sum((x - kept) * (x - kept)))
    at = lanes + (group * stride + row) * width + lane
    best = tl.load(at)
    second = tl.load(at + tl.cast(groups, tl.int64) * stride * width)
    top = tl.max(best)
    # x.e - x'.e' = (x - x').e + x'.(e - e') for the rounded x' and e', and what float32 sums and tiles cost.
    longest, most_lost = tl.load(largest), tl.load(largest + 1)
    wrong = lost * longest + norm * most_lost + dim * 2.0**-22 * norm * longest
    tiles = (1 << bits) * 2.0**-22 * (tl.abs(top) + wrong)
    least = top - 2 * (wrong + tiles)
    open_ = best >= least
    found, nearest = -float("inf"), 0
    left = tl.sum(open_.to(tl.int32))
    while left > 0:
        this = tl.min(tl.where(open_, lane, width))
        its_best = tl.max(tl.where(lane == this, best, -3e38))
        its_second = tl.max(tl.where(lane == this, second, -3e38))
        tile = its_best.to(tl.int32, bitcast=True) & ((1 << bits) - 1)
        first, last = tile, tile + 1
        if its_second >= least:
            first, last = 0, tl.cdiv(size, width)
        for part in range(first, last, chunk):
            its_tile = part + tl.arange(0, chunk)
            code = its_tile * width + this
            asked = (its_tile < last) & (code < size)
            e = tl.load(
                codebook + (group * size + code[:, None]) * dim + number[None, :],
                asked[:, None] & (number < dim)[None, :],
                0.0,
            )
            less = tl.load(offset + group * size + code, asked, -float("inf"))
            score = tl.sum(x[None, :] * e, 1) + less
            highest = tl.max(score)
            this_code = tl.min(tl.where(score == highest, code, size))
            better = (highest > found) | ((highest == found) & (this_code < nearest))
            found, nearest = tl.where(better, highest, found), tl.where(better, this_code, nearest)
        open_ = open_ & (lane != this)
        left -= 1
    tl.store(codes + group * count + start + row, tl.cast(nearest, tl.int64))
