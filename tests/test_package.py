"""What is built for PyPI has all that is needed, nothing else, and runs outside the checkout."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="hatchling is not installed (extra: dev)")
ROOT = Path(__file__).parents[1]
DEMO = "demo --steps 3 --thought_steps 1 --inspected 2 --no_picture --output_dir demo"


def build(source: Path, folder: Path) -> tuple[Path, Path]:
    """Build wheel and sdist, and return them."""
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=source, check=True)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build(ROOT, tmp_path_factory.mktemp("dist"))


def files_of(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def test_the_wheel_has_the_package_and_nothing_else(built):
    source = ROOT / "src"
    expected = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    expected = {name for name in expected if "__pycache__" not in name and ".egg-info" not in name}
    assert files_of(built[0]) == expected
    assert {"quietstar/py.typed"} <= expected
    metadata = [name for name in zipfile.ZipFile(built[0]).namelist() if ".dist-info/" in name]
    assert any(name.endswith("LICENSE") for name in metadata)


def test_the_sdist_builds_the_same_wheel(built, tmp_path):
    with tarfile.open(built[1]) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    assert not [name for name in (".venv", "runs", "site") if (folder / name).exists()]
    assert {"README.md", "LICENSE", "CHANGELOG.md", "Makefile", "constraints.txt", "tests"} <= {
        path.name for path in folder.iterdir()
    }
    again, _ = build(folder, tmp_path / "again")
    assert files_of(again) == files_of(built[0])


@pytest.mark.slow
def test_it_runs_outside_the_checkout(built, tmp_path):
    """Its dependencies are those of the tests; the package is the wheel's."""
    target = tmp_path / "installed"
    how = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*how, str(built[0])], check=True)
    surroundings = os.environ | {"PYTHONPATH": str(target), "HF_HUB_OFFLINE": "1"}

    def run(*words: str) -> str:
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=tmp_path, env=surroundings, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-c", "import quietstar; print(quietstar.__file__)").strip() == str(target / "quietstar" / "__init__.py")
    assert run("-m", "quietstar", "--version").startswith("quietstar ")
    run("-m", "quietstar", *DEMO.split())
    code = f"""
import quietstar
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "demo" / "fresh")!r})
print(type(model).__module__, type(model).__name__)
"""
    assert run("-c", code).split() == ["quietstar.model", "QuietStarForCausalLM"]
