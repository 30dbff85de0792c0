"""The command `torpor`: the composition root of the predictors, where the serving path meets the runtime."""

import argparse
import asyncio
import gc
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torpor.knative.plan_command import add_command as add_plan
from torpor.knative.render_command import add_command as add_render
from torpor.knative.rollout_command import add_command as add_rollout
from torpor.knative.validate_command import add_command as add_validate
from torpor.transformers.features_command import add_command as add_features

from .catalog import Catalog, ModelClass, ModelFolder, Outside, find_model_file, is_model_folder, version_folder
from .migration.command import add_command as add_migrate
from .runtime.cores import limit_threads, share_cores, usable_cores
from .settings import SETTINGS, ModelFile, SettingError, resolve
from .simulate import add_command as add_simulate
from .torchserve.place import has_archives

if TYPE_CHECKING:
    from torpor.transformers.events.sink import HttpSink
    from torpor.transformers.events.store import Store

    from .serving.certificate import Certificate
    from .serving.data_plane import DataPlane
    from .serving.repository import Catalog as Models
    from .serving.repository import Repository
    from .serving.rest import Fail, Receiver
    from .serving.server import HttpServer
    from .torchserve.management_api import ManagementApi

logger = logging.getLogger("torpor")

KSERVE_MODEL_FOLDER = Path("/mnt/models")
"""Where KServe's storage initializer and volumes put a model."""

_LOOPBACK = "127.0.0.1"

_KSERVE_FLAGS = (
    "grpc_port", "workers", "max_threads", "max_asyncio_workers", "enable_grpc", "enable_docs_url",
    "enable_latency_logging", "configure_logging", "log_config_file", "access_log_format", "protocol",
    "predictor_use_ssl",
    "enable_predictor_health_check", "grpc_max_send_message_length", "grpc_max_receive_message_length",
    "event-loop", "timeout-keep-alive",
)  # fmt: skip
"""Flags of KServe's SDK server that manifests carry (and KServe itself adds `--workers`): accepted, ignored, logged."""

_KSERVE_ALIASES = {
    "port": ("--http_port",),
    "predictor": ("--predictor_host",),
    "predictor_timeout_s": ("--predictor_request_timeout_seconds",),
    "predictor_retries": ("--predictor_request_retries",),
    "tls_cert": ("--ssl_certfile",),
    "tls_key": ("--ssl_keyfile",),
}
"""That server's names of settings that are here too."""


@dataclass(frozen=True)
class _Post:
    """What a worker of `--processes` has from its supervisor: its number, and its ends of two sockets."""

    number: int
    handover: socket.socket
    calls: socket.socket


_WORK = "import sys; from torpor.predictors.command import work; sys.exit(work())"


def work() -> int:
    """Be a worker: the arguments end with the worker's number and two descriptors (`serving/supervisor.py`)."""
    *arguments, number, handover, calls = sys.argv[1:]
    return main(arguments, _Post(int(number), *(socket.socket(fileno=int(fd)) for fd in (handover, calls))))


def main(arguments: Sequence[str] | None = None, post: _Post | None = None) -> int:
    """Run `torpor`; the process's exit status."""
    began_s = time.perf_counter()
    parser = _parser()
    options = parser.parse_args(arguments)
    options.arguments = sys.argv[1:] if arguments is None else arguments
    options.post = post
    try:
        return int(options.run(options, began_s))
    except SettingError as error:
        print(f"torpor: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    from torpor.edge.command import add_command as add_edge
    from torpor.knative.up_command import add_command as add_up
    from torpor.transformers.events_command import add_command as add_events

    parser = argparse.ArgumentParser(prog="torpor", description="Serve PyTorch models on KServe and Knative.")
    parser.add_argument("--version", action="version", version=f"torpor {version('torpor')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    serve = commands.add_parser(
        "serve",
        help="serve a model",
        description="Serve a model over KServe v1, Open Inference v2 and gRPC, all on one port. "
        "A setting comes from its flag, else its variable (TORPOR_PORT for --port), else the model's model.toml.",
    )
    serve.add_argument(
        "model", nargs="?", metavar="FOLDER|ARCHIVE|MODULE:CLASS",
        help="a folder with a model.toml, a folder of such folders, a class, or TorchServe's archives (a .mar, a "
        "folder of them, KServe's storage folder); "
        f"without it $TORPOR_MODEL, else {KSERVE_MODEL_FOLDER}",
    )  # fmt: skip
    serve.add_argument(
        "--model-name", "--model_name",
        help="name in URLs; else $INFERENCE_SERVICE_NAME, model.toml's, the folder's or the class's",
    )  # fmt: skip
    serve.add_argument("--model-dir", "--model_dir", type=Path, help="what `load` gets as folder, with MODULE:CLASS")
    for setting in SETTINGS:
        flags = dict.fromkeys((setting.flag, setting.flag.replace("-", "_").replace("__", "--", 1)))
        flags = dict.fromkeys((*flags, *_KSERVE_ALIASES.get(setting.name, ())))
        value = str(setting.default).lower() if setting.kind is bool else setting.default
        default = "" if setting.name == "drain_quiet_s" else f" (default {value})"
        serve.add_argument(*flags, dest=setting.name, metavar=setting.form, help=setting.help + default)
    for flag in _KSERVE_FLAGS:
        serve.add_argument(f"--{flag}", dest="kserve_" + flag, nargs="?", const="", help=argparse.SUPPRESS)
    serve.set_defaults(run=_serve)

    add_simulate(commands)
    add_features(commands)
    add_validate(commands)
    add_render(commands)
    add_rollout(commands)
    add_events(commands)
    add_up(commands)
    add_plan(commands)
    add_edge(commands)
    add_migrate(commands)

    completion = commands.add_parser("completion", help="print a shell's completion script")
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    completion.set_defaults(run=_completion)
    return parser


def _completion(options: argparse.Namespace, began_s: float) -> int:
    import shtab

    print(shtab.complete(_parser(), options.shell))
    return 0


def _serve(options: argparse.Namespace, began_s: float) -> int:
    flags = vars(options)
    settings = resolve(flags, os.environ, {})
    _configure_logging(settings["log_level"], settings["log_format"], options.post)
    catalog = _catalog(options, Outside(flags, os.environ))
    settings = resolve(flags, os.environ, catalog.settings)
    if options.post is None:
        ignored = [flag for flag in _KSERVE_FLAGS if flags["kserve_" + flag] is not None]
        if ignored:
            logger.info("ignored, without meaning here: %s", ", ".join(f"--{flag}" for flag in ignored))
        if settings["processes"] > 1:
            return asyncio.run(_supervise(options.arguments, settings))
    limit_threads(os.environ, settings["threads"] or max(1, usable_cores() // settings["processes"]))
    if sum(len(catalog.model(name).versions()) for name in catalog.names()) > 1:
        share_cores(os.environ)
    certificate = _certificate(settings)
    try:
        with asyncio.Runner(loop_factory=_event_loop()) as runner:
            return runner.run(_run(catalog, settings, began_s, options.post, certificate))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM


async def _supervise(arguments: Sequence[str], settings: Mapping[str, Any]) -> int:
    """Bind the port, and serve it by several workers that are started by this command's own arguments."""
    from .serving.supervisor import Supervisor, bound_port

    try:
        port = bound_port(settings["host"], settings["port"])
    except OSError as error:
        logger.error("port %s on %s: %s", settings["port"], settings["host"], error)
        return 1
    # -P: the folder that it is started in is not where modules are imported from.
    command = [sys.executable, "-P", "-c", _WORK, *arguments]
    limits_s = settings["drain_timeout_s"], settings["worker_timeout_s"]
    return await Supervisor(command, settings["processes"], port, *limits_s).run()


def _catalog(options: argparse.Namespace, outside: Outside) -> "Models":
    """What there is to serve. Raises SettingError."""
    source = options.model or os.environ.get("TORPOR_MODEL") or str(KSERVE_MODEL_FOLDER)
    name = options.model_name or os.environ.get("TORPOR_MODEL_NAME") or os.environ.get("INFERENCE_SERVICE_NAME")
    if ":" in source and not Path(source).exists():
        folder: Path | None = options.model_dir or (KSERVE_MODEL_FOLDER if KSERVE_MODEL_FOLDER.is_dir() else None)
        name = name or source.partition(":")[2].lower()
        return Catalog({name: ModelClass(name, source, folder, outside)})
    root = Path(source).resolve()
    is_one_model = is_model_folder(root)
    if not is_one_model and has_archives(root):
        from .torchserve.store import ArchiveStore

        # The service's name is not the model's: paths have the one that the archive, or the snapshot, gives it.
        named = options.model_name or os.environ.get("TORPOR_MODEL_NAME")
        is_managed = outside.settings({})["torchserve_management"] != "off"
        return ArchiveStore.of(root, outside, usable_cores(), named, may_be_empty=is_managed)
    if not root.is_dir():
        raise SettingError(f"{source!r} is neither a folder nor MODULE:CLASS")
    if not is_one_model:
        if options.model_name:
            raise SettingError(
                f"--model-name: {options.model_name!r}, but {root} has several models, named like their folders"
            )
        return Catalog.of_repository(root, outside)
    model = ModelFolder(root.name, root, outside)
    folder = version_folder(root, model.versions()[0])
    name = name or ModelFile.read(find_model_file(root, folder)).name or root.name
    return Catalog({name: replace(model, name=name)})


def _event_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's loop: a fifth less of Python's own cost a request (docs/decisions.md). None, for asyncio's, on Windows."""
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


async def _run(
    catalog: "Models",
    settings: Mapping[str, Any],
    began_s: float,
    post: _Post | None,
    certificate: "Certificate | None",
) -> int:
    """Import the classes, load and warm them, serve until a signal. The status is 1 if a model or the port fails."""
    await catalog.prepare()
    from .errors import Unavailable
    from .runtime.user_class import UserClassError
    from .serving.data_plane import DataPlane
    from .serving.lifecycle import Lifecycle
    from .serving.repository import Repository
    from .serving.server import HttpServer, Listener, Port, Ports
    from .serving.tracing import tracing_from
    from .serving.worker import Colleagues, HandedDown

    start = asyncio.current_task()
    assert start is not None
    # Until there is something to drain. Raised by a handler anywhere, an exception would pass for the model's own.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, start.cancel)
    data_plane = DataPlane(version("torpor"))
    data_plane.tracing = tracing_from(os.environ)
    tls = None
    if certificate is not None:
        certificate.watch()
        tls = certificate.context
    phases = data_plane.metrics.start_phases
    phases["start"] = time.perf_counter() - began_s
    repository = Repository(catalog, data_plane, settings["model_control_mode"] == "explicit")
    management, beside = _management(catalog, settings, data_plane, repository)
    own = Port(settings["host"], settings["port"], tls, settings["unix_socket"])
    others = [Port(host, port, tls) for host, port in _others(catalog, settings)]
    listener: Listener = Ports([*others, own]) if others else own
    colleagues: Colleagues | None = None
    talk: asyncio.Task[None] | None = None
    if post is not None:
        repository.everybody = colleagues = Colleagues(repository, data_plane.metrics)
        listener = HandedDown(post.handover, colleagues, post.number, tls)
        await colleagues.channel.open(post.calls)
        talk = asyncio.get_running_loop().create_task(colleagues.channel.run(), name="channel")
    # Meanwhile: an archive's worker, which is a process of its own, need not wait for it.
    importing = asyncio.get_running_loop().run_in_executor(None, import_module, "torpor.predictors.serving.app")
    try:
        await repository.load_all(await colleagues.changes() if colleagues else {})
        await importing
    except (SettingError, UserClassError) as error:
        logger.error("%s", error)
        return 1
    except (Exception, SystemExit):
        logger.exception("a model failed to load")
        return 1
    finally:
        await catalog.settle()
    from .serving.app import App

    # What the models left is there to stay, as the imports are: the collector need not look at it during each request.
    gc.collect()
    gc.freeze()
    try:
        store = await _event_store(settings)
        sink = _sink(settings, os.environ)
    except (Unavailable, ValueError) as error:
        logger.error("%s", error)
        return 1
    except ImportError as error:
        logger.error("%s: pip install 'torpor[events]'", error)
        return 1
    receiver = _receiver(data_plane, settings, store, sink)
    limits_bytes = settings["max_body_bytes"], settings["max_unfinished_bytes"]
    app = App(data_plane, repository, *limits_bytes, colleagues, receiver, management)
    server = HttpServer(app, listener, *limits_bytes)
    lifecycle = Lifecycle(data_plane, server, settings["drain_quiet_s"], settings["drain_timeout_s"], beside)
    if talk is not None:  # without its supervisor a worker has nobody to serve
        talk.add_done_callback(lambda _: lifecycle.stop(0.0))
    total_s = time.perf_counter() - began_s
    detail = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in phases.items())
    names = ", ".join(data_plane.names())
    try:
        return await lifecycle.run(f"ready in {total_s:.2f} s ({detail}): {names} on {{address}}")
    except OSError as error:
        where = "unix_socket" if error.filename else f"port {settings['port']} on {settings['host']}"
        logger.error("%s: %s", "torchserve_ports" if others else where, error)
        return 1
    except SettingError as error:
        logger.error("%s", error)
        return 1


def _others(catalog: "Models", settings: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Where to listen beside the server's own port. Raises SettingError."""
    if not settings["torchserve_ports"]:
        return []
    from .torchserve.store import ArchiveStore

    if not isinstance(catalog, ArchiveStore):
        raise SettingError("torchserve_ports = true, must be false where there are no archives of TorchServe's")
    return [address for address in catalog.config.addresses() if address[1] != settings["port"]]


def _management(
    catalog: "Models", settings: Mapping[str, Any], data_plane: "DataPlane", repository: "Repository"
) -> "tuple[ManagementApi | None, dict[str, HttpServer]]":
    """TorchServe's: what answers it on the server's own port, and the server of another. Raises SettingError."""
    where = settings["torchserve_management"]
    if where == "off":
        return None, {}
    from .serving.server import HttpServer, Port, Ports
    from .torchserve.management import Management
    from .torchserve.management_api import MOST_BODY_BYTES, ManagementApi, ManagementApp
    from .torchserve.properties import read_address
    from .torchserve.store import ArchiveStore

    if not isinstance(catalog, ArchiveStore):
        raise SettingError(f"torchserve_management = {where}, must be off where there are no archives of TorchServe's")
    api = ManagementApi(Management(catalog, data_plane, repository))
    if where == "port":
        return api, {}
    _, port = read_address("management_address", catalog.config.management_address)
    ports = dict.fromkeys((port, catalog.config.grpc_management_port or port))
    listener = Ports([Port(_LOOPBACK, port, None) for port in ports])
    server = HttpServer(ManagementApp(api), listener, MOST_BODY_BYTES, settings["max_unfinished_bytes"])
    return None, {"TorchServe's management": server}


async def _event_store(settings: Mapping[str, Any]) -> "Store | None":
    """Raises Unavailable, ValueError."""
    if not settings["event_store"]:
        return None
    from torpor.transformers.events.store import open_store

    return await open_store(settings["event_store"], settings["event_store_ttl_s"])


def _sink(settings: Mapping[str, Any], environment: Mapping[str, str]) -> "HttpSink | None":
    """Raises ValueError."""
    if not settings["sink"]:
        return None
    from torpor.transformers.events.http_caller import HttpCaller
    from torpor.transformers.events.sink import HttpSink, read_overrides

    overrides = read_overrides(environment.get("K_CE_OVERRIDES", ""))
    return HttpSink(HttpCaller(), settings["sink"], settings["dead_letter_sink"], overrides)


def _receiver(
    data_plane: "DataPlane", settings: Mapping[str, Any], store: "Store | None", sink: "HttpSink | None"
) -> "Callable[[Fail], Receiver]":
    def open_receiver(fail: "Fail") -> "Receiver":
        from torpor.transformers.events.receiver import Receiver

        return Receiver(data_plane, fail, settings["event_source"], settings["event_type"], store, sink)

    return open_receiver


def _certificate(settings: Mapping[str, Any]) -> "Certificate | None":
    """What the port speaks TLS with. Raises SettingError."""
    if not settings["tls_cert"]:
        return None
    from .serving.certificate import Certificate

    return Certificate(settings["tls_cert"], settings["tls_key"])


class _JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def _configure_logging(level: str, form: str, post: _Post | None) -> None:
    handler = logging.StreamHandler()
    number = f" worker {post.number}" if post is not None else ""
    text = logging.Formatter(f"%(asctime)s %(levelname)s %(name)s{number}: %(message)s")
    handler.setFormatter(_JsonFormatter() if form == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
