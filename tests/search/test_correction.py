"""A measured child's misses tighten the next search's targets, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lnlit.errors import UserError
from lnlit.search.correction import corrected
from lnlit.search.targets import Target


def model(predicted: float, measured: float, label: str = "") -> dict:
    def costs(seconds: float) -> dict:
        return {f"latency_s{label}": seconds, f"throughput{label}": 100 / seconds}

    return {"name": "m", "predicted": costs(predicted), "measured": costs(measured)}


def write(folder: Path, *models: dict, **changes) -> Path:
    file = folder / "measured.json"
    file.write_text(json.dumps({"engine": "native", "dtype": "bfloat16", "models": list(models), **changes}))
    return file


def correct(file: Path, *targets: Target) -> tuple[Target, ...]:
    return corrected(targets, file, "native", "bfloat16")


def test_a_child_slower_than_predicted_asks_for_more(tmp_path, capsys):
    file = write(tmp_path, model(2.0, 2.0), model(1.0, 1.1))
    faster, sooner = correct(file, Target("throughput", min=100.0), Target("latency_s", max=1.0))
    assert faster.min == pytest.approx(110)
    assert sooner.max == pytest.approx(1 / 1.1)
    assert "10.0% worse than predicted, so asking for throughput min 110" in capsys.readouterr().err


def test_of_parent_counts_what_the_parent_missed_too(tmp_path):
    file = write(tmp_path, model(2.0, 2.1), model(1.0, 1.26))
    (target,) = correct(file, Target("throughput", min=1.3, of_parent=True))
    assert target.min == pytest.approx(1.3 * 1.26 / 1.05)


def test_the_worst_workload_counts(tmp_path):
    child = model(1.0, 1.1, " @ batch 8")
    slower = model(1.0, 1.2, " @ batch 16")
    child = {side: child[side] | slower[side] for side in ("predicted", "measured")}
    (target,) = correct(write(tmp_path, child, child), Target("latency_s", max=1.0))
    assert target.max == pytest.approx(1 / 1.2)


@pytest.mark.parametrize(
    ("child", "target"),
    [
        (model(1.0, 0.9), Target("throughput", min=100.0)),  # faster than predicted: the promise is kept
        (model(1.0, 1.5), Target("memory_mib", max=100.0)),  # bytes are counted, not measured
        (model(1.0, 1.5), Target("latency_s", min=100.0)),  # slower is what was asked for
    ],
)
def test_other_targets_stay(tmp_path, child, target):
    assert correct(write(tmp_path, model(2.0, 2.0), child), target) == (target,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "vllm"}, "measured with vllm in bfloat16, the cost table with native in bfloat16"),
        ({"models": []}, "is no file of `lnlit search verify`"),
        ({"models": [{"name": "m", "measured": 3}]}, "is no file of `lnlit search verify`"),
        ({"models": [{"name": "m"}]}, "is no file of `lnlit search verify`"),
    ],
)
def test_another_file_is_refused(tmp_path, changes, message):
    file = write(tmp_path, model(1.0, 1.0), **changes)
    with pytest.raises(UserError, match=message):
        correct(file, Target("throughput", min=1.3))
