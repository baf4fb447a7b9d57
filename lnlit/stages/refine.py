"""`lnlit search refine`: from the children that a solver named to a better one, by what whole children realise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lnlit.checkpoint.fingerprint import fingerprint
from lnlit.checkpoint.formats import read_spec, resolve
from lnlit.checkpoint.load import layerwise_decoder
from lnlit.data.text import TextSample
from lnlit.errors import UserError, check_positive
from lnlit.files import check_output, expanded, read_json, replaced_file, write_json
from lnlit.interfaces import Problem, Solution, Solver, SolverResult
from lnlit.journal import Journal
from lnlit.models.device import torch_device
from lnlit.models.layerwise import LayerwiseDecoder
from lnlit.progress import say, track
from lnlit.report.picture import png
from lnlit.report.refined import Measured, kendall, refined_chart
from lnlit.search.children import Children
from lnlit.search.controls import controls, steeper
from lnlit.search.library import Library
from lnlit.search.measured import LOOKED_AT, MeasuredChildren
from lnlit.search.metrics import Likelihood
from lnlit.search.rounds import rounds as rounds_from
from lnlit.stages.solve import children_by_name, chosen_solver, problem_path, read_problem

HELD_OUT = "held_out"
_MARK = b'"solutions"'


def refine(
    solution: str,
    library: str,
    data: TextSample,
    out: str,
    held_out: TextSample | None = None,
    rounds: int = 8,
    solver: str | Solver = "highs",
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    batch_tokens: int = 1024,
    time_limit_s: float = 60.0,
) -> Path:
    """Write the child with the lowest KL to its parent on a text: there, no child that the solver or a baseline named
    is better.

    Measures KL(parent || child) of the solver's solutions, of those for powers of the scores, of all baselines' and of
    children that lost only depth or only width. From the best of them, rounds score every change of a sub-block in the
    child itself, solve for the best few changes at once within the budgets, and measure the children that these make. A
    round costs about what `lnlit search score` does. A picture of ranks and rounds is written beside. Interrupted, the
    same command goes on.

    Args:
        solution: The file that `lnlit search solve` wrote, with its problem beside it.
        library: The block library that it chooses from.
        data: The text that the search looks at; not what the library was made with.
        out: The file to write, usually refined.json: a solution file, best first.
        held_out: Another text, on which the children are measured at the end. It decides nothing.
        rounds: The number of rounds after which to stop even if the last one still improved something. With 0, the best
            of the named children wins.
        solver: The solver of the rounds, as in `lnlit search solve`.
        dtype: The dtype of weights and activations. Logits and everything after them are float32.
        batch_tokens: Tokens that go through the model together.
        time_limit_s: Time limit in seconds of each solve; about ten in a round.
    """
    _check_numbers(rounds, batch_tokens, time_limit_s)
    _, chosen = chosen_solver(solver)
    file, target = expanded(solution), check_output(expanded(out), inputs=[solution], mark=_MARK)
    check_output(problem_path(target), inputs=[solution], mark=b'"layers"')
    check_output(target.with_suffix(".png"), mark=b"PNG")
    opened, solved = Library.open(library), read_json(file, "a solution that `lnlit search solve` wrote")
    opened.check_made_from(solved.get("library"), str(file))
    problem, source = read_problem(problem_path(file)), resolve(opened.model)
    opened.check_parent(opened.model, read_spec(source), fingerprint(opened.model))
    others = steeper(problem, chosen, time_limit_s) | controls(problem, opened, chosen, time_limit_s)
    named = _named(problem, solved, str(file)) | others
    samples = {LOOKED_AT: data} | ({} if held_out is None else {HELD_OUT: held_out})
    tokens = {name: sample.tokens(str(source)) for name, sample in samples.items()}
    with Journal.beside(target, _header(problem, opened, tokens, dtype), "measured children", _MARK) as journal:
        parent = layerwise_decoder(source, torch_device(), getattr(torch, dtype))
        texts = {name: _children(parent, opened, rows_RT, batch_tokens) for name, rows_RT in tokens.items()}
        known = MeasuredChildren(problem, opened, texts, journal)
        path = _path(problem, list(named.values()), known, chosen, rounds, time_limit_s)
        named |= {f"round {number}": child for number, child in enumerate(path[1:], start=1)}
        for each in track(list(named.values()), "refine: held-out text", "model") if held_out is not None else ():
            known.realised(each, HELD_OUT)
        ranked = sorted(named.values(), key=known.realised)
        _write(target, problem, solved, named, chosen.wanted(problem, ranked), path, known)
        journal.file.unlink()
    return target


def _path(
    problem: Problem,
    named: Sequence[Solution],
    known: MeasuredChildren,
    solver: Solver,
    rounds: int,
    time_limit_s: float,
) -> list[Solution]:
    """The best of the named children, and the better ones that rounds find from there."""
    for each in track(named, "refine", "model"):
        known.realised(each)
    path = [min(named, key=known.realised)]
    steps = rounds_from(problem, path[0], known.realised, known.changes, solver, rounds, time_limit_s)
    for number, step in enumerate(steps, start=1):
        before, after = known.realised(step.start), known.realised(step.best)
        made = ", ".join(f"{layers}: {known.realised(child):.4g}" for layers, child in step.found.items())
        end = "nothing improves" if step.best is step.start else f"{after:.4g}"
        say(f"refine: round {number} from {before:.4g}; by layers that may change {made or 'no child'}; {end}")
        path += [] if step.best is step.start else [step.best]
    return path


def _check_numbers(rounds: int, batch_tokens: int, time_limit_s: float) -> None:
    for name, number, least in (("rounds", rounds, 0), ("batch_tokens", batch_tokens, 1)):
        if number < least:
            raise UserError(f"refine.{name}: expected at least {least}, got {number}.")
    check_positive("refine", time_limit_s=time_limit_s)


def _named(problem: Problem, solved: Mapping[str, Any], where: str) -> dict[str, Solution]:
    """The children of a solution file by name: the solver's, then the baselines'. Raises `UserError` for one that
    breaks a limit."""
    found = children_by_name(solved, where)
    for title, solution in found.items():
        scenario = next((each for each in problem.scenarios if each.name == solution.scenario), None)
        asked = problem if scenario is None else problem.in_scenario(scenario)
        if broken := asked.violations(solution.choice):
            raise UserError(f"{where}: {title} breaks a limit of its problem: {broken[0]}. Solve it again.")
    if not found:
        raise UserError(f"{where}: holds no solution. {solved.get('message', '')}".rstrip())
    return found


def _header(problem: Problem, library: Library, tokens: Mapping[str, Tensor], dtype: str) -> dict[str, Any]:
    """What two runs must share to go on with each other's measurements."""
    choices = [[choice.name for choice in problem.allowed(layer)] for layer in range(len(problem.layers))]
    digests = {
        name: hashlib.sha256(repr(tuple(rows_RT.shape)).encode() + rows_RT.numpy().tobytes()).hexdigest()
        for name, rows_RT in tokens.items()
    }
    named = hashlib.sha256(json.dumps(choices).encode()).hexdigest()
    return {"format": 1, "library_sha256": library.identity["sha256"], "choices": named, "dtype": dtype, **digests}


def _children(parent: LayerwiseDecoder, library: Library, rows_RT: Tensor, batch_tokens: int) -> Children:
    batches = rows_RT.to(torch_device()).split(max(batch_tokens // rows_RT.shape[1], 1))
    return Children(parent, library, batches, Likelihood(parent.decoder.head_weight, batches), "kl")


def _write(
    out: Path,
    problem: Problem,
    solved: Mapping[str, Any],
    children: Mapping[str, Solution],
    kept: Sequence[Solution],
    path: Sequence[Solution],
    known: MeasuredChildren,
) -> None:
    """Writes the solution file, the problem and the picture, and tells what was found and what it cost."""
    texts = list(known.texts)
    rows = {name: _measured(name, child, known) for name, child in children.items()}
    listed = [{**vars(row), "choice": children[name].choice} for name, row in rows.items()]
    steps = [_measured("", child, known) for child in path]
    named = [row for name, row in rows.items() if not name.startswith("round ")]
    costs = {
        "children_measured": {text: known.count(text) for text in texts},
        "changes_scored": known.changes_scored,
        "seconds": {name: round(seconds, 1) for name, seconds in known.seconds.items()},
    }
    about = {"metric": "kl", "children": listed, "rounds": [row.realised for row in steps], **costs}
    library = {"library": dict(problem.library)} if problem.library else {}
    beside = {"solver": "refine", "baselines": solved.get("baselines", {}), "frontier": [], "refined": about}
    result = SolverResult("feasible", tuple(kept), message="the best of all children that were measured")
    write_json(problem_path(out), problem.to_json())
    with replaced_file(out.with_suffix(".png")) as scratch:
        scratch.write_bytes(png(lambda theme: refined_chart(theme, named, steps)))
    write_json(out, {**result.to_json(), "problem": problem_path(out).name, **beside, **library})
    for row in sorted(rows.values(), key=lambda row: row.realised):
        if not row.is_plain:
            other = "" if row.held_out is None else f", held out {row.held_out:.4g}"
            say(f"refine: {row.name}: sum of scores {row.score:.4g}, realised {row.realised:.4g}{other}")
    tau = kendall([(row.score, row.realised) for row in named])
    say(f"refine: Kendall's tau of sums and realised KL over the {len(named)} named children: {tau:.2f}")
    say(
        f"refine: {steps[0].realised:.4g} -> {steps[-1].realised:.4g} in {len(path) - 1} rounds; {known.count()} "
        f"children measured in {known.seconds[LOOKED_AT]:.0f} s, {known.changes_scored} changes scored in "
        f"{known.seconds['changes']:.0f} s"
    )


def _measured(name: str, child: Solution, known: MeasuredChildren) -> Measured:
    held_out = known.realised(child, HELD_OUT) if HELD_OUT in known.texts else None
    return Measured(name, child.score, known.realised(child), held_out, name.startswith("random "))
