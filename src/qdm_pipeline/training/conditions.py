"""From the table beside the latents to what a predictor is conditioned on."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from qdm_pipeline.configuration import build, plain
from qdm_pipeline.errors import InputError
from qdm_pipeline.models.predictor import Condition, PredictorConfig, TextConfig
from qdm_pipeline.video.shards import ShardSet

Kind = Literal["class", "caption", "text", "none"]


@dataclass(frozen=True)
class Conditions:
    """The conditions of many samples; token states, which may be large, are read a batch at a time."""

    known: Condition  # what fits into memory: labels and words
    read: Callable[[Tensor], tuple[Tensor, Tensor]] | None  # positions [B] -> text [B, L, D], tokens [B]

    def rows(self, index: Tensor) -> Condition:
        """Those of the samples at positions ``index`` (int64 [B])."""
        known = self.known.rows(index)
        if self.read is None:
            return known
        text, tokens = self.read(index)
        return known._replace(text=text, tokens=tokens)


def words_of(caption: str) -> list[str]:
    """The lower-case words of a caption."""
    return re.findall(r"\w+", caption.lower())


def conditioning(latents: ShardSet, kind: Kind) -> dict[str, Any]:
    """The entries of `PredictorConfig` that say what the model can be asked for.

    Raises `InputError` if the clips have no labels, captions or token states although the settings want them.
    """
    none: dict[str, Any] = {"classes": (), "vocabulary": (), "caption_length": 0, "text": None}
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
    if kind == "text":
        if latents.manifest.get("text") is None:
            raise InputError(
                "condition: found 'text', but the latents have no token states; set encode.text, or "
                "condition to 'class', 'caption' or 'none'"
            )
        return {**none, "text": build(TextConfig, latents.manifest["text"])}
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


def of_clips(latents: ShardSet, rows: Tensor, config: PredictorConfig) -> Conditions:
    """The condition of every clip in ``rows``, in that order.

    `InputError` if the latents' token states are of another text encoder than the model's.
    """
    label = words = None
    if config.classes:
        labels = latents.column("label")
        label = torch.tensor([-1 if labels[row] is None else labels[row] for row in rows.tolist()])
    if config.vocabulary:
        captions = latents.column("caption")
        words = from_captions([captions[row] for row in rows.tolist()], config)
    known = Condition(label, words)
    if config.text is None:
        return Conditions(known, None)
    if (found := latents.manifest.get("text")) != plain(config.text):
        raise InputError(f"{latents.directory}: text: found {found}, the model has {plain(config.text)}")

    def read(index: Tensor) -> tuple[Tensor, Tensor]:
        return latents.gather("text", rows[index]), latents.gather("text_tokens", rows[index])

    return Conditions(known, read)


def of_samples(tensors: Mapping[str, Tensor]) -> Conditions:
    """What samples were asked to show, from what is written beside them.

    ``labels`` [N], -1 for none; ``words`` [N, L]; or ``asked`` [N], each sample's place in a table of token
    states ``text`` [A, L, D] and their counts ``text_tokens`` [A].
    """
    labels = tensors["labels"] if bool((tensors["labels"] >= 0).any()) else None
    known = Condition(labels, tensors.get("words"))
    if "text" not in tensors:
        return Conditions(known, None)
    asked, text, tokens = (tensors[name] for name in ("asked", "text", "text_tokens"))
    return Conditions(known, lambda index: (text[asked[index]], tokens[asked[index]]))
