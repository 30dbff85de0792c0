"""The settings of a served model: each one's name, unit, range, default and reason, in one table.

A value comes from the command line, else the environment (`TORPOR_MAX_BATCH_SIZE`), else the model's `model.toml`, else
the default. `torpor serve --help`, the environment's names and the schema of `model.toml` are made from this table.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any


class SettingError(ValueError):
    """A setting that cannot be used; the message names it, its value, the allowed range, and where it came from."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. section: its table in model.toml, "" for none of them, None where a model's file has no say.

    low, high: the allowed range of a number; choices: the allowed words of a text.
    """

    name: str
    kind: type
    default: Any
    help: str
    section: str | None = None
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def form(self) -> str:
        """What its value looks like, for a help text."""
        words = ("true", "false") if self.kind is bool else self.choices
        return "|".join(words) or self.kind.__name__.upper()

    @property
    def variable(self) -> str:
        return "TORPOR_" + self.name.upper()

    def read(self, value: object, source: str) -> Any:
        """The value, checked; text is converted. Raises SettingError."""
        allowed = f"in [{self.low:g}, {self.high:g}]" if self.low is not None and self.high is not None else ""
        if self.choices:
            allowed = f"one of {', '.join(self.choices)}"
        if self.kind is bool:
            if isinstance(value, bool):
                return value
            if value not in ("true", "false"):
                raise SettingError(f"{source}: {self.name} = {value!r}, must be true or false")
            return value == "true"
        if isinstance(value, int) and value.bit_length() > 63:  # also what Python does not write out
            raise SettingError(f"{source}: {self.name} is an integer of more than 64 bits, must be {allowed}")
        try:
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise ValueError
            if self.kind is int and isinstance(value, float):
                raise ValueError
            if self.kind is str and not isinstance(value, str):
                raise ValueError
            converted = self.kind(value)
        except ValueError:
            word = {int: "an integer", float: "a number", str: "a text"}[self.kind]
            raise SettingError(f"{source}: {self.name} = {value!r}, must be {word} {allowed}".rstrip()) from None
        number = isinstance(converted, int | float)
        outside = number and allowed and not self.choices and not self.low <= converted <= self.high
        if outside or (self.choices and converted not in self.choices):
            raise SettingError(f"{source}: {self.name} = {converted}, must be {allowed}")
        return converted


SETTINGS = (
    Setting(
        "model_version", str, "latest",
        "numbered folders to serve: latest (the highest), all, or numbers such as 3 or 2,3", "",
    ),
    Setting("host", str, "0.0.0.0", "address to listen on"),
    Setting("port", int, 8080, "port for HTTP/1.1, HTTP/2 and gRPC; 0 takes a free one", low=0, high=65535),
    Setting(
        "unix_socket", str, "",
        "path of a Unix socket to listen on as well, without TLS, for its file's owner and group; with one process only",
    ),
    Setting(
        "max_batch_size", int, 32, "most rows that the model gets at once; 1 turns batching off",
        "batching", low=1, high=65536,
    ),
    Setting(
        "batch_timeout_micros", int, 2000,
        "longest time in microseconds that a request waits for company while the device is free; "
        "it is not waited out when nobody else is expected; 0 never waits",
        "batching", low=0, high=10_000_000,
    ),
    Setting(
        "max_queue_rows", int, 4096, "rows that may wait; what comes on top is refused with 503 and Retry-After",
        "batching", low=1, high=10_000_000,
    ),
    Setting(
        "request_timeout_s", float, 0.0,
        "deadline in seconds of a request that brings none of its own; 0 for none",
        "batching", low=0, high=86_400,
    ),
    Setting(
        "model_timeout_s", float, 0.0,
        "seconds after which a batch that still runs means that the model hangs: its callers are told to try elsewhere, "
        "and the model answers nobody any more; 0 for no limit, since only its author knows what is too long",
        "batching", low=0, high=86_400,
    ),
    Setting(
        "load_timeout_s", float, 600.0,
        "seconds after which import, load and warm-up of a version have failed, so that other loads go on, and a start that "
        "hangs ends. 600: after as long Knative, and a Deployment, give a start up; 0 for no limit",
        "batching", low=0, high=86_400,
    ),
    Setting(
        "device", str, "auto",
        "device of the model: auto (CUDA if there is one), cpu, cuda, cuda:1; with commas (cuda:0,cuda:1 or cpu,cpu) an "
        "instance on each",
        "device",
    ),
    Setting(
        "threads", int, 0, "CPU threads of one operation; 0 for as many as the container's limit has cores, shared by "
        "processes and by instances on the CPU",
        "device", low=0, high=1024,
    ),
    Setting(
        "dtype", str, "keep",
        "dtype of weights and floating inputs; outputs stay as declared, float32 where nothing is declared. keep: as "
        "`load` made them, since half precision changes answers",
        "device", choices=("keep", "float32", "float16", "bfloat16"),
    ),
    Setting(
        "autocast", str, "off",
        "dtype that torch.autocast computes in where it thinks it safe; weights and inputs stay as they are. off: it "
        "changes answers",
        "device", choices=("off", "float16", "bfloat16"),
    ),
    Setting(
        "channels_last", bool, False,
        "weights and inputs of four axes in channels-last order; faster for many convolutions, slower for others",
        "device",
    ),
    Setting(
        "compile", str, "off",
        "mode of torch.compile for the model's modules. off: compiling takes seconds to minutes of every start",
        "device", choices=("off", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    ),
    Setting(
        "cuda_graphs", bool, False,
        "run `predict` as a CUDA graph for each shape, rows filled up to powers of two. false: what Python does besides "
        "enqueueing would happen once and never again",
        "device",
    ),
    Setting(
        "predictor", str, "",
        "where a transformer's predictor is: a model's folder or MODULE:CLASS (this process), unix:/path (its pod), or "
        "HOST[:PORT] or a URL (elsewhere)",
        "transformer",
    ),
    Setting(
        "predictor_name", str, "", "the model's name at a predictor elsewhere; empty for the transformer's own", "transformer",
    ),
    Setting(
        "predictor_protocol", str, "auto",
        "what a predictor elsewhere is asked in; auto asks it what it speaks, v2 is binary where it can",
        "transformer", choices=("auto", "v1", "v2", "v2-json", "v2-binary", "grpc-v2"),
    ),
    Setting(
        "predictor_timeout_s", float, 600.0,
        "seconds that a predictor elsewhere has for a request without a deadline, its waking from zero included",
        "transformer", low=0.001, high=86_400,
    ),
    Setting(
        "predictor_retries", int, 3,
        "how often a request that a predictor elsewhere has not begun is sent again, within its deadline",
        "transformer", low=0, high=100,
    ),
    Setting(
        "event_source", str, "",
        "source of the events that answer events; empty for io.kserve.inference.NAME of the model, as KServe has it",
    ),
    Setting("event_type", str, "io.kserve.inference.response", "type of the events that answer events"),
    Setting(
        "event_store", str, "",
        "where answers to events are kept, so that a repeated event gets the same bytes again: nats://HOST:PORT or "
        "redis://HOST:PORT; empty for nowhere",
    ),
    Setting(
        "event_store_ttl_s", float, 3600.0,
        "seconds that an answer is kept: longer than a broker goes on delivering an event", low=1, high=31_536_000,
    ),
    Setting(
        "sink", str, "",
        "URL that answers to events are sent to, as events, instead of back with the response; empty for back",
    ),
    Setting(
        "dead_letter_sink", str, "",
        "URL for answers that the sink does not take; empty for none: then the sender of the request gets 503 and comes again",
    ),
    Setting(
        "processes", int, 1,
        "serving processes, each with the whole model and a share of the cores; more than one where a core of Python is what "
        "bounds the rate", low=1, high=256,
    ),
    Setting(
        "worker_timeout_s", float, 30.0,
        "with several processes, seconds after which one that does not answer the supervisor hangs: it is killed and started "
        "anew. No `predict` is that long without a turn for other threads, unless its native code keeps the interpreter's "
        "lock; 0 for no limit",
        low=0, high=86_400,
    ),
    Setting(
        "max_body_bytes", int, 64 << 20, "largest request body in bytes, as it comes and inflated", low=1, high=1 << 40,
    ),
    Setting(
        "max_unfinished_bytes", int, 512 << 20,
        "most bytes that a process holds of request bodies that are still coming, of all connections together, and as many of "
        "those that came compressed and are not answered; the newest on top are refused with 503 and Retry-After; never less "
        "than twice max_body_bytes", low=1, high=1 << 40,
    ),
    Setting(
        "tls_cert", str, "",
        "file with the certificate chain in PEM; with it and tls_key the port speaks TLS, and takes up files that change",
    ),
    Setting("tls_key", str, "", "file with the certificate's private key in PEM"),
    Setting(
        "drain_quiet_s", float, -1.0,
        "after SIGTERM, seconds without a request after which the server leaves; -1: 0 under Knative, where queue-proxy "
        "has drained already, 5 elsewhere, where clients learn late that a pod is going",
        low=-1, high=3600,
    ),
    Setting(
        "drain_timeout_s", float, 25.0,
        "after SIGTERM, longest time in seconds that requests are taken; what is in flight then gets 5 s more",
        low=0, high=3600,
    ),
    Setting(
        "model_control_mode", str, "none",
        "whether callers may load and unload models (v2 repository API): none, or explicit, as Triton has it",
        choices=("none", "explicit"),
    ),
    Setting(
        "torchserve_management", str, "off",
        "TorchServe's management API, where its archives are served. loopback: on 127.0.0.1, at the port of config.properties' "
        "management_address (8081); port: on the server's own, whose host must be on loopback; with one process only",
        choices=("off", "loopback", "port"),
    ),
    Setting(
        "torchserve_ports", bool, False,
        "listen where config.properties of TorchServe's archives says (inference_address, metrics_address, "
        "grpc_inference_port) as well; everything is on each of them; with one process only",
    ),
    Setting(
        "handler_failure_status", str, "500",
        "status of a request whose handler, of an archive of TorchServe's, raises or gives no answer. 503 is TorchServe's: it "
        "asks clients and proxies to send again what will fail again",
        choices=("500", "503"),
    ),
    Setting("log_level", str, "info", "least severe messages that are logged", choices=("debug", "info", "warning", "error")),
    Setting("log_format", str, "text", "form of a log line", choices=("text", "json")),
)  # fmt: skip

_BY_NAME = {setting.name: setting for setting in SETTINGS}


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A `model.toml`: the class, the model's name, settings, and what `load` gets as `parameters`."""

    class_path: str
    name: str | None
    settings: Mapping[str, Any]
    parameters: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> "ModelFile":
        """Raises SettingError for an unreadable file, an unknown key or a bad value."""
        try:
            content = tomllib.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:  # TOMLDecodeError is one of them, and not the only one
            raise SettingError(f"{path}: {error}") from None
        class_path = content.pop("class", None)
        if not isinstance(class_path, str) or class_path.count(":") != 1:
            raise SettingError(f"{path}: class = {class_path!r}, must be 'module:Class'")
        name = content.pop("name", None)
        if name is not None and not isinstance(name, str):
            raise SettingError(f"{path}: name = {name!r}, must be a text")
        parameters = content.pop("parameters", {})
        if not isinstance(parameters, dict):
            raise SettingError(f"{path}: parameters must be a table")
        settings: dict[str, Any] = {}
        for setting in SETTINGS:
            if setting.section == "" and setting.name in content:
                settings[setting.name] = setting.read(content.pop(setting.name), str(path))
        for section, table in content.items():
            known = {setting.name for setting in SETTINGS if setting.section == section}
            if not section or not known or not isinstance(table, dict):
                raise SettingError(
                    f"{path}: {section} is unknown, must be class, name, model_version, [batching], [device], "
                    "[transformer] or [parameters]"
                )
            for key, value in table.items():
                if key not in known:
                    raise SettingError(f"{path}: {section}.{key} is unknown, must be one of {', '.join(sorted(known))}")
                settings[key] = _BY_NAME[key].read(value, f"{path}: {section}")
        return cls(class_path, name, settings, parameters)


_OTHERS_VARIABLES = {"port": "PORT", "event_source": "CE_SOURCE", "event_type": "CE_TYPE", "sink": "K_SINK"}
"""Variables of Knative's and of KServe's SDK that mean the same."""


def resolve(flags: Mapping[str, Any], environment: Mapping[str, str], file: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting's value. Raises SettingError."""
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        variable = setting.variable
        if not environment.get(variable):  # as a chart has what it does not set
            variable = _OTHERS_VARIABLES.get(setting.name, variable)
        if flags.get(setting.name) is not None:
            values[setting.name] = setting.read(flags[setting.name], setting.flag)
        elif environment.get(variable):
            values[setting.name] = setting.read(environment[variable], variable)
        else:
            values[setting.name] = file.get(setting.name, setting.default)
    if values["drain_quiet_s"] < 0:
        values["drain_quiet_s"] = 0.0 if environment.get("K_SERVICE") else 5.0
    if bool(values["tls_cert"]) != bool(values["tls_key"]):
        raise SettingError(
            f"tls_cert = {values['tls_cert']!r}, tls_key = {values['tls_key']!r}, must be given together"
        )
    if values["unix_socket"] and values["processes"] > 1:
        raise SettingError(
            f"unix_socket = {values['unix_socket']!r}, must be left out with processes = {values['processes']}"
        )
    _check_torchserve(values)
    return values


def _check_torchserve(values: Mapping[str, Any]) -> None:
    """Who reaches the management API decides what code runs here. Raises SettingError."""
    management, host = values["torchserve_management"], values["host"]
    if values["torchserve_ports"] and values["processes"] > 1:
        raise SettingError(f"torchserve_ports = true, must be false with processes = {values['processes']}")
    if management != "off" and values["processes"] > 1:
        raise SettingError(f"torchserve_management = {management}, must be off with processes = {values['processes']}")
    if management == "port" and host != "localhost" and not _is_loopback(host):
        raise SettingError(f"torchserve_management = port: host = {host!r}, must be on loopback, such as 127.0.0.1")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
