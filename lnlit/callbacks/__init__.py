"""Lightning callbacks. Importing this package makes their class names usable in YAML."""

from lightning.pytorch import Callback

from lnlit.callbacks.checkpoints import Checkpoint
from lnlit.callbacks.end_together import EndTogether
from lnlit.callbacks.export import ExportModel
from lnlit.callbacks.interrupt import GracefulStop
from lnlit.callbacks.memory import MemoryRecorder
from lnlit.callbacks.progress import progress_bar
from lnlit.callbacks.random_state import RandomState
from lnlit.callbacks.results import RunResults
from lnlit.callbacks.rollouts import RolloutLog
from lnlit.callbacks.samples import SampleGenerations
from lnlit.callbacks.skip_bad_steps import SkipBadSteps
from lnlit.callbacks.summary import RunSummary
from lnlit.callbacks.throughput import Throughput
from lnlit.callbacks.toggle_report import ToggleReport

__all__ = [
    "Checkpoint",
    "EndTogether",
    "ExportModel",
    "GracefulStop",
    "MemoryRecorder",
    "RandomState",
    "RolloutLog",
    "RunResults",
    "RunSummary",
    "SampleGenerations",
    "SkipBadSteps",
    "Throughput",
    "ToggleReport",
    "default_callbacks",
]


def default_callbacks() -> list[Callback]:
    """The callbacks of every run. One is left out if the configuration has a callback of the same kind."""
    return [
        Checkpoint(),
        GracefulStop(),
        EndTogether(),
        RandomState(),
        SkipBadSteps(),
        Throughput(),
        SampleGenerations(),
        RunSummary(),
        progress_bar(),
    ]
