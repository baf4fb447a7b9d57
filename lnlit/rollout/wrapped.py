"""An engine around another one: what both say of themselves."""

from __future__ import annotations

from collections.abc import Sequence

from lnlit.interfaces import RolloutEngine


class WrappedEngine(RolloutEngine):
    """Runs another engine elsewhere or for others, and says of itself what that one does.

    Args:
        engine: The engine, which has not been used yet.
    """

    def __init__(self, engine: RolloutEngine) -> None:
        self.engine = engine

    @property
    def needs_weights(self) -> bool:
        return self.engine.needs_weights

    @property
    def needs_correction(self) -> bool:
        return self.engine.needs_correction

    @property
    def runs_apart(self) -> bool:
        return self.engine.runs_apart

    @property
    def ranks_per_engine(self) -> int:
        return self.engine.ranks_per_engine

    def device_name(self) -> str | None:
        return self.engine.device_name()

    def share(self, devices: Sequence[str | None]) -> None:
        self.engine.share(devices)
