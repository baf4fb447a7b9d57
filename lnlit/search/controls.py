"""Other children to measure beside those of a search: some that lost only depth or only width, as pruning without a
search makes them (Minitron, arXiv 2407.14679), and some of the same search with steeper scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from lnlit.interfaces import Problem, Solution, Solver
from lnlit.search.baselines import Uniform
from lnlit.search.choice import SLOTS, At, BlockChoice
from lnlit.search.library import Library
from lnlit.search.problem import narrowed, of_problem
from lnlit.specs import NOOP, BlockSpec

#: The powers of scores that are tried beside the scores themselves.
POWERS = (1.5, 2.0, 3.0)


def controls(problem: Problem, library: Library, solver: Solver, time_limit_s: float = 60.0) -> dict[str, Solution]:
    """The controls that keep all limits, by name.

    "depth": whole layers are removed, the solver decides which by their scores, and the others are the parent's.
    "width": every layer keeps parts of the parent's types, with the same number of heads and channels in all.
    """
    found = {}
    for name, is_allowed, by in (("depth", _is_depth, solver), ("width", _is_width, Uniform())):
        some = _only(problem, library, is_allowed)
        if some and (solutions := by.solve(some, time_limit_s).solutions):
            found[name] = of_problem(problem, solutions[0])
    return found


def steeper(problem: Problem, solver: Solver, time_limit_s: float = 60.0) -> dict[str, Solution]:
    """Solutions for sums of powers of scores, by name. What is replaced together does more harm than the sum of what it
    does alone, and a power makes a solver spread the harm over more layers.

    Scores below 0 count as 0. The solutions' own scores are the problem's.
    """
    found = {}
    for power in POWERS:
        layers = [
            [dataclasses.replace(choice, score=max(choice.score, 0.0) ** power) for choice in problem.allowed(layer)]
            for layer in range(len(problem.layers))
        ]
        asked = narrowed(problem, layers)
        if asked and (solutions := solver.solve(asked, time_limit_s).solutions):
            found[f"power {power:g}"] = of_problem(problem, solutions[0])
    return found


def _is_depth(library: Library, layer: int, choice: BlockChoice) -> bool:
    return choice == library.layers[layer].parent or library.block_spec(layer, choice) == BlockSpec(NOOP, NOOP)


def _is_width(library: Library, layer: int, choice: BlockChoice) -> bool:
    made, own = library.block_spec(layer, choice), library.spec.layers[layer]
    return all(getattr(made, slot).type == getattr(own, slot).type for slot in SLOTS)


def _only(
    problem: Problem, library: Library, is_allowed: Callable[[Library, int, BlockChoice], bool]
) -> Problem | None:
    layers = [
        [
            choice
            for choice in problem.allowed(layer)
            if is_allowed(library, layer, library.choice(At(layer, "block", choice.name)))
        ]
        for layer in range(len(problem.layers))
    ]
    return narrowed(problem, layers)
