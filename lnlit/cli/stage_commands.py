"""All commands whose stages are functions: stage -> ("module:function", one line of help), in the order of use."""

from __future__ import annotations

from lnlit.cli.stage_command import StageCommand

SEARCH = StageCommand(
    "search",
    "Find the best heterogeneous child of a model for a machine and a budget (Puzzle).",
    {
        "library": ("lnlit.stages.library:build_library", "every layer's candidates, initialised without training"),
        "score": ("lnlit.stages.score:score", "what each candidate alone costs in quality"),
        "measure": ("lnlit.stages.measure:measure", "what each candidate costs in memory and time on this machine"),
        "solve": ("lnlit.stages.solve:solve", "the best choice per layer within the budgets, with proof"),
        "refine": ("lnlit.stages.refine:refine", "a better child, by what whole children realise"),
        "realize": ("lnlit.stages.realize:realize", "a solution as a model folder"),
        "fuse": ("lnlit.stages.fuse:fuse", "runs of attention-free layers as wide parallel FFNs"),
        "verify": ("lnlit.stages.verify:verify", "whole models measured beside what the cost table predicts"),
        "report": ("lnlit.stages.report:report", "pictures and a page of what was traded"),
    },
)
ROLLOUT = StageCommand(
    "rollout",
    "Make rows with a model's completions, and find out how hard prompts are.",
    {
        "annotate": ("lnlit.stages.annotate:annotate", "how often a model solves each prompt"),
        "generate": ("lnlit.stages.generate:generate", "rows with a model's completions of prompts, to learn from"),
        "curriculum": ("lnlit.stages.curriculum:curriculum", "a picture of which prompts a curriculum will take when"),
        "reference": (
            "lnlit.stages.reference:reference",
            "log-probs of given completions, for RPO with StoredLogProbs",
        ),
        "page": ("lnlit.stages.rollout_page:page", "a page of what a run has sampled so far"),
    },
)
CURATE = StageCommand(
    "curate",
    "Make training rows.",
    {"curate": ("lnlit.stages.curate:curate", "training rows from rows, by steps that count what they drop")},
    default="curate",
)
EVAL = StageCommand(
    "eval",
    "Find out how good models are.",
    {
        "eval": (
            "lnlit.stages.evaluate:evaluate",
            "benchmarks of models in both thinking modes, with intervals, and paired with a parent",
        )
    },
    default="eval",
    words="models",
)
MERGE = StageCommand(
    "merge",
    "Make one model of several of the same architecture.",
    {
        "merge": (
            "lnlit.stages.merge:merge",
            "one model of several: their mean, a point between two, what they learned",
        ),
        "sweep": ("lnlit.stages.sweep:sweep", "models between two, evaluated, and the one that balances two tasks"),
    },
    default="merge",
    words="models",
)
ALL = (SEARCH, ROLLOUT, CURATE, EVAL, MERGE)


def of_stage(stage: str) -> StageCommand:
    """The command of a stage. For a stage that there is not, it is one that says so."""
    return next((command for command in ALL if stage in command.stages), SEARCH)
