"""recipes/ray_serve.py: replicas on two CPUs answer as the server does, whole and streamed."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import openai
import pytest

from quietstar.serving.run import listen
from tests.tiny_tokenizer import thinking_folders

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """Return a port that nobody uses."""
    with listen("127.0.0.1", 0) as door:
        return int(door.getsockname()[1])


@pytest.mark.long  # Ray starts half a dozen processes
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_replicas_answer_as_the_server_does(tmp_path: Path) -> None:
    """By OpenAI's client; a refused request has the server's own message."""
    folder, port = thinking_folders(tmp_path, n_ahead=4) / "thinking", free_port()
    script, folder_of_ray = tmp_path / "script.py", tempfile.mkdtemp(prefix="ray-")  # names of its sockets are long
    script.write_text(f"""
import ray
from ray import serve
from recipes.ray_serve import application

ray.init(num_cpus=2, include_dashboard=False, _temp_dir={folder_of_ray!r})
serve.start(http_options={{"host": "127.0.0.1", "port": {port}}})
options = {{"model": {str(folder)!r}, "replicas": "2", "num_cpus": "0.5", "think": "every:2", "max_n": "4"}}
serve.run(application(options), blocking=True)
""")
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}",
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen([sys.executable, script], env=environment, stdout=said, stderr=said, cwd=tmp_path)
    try:
        address = f"http://127.0.0.1:{port}"
        while not is_served(address):
            assert process.poll() is None, (tmp_path / "said").read_text()[-3000:]
            time.sleep(0.5)
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60) as client:
            how = {"model": "thinking", "prompt": ["one two", "x"], "temperature": 0, "max_tokens": 9}
            whole = client.completions.create(**how, extra_body={"thoughts": True})
            assert [each["thought"] for each in whole.choices[1].thoughts[:2]] != [True, True]
            again = [client.completions.create(**how) for _ in range(4)]
            assert {str([choice.text for choice in each.choices]) for each in again} == {
                str([choice.text for choice in whole.choices])
            }
            chunks = [chunk.choices[0] for chunk in client.completions.create(**how, stream=True)]
            assert "".join(chunk.text for chunk in chunks if chunk.index == 0) == whole.choices[0].text
            with pytest.raises(openai.BadRequestError, match="n is 5; the server allows up to 4"):
                client.completions.create(model="thinking", prompt="x", n=5)
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(folder_of_ray)


def is_served(address: str) -> bool:
    """Return whether the application answers."""
    try:
        return httpx.get(f"{address}/healthz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "the following arguments are required: model"),
        ({"model": "m", "replicas": "x"}, "argument --replicas: invalid int value: 'x'"),
        ({"model": "m", "port": "9"}, "unrecognized arguments: --port=9"),
        ({"model": "m", "thinks": "always"}, "did you mean --think"),
        ({"model": "m", "max_batch": "0"}, "max_batch is 0; give a number of at least 1"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(
    options: dict[str, str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the command's own messages."""
    from recipes.ray_serve import application

    with pytest.raises((SystemExit, ValueError)) as raised:
        application(options)
    assert says in f"{raised.value} {capsys.readouterr().err}"
