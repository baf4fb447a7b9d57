"""Names of choices are written and read back, whatever parts call themselves, and patterns mean what they say."""

from __future__ import annotations

import pytest

from lnlit.errors import UserError
from lnlit.search.choice import At, BlockChoice, LayerVariants, Variant, chosen
from lnlit.specs import NOOP, PartSpec

#: A stranger's parts may have a + in their names: "a+b+c" is then one of two choices, and each is found by its name.
ATTENTION, FFN = ("a", "a+b", "noop"), ("c", "b+d", "noop")
LAYER = LayerVariants(
    {name: Variant(PartSpec(name), 1, parent=name == "a+b") for name in ATTENTION},
    {name: Variant(PartSpec(name), 1, parent=name == "c") for name in FFN},
)


def test_every_choice_is_found_by_its_name():
    assert len(LAYER.choices()) == 9
    for choice in LAYER.choices():
        assert BlockChoice.among(str(choice), ATTENTION, FFN) == choice
    assert BlockChoice.among("a+b", ATTENTION, FFN) is None and BlockChoice.among("a", ATTENTION, FFN) is None
    assert LAYER.parent == BlockChoice("a+b", "c")


def test_two_choices_of_a_layer_have_two_names():
    with pytest.raises(UserError, match=r"\('a', 'b\+c'\) and \('a\+b', 'c'\) of a layer are both called 'a\+b\+c'"):
        LayerVariants(
            {name: Variant(PartSpec(name), 1) for name in ("a", "a+b")},
            {name: Variant(PartSpec(name), 1) for name in ("b+c", "c")},
        )


def test_patterns_over_halves_keep_the_parents_own():
    assert LAYER.choices(("noop",), ()) == [BlockChoice("a+b", "c"), BlockChoice("noop", "c")]


PLACES = [
    At(layer, slot, name)
    for layer in range(2)
    for slot, name in (("attention", "kv1"), ("block", "kv1+i8"), ("ffn", "i8"), ("ffn", "x/y"))
]


@pytest.mark.parametrize(
    ("only", "fit"),
    [
        (["*"], range(8)),
        (["kv1"], [0, 4]),
        (["kv1*"], [0, 1, 4, 5]),
        (["layer_01/*"], [4, 5, 6, 7]),
        (["*/ffn/i8", "layer_00/attention/kv1"], [0, 2, 6]),
        (["x/y"], [3, 7]),
        (["l*", "i8"], None),
        (["*/pairs/*"], None),
    ],
)
def test_a_pattern_with_a_slash_is_over_places_any_other_over_names(only, fit):
    if fit is None:
        with pytest.raises(
            UserError, match=r"only: .* fits no candidate\..* There are, by name: kv1, kv1\+i8, i8, x/y"
        ):
            chosen(PLACES, only)
    else:
        assert chosen(PLACES, only) == [PLACES[index] for index in fit]


def test_the_slot_that_was_called_pairs_says_so():
    with pytest.raises(UserError, match="The slot pairs is now called block"):
        chosen(PLACES, ["layer_00/pairs/kv1+i8"])


def test_no_attention_is_what_its_pattern_fits():
    from lnlit.interfaces.patterns import fitting
    from lnlit.search.choice import NO_ATTENTION

    assert fitting(NO_ATTENTION, map(str, LAYER.choices())) == {"noop+c", "noop+b+d", f"noop+{NOOP.type}"}
