"""What docs/events.md shows, done as it says, on ports that are free."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torpor.transformers.events.trigger import read_triggers

PAGE = (Path(__file__).parents[3] / "docs" / "events.md").read_text()
MODELS = Path(__file__).parents[1] / "models"


def block(language: str, holding: str) -> str:
    """The first block of the page with this text."""
    return next(text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if holding in text)


@pytest.fixture
def answers(start_broker: Any, start: Any, subscribe: Any) -> tuple[Any, Any]:
    """The page's triggers at work: the broker, and who gets the answers."""
    listener = subscribe()
    model = start(MODELS / "counts")
    text = block("toml", "[[trigger]]").replace("http://127.0.0.1:8080/", f"http://{model.address}/")
    return start_broker(text.replace("http://127.0.0.1:8082/", listener.url)), listener


def test_curl_lines(answers: tuple[Any, Any]) -> None:
    """Each gets its 202, and its answer arrives."""
    broker, listener = answers
    lines = block("sh", "curl").strip().splitlines()
    for line in lines:
        command = shlex.split(line.replace(":8081/", f":{broker.port}/"))
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        assert done.stdout.startswith("HTTP/1.1 202"), done
    assert {answer.attributes["correlationid"] for answer in listener.wait_for(2)} == {"1", "2"}


def test_the_producer(answers: tuple[Any, Any], tmp_path: Path) -> None:
    """Also when the broker comes only after it."""
    broker, listener = answers
    script = tmp_path / "producer.py"
    script.write_text(block("python", "# producer.py"))
    subprocess.run([sys.executable, script, f"http://127.0.0.1:{broker.port}/"], timeout=30, check=True)
    assert {answer.attributes["correlationid"] for answer in listener.wait_for(3)} == {"0", "1", "2"}


def test_commands_are_spelt_right() -> None:
    """Each `torpor events` line of the page is one that the command takes."""
    from torpor.predictors.command import _parser

    lines = [line for line in PAGE.splitlines() if line.startswith("torpor ")]
    assert len(lines) >= 9
    for line in lines:
        _parser().parse_args(shlex.split(line.rstrip("& "), comments=True)[1:])


def test_every_key_of_a_trigger_is_told(tmp_path: Path) -> None:
    """The page's table and the file's reader know the same keys."""
    keys = re.findall(r"^\| `([a-z_]+)` \|", PAGE, re.MULTILINE)
    values = {
        "name": '"a"',
        "filter": "{}",
        "subscriber": '"http://x/"',
        "backoff_policy": '"linear"',
        "dead_letter": '"d"',
        "from_site": "true",
    }
    file = tmp_path / "triggers.toml"
    file.write_text("[[trigger]]\n" + "".join(f"{key} = {values.get(key, 1)}\n" for key in keys))
    (trigger,) = read_triggers(file)
    assert (trigger.backoff.retry, trigger.in_flight, trigger.dead_letter) == (1, 1, "d")
    assert len(keys) == 10
