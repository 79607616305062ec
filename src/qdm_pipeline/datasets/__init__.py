"""Kedro datasets over folders, handles and animations."""

from qdm_pipeline.datasets.animation import AnimationDataset
from qdm_pipeline.datasets.directory import DirectoryDataset
from qdm_pipeline.datasets.handle import HandleDataset
from qdm_pipeline.datasets.remote import RemoteDirectoryDataset

__all__ = ["AnimationDataset", "DirectoryDataset", "HandleDataset", "RemoteDirectoryDataset"]
