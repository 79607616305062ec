"""The adversarial half of DMD2: is a latent real, judged by what the fake score sees in it."""

from torch import Tensor, nn


class Discriminator(nn.Module):
    """A logit for every latent position from the fake score's features there (DMD2, arXiv:2405.14867, 4.3).

    The features have seen the whole clip, its time and its condition; a decision at every position is more
    to learn from than one a clip. They are not normalised: how large they are is how much contrast an answer
    has, the first thing to judge. Each of the student's steps has logits of its own: early answers are so
    plain that one judge for all would learn that contrast is real, and drive the late ones beyond it.
    """

    def __init__(self, embedding_dim: int, width: int, steps: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(embedding_dim, width), nn.SiLU(), nn.Linear(width, steps))

    def forward(self, features: Tensor, step: int) -> Tensor:
        """Features [B, T, H, W, E] -> logits [B, T * H * W]: above 0 real, below an answer at ``step``."""
        logits: Tensor = self.layers(features)[..., step]
        return logits.flatten(1)
