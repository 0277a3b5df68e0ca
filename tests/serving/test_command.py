"""`quietstar serve`: its options, its errors, and how it starts and stops."""

import json
import re
import signal
import socket
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

import quietstar.serving
from quietstar.errors import SettingsError
from quietstar.serving.arguments import ServeArguments
from quietstar.serving.run import address_of, listen
from tests.cli import call
from tests.processes import Command
from tests.tiny_tokenizer import thinking_folders

WRONG = [
    ({"host": ""}, "host is empty"),
    ({"port": -1}, "port is -1; give a number from 0 to 65535"),
    ({"port": 65536}, "port is 65536"),
    ({"max_batch": 0}, "max_batch is 0; give a number of at least 1"),
    ({"max_queue": 0}, "max_queue is 0"),
    ({"max_prompt_tokens": 0}, "max_prompt_tokens is 0"),
    ({"max_tokens": 0}, "max_tokens is 0"),
    ({"max_n": 0}, "max_n is 0"),
    ({"max_n_ahead": 1}, "max_n_ahead is 1; give a whole number of at least 2"),
    ({"n_ahead": 1}, "n_ahead is 1; give a whole number of at least 2"),
    ({"max_request_bytes": 0}, "max_request_bytes is 0"),
    ({"request_seconds": 0.0}, "request_seconds is 0.0; give a number above 0"),
    ({"request_seconds": float("nan")}, "request_seconds is nan"),
    ({"model_name": ""}, "model_name is empty"),
    ({"model_name": "a\udcffb"}, "model_name is not valid Unicode"),
    ({"cors_origin": ["example.org"]}, "give an origin such as http://localhost:3000"),
    ({"cors_origin": ["http://example.org/page"]}, "give an origin"),
    ({"think": "sometimes"}, "choose from"),
    ({"thought_temperature": -1.0}, "thought_temperature is -1.0"),
]


@pytest.mark.parametrize(("how", "says"), WRONG)
def test_impossible_settings_are_refused_in_one_line(how: dict, says: str) -> None:
    """Before a model is loaded."""
    with pytest.raises(SettingsError, match=re.escape(says)) as raised:
        ServeArguments(**how)
    assert "\n" not in str(raised.value)


def test_a_key_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never from the command line, which everybody on the machine can read; the file overrides the environment."""
    monkeypatch.delenv("QUIETSTAR_API_KEY", raising=False)
    assert ServeArguments().api_key() is None
    monkeypatch.setenv("QUIETSTAR_API_KEY", "of the env")
    with pytest.raises(SettingsError, match="QUIETSTAR_API_KEY is not a valid key"):
        ServeArguments().api_key()
    monkeypatch.setenv("QUIETSTAR_API_KEY", "other")
    assert ServeArguments().api_key() == b"other"
    file = tmp_path / "key"
    with pytest.raises(SettingsError, match=r"cannot be read: give .*No such file"):
        ServeArguments(api_key_file=str(file)).api_key()
    for content in (b"", b" \n", b"two words", "ké".encode(), b"a\nb", b"\xff"):
        file.write_bytes(content)
        with pytest.raises(SettingsError, match=r"api_key_file .*give"):
            ServeArguments(api_key_file=str(file)).api_key()
    file.write_bytes(b"sesame\n")
    assert ServeArguments(api_key_file=str(file)).api_key() == b"sesame"


def test_an_address_in_use_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """They are refused before the model is loaded."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert call("serve", "no/such/model", "--port", port) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"quietstar serve: host 127.0.0.1 and port {port} cannot be used: Address already in use")
    assert "\n" not in said
    for host in ("no.such.host.invalid", "not an address", "a..b", "a" * 64 + ".example"):
        with pytest.raises(SettingsError, match="is not a valid address"):
            listen(host, 0)
    assert address_of("::1", 80) == "http://[::1]:80"


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client"])
def test_a_missing_package_names_its_extra(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names the extra, on one line."""
    monkeypatch.setattr(quietstar, "serving", quietstar.serving)  # put back with its modules
    for name in [name for name in sys.modules if name.startswith("quietstar.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert call("serve", "no/such/model") == 2
    said = capsys.readouterr().err
    needed = f"{package} is not installed and is needed for quietstar serve"
    assert said == f"quietstar serve: {needed}: pip install 'quietstar[serve]'\n"


def test_every_option_has_a_help_text(capsys: pytest.CaptureFixture[str]) -> None:
    """In groups, the server's first."""
    assert call("serve", "--help") == 0
    said = capsys.readouterr().out
    for name in ServeArguments.__dataclass_fields__:
        assert f"\n  --{name} " in said, name
    assert said.index("server:") < said.index("limits:") < said.index("thoughts:")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_told_to_stop(tmp_path: Path, how: signal.Signals) -> None:
    """It prints its address on one line, and ends without an error."""
    folder = thinking_folders(tmp_path, n_ahead=4) / "thinking"
    with Command("-m", "quietstar", "serve", folder, "--port", 0, TQDM_DISABLE="1") as process:
        while not (found := re.search(r"^serving thinking at (http://127\.0\.0\.1:\d+)\n", process.stderr, re.M)):
            assert process.is_running, process.stderr
            time.sleep(0.05)
        body = json.dumps({"prompt": "one two", "max_tokens": 5}).encode()
        request = Request(f"{found[1]}/v1/completions", body, {"Content-Type": "application/json"})
        with urlopen(request, timeout=60) as answer:
            assert json.load(answer)["model"] == "thinking"
        process.send_signal(how)
        assert process.wait(60) == (130 if how == signal.SIGINT else -signal.SIGTERM)
        assert "Traceback" not in process.stderr
