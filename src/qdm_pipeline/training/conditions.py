"""From the table beside the latents to what a predictor is conditioned on."""

import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from qdm_pipeline.errors import InputError
from qdm_pipeline.models.predictor import Condition, PredictorConfig
from qdm_pipeline.video.shards import ShardSet

Kind = Literal["class", "caption", "none"]


def words_of(caption: str) -> list[str]:
    """The lower-case words of a caption."""
    return re.findall(r"\w+", caption.lower())


def conditioning(latents: ShardSet, kind: Kind) -> dict[str, Any]:
    """The entries of `PredictorConfig` that say what the model can be asked for.

    Raises `InputError` if the clips have no labels or captions although the settings want them.
    """
    none: dict[str, Any] = {"classes": (), "vocabulary": (), "caption_length": 0}
    if kind == "class":
        classes = latents.manifest.get("classes")
        if not classes:
            raise InputError(
                "condition: found 'class', but the clips have no labels; allowed are 'caption', 'none'"
            )
        return {**none, "classes": tuple(classes)}
    if kind == "caption":
        captions = latents.column("caption")
        train = [captions[row] for row in latents.rows("train").tolist()]
        if any(caption is None for caption in train):
            raise InputError(
                "condition: found 'caption', but some clips have none; allowed are 'class', 'none'"
            )
        sentences = [words_of(caption) for caption in train]
        vocabulary = sorted({word for sentence in sentences for word in sentence})
        return {**none, "vocabulary": tuple(vocabulary), "caption_length": max(map(len, sentences))}
    return none


def from_captions(captions: Sequence[str], config: PredictorConfig) -> Tensor:
    """Word indices int64 [B, caption_length], -1 padded.

    Raises `InputError` for a word that the model was not trained on, or a caption that is too long.
    """
    index = {word: position for position, word in enumerate(config.vocabulary)}
    rows = torch.full((len(captions), config.caption_length), -1)
    for row, caption in zip(rows, captions, strict=True):
        words = words_of(caption)
        unknown = [word for word in words if word not in index]
        if unknown or len(words) > config.caption_length:
            found = f"unknown words {unknown}" if unknown else f"{len(words)} words"
            raise InputError(
                f"caption {caption!r}: {found}; this model knows {', '.join(config.vocabulary)} "
                f"and takes at most {config.caption_length} words"
            )
        row[: len(words)] = torch.tensor([index[word] for word in words], dtype=torch.int64)
    return rows


def of_clips(latents: ShardSet, rows: Tensor, config: PredictorConfig) -> Condition:
    """The condition of every clip in ``rows``, in that order."""
    label = words = None
    if config.classes:
        labels = latents.column("label")
        label = torch.tensor([-1 if labels[row] is None else labels[row] for row in rows.tolist()])
    if config.vocabulary:
        captions = latents.column("caption")
        words = from_captions([captions[row] for row in rows.tolist()], config)
    return Condition(label, words)
