"""Our judging of IFEval's instructions, strict and loose, is that of lm-eval, but where lm-eval is known to err."""

from __future__ import annotations

import pytest
from ifeval_oracle import SHARED, lm_eval_verdicts, pairs

from lnlit.rewards.verifiable import loosened, obeys_all

for module in ("lm_eval", "nltk", "immutabledict", "langdetect", "punkt"):
    pytest.importorskip(module)


@pytest.mark.data
@pytest.mark.skipif(not (SHARED / "ifeval").is_dir(), reason="needs ../shared/data/ifeval")
def test_strict_and_loose_verdicts_are_those_of_lm_eval(tmp_path):
    oracle = lm_eval_verdicts(tmp_path)
    seen, kinds, obeyed, differ = 0, set(), 0, []
    for text, row, _ in list(pairs(1, seed=1))[::2]:
        kind, given = row["instruction_id_list"], row["kwargs"]
        strict, loose = oracle(text, row)
        ours = obeys_all(text, kind, given), [any(obeys_all(each, kind, given)[0] for each in loosened(text))]
        seen, obeyed = seen + 1, obeyed + strict[0]
        kinds.add(kind[0])
        # lm-eval takes a letter at random for `#` and `!`, and counts that (lm-evaluation-harness#2260).
        if ours != (strict, loose) and given[0].get("letter") not in ("#", "!"):
            differ.append((kind[0], given, text[:200], ours, (strict, loose)))
    assert seen > 400 and len(kinds) == 25 and 0.2 < obeyed / seen < 0.8
    assert not differ, differ[0]
