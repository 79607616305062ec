"""Folders behind a URL: copied once, again only where something changed, and never half."""

import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from kedro.io import DatasetError
from kedro.io.core import parse_dataset_definition

from qdm_pipeline.errors import InputError
from qdm_pipeline.handle import Handle
from qdm_pipeline.video.remote import FETCHED, fetch, fetch_shards, upload_shards
from qdm_pipeline.video.shards import ShardSet, append_shards, write_shards

URLS = itertools.count()


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder that is somewhere else."""
    return f"memory://films-{next(URLS)}" if request.param == "memory" else f"file://{tmp_path / 'far'}"


def put(url: str, name: str, content: bytes) -> None:
    system, root = fsspec.core.url_to_fs(url)
    system.makedirs(f"{root}/{name}".rsplit("/", 1)[0], exist_ok=True)
    system.pipe_file(f"{root}/{name}", content)


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != FETCHED]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_copy_follows_its_folder_and_moves_no_more_than_it_must(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    here = tmp_path / "here"
    here.mkdir()
    (here / "mine.txt").write_bytes(b"stays")
    for name, said in {"a.mp4": b"one", "deep/er/b.mp4": b"two", "c.mp4": b"three"}.items():
        put(url, name, said)
    put(url, FETCHED, b"{}")  # the folder is a copy itself
    assert fetch(url, here) == here
    expected = {"a.mp4": b"one", "deep/er/b.mp4": b"two", "c.mp4": b"three", "mine.txt": b"stays"}
    assert content(here) == expected
    put(url, "a.mp4", b"ONE")  # of the same size
    put(url, "d.mp4", b"four")
    system, root = fsspec.core.url_to_fs(url)
    system.rm_file(f"{root}/c.mp4")
    (here / "deep/er/b.mp4").write_bytes(b"damaged")
    fetch(url, here)
    del expected["c.mp4"]
    assert content(here) == expected | {"a.mp4": b"ONE", "d.mp4": b"four"}
    fetch(url, here)
    copied = [record.args[1] for record in caplog.records if isinstance(record.args, tuple)]
    assert copied == [3, 3, 0]


def test_a_fetch_that_breaks_off_leaves_whole_files_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"memory://films-{next(URLS)}"
    for number in range(9):
        put(url, f"{number}.mp4", bytes([number]) * 100)
    system, _ = fsspec.core.url_to_fs(url)
    real, asked = type(system).get_file, []

    def breaks(self: Any, remote: str, local: str, **more: Any) -> None:
        asked.append(remote)
        if len(asked) == 6:
            Path(local).write_bytes(b"half")
            raise ConnectionError("gone")
        real(self, remote, local, **more)

    monkeypatch.setattr("qdm_pipeline.video.remote.NOTED", 2)
    monkeypatch.setattr(type(system), "get_file", breaks)
    with pytest.raises(ConnectionError):
        fetch(url, tmp_path)
    assert all(len(said) == 100 for said in content(tmp_path).values())
    before = len(asked)
    fetch(url, tmp_path)
    assert content(tmp_path) == {f"{n}.mp4": bytes([n]) * 100 for n in range(9)}
    assert len(asked) - before == 5  # the four of two whole parts are kept


def test_what_is_no_folder_is_named(tmp_path: Path) -> None:
    url = f"memory://films-{next(URLS)}"
    with pytest.raises(InputError, match="no files there"):
        fetch(url, tmp_path)
    put(url, "a.mp4", b"one")
    with pytest.raises(InputError, match="a.mp4: no folder"):
        fetch(f"{url}/a.mp4", tmp_path)
    with pytest.raises(InputError, match="nowhere://x: .*nowhere"):
        fetch("nowhere://x", tmp_path)


def test_a_name_that_leads_out_of_the_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, root = fsspec.core.url_to_fs(f"memory://films-{next(URLS)}")
    found = {f"{root}/../evil.mp4": {"size": 1, "type": "file"}}
    monkeypatch.setattr(type(system), "find", lambda self, path, **more: found)
    with pytest.raises(InputError, match="evil.mp4: a name that leads out of the folder"):
        fetch(f"memory:/{root}", tmp_path / "here")
    assert not (tmp_path / "evil.mp4").exists()


def samples(first: int, count: int) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, Any]]]:
    for i in range(first, first + count):
        yield {"latent": torch.full((2,), float(i))}, {"split": "train", "id": i}


def test_shards_come_back_as_they_went(url: str, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "made", samples(0, 7), {"fps": 8}, 3)
    upload_shards(shards, url)
    there = fetch_shards(url, tmp_path / "here")
    assert there.digest == shards.digest and there.gather("latent", torch.tensor([6]))[0, 0] == 6
    upload_shards(append_shards(tmp_path / "made", samples(7, 2), {"fps": 8}, 3), url)
    assert len(fetch_shards(url, tmp_path / "here")) == 9
    put(url, "shard-00001.safetensors", b"other")
    with pytest.raises(InputError, match="shard-00001.safetensors: damaged"):
        fetch_shards(url, tmp_path / "here")


def test_an_upload_that_breaks_off_leaves_no_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"memory://films-{next(URLS)}"
    shards = write_shards(tmp_path / "made", samples(0, 7), {}, 3)
    upload_shards(shards, url)
    system, root = fsspec.core.url_to_fs(url)
    with monkeypatch.context() as patch:
        patch.setattr(type(system), "put_file", lambda *_, **__: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            upload_shards(shards, url)
    assert not system.exists(f"{root}/manifest.json")
    with pytest.raises(InputError, match="no manifest.json"):
        fetch_shards(url, tmp_path / "here")


def test_a_catalog_entry_gives_the_pipeline_its_videos(
    url: str, demo_videos: Path, cut: Callable[..., Handle], tmp_path: Path
) -> None:
    for path in demo_videos.rglob("*"):
        if path.is_file():
            put(url, path.relative_to(demo_videos).as_posix(), path.read_bytes())
    entry = {
        "type": "qdm_pipeline.datasets.RemoteDirectoryDataset",
        "url": url,
        "path": str(tmp_path / "copy"),
    }
    kind, arguments = parse_dataset_definition(entry)
    arguments.pop("version", None)
    folder = kind(**arguments).load()
    assert ShardSet(cut(folder).path).digest == ShardSet(cut(demo_videos).path).digest
    with pytest.raises(DatasetError, match="no files there"):
        kind(url="memory://nothing", path=str(tmp_path / "none")).load()
