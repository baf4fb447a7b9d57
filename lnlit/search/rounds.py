"""A search that looks at whole children.

Scores of single replacements add up to what a child realises only while few things are replaced. So from a child on,
every change of one of its sub-blocks is scored in the child itself, and a solver picks the best few changes at once:
within the budgets, and in at most so many layers that their scores still add up. How many that may be is tried out:
one child for each number, each of which is measured as a whole, and the best of them is the next one to start from. No
child that has been measured is ever given up for a worse one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lnlit.interfaces import Budget, Choice, Problem, Solution, Solver
from lnlit.search.problem import narrowed, of_problem

#: The cost that counts the layers in which a child differs from the one that it is made from.
CHANGED = "changed_layers"


@dataclass(frozen=True)
class Round:
    """One round: the child that it started from, the children that its changes made, by the number of layers that were
    allowed to change, and the best of all, which is the one that it started from if nothing improved."""

    start: Solution
    found: Mapping[int, Solution]
    best: Solution


def rounds(
    problem: Problem,
    start: Solution,
    realised: Callable[[Solution], float],
    changes: Callable[[Solution], Sequence[Mapping[str, float]]],
    solver: Solver,
    most: int = 8,
    time_limit_s: float = 60.0,
) -> Iterator[Round]:
    """Goes from child to better child until a round improves nothing, or `most` rounds are done.

    Args:
        problem: The problem whose limits each child keeps. Its scores decide nothing.
        start: A child within these limits.
        realised: What a whole child costs in quality.
        changes: By layer, how much each choice that may be taken in place of the child's own adds to that.
        solver: The solver of each round's problems.
        most: The number of rounds after which to stop anyway.
        time_limit_s: The time limit of each solve.
    """
    for _ in range(most):
        scored = around(problem, start.choice, changes(start))
        found: dict[int, Solution] = {}
        for number in numbers(len(start.choice)):
            known = {start.choice, *(child.choice for child in found.values())}
            for child in solver.solve(within(scored, number), time_limit_s).solutions[:1]:
                if child.choice not in known:
                    found[number] = of_problem(problem, child)
        best = min([start, *found.values()], key=realised)
        yield Round(start, found, best)
        if best is start:
            return
        start = best


def around(problem: Problem, child: Sequence[str], scores: Sequence[Mapping[str, float]]) -> Problem:
    """The problem whose scores are those of changes of `child`, by layer and choice, and that counts these changes.
    Choices without a score are left out; the child's own must have one."""
    layers = [
        [
            Choice(choice.name, found[choice.name], {**choice.costs, CHANGED: float(choice.name != own)})
            for choice in problem.allowed(layer)
            if choice.name in found
        ]
        for layer, (own, found) in enumerate(zip(child, scores, strict=True))
    ]
    scored = narrowed(problem.replace(objective="minimize"), layers)
    assert scored is not None, "the child itself keeps all limits"
    return scored


def within(scored: Problem, number: int) -> Problem:
    """The problem of a child that differs in at most so many layers."""
    return scored.replace(budgets=(*scored.budgets, Budget(CHANGED, max=float(number))))


def numbers(layers: int) -> list[int]:
    """How many layers may change: 1, 2, 3, 4, 6, 8, 12, ... and all."""
    steps = {1, 2, 3, layers, *(step << power for power in range(1, layers.bit_length()) for step in (2, 3))}
    return sorted(step for step in steps if step <= layers)
