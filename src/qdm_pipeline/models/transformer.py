"""The Transformer block of a diffusion Transformer (Peebles & Xie 2023, arXiv:2212.09748)."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# What a token attends to: the whole clip, its own frame, or its own place in every frame.
Reach = Literal["all", "frame", "position"]


def rotary_angles(grid: tuple[int, int, int], head_dim: int, device: torch.device) -> Tensor:
    """Angles [T*H*W, head_dim / 2] of rotary positions (Su et al. 2021, arXiv:2104.09864) on three axes.

    The pairs of a head are shared out over time, height and width; low frequencies reach across the clip.
    """
    pairs = head_dim // 2
    shares = (pairs - 2 * (pairs // 3), pairs // 3, pairs // 3)
    axes = torch.meshgrid(*(torch.arange(n, device=device, dtype=torch.float32) for n in grid), indexing="ij")
    angles = []
    for position, share in zip(axes, shares, strict=True):
        frequency = 100.0 ** (-torch.arange(share, device=device, dtype=torch.float32) / max(share, 1))
        angles.append(position.reshape(-1, 1) * frequency)
    return torch.cat(angles, dim=-1)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate the pairs of x [B, heads, N, D] by angles whose cosine and sine are [N, D / 2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of q [B, heads, N, D] to k and v [B, heads, M, D]; in float32 on the CPU.

    There the bfloat16 kernel takes five times as long, forward and backward, as the float32 one.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)


class TransformerBlock(nn.Module):
    """Self-attention, optional cross-attention to text, and an MLP, modulated by the timestep (adaLN-zero).

    The modulation is shared over blocks, to which each block adds a learned table (Chen et al. 2023,
    PixArt-alpha, arXiv:2310.00426, section 2.3). Queries and keys are RMS-normalised.
    """

    def __init__(self, width: int, heads: int, cross_attention: bool, reach: Reach = "all") -> None:
        super().__init__()
        self.heads = heads
        self.reach = reach
        self.recompute = False  # norms, modulation and GELU in backward: less memory, up to a tenth slower
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)
        self.modulation = nn.Parameter(torch.zeros(6, width))
        if cross_attention:
            self.text_query = nn.Linear(width, width, bias=False)
            self.text_key_value = nn.Linear(width, 2 * width, bias=False)
            self.text_out = nn.Linear(width, width, bias=False)
            nn.init.zeros_(self.text_out.weight)

    def forward(
        self,
        x: Tensor,  # [B, N, width], N = frames * positions
        frames: int,
        modulation: Tensor,  # [B, 6, width]
        rotary: tuple[Tensor, Tensor],  # cosine and sine, [N, head_dim / 2]
        text: Tensor | None,  # [B, L, width]
        text_mask: Tensor | None,  # [B, L] bool, True where there is a word
    ) -> Tensor:
        """One block: [B, N, width] -> [B, N, width]."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (
            (modulation + self.modulation).unsqueeze(2).unbind(1)
        )
        qkv = self._recomputed(self._to_qkv, x, shift_a, scale_a)
        x = torch.addcmul(x, gate_a, self._attend(qkv, frames, rotary))
        if text is not None and text_mask is not None:
            x = x + self._attend_text(x, text, text_mask)
        hidden = self._recomputed(self._to_hidden, x, shift_m, scale_m)
        return torch.addcmul(x, gate_m, self._recomputed(self._from_hidden, hidden))

    def _recomputed(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """``function(*inputs)``; with ``recompute`` its steps before its product are done again in backward.

        A product keeps its input; then the input's own inputs are kept, of which there are fewer. A compiler
        makes that choice itself.
        """
        if not self.recompute or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return function(*inputs)
        kept: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
        return kept

    def _to_qkv(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return self.qkv(_modulate(x, shift, scale))

    def _to_hidden(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return self.mlp_in(_modulate(x, shift, scale))

    def _from_hidden(self, hidden: Tensor) -> Tensor:
        return self.mlp_out(F.gelu(hidden, approximate="tanh"))

    def _attend(self, qkv: Tensor, frames: int, rotary: tuple[Tensor, Tensor]) -> Tensor:
        heads = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.heads)
        q, k = rotate(F.rms_norm(heads[:2], heads.shape[-1:]), *rotary).to(qkv.dtype)
        v = heads[2]
        # Positions turn relative to one another, so within a frame the angles of time drop out by themselves.
        apart = {
            "all": "b h (f s) d -> b h (f s) d",
            "frame": "b h (f s) d -> (b f) h s d",
            "position": "b h (f s) d -> (b s) h f d",
        }[self.reach]
        q, k, v = (rearrange(part, apart, f=frames) for part in (q, k, v))
        together = " -> ".join(reversed(apart.split(" -> ")))
        out = rearrange(attend(q, k, v), together, f=frames, s=qkv.shape[1] // frames)
        return self.attention_out(rearrange(out, "b h n d -> b n (h d)"))

    def _attend_text(self, x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        q = rearrange(self.text_query(F.layer_norm(x, x.shape[-1:])), "b n (h d) -> b h n d", h=self.heads)
        k, v = rearrange(self.text_key_value(text), "b l (two h d) -> two b h l d", two=2, h=self.heads)
        q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        return self.text_out(rearrange(attend(q, k, v, mask[:, None, None]), "b h n d -> b n (h d)"))


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), 1 + scale)
