"""Latents that others have made, as samples for `write_shards`: WebDataset tars, folders of safetensors."""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load

from qdm_pipeline.errors import InputError
from qdm_pipeline.video.folder import SPLITS
from qdm_pipeline.video.shards import Sample

Parts = dict[str, bytes]  # what belongs to one sample, by the name after its key


def read_tars(tars: Iterable[Path], split: str = "train") -> Iterator[Sample]:
    """Samples of WebDataset ``tars``: consecutive members KEY.NAME that share KEY, one at a time in memory.

    A ``.npy`` or ``.safetensors`` member is a tensor, or several by their names; of ``a.npy`` the field is
    ``a``, of ``npy`` alone ``latent``. ``txt`` is the caption, ``cls`` the number of the class, ``json`` an
    object with caption, label or split; else the split is ``split``. Pickles (``.pt``, ``.pyd``) are refused,
    since they run code. `InputError` names the tar and the key.
    """
    count = 0
    for tar in tars:
        try:
            with tarfile.open(tar) as archive:
                for key, parts in _groups(archive):
                    yield _sample(f"{tar}, {key}", key, parts, split, count)
                    count += 1
        except tarfile.TarError as error:
            raise InputError(f"{tar}: no readable tar ({error})") from None


def read_folder(folder: Path, split: str = "train") -> Iterator[Sample]:
    """Samples of a ``folder`` with a ``KEY.safetensors`` for each; ``.txt``, ``.json`` as in `read_tars`."""
    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: no .safetensors in it")
    for number, file in enumerate(files):
        beside = (file, file.with_suffix(".txt"), file.with_suffix(".json"), file.with_suffix(".cls"))
        parts = {path.suffix[1:]: path.read_bytes() for path in beside if path.is_file()}
        key = file.relative_to(folder).with_suffix("").as_posix()
        yield _sample(str(file), key, parts, split, number)


def _groups(archive: tarfile.TarFile) -> Iterator[tuple[str, Parts]]:
    """Key and parts of consecutive members; a key ends at the first dot of the last part of the path."""
    key, parts = "", Parts()
    for member in archive:
        if not member.isfile():
            continue
        folder, _, name = member.name.rpartition("/")
        stem, _, suffix = name.partition(".")
        found = f"{folder}/{stem}" if folder else stem
        if found != key and parts:
            yield key, parts
            parts = Parts()
        key = found
        content = archive.extractfile(member)
        assert content is not None  # it is a file
        parts[suffix.lower()] = content.read()
    if parts:
        yield key, parts


def _sample(where: str, key: str, parts: Parts, split: str, number: int) -> Sample:
    columns: dict[str, Any] = {"id": number, "file": key, "split": split, "label": None, "caption": None}
    tensors: dict[str, torch.Tensor] = {}
    try:
        for suffix, content in parts.items():
            name, _, kind = suffix.rpartition(".")
            match kind:
                case "npy":
                    array = np.load(io.BytesIO(content), allow_pickle=False)
                    tensors[name or "latent"] = torch.from_numpy(array)
                case "safetensors":
                    tensors |= load(content)
                case "txt":
                    columns["caption"] = content.decode().strip()
                case "cls":
                    columns["label"] = int(content)
                case "json":
                    said = json.loads(content)
                    columns |= {name: said[name] for name in ("caption", "label", "split") if name in said}
                case "pt" | "pth" | "pyd" | "pickle" | "pkl":
                    raise ValueError(f"{suffix} is a pickle, which can run code: save .npy or .safetensors")
    except (ValueError, SafetensorError, EOFError) as error:
        raise InputError(f"{where}: {error}") from None
    if not tensors:
        raise InputError(f"{where}: no tensor in {', '.join(sorted(parts))}")
    if columns["split"] not in SPLITS:
        raise InputError(f"{where}: split {columns['split']!r}, allowed are {', '.join(SPLITS)}")
    return tensors, columns
