"""The agent's settings: from the command line, else the environment (`TORPOR_EDGE_MIRRORS`), else a TOML file."""

import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torpor.predictors.settings import Setting, SettingError

NODE_ROOT = "/var/lib/torpor/edge"


@dataclass(frozen=True)
class AgentSetting(Setting):
    @property
    def variable(self) -> str:
        return "TORPOR_EDGE_" + self.name.upper()


SETTINGS = (
    AgentSetting("mirrors", str, "", "URLs of the fleet's repository, with commas; each look begins with the next one"),
    AgentSetting("name", str, "", "the node's name, which no other has and which never changes (default the host's)"),
    AgentSetting("labels", str, "", "what the node is, for the shares of a roll-out, such as ring=canary,site=berlin"),
    AgentSetting("bundle", str, "", "the name of the bundles that the node takes, where it has none yet"),
    AgentSetting("root", str, "", "file of the first root to trust, where the node has none yet"),
    AgentSetting("node", str, NODE_ROOT, "the folder of the node's bundles"),
    AgentSetting("k3s", str, "", "K3s's data folder, where images and manifests are put"),
    AgentSetting(
        "restart", str, "", "command that has the new version served, and returns when it is: `systemctl restart torpor`"
    ),
    AgentSetting(
        "smoke_url", str, "http://127.0.0.1:8080",
        "of the server that must answer for each model before a version stays; off: a version stays when the restart went well",
    ),
    AgentSetting(
        "smoke_timeout_s", float, 300.0, "seconds for the first answer, loading included", low=1, high=86_400
    ),
    AgentSetting("reports", str, "", "URL that gets what happens as CloudEvents"),
    AgentSetting(
        "interval_s", float, 300.0,
        "seconds between two looks at a mirror, on average: half as long to one and a half times, so that a fleet does not "
        "come at once", low=1, high=86_400,
    ),
)  # fmt: skip


def resolve(flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None) -> dict[str, Any]:
    """Every setting's value. Raises SettingError."""
    content = _read(file) if file else {}
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        if flags.get(setting.name) is not None:
            values[setting.name] = setting.read(flags[setting.name], setting.flag)
        elif environment.get(setting.variable):
            values[setting.name] = setting.read(environment[setting.variable], setting.variable)
        elif setting.name in content:
            values[setting.name] = setting.read(_text(content[setting.name]), str(file))
        else:
            values[setting.name] = setting.default
    if not values["mirrors"]:
        raise SettingError("mirrors is empty, must be URLs with commas between them")
    values["name"] = values["name"] or socket.gethostname()
    return values


def _read(file: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise SettingError(f"{file}: {error}") from None
    known = {setting.name for setting in SETTINGS}
    if unknown := sorted(content.keys() - known):
        raise SettingError(f"{file}: {unknown[0]} is unknown, must be one of {', '.join(sorted(known))}")
    return content


def _text(value: Any) -> Any:
    """Lists and tables as the other ways have them."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return ",".join(f"{name}={each}" for name, each in value.items())
    return value
