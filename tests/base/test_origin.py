"""What a model was made of, and its licence, are found in its card or its GGUF file, and nowhere else."""

import pytest

from quietstar.base.origin import hub_name, origin_of
from tests.tiny_gguf import tiny_llama, write_gguf
from tests.tiny_tokenizer import tiny_folder


@pytest.mark.parametrize("card", [None, "no fields", "---\nlicense: [\n---\n", b"\xff\xfe"])
def test_without_a_readable_card_the_licence_is_not_known(tmp_path, card):
    base = tiny_folder(tmp_path / "base")
    if card is not None:
        (base / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
    assert origin_of(str(base)).license is None
    assert origin_of(str(base)).name == "base"


def test_a_licence_that_the_hub_does_not_know_has_its_own_name(tmp_path):
    base = tiny_folder(tmp_path / "base")
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: of-ours\n1: x\n---\n")
    assert (origin_of(str(base)).license, origin_of(str(base)).license_name) == ("other", "of-ours")


def test_a_gguf_file_says_its_licence(tmp_path):
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(), {"general.license": "apache-2.0"})
    assert (origin_of(str(file)).license, origin_of(str(file)).on_hub) == ("apache-2.0", None)


def test_a_name_on_a_hub_is_the_base_model():
    origin = origin_of("some/model-on-a-hub")
    assert (origin.name, origin.on_hub) == ("some/model-on-a-hub", "some/model-on-a-hub")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("some/texts", "some/texts"),
        ("gsm8k", "gsm8k"),
        ("texts.jsonl", None),
        ("/a/path", None),
        ("a/b/c", None),
        ("some/*.parquet", None),
    ],
)
def test_names_that_a_hub_can_have(name, found):
    assert hub_name(name) == found
