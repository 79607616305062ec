"""When a training is kept, and which of its checkpoints stay."""

from qdm_pipeline.configuration import require, settings


@settings
class Retention:
    """Checkpoints while a job lasts; the finished job keeps what it exports."""

    every: int  # steps between checkpoints
    keep_last: int  # of the newest, at least 2: one may turn out damaged
    keep_every: int | None  # steps; a checkpoint at a multiple of it stays until the job is finished

    def __post_init__(self) -> None:
        require(self.every >= 1, f"every: found {self.every}, must be at least 1")
        require(self.keep_last >= 2, f"keep_last: found {self.keep_last}, must be at least 2")
        require(
            self.keep_every is None or (self.keep_every >= 1 and self.keep_every % self.every == 0),
            f"keep_every: found {self.keep_every}, must be null or a multiple of every ({self.every})",
        )

    def kept(self, steps: list[int]) -> set[int]:
        """Those of some checkpoints' steps that stay."""
        marked = {step for step in steps if self.keep_every and step % self.keep_every == 0}
        return marked | set(sorted(steps)[-self.keep_last :])
