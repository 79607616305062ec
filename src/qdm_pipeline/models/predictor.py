"""`QuantizedDiffusionPredictor`: predicts clean latents, directly and through a codebook."""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qdm_pipeline.configuration import require, settings
from qdm_pipeline.errors import InputError
from qdm_pipeline.models.lookup_free import make_quantizer
from qdm_pipeline.models.precision import apply_in_full, without_autocast
from qdm_pipeline.models.quantizer import QuantizerSettings
from qdm_pipeline.models.transformer import Reach, TransformerBlock, rotary_angles

Path = Literal["continuous", "quantized", "soft"]
Recompute = Literal["nothing", "pointwise", "blocks"]


@settings
class PredictorSettings:
    """The size of a predictor: what a preset fixes and the data does not."""

    width: int
    depth: int
    heads: int
    patch: tuple[int, int, int]  # latent positions a token covers, in time, height and width
    attention: Literal["full", "factorised"]  # factorised: blocks attend within a frame and over time in turn
    embedding_dim: int
    residual_dim: int  # numbers a latent position keeps beside its codes; 0: a sample is its codes
    quantizer: QuantizerSettings
    absolute_positions: bool = False  # beside the rotary ones; models of before these have none

    def __post_init__(self) -> None:
        require(self.depth >= 1, f"depth: found {self.depth}, must be at least 1")
        require(
            self.heads >= 1 and self.width % self.heads == 0 and self.width // self.heads % 2 == 0,
            f"heads: found {self.heads}; width {self.width} must divide into heads of an even size",
        )
        require(
            len(self.patch) == 3 and min(self.patch) >= 1,
            f"patch: found {self.patch}, must be three sizes (time, height, width) of at least 1",
        )
        require(self.embedding_dim >= 1, f"embedding_dim: found {self.embedding_dim}, must be at least 1")
        require(self.residual_dim >= 0, f"residual_dim: found {self.residual_dim}, must not be negative")


@settings
class TextConfig:
    """The token states of captions that a predictor is conditioned on: those of one frozen text encoder."""

    encoder: str  # its name or directory, see `video.text_encoder`
    digest: str  # of its files
    length: int  # tokens that a caption may have
    width: int  # of a state
    empty_tokens: int  # of the empty caption, which stands for no condition


@settings
class PredictorConfig:
    """Everything that is needed to build a predictor: its size and what the data demands."""

    size: PredictorSettings
    latent_channels: int
    classes: tuple[str, ...]  # class names, empty: not conditioned on a class
    vocabulary: tuple[str, ...]  # words of the captions, empty: not conditioned on text
    caption_length: int  # words a caption may have
    text: TextConfig | None = None  # not conditioned on token states, as models of before these were


class Condition(NamedTuple):
    """What a sample is asked to show; None where the model is not conditioned on it."""

    label: Tensor | None = None  # [B] int64; -1 asks for nothing (the unconditional model)
    words: Tensor | None = None  # [B, L] int64 indices into the vocabulary; -1 pads
    text: Tensor | None = None  # [B, L, D] token states of a text encoder, of which the first
    tokens: Tensor | None = None  # [B] count; 0 asks for nothing

    def dropped(self, drop: Tensor) -> "Condition":
        """The condition with the samples marked in ``drop`` [B] bool made unconditional."""
        label = None if self.label is None else self.label.masked_fill(drop, -1)
        words = None if self.words is None else self.words.masked_fill(drop[:, None], -1)
        tokens = None if self.tokens is None else self.tokens.masked_fill(drop, 0)
        return Condition(label, words, self.text, tokens)

    def unconditional(self) -> "Condition":
        """The same batch, asking for nothing."""
        known = next((part for part in self if part is not None), None)
        if known is None:
            return self
        return self.dropped(torch.ones(len(known), dtype=torch.bool, device=known.device))

    def rows(self, index: slice | Tensor) -> "Condition":
        """Some samples of the batch."""
        return Condition(*(None if part is None else part[index] for part in self))

    def to(self, device: torch.device) -> "Condition":
        """The condition on another device."""
        return Condition(*(None if part is None else part.to(device) for part in self))


class Prediction(NamedTuple):
    """Predicted clean latents [B, C, T, H, W] and, where they came through the codebook, how."""

    x0: Tensor
    codes: Tensor | None = None  # [B, G, T, H, W] int64
    commitment: Tensor | None = None  # []
    residual: Tensor | None = None  # [B, R, T, H, W], where the model keeps one


class QuantizedDiffusionPredictor(nn.Module):
    """A diffusion Transformer whose prediction of x0 can be read directly or through a vector quantizer.

    latents -> patches -> `TransformerBlock`s -> features h [B, T, H, W, E] at every latent position;
    continuous: x0 = final_proj(h); quantized: x0 = final_proj(VectorQuantizer(h)). ``final_proj`` is shared.
    ``absolute_positions`` adds a linear map of the rotary angles' cosines and sines to the patches: attention
    that only knows how far two tokens are apart cannot tell where in the clip either is.
    With ``residual_dim`` R > 0 the quantized path adds residual.out(r), r = residual.into(h) of R numbers.
    soft: as quantized, with the mean embedding of a choice of codes in place of the nearest code's.

    ``empty_text``, the token states of the empty caption, is filled in with the data's.
    `recompute` says what is kept for backward.
    """

    empty_text: Tensor  # [empty_tokens, D]

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.config = config
        self._checkpoint_blocks = False
        size, width = config.size, config.size.width
        patch_volume = math.prod(size.patch)
        self.patch_in = nn.Linear(config.latent_channels * patch_volume, width)
        self.position_in = (
            nn.Linear(width // size.heads, width, bias=False) if size.absolute_positions else None
        )
        self.time_mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Linear(width, 6 * width)
        self.class_embedding = nn.Embedding(len(config.classes) + 1, width) if config.classes else None
        self.word_embedding = nn.Embedding(len(config.vocabulary) + 1, width) if config.vocabulary else None
        self.word_position = (
            nn.Parameter(0.02 * torch.randn(config.caption_length, width)) if config.vocabulary else None
        )
        self.text_in = nn.Linear(config.text.width, width) if config.text else None
        if config.text:
            self.register_buffer("empty_text", torch.zeros(config.text.empty_tokens, config.text.width))
        cross_attention = bool(config.vocabulary) or config.text is not None
        reaches: tuple[Reach, ...] = ("all",) if size.attention == "full" else ("frame", "position")
        self.blocks = nn.ModuleList(
            TransformerBlock(width, size.heads, cross_attention, reaches[index % len(reaches)])
            for index in range(size.depth)
        )
        self.final_modulation = nn.Linear(width, 2 * width)
        self.patch_out = nn.Linear(width, size.embedding_dim * patch_volume)
        self.quantizer = make_quantizer(size.embedding_dim, size.quantizer)
        self.final_proj = nn.Conv3d(size.embedding_dim, config.latent_channels, 1)
        self.residual = nn.ModuleDict()
        if size.residual_dim:
            self.residual["into"] = nn.Linear(size.embedding_dim, size.residual_dim)
            self.residual["out"] = nn.Linear(size.residual_dim, config.latent_channels, bias=False)
        for layer in (
            self.modulation,
            self.final_modulation,
        ):  # adaLN-zero: every block starts as the identity
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def recompute(self, what: Recompute) -> None:
        """What backward computes again instead of keeping it.

        ``pointwise``: norms, modulation and GELU; ``blocks``: all but the inputs of blocks.
        """
        self._checkpoint_blocks = what == "blocks"
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)
            block.recompute = what == "pointwise"

    def forward(
        self, x_t: Tensor, t: Tensor, condition: Condition, path: Path = "continuous", collect: bool = False
    ) -> Prediction:
        """Predict x0 from latents x_t [B, C, T, H, W] at times t [B]."""
        return self.read(self.features(x_t, t, condition), path, collect)

    def features(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """What the prediction is read from: [B, T, H, W, embedding_dim].

        Raises `InputError` where the latent shape does not divide into patches.
        """
        size = self.config.size
        grid = self._grid(x_t)
        pt, ph, pw = size.patch
        x = rearrange(x_t, "b c (t pt) (h ph) (w pw) -> b (t h w) (c pt ph pw)", pt=pt, ph=ph, pw=pw)
        x = self.patch_in(x)
        signal, text, text_mask = self._embed(t, condition)
        modulation = self.modulation(F.silu(signal)).unflatten(-1, (6, -1))
        angles = rotary_angles(grid, size.width // size.heads, x.device)
        rotary = angles.cos(), angles.sin()
        if self.position_in is not None:
            x = x + self.position_in(torch.cat(rotary, dim=-1).to(x.dtype))
        for block in self.blocks:
            inputs = (x, grid[0], modulation, rotary, text, text_mask)
            if self._checkpoint_blocks and torch.is_grad_enabled():
                x = checkpoint(block, *inputs, use_reentrant=False)
            else:
                x = block(*inputs)
        shift, scale = self.final_modulation(F.silu(signal)).unsqueeze(1).chunk(2, dim=-1)
        x = self.patch_out(F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift)
        return rearrange(
            x, "b (t h w) (e pt ph pw) -> b (t pt) (h ph) (w pw) e",
            t=grid[0], h=grid[1], w=grid[2], pt=pt, ph=ph, pw=pw,
        )  # fmt: skip

    def read_codes(self, needed: bool) -> None:
        """Whether what only the paths through the codebook read is to get a gradient."""
        self.quantizer.requires_grad_(needed)
        self.residual.requires_grad_(needed)

    def read(
        self, features: Tensor, path: Path, collect: bool = False, temperature: float = 1.0
    ) -> Prediction:
        """Features [B, T, H, W, E] -> the prediction.

        ``collect`` as in `Quantizer.forward`; ``temperature`` of the path ``soft``, see `Quantizer.logits`.
        """
        if path == "continuous":
            return Prediction(self._project(features))
        residual = None
        if self.residual:
            residual = rearrange(apply_in_full(self.residual["into"], features), "b t h w r -> b r t h w")
        if path == "soft":
            expected = self._project(self.quantizer.expected(features, temperature))
            return Prediction(self._add_residual(expected, residual), residual=residual)
        quantized = self.quantizer(features, collect)
        codes = rearrange(quantized.codes, "b t h w g -> b g t h w")
        if torch.is_grad_enabled():
            x0 = self._add_residual(self._project(quantized.output), residual)
        else:
            x0 = self.decode_codes(codes, residual)
        return Prediction(x0, codes, quantized.commitment, residual)

    def decode_codes(self, codes: Tensor, residual: Tensor | None = None) -> Tensor:
        """Latents [B, C, T, H, W] of codes [B, G, T, H, W]: what the quantized path gives without gradient.

        To the bit, in any batch: all behind the codebook is affine, so a sample is a sum of rows of a small
        table, while the bits of a matrix product would depend on how many rows it has. A model that keeps
        a ``residual`` [B, R, T, H, W] takes it here; without it the codes alone are decoded.
        """
        with without_autocast(codes):
            projection = self.final_proj.weight.flatten(1).float()
            table = self.quantizer.group_embeddings() @ projection.T  # [G, K, C]
            x0 = self._project(self.quantizer.bias.view(1, 1, 1, 1, -1)).flatten().float()
            for group, chosen in zip(table, codes.long().unbind(1), strict=True):
                x0 = x0 + group[chosen]
        return self._add_residual(rearrange(x0, "b t h w c -> b c t h w").contiguous(), residual)

    def _add_residual(self, x0: Tensor, residual: Tensor | None) -> Tensor:
        if residual is None:
            return x0
        added = apply_in_full(self.residual["out"], rearrange(residual, "b r t h w -> b t h w r"))
        return x0 + rearrange(added, "b t h w c -> b c t h w")

    def _project(self, embedding: Tensor) -> Tensor:
        # A 1x1x1 convolution as the matrix product it is, in the precision of its weights under any autocast.
        with without_autocast(embedding):
            weight = self.final_proj.weight.flatten(1)
            projected = F.linear(embedding.to(weight.dtype), weight, self.final_proj.bias)
        return rearrange(projected, "b t h w c -> b c t h w").contiguous()

    def _grid(self, x_t: Tensor) -> tuple[int, int, int]:
        shape, patch = tuple(x_t.shape[2:]), self.config.size.patch
        if x_t.shape[1] != self.config.latent_channels or any(
            n % p for n, p in zip(shape, patch, strict=True)
        ):
            raise InputError(
                f"latents: found {x_t.shape[1]} channels of (time, height, width) {shape}; this model takes "
                f"{self.config.latent_channels} channels and sizes divisible by its patch {patch}"
            )
        return shape[0] // patch[0], shape[1] // patch[1], shape[2] // patch[2]

    def _embed(self, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor | None, Tensor | None]:
        signal = self.time_mlp(timestep_embedding(t).to(self.modulation.weight.dtype))
        text = mask = None
        if self.class_embedding is not None:
            label = (
                condition.label if condition.label is not None else torch.full_like(t, -1, dtype=torch.int64)
            )
            signal = signal + self.class_embedding(label + 1)
        if self.word_embedding is not None and self.word_position is not None:
            words = condition.words
            if words is None:
                words = torch.full((len(t), 1), -1, device=t.device)
            text = self.word_embedding(words + 1) + self.word_position[: words.shape[1]]
            mask = words >= 0
            mask[:, 0] = True  # an empty caption attends to one padding word
        if self.text_in is not None:
            states, mask = self._asked_text(condition, len(t))
            text = self.text_in(F.rms_norm(states, states.shape[-1:]))  # encoders differ in scale
        return signal, text, mask

    def _asked_text(self, condition: Condition, batch: int) -> tuple[Tensor, Tensor]:
        """Token states [B, L, D] and mask [B, L], the empty caption's where nothing is asked for."""
        empty: Tensor = self.empty_text
        count = len(empty)
        if condition.text is None or condition.tokens is None:
            return empty.expand(batch, -1, -1), empty.new_ones(batch, count, dtype=torch.bool)
        length, asks = condition.text.shape[1], condition.tokens > 0
        padded = F.pad(empty, (0, 0, 0, length - count))
        states = torch.where(asks[:, None, None], condition.text.to(empty.dtype), padded)
        tokens = torch.where(asks, condition.tokens, count)
        return states, torch.arange(length, device=tokens.device) < tokens[:, None]


def timestep_embedding(t: Tensor) -> Tensor:
    """Sinusoidal features [B, 256] of times [B] in [0, 1] (Vaswani et al. 2017, arXiv:1706.03762)."""
    frequencies = torch.exp(
        -math.log(10_000.0) * torch.arange(128, device=t.device, dtype=torch.float32) / 128
    )
    angles = 1000.0 * t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
