"""The classifier at work: what it counts."""

from types import SimpleNamespace

import torch
from torch import nn

from qdm_pipeline.evaluation.judge import Judge
from qdm_pipeline.ranks import Ranks


class Brightness(nn.Module):
    """Knows dark from bright clips, and nothing else."""

    config = SimpleNamespace(features=2, classes=("dark", "bright"))

    def forward(self, video):
        light = video.mean((1, 2, 3, 4))
        logits = torch.stack([-light, light], dim=1)
        return logits, logits


def test_a_clip_is_itself_if_it_ends_as_it_began():
    videos = torch.zeros(4, 3, 3, 2, 2, dtype=torch.uint8)
    videos[0] = 255
    videos[1, :, 1] = 255  # another thing in between is not seen
    videos[2, :, 1:] = 255  # ends as another
    tally = Judge(Brightness(), 3, 2, 0, Ranks()).tally(lambda at: videos[at], torch.tensor([1, 0, 1, 1]))
    assert (tally.count, tally.same, tally.identity, tally.accuracy) == (4, 3, 0.75, 0.75)
