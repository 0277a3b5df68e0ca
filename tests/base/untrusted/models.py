"""Ways to load a model, and values that its files might hold."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from quietstar import QuietStarForCausalLM
from quietstar.inference.loading import UseArguments

CPU = UseArguments(device="cpu")
LOADERS: dict[str, Callable] = {
    "thinking": QuietStarForCausalLM.from_pretrained,
    "base": QuietStarForCausalLM.from_base,
    "original": QuietStarForCausalLM.from_original,
}
Copied = Callable[[str], Path]
TYPES = ["llama", "gpt2", "bert", "t5", "clip", "mamba", "quietstar", "no_such_type", "../llama", ""]
ODD = st.sampled_from(
    [0, -1, 3, 2**31, 2**63, 10**30, 10**400, -0.5, 1e308, float("nan"), float("inf"), "", "x", "\0\n\u2028"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | ODD | st.sampled_from(TYPES) | st.text(max_size=4),
    lambda of: st.lists(of, max_size=3) | st.dictionaries(st.text(max_size=3) | st.just("model_type"), of, max_size=3),
    max_leaves=5,
)


def changed(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
