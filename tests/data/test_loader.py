"""Plans and loaders: what comes in which order, and that a resumed one goes on exactly where it stood."""

import json
from itertools import islice, takewhile

import pytest
import torch

from lnlit.data.blend import BlendEntry, in_stages
from lnlit.data.chat import Document
from lnlit.data.loader import EvalLoader, TrainLoader
from lnlit.data.packing import BestFit, OnePerRow, collate
from lnlit.data.plan import Corpus, MapPlan
from lnlit.data.stream import StreamPlan
from lnlit.errors import UserError
from lnlit.interfaces import Source

LENGTH = 32


class Numbered(Source):
    """Documents as rows; document i of source k holds only the token 1000 * k + i."""

    def __init__(self, name: int, size: int, dropped: tuple[int, ...] = ()) -> None:
        self.name, self.size, self.dropped = name, size, dropped

    def __str__(self) -> str:
        return f"source {self.name}"

    def rows(self, start: int = 0):
        return ({"i": i} for i in range(start, self.size))

    def documents(self, start: int = 0):
        for row in self.rows(start):
            i = row["i"]
            length = 2 + (i * 7 + self.name) % 19
            yield None if i in self.dropped else Document([1000 * self.name + i] * length, [True] * length)


def map_plan(entries, packing=True, seed: int | None = 0) -> MapPlan:
    stages = in_stages(entries)
    corpora = [[Corpus.of([d for d in entry.source.documents() if d]) for entry in stage] for stage in stages]
    return MapPlan(stages, corpora, BestFit(LENGTH) if packing else OnePerRow(), seed)


def stream_plan(entries, packing=True, seed: int | None = 0, window=16) -> StreamPlan:
    layout = BestFit(LENGTH) if packing else OnePerRow()
    return StreamPlan(in_stages(entries), lambda e, start: e.source.documents(start), layout, seed, window)


def blend() -> list[BlendEntry]:
    return [
        BlendEntry(Numbered(1, 60), weight=3),
        BlendEntry(Numbered(2, 40, dropped=(0, 5)), weight=1),
        BlendEntry(Numbered(3, 9), rows=20, stage=2),
    ]


PLANS = {
    "map": lambda: map_plan(blend()),
    "map, unpacked": lambda: map_plan(blend(), packing=False),
    "stream": lambda: stream_plan(blend()),
    "stream, unpacked": lambda: stream_plan(blend(), packing=False, window=7),
}


def loader(plan, kind=TrainLoader, size=2, rank=0, world=1):
    made = kind(plan, lambda rows: collate(rows, LENGTH, pad_id=0), size)
    made.set_rank(rank, world)
    return made


def names(rows) -> list[list[int]]:
    """The documents of each row, by their token."""
    return [[document.tokens[0] for document in row] for row in rows]


def epoch_rows(plan, epoch=0) -> list[list[int]]:
    if plan.num_rows is None:  # a stream goes on and on
        rows = takewhile(lambda item: item[1]["epoch"] <= epoch, plan.rows(plan.start()))
        return names(row for row, state in rows if state["epoch"] == epoch)
    state = plan.start()
    for _ in range(epoch):
        *_, (_, state) = plan.rows(state)
    return names(row for row, _ in plan.rows(state))


def batches(a_loader, count) -> list[torch.Tensor]:
    """`count` batches, over as many epochs as it takes."""
    tokens = []
    while len(tokens) < count:
        tokens += [batch.tokens for batch in islice(a_loader, count - len(tokens))]
    return tokens


def same(left, right) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("name", PLANS)
def test_an_epoch_holds_every_planned_document_once_and_whole(name):
    plan = PLANS[name]()
    rows = list(islice(plan.rows(plan.start()), len(epoch_rows(plan))))
    seen = sorted(d.tokens[0] for row, _ in rows for d in row if d.tokens[0] < 3000)
    assert len(seen) == len(set(seen)) >= 75
    assert not {2000, 2005} & set(seen)
    assert all(len(set(d.tokens)) == 1 and len(d) == 2 + (d.tokens[0] % 1000 * 7 + d.tokens[0] // 1000) % 19
               for row, _ in rows for d in row)  # fmt: skip
    assert all(sum(map(len, row)) <= LENGTH for row, _ in rows)


@pytest.mark.parametrize("name", PLANS)
def test_stages_in_order_and_their_counts(name):
    documents = [d for row in epoch_rows(PLANS[name]()) for d in row]
    second = [d >= 3000 for d in documents]
    assert second == sorted(second)
    assert sum(second) == 20  # nine rows, started over
    assert {documents.count(3000 + i) for i in range(9)} == {2, 3}


@pytest.mark.parametrize("name", ["map, unpacked", "stream, unpacked"])
def test_weights_hold_in_every_prefix(name):
    first = [d // 1000 for row in epoch_rows(PLANS[name]()) for d in row if d < 3000]
    share = [sum(s == 1 for s in first[:n]) / n for n in range(20, len(first))]
    assert len(first) >= 79 and min(share) > 0.65 and max(share) < 0.85


@pytest.mark.parametrize("name", PLANS)
def test_epochs_hold_the_same_documents_in_another_order(name):
    plan = PLANS[name]()
    first, second = epoch_rows(plan, 0), epoch_rows(plan, 1)
    assert first != second and first == epoch_rows(PLANS[name](), 0)
    assert sorted(d for row in first for d in row) == sorted(d for row in second for d in row)
    if plan.num_rows is not None:
        assert len(first) == len(second) == plan.num_rows


def test_another_seed_another_order_and_no_seed_the_sources_order():
    entries = [BlendEntry(Numbered(1, 30))]
    assert epoch_rows(map_plan(entries, seed=1)) != epoch_rows(map_plan(entries, seed=2))
    assert epoch_rows(map_plan(entries, packing=False, seed=None)) == [[1000 + i] for i in range(30)]


def test_streams_start_over_for_epochs_and_rows():
    four = stream_plan([BlendEntry(Numbered(1, 6), epochs=4)], packing=False, seed=None, window=5)
    assert epoch_rows(four) == [[1000 + i] for i in range(6)] * 4
    rows = stream_plan([BlendEntry(Numbered(1, 6), rows=8)], packing=False, seed=None, window=5)
    assert epoch_rows(rows) == [[1000 + i % 6] for i in range(8)]


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("world", [1, 2])
def test_resume_anywhere_sees_exactly_the_remaining_batches(name, world):
    per_epoch = -(-len(epoch_rows(PLANS[name]())) // (2 * world))
    whole = [batches(loader(PLANS[name](), rank=rank, world=world), 3 * per_epoch) for rank in range(world)]
    for stop in (0, 1, 5, per_epoch - 1, per_epoch, per_epoch + 3):
        running = loader(PLANS[name](), rank=0, world=world)
        taken = 0
        while taken < stop:
            for batch in running:
                running.mark_consumed(batch)
                taken += 1
                if taken == stop:
                    break
        state = json.loads(json.dumps(running.state_dict()))
        for rank in range(world):  # rank 0's state serves all
            resumed = loader(PLANS[name](), rank=rank, world=world)
            resumed.load_state_dict(state)
            assert same(batches(resumed, 3 * per_epoch - stop), whole[rank][stop:]), (stop, rank)


@pytest.mark.parametrize("name", PLANS)
def test_world_size_may_change_while_the_global_batch_stays(name):
    def rows_seen(world, size, state, count):
        made = [loader(PLANS[name](), size=size, rank=rank, world=world) for rank in range(world)]
        for each in made:
            each.load_state_dict(state)
        iterators = [iter(each) for each in made]
        tokens = []
        for _ in range(count):
            for each, iterator in zip(made, iterators, strict=True):
                batch = next(iterator)
                each.mark_consumed(batch)
                tokens.append(batch.tokens)
        states = [each.state_dict() for each in made]
        assert all(state == states[0] for state in states)
        return torch.cat(tokens), states[0]

    start = loader(PLANS[name]()).state_dict()
    two, after_two = rows_seen(world=2, size=2, state=start, count=3)
    one, after_one = rows_seen(world=1, size=4, state=start, count=3)
    single, after_single = rows_seen(world=1, size=1, state=start, count=12)
    assert torch.equal(two, one) and torch.equal(one, single)
    assert after_two == after_one == after_single
    assert torch.equal(rows_seen(2, 2, after_one, 2)[0], rows_seen(1, 4, after_two, 2)[0])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_the_epoch_and_do_equally_many_steps(world):
    plan = map_plan(blend())
    parts = [list(loader(plan, EvalLoader, rank=rank, world=world)) for rank in range(world)]
    assert {len(part) for part in parts} == {len(loader(plan, EvalLoader, world=world))}
    documents = sorted(t for part in parts for batch in part for t in batch.tokens.unique().tolist() if t)
    assert sorted(set(documents)) == sorted({d for row in epoch_rows(plan) for d in row})
    learned = sum(int((batch.labels >= 0).sum()) for part in parts for batch in part)
    assert learned == sum(len(d) - 1 for row, _ in plan.rows(plan.start()) for d in row)


def test_an_eval_loader_starts_anew_each_time():
    made = loader(map_plan(blend(), seed=None), EvalLoader)
    list(islice(made, 3))
    assert same(batches(made, len(made)), batches(made, len(made)))


def test_a_fetched_batch_counts_only_once_consumed():
    made = loader(map_plan(blend()))
    iterator = iter(made)
    first, second = next(iterator), next(iterator)  # asking for the second: the first is consumed
    assert made.state_dict()["position"] == {"epoch": 0, "row": 2}
    made.mark_consumed(first)
    assert made.state_dict()["position"] == {"epoch": 0, "row": 2}
    made.mark_consumed(second)
    assert made.state_dict()["position"] == {"epoch": 0, "row": 4}


@pytest.mark.parametrize(
    "other",
    [
        lambda: map_plan(blend(), seed=1),
        lambda: map_plan(blend(), packing=False),
        lambda: map_plan(blend()[:2]),
        lambda: stream_plan(blend()),
    ],
)
def test_a_state_of_other_data_is_refused(other):
    state = loader(map_plan(blend())).state_dict()
    with pytest.raises(UserError, match="made with other data"):
        loader(other()).load_state_dict(state)


def test_stream_errors():
    with pytest.raises(UserError, match="each needs weight or rows"):
        stream_plan([BlendEntry(Numbered(1, 3)), BlendEntry(Numbered(2, 3))])
    with pytest.raises(UserError, match="source 1 has no usable rows"):
        next(iter(loader(stream_plan([BlendEntry(Numbered(1, 2, dropped=(0, 1)))]))))
