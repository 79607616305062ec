"""How processes are started and watched: nothing here changes what is computed."""

from qdm_pipeline.configuration import require, settings


@settings
class LaunchSettings:
    """Machines, patience and restarts of every job."""

    nodes: int | None  # machines; None: as the environment says, see launch.place
    endpoint: str | None  # HOST:PORT of the first node; None: as the environment says
    node_timeout: float  # seconds that a node waits for the others
    max_restarts: int  # times that the ranks are started again before the job fails
    collective_timeout: float  # seconds until ranks that wait for another one give up
    save_timeout: float  # seconds that ranks have for saving when they are asked to stop

    def __post_init__(self) -> None:
        require(
            self.nodes is None or self.nodes >= 1, f"nodes: found {self.nodes}, must be null or at least 1"
        )
        require(self.max_restarts >= 0, f"max_restarts: found {self.max_restarts}, must be at least 0")
        for name in ("node_timeout", "collective_timeout", "save_timeout"):
            require(getattr(self, name) > 0, f"{name}: found {getattr(self, name)}, must be above 0")


ALONE = LaunchSettings(  # for callers outside Kedro
    nodes=1, endpoint=None, node_timeout=900, max_restarts=0, collective_timeout=1800, save_timeout=60
)
