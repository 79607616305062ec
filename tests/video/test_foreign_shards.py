import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qdm_pipeline.errors import InputError
from qdm_pipeline.video.foreign_shards import read_folder, read_tars
from qdm_pipeline.video.shards import write_shards


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def latent(value: int) -> np.ndarray:
    return np.full((2, 3), value, dtype=np.float16)


def test_webdataset_tars_become_shards(tmp_path: Path) -> None:
    first = write_tar(tmp_path / "0.tar", {
        "a/0.latent.npy": npy(latent(0)), "a/0.text.npy": npy(np.ones(4, np.float32)), "a/0.txt": b" a cat\n",
        "a/1.latent.npy": npy(latent(1)), "a/1.text.npy": npy(np.ones(4, np.float32)),
        "a/1.json": json.dumps({"caption": "a dog", "label": 3, "split": "test"}).encode(),
    })  # fmt: skip
    second = write_tar(tmp_path / "1.tar", {
        "b.latent.npy": npy(latent(2)), "b.text.npy": npy(np.ones(4, np.float32)), "b.cls": b"7",
    })  # fmt: skip
    shards = write_shards(tmp_path / "shards", read_tars([first, second]), {"kind": "latents"}, 2)
    assert shards.column("file") == ["a/0", "a/1", "b"]
    assert shards.column("caption") == ["a cat", "a dog", None] and shards.column("label") == [None, 3, 7]
    assert shards.column("split") == ["train", "test", "train"]
    found = shards.gather("latent", torch.arange(3))
    assert found.dtype == torch.float16 and found[:, 0, 0].tolist() == [0, 1, 2]


def test_a_folder_of_safetensors_becomes_shards(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for number, name in enumerate(("deep/x", "y")):
        tensors = {"latent": torch.full((2, 3), number, dtype=torch.bfloat16)}
        save_file(tensors, tmp_path / f"{name}.safetensors")
    (tmp_path / "y.txt").write_text("a bird")
    shards = write_shards(tmp_path / "out", read_folder(tmp_path), {}, 2)
    assert shards.column("file") == ["deep/x", "y"] and shards.column("caption") == [None, "a bird"]
    assert shards.gather("latent", torch.arange(2)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"a.pt": b"x"}, "0.tar, a: pt is a pickle"),
        ({"a.txt": b"x"}, "0.tar, a: no tensor in txt"),
        ({"a.npy": b"x"}, "0.tar, a: "),
        ({"a.npy": npy(np.array([{}], dtype=object))}, "0.tar, a: Object arrays cannot be loaded"),
        ({"a.safetensors": b"\xff" * 20}, "0.tar, a: "),
        ({"a.npy": npy(latent(0)), "a.json": b'{"split": "trian"}'}, "a: split 'trian', allowed are train"),
    ],
)
def test_what_cannot_be_read_is_named(members: dict[str, bytes], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        list(read_tars([write_tar(tmp_path / "0.tar", members)]))
    (tmp_path / "1.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(InputError, match="1.tar: no readable tar"):
        list(read_tars([tmp_path / "1.tar"]))
    with pytest.raises(InputError, match="no .safetensors in it"):
        list(read_folder(tmp_path))
