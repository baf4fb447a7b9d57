"""The contract of meters, as a function for a test to call.

    from lnlit.testing.meter_contract import check_meter

    def test_contract():
        check_meter(lambda: MyMeter())

Raises AssertionError naming the meter and the broken promise.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from lnlit.checkpoint.folder import hf_config
from lnlit.errors import UserError
from lnlit.interfaces import Latency, Meter, Workload
from lnlit.specs import NOOP, BlockSpec, ModelSpec
from lnlit.testing.promises import expect
from lnlit.testing.tiny import tiny_spec

#: All numbers differ, so that a wrong order is noticed, and decoding differs by a factor that load on the machine
#: cannot hide.
WORKLOADS = (Workload(2, 12, 2), Workload(1, 7, 60))


def check_meter(
    make: Callable[[], Meter], spec: ModelSpec | None = None, dtypes: Sequence[str] = ("bfloat16",)
) -> None:
    """Checks a meter built by `make` on `spec` (a tiny one with at least two layers), and on a child of it without
    attention and without FFNs after the first layer."""
    spec = spec or tiny_spec()
    meter = make()
    label = type(meter).__name__
    first, *others = spec.layers
    removed = (BlockSpec(NOOP, first.ffn), BlockSpec(first.attention, NOOP), BlockSpec(NOOP, NOOP))
    child = spec.replace(layers=(first, *removed, *others))
    for dtype in dtypes:
        for architecture, samples in ((spec, 2), (child, 1)):
            _check_latencies(_measured(meter, architecture, dtype, samples, label), samples, label)
    try:
        _measured(meter, spec, "int3", 1, label)
    except UserError:
        return
    raise AssertionError(f"{label}: takes dtype 'int3'; an unknown dtype is a UserError")


def _measured(meter: Meter, spec: ModelSpec, dtype: str, samples: int, label: str) -> list[Latency]:
    with tempfile.TemporaryDirectory() as name:
        config = Path(name) / "config.json"
        config.write_text(json.dumps({**hf_config(spec), "dtype": dtype}))
        before = config.read_bytes()
        found = meter.measure(spec, Path(name), WORKLOADS, dtype=dtype, samples=samples)
        left = {file.name for file in Path(name).iterdir()}
        expect(left == {"config.json"} and config.read_bytes() == before, label, "changes the folder it is given")
    return found


def _check_latencies(found: list[Latency], samples: int, label: str) -> None:
    expect(len(found) == len(WORKLOADS), label, f"{len(found)} latencies for {len(WORKLOADS)} workloads")
    for latency in found:
        for times in (latency.prefill_s, latency.decode_s):
            expect(len(times) == samples, label, f"{len(times)} samples instead of {samples}")
            expect(all(math.isfinite(t) and t > 0 for t in times), label, f"times must be positive, got {times}")
    few, many = (min(latency.decode_s) for latency in found)
    expect(many > few, label, "59 further tokens take no longer than 1: are the workloads mixed up?")
