"""What a worker can do: every kind of job, by name. Each imports only what it needs."""

from collections.abc import Callable

from qdm_pipeline.ranks import Ranks
from qdm_pipeline.run import Run


JOBS: dict[str, Callable[[Run, Ranks], None]] = {}
