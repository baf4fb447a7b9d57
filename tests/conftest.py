"""What tests of several folders share: a tiny parent and its block library, each made once."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import warm
from dist_info import write_dist_info


@pytest.fixture(scope="session")
def tiny_parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of two random layers of width 32 with a byte tokenizer."""
    from lnlit.testing.tiny import tiny_folder

    return tiny_folder(tmp_path_factory.mktemp("parent") / "model")


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text with some structure, about 12 000 bytes."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    file.write_text(" ".join(words[n * n % 7] + words[n % 8] for n in range(1500)))
    return file


@pytest.fixture(scope="session")
def documents(text_file: Path) -> str:
    """The same text in five documents, as the pattern of their files."""
    text = text_file.read_text()
    for index, start in enumerate(range(0, len(text), len(text) // 4)):
        (text_file.parent / f"part-{index}.txt").write_text(text[start : start + len(text) // 4])
    return str(text_file.parent / "part-*.txt")


@pytest.fixture(scope="session")
def built_library(tiny_parent: Path, documents: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parent's library: kv1, linear, noop; i32, i16, linear, noop in each layer."""
    from lnlit.data.sources import TextFileSource
    from lnlit.data.text import TextSample
    from lnlit.search.space import Candidates
    from lnlit.stages.library import build_library

    sample = TextSample(TextFileSource(documents), rows=4, length=64)
    out = tmp_path_factory.mktemp("library") / "library"
    return build_library(str(tiny_parent), sample, str(out), Candidates(widths=(0.67, 0.33), width_multiple=16))


@pytest.fixture(scope="session")
def remote_code_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """transformers copies a folder's own code to a cache; keep the user's out of it. All tests of a process have one:
    what it has imported it never looks for elsewhere."""
    import transformers.dynamic_module_utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


#: Files that take a quarter of a minute and more. They begin first, the longest before all, lest one core waits for
#: another.
LONG = (
    "integration/test_vllm_rollout.py",
    "integration/test_vllm.py",
    "invariants/test_every_method_on_ranks.py",
    "cli/test_recipes_mini.py",
    "test_notebooks.py",
    "cli/test_mistaken_calls.py",
    "cli/test_recipes.py",
    "rewards/test_code_tests.py",
    "rewards/test_code_kinds.py",
    "integration/test_rank_stages.py",
    "invariants/test_policy_resume.py",
    "checkpoint/test_smollm2.py",
    "invariants/test_policy_step_invariance.py",
    "cli/test_run_killed.py",
    "integration/test_mini_pipeline.py",
    "integration/test_resume.py",
    "modules/test_every_method.py",
    "modules/test_policy_against_trl.py",
    "cli/test_plugin_template.py",
    "curation/test_decontaminate.py",
    "cli/test_run.py",
)


#: A file system in memory, and what must be free there and of memory itself: tests make gigabytes of models.
MEMORY, FREE = Path("/dev/shm"), 8 * 2**30


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # by xdist, which would begin with the files of many tests
    if _has_memory():  # journals and checkpoints wait for the disk each time
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def _has_memory() -> bool:
    information = Path("/proc/meminfo")
    if not (MEMORY.is_dir() and information.is_file() and shutil.disk_usage(MEMORY).free >= FREE):
        return False
    lines = dict(line.split(":") for line in information.read_text().splitlines())
    programs = not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC  # tests write some and run them
    return programs and int(lines["MemAvailable"].split()[0]) * 2**10 >= 2 * FREE


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """What is imported and collected stays: the collector of garbage never looks at it, now or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    places = {here / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))


@pytest.fixture(autouse=True)
def meeting_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Where the ranks of a test meet, unless it says otherwise: a port of its own, below those that the kernel hands
    out. One that was free when somebody looked may be another process's by the time that rank 0 listens there.

    Lightning leaves a process group and its names in the environment; what comes after has neither.
    """
    port = warm.free_port()
    for name in ("MASTER_ADDR", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "")  # so that what is set meanwhile is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("MASTER_PORT", str(port))
    yield port
    if (torch := sys.modules.get("torch")) and torch.distributed.is_available() and torch.distributed.group.WORLD:
        torch.distributed.destroy_process_group()


@pytest.fixture
def installed(tmp_path_factory, monkeypatch) -> Iterator[Callable[[Path], None]]:
    """`installed(package)` makes a folder with a pyproject.toml known as its wheel would: modules and entry points."""
    from lnlit import registry

    modules: set[str] = set()

    def install(package: Path) -> None:
        site = tmp_path_factory.mktemp("site")
        modules.update(write_dist_info(package, site))
        for folder in (package, site):
            monkeypatch.syspath_prepend(str(folder))
        registry._plugins.cache_clear()

    yield install
    registry._plugins.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] in modules]:
        del sys.modules[name]


@pytest.fixture
def warm_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that lnlit starts begin with torch imported, but for the guard of `lnlit run`."""
    monkeypatch.setattr(sys, "executable", warm.python())


@pytest.fixture
def hears_interrupts() -> Iterator[None]:
    """A shell's background jobs are born deaf to Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests measured with `record_property`: the range of each figure over a test's cases."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for report in [report for reports in terminalreporter.stats.values() for report in reports]:
        if getattr(report, "when", None) == "call":
            for name, value in report.user_properties:
                found[report.nodeid.partition("[")[0], name].append(value)
    if found:
        terminalreporter.section("measured")
    for (test, name), values in sorted(found.items()):
        terminalreporter.line(f"{test} {name}: {min(values):.2g} to {max(values):.2g}")
