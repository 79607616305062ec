"""Datasets over handles and folders: round trip, what is missing, and a project that moves."""

from pathlib import Path

import pytest
from kedro.io import DatasetError

from qdm_pipeline.datasets import AnimationDataset, DirectoryDataset, HandleDataset
from qdm_pipeline.handle import Handle


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "project/models/teacher-1").mkdir(parents=True)
    return tmp_path / "project"


def test_a_handle_survives_the_move_of_its_project(project: Path) -> None:
    handle = Handle("teacher", project / "models/teacher-1", "abc", {"parameters": 3})
    HandleDataset(filepath=str(project / "models/teacher.json"), kind="teacher").save(handle)
    moved = project.rename(project.with_name("elsewhere"))
    dataset = HandleDataset(filepath=str(moved / "models/teacher.json"), kind="teacher")
    assert dataset.exists()
    assert dataset.load() == Handle("teacher", moved / "models/teacher-1", "abc", {"parameters": 3})


def test_a_handle_is_missing_until_its_artefact_is_there_too(project: Path) -> None:
    dataset = HandleDataset(filepath=str(project / "models/teacher.json"), kind="teacher")
    assert not dataset.exists()
    with pytest.raises(DatasetError, match=r"teacher.json: no teacher has been made yet"):
        dataset.load()
    dataset.save(Handle("teacher", project / "models/teacher-1", "abc", {}))
    (project / "models/teacher-1").rmdir()
    assert not dataset.exists()
    with pytest.raises(DatasetError, match="is gone"):
        dataset.load()


def test_a_handle_of_another_kind_is_refused(project: Path) -> None:
    file = str(project / "models/teacher.json")
    with pytest.raises(DatasetError, match="takes handles of kind 'teacher', was given 'student'"):
        HandleDataset(filepath=file, kind="teacher").save(Handle("student", project, "abc", {}))
    HandleDataset(filepath=file, kind="student").save(Handle("student", project, "abc", {}))
    with pytest.raises(DatasetError, match="found a handle of kind 'student', expected 'teacher'"):
        HandleDataset(filepath=file, kind="teacher").load()


def test_a_folder_that_a_user_brings_must_be_there(tmp_path: Path) -> None:
    assert DirectoryDataset(path=str(tmp_path / "new")).load() == tmp_path / "new"
    brought = DirectoryDataset(path=str(tmp_path / "new"), must_exist=True)
    assert not brought.exists()
    with pytest.raises(DatasetError, match="new: no such folder"):
        brought.load()


def test_an_animation_is_its_bytes(tmp_path: Path) -> None:
    dataset = AnimationDataset(filepath=str(tmp_path / "a.webp"))
    assert not dataset.exists()
    dataset.save(b"RIFF")
    assert dataset.load() == b"RIFF"
    assert dataset.preview() == "UklGRg=="
