"""`lnlit search solve`: the best choice per layer within the budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lnlit import registry
from lnlit.errors import UserError
from lnlit.files import check_output, expanded, read_json, write_json
from lnlit.interfaces import Problem, Solution, Solver, SolverResult
from lnlit.progress import say
from lnlit.search.targets import Deployment, Rules, Solutions, Sweep, with_budget
from lnlit.search.targets import frontier as frontier_of

#: Baselines that are solved for comparison with the chosen solver.
BASELINES = ("greedy", "ratio_greedy", "uniform", "random")


def solve(
    out: str,
    problem: str | None = None,
    library: str | None = None,
    scores: str | None = None,
    deployment: Deployment = Deployment(),
    rules: Rules = Rules(),
    solutions: Solutions = Solutions(),
    solver: str | Solver = "highs",
    time_limit_s: float = 300.0,
    frontier: Sweep | None = None,
) -> Path:
    """Write the best child within the budgets, with proof, and the baselines' beside it.

    Either from a problem file alone, of any library and without a model, or from a library with its scores, for a
    deployment.

    Args:
        out: The file to write, usually solution.json. The problem goes to problem.json beside it, or X.problem.json.
        problem: A problem in its JSON form (lnlit.interfaces.problem). Then nothing else describes it.
        library: Block library to choose from.
        scores: The library's scores.
        deployment: The machine that the child must run on, by its cost table, and the limits that must hold there.
        rules: What may be chosen beside the parent's own variants.
        solutions: How many different solutions to find.
        solver: Highs (exact, plugin lnlit-highs), greedy, ratio_greedy, uniform or random; or with settings of its own,
            {class_path: highs, init_args: {alternatives_tolerance: 0.01}}.
        time_limit_s: Time limit in seconds for the solver, again for each baseline, and again for all of them at each
            value of the frontier.
        frontier: A budget to move over several values, each solved by the solver and every baseline.
    """
    if not time_limit_s > 0:
        raise UserError(f"solve.time_limit_s: expected a number above 0, got {time_limit_s}.")
    name, chosen = chosen_solver(solver)
    inputs = (scores, deployment.costs, deployment.corrected_by)
    target = check_output(expanded(out), inputs=[problem, *inputs], mark=b'"solutions"')
    check_output(problem_path(target), inputs=inputs, mark=b'"layers"')
    if problem is None:
        asked = _from_library(library, scores, deployment, rules, solutions)
    elif library or scores or (deployment, rules, solutions) != (Deployment(), Rules(), Solutions()):
        raise UserError("solve: a problem file holds the whole problem. Leave out what describes it, or the file.")
    else:
        asked = read_problem(expanded(problem))
    return _written(target, asked, problem, name, chosen, time_limit_s, frontier)


def _written(
    out: Path, asked: Problem, file: str | None, name: str, solver: Solver, time_limit_s: float, sweep: Sweep | None
) -> Path:
    """Solves the problem with the chosen solver and the baselines, and writes the results."""
    values = _values(asked, sweep) if sweep else ()  # refused before hours of solving
    result = _solved(asked, name, solver, time_limit_s)
    compared = {baseline: registry.build("solver", baseline) for baseline in BASELINES}
    beside = {baseline: _compared(asked, baseline, built, time_limit_s) for baseline, built in compared.items()}
    rows = _frontier(asked, sweep, values, {**compared, name: solver}, time_limit_s) if sweep else []
    path = problem_path(out)
    if file is None or path.resolve() != expanded(file).resolve():
        write_json(path, asked.to_json())
    extra = {"solver": name, "problem": path.name, "baselines": beside, "frontier": rows}
    extra |= {"library": dict(asked.library)} if asked.library else {}
    write_json(out, {**result.to_json(), **extra})
    return out


def _compared(asked: Problem, name: str, solver: Solver, time_limit_s: float) -> dict[str, Any]:
    result = solver.solve(asked, time_limit_s)
    if result.status == "time_limit":
        say(f"solve: {name}, beside it: {result.message}")
    return result.to_json()


def problem_path(solution: Path) -> Path:
    """The path of the problem that belongs to a solution file."""
    return solution.with_name("problem.json" if solution.stem == "solution" else f"{solution.stem}.problem.json")


def read_problem(file: Path) -> Problem:
    """A problem from its JSON file. Raises `UserError` naming the file and the place in it."""
    data = read_json(file, "a problem")
    try:
        return Problem.from_json(data)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def children_by_name(solved: Mapping[str, Any], where: str) -> dict[str, Solution]:
    """The children of a solution file: "child", "child 2" and so on of the solver, "ratio greedy", "random 2" and the
    like of the baselines."""
    results = {"child": SolverResult.from_json(solved, where)}
    for name, baseline in solved.get("baselines", {}).items():
        results[name.replace("_", " ")] = SolverResult.from_json(baseline, f"{where}: baselines.{name}")
    return {
        name if number == 1 else f"{name} {number}": solution
        for name, result in results.items()
        for number, solution in enumerate(result.solutions, start=1)
    }


def chosen_solver(solver: str | Solver) -> tuple[str, Solver]:
    """(registered name, solver). Raises `UserError` for one that is not there."""
    if isinstance(solver, Solver):
        return registry.name_of("solver", type(solver)) or type(solver).__name__, solver
    return solver, registry.build("solver", solver)


def _from_library(
    library: str | None, scores: str | None, deployment: Deployment, rules: Rules, solutions: Solutions
) -> Problem:
    if library is None or scores is None or deployment.costs is None:
        raise UserError("solve: needs either a problem file, or all of library, scores and deployment.costs.")
    from lnlit.search.costs import CostTable  # these import torch, which a problem file does not need
    from lnlit.search.library import Library
    from lnlit.search.measure import once
    from lnlit.search.problem import corrected, make_problem
    from lnlit.search.score import read_scores

    opened, table = Library.open(library), CostTable.read(expanded(deployment.costs))
    table.check_hardware(deployment.allow_other_hardware)
    workloads, targets = once(deployment.workloads, "deployment.workloads") or table.workloads, deployment.targets
    for workload in workloads:
        table.check_measured(workload)
    if deployment.corrected_by is not None:
        targets = corrected(targets, expanded(deployment.corrected_by), table, workloads)
    return make_problem(opened, read_scores(scores), table, workloads, targets, rules=rules, solutions=solutions)


def _solved(problem: Problem, name: str, solver: Solver, time_limit_s: float) -> SolverResult:
    result = solver.solve(problem, time_limit_s)
    if not result.solutions:
        advice = {
            "infeasible": "Loosen what cannot be kept.",
            "time_limit": "Raise time_limit_s.",
        }.get(result.status, "Use an exact solver, such as highs.")
        raise UserError(f"solve: {result.message or 'no solution was found'}. {advice}")
    best = result.solutions[0]
    proof = "without proof" if best.gap is None else f"proven to {best.gap:.1e}"
    size = f"{len(problem.layers)} layers of up to {max(map(len, problem.layers))} choices"
    found = f"solve: {size} with {name}: {result.status}, score {best.score:.6g} {proof}"
    say(". ".join(filter(None, [found, result.message])))
    return result


def _values(problem: Problem, sweep: Sweep) -> tuple[float, ...]:
    """The values of a frontier in the cost's own unit. Raises `UserError` for one that the problem does not allow."""
    values = tuple(sweep.values)
    if sweep.of_parent:
        if sweep.cost not in problem.parent_costs:
            known = ", ".join(problem.parent_costs) or "none; the problem has no parent_costs"
            raise UserError(f"frontier: {sweep.cost!r} cannot be of_parent. The parent's costs: {known}.")
        values = tuple(share * problem.parent_costs[sweep.cost] for share in values)
    for value in values:
        with_budget(problem, sweep.cost, sweep.side, value)
    return values


def _frontier(
    problem: Problem, sweep: Sweep, values: Sequence[float], solvers: dict[str, Solver], time_limit_s: float
) -> list[dict[str, Any]]:
    rows = []
    for name, solver in solvers.items():
        found = frontier_of(problem, sweep.cost, values, solver, side=sweep.side, time_limit_s=time_limit_s)
        for row in found:
            rows.append({"solver": name, **row})
            score = "no solution" if row["score"] is None else f"{row['score']:.6g}"
            say(f"solve: {name}, {row['cost']} {row['side']} {row['value']:g}: {score}")
    return rows
