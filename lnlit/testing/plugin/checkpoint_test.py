from __future__ import annotations

import json

from safetensors.torch import save_file

from lnlit.models.weights import canonical_weights
from lnlit.testing import contracts
from lnlit.testing.tiny import tiny_decoder


def test_contract(tmp_path):
    decoder = tiny_decoder()
    (tmp_path / "example.json").write_text(json.dumps(decoder.spec.to_json()))
    save_file(
        {name: tensor.contiguous() for name, tensor in canonical_weights(decoder)}, tmp_path / "weights.safetensors"
    )
    contracts.check_checkpoint("example", tmp_path)
