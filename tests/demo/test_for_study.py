"""What a demo leaves for `quietstar study`: a model that has not learned to think, and texts that share nothing."""

from pathlib import Path

import torch

from quietstar import QuietStarForCausalLM
from quietstar.demo.for_study import write_for_study
from quietstar.demo.language import build_tokenizer
from tests.tiny import tiny_model


def test_the_model_and_its_texts(tmp_path: Path) -> None:
    model, lines = tiny_model(), [f"ab{n}" for n in range(10, 22)]
    write_for_study(tmp_path, model, build_tokenizer(), lines[:6], lines[6:])
    texts = {file.stem: file.read_text().splitlines() for file in tmp_path.glob("*.txt")}
    assert (texts["train"], texts["selection"], texts["test"]) == (lines[:6], lines[6:9], lines[9:])
    for name in ("train", "selection", "test"):
        noise = texts[f"noise-{name}"]
        assert noise != texts[name]
        assert sorted("".join(noise)) == sorted("".join(texts[name])), "the same characters"
        assert list(map(len, noise)) == list(map(len, texts[name]))
    found = QuietStarForCausalLM.from_pretrained(tmp_path / "fresh")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found.parameters(), model.parameters(), strict=True))
