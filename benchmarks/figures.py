"""The figures: who is measured against whom, and by which factor torpor wants to be ahead.

Like is compared with like: v1 JSON with v1 JSON, v2 JSON with v2 JSON. A peer without KServe's routes gets the v1
body at its own path.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from archived import ArchivedTorchServe, ArchivedTorpor, ArchiveMemory, ArchiveStart, wire
from beginnings import BusyProbe, FirstRequests, Memory, Start
from chain import ChainLatency
from chained import Chained
from edge import Installation, Moved
from edge_link import Linked
from features import LookedUp
from gvisor import Contained
from jetstream import JetStream
from losses import HAPPENINGS, Losses
from measurements import Measurement, Offline, Served, ServedCallers, ServedGrpc, Tuned
from open_loop import Poisson, Simulated
from planning import DayByTick, Difference, HourByRequest
from policy_cost import PolicyCost
from rows import LARGE_BYTES
from servers import Peer, Torpor
from sharing import Beside
from tokenise import Tokenised
from up import Added
from wires import Echo, InEvent, Large, ModelInfer, Raw, V1Json, V2Binary, V2Json, Wire

TORPOR = Torpor("torpor")
TORPOR_2 = Torpor("torpor", workers=2)
TRITON = Peer("triton", ("nvidia-pytriton", "torch"))
MOSEC = Peer("mosec", ("mosec", "torch"))
MOSEC_2 = Peer("mosec", ("mosec", "torch"), workers=2)
"""mosec's front runs on every core anyway; the workers are its Python."""

KSERVE = Peer("kserve", ("kserve", "torch"))
LITSERVE = Peer("litserve", ("litserve", "torch"))
TORCHSERVE = Peer("torchserve", ("torchserve", "torch"), warm_s=6.0)
"""Its front is Java, compiled while it runs."""

MLSERVER = Peer("mlserver", ("mlserver", "torch"))
BENTOML = Peer("bentoml", ("bentoml", "torch"), warm_s=6.0)
"""Its dispatcher learns the model's run time first."""

RAY = Peer("ray", ("ray", "torch"))
ECHO = Peer("echo", ("h2corn", "uvicorn", "grpcio"))


@dataclass(frozen=True)
class Claim:
    """`subject` does at least `factor` times what `rival` does; a hope is printed and not counted.

    Without a rival `factor` is the value itself. at_most: less is better here, seconds or bytes.
    """

    factor: float
    rival: str
    subject: str = "torpor"
    is_hope: bool = False
    at_most: bool = False


@dataclass(frozen=True)
class Figure:
    name: str
    about: str
    unit: str
    measurements: Sequence[Measurement]
    claims: Sequence[Claim]
    absent: dict[str, str] = field(default_factory=dict)
    """Peers that can't take part, with the reason."""

    prints_cost: bool = False
    """Microseconds each beside the rates."""

    adds_up: bool = False
    """Rounds are added: a count, of which the median would hide what is rare."""

    def subjects(self) -> list[str]:
        return list(dict.fromkeys(claim.subject for claim in self.claims))


def v2_binary() -> Figure:
    wire = V2Binary("mlp")
    return Figure(
        "v2-binary",
        "MLP, one row per request, binary tensors both ways, 64 HTTP/1.1 connections",
        "requests/s",
        [
            Served("torpor", TORPOR, wire),
            Served("torpor, 2 processes", TORPOR_2, wire),
            Served("triton", TRITON, wire),
            Served("mosec", MOSEC, Raw("/inference"), form="raw"),
            Served("mosec, 2 workers", MOSEC_2, Raw("/inference"), form="raw"),
            Served("kserve", KSERVE, wire),
            Served("echo h2corn", ECHO, Echo(wire), form="h2corn"),
            Served("echo uvicorn", ECHO, Echo(wire), form="uvicorn"),
        ],
        [
            Claim(1.4, "triton"),
            Claim(20, "kserve"),
            Claim(1.15, "mosec", is_hope=True),
            Claim(1.15, "mosec", "torpor, 2 processes"),
            Claim(1.15, "mosec, 2 workers", "torpor, 2 processes"),
            Claim(1.75, "mosec", "torpor, 2 processes", is_hope=True),
        ],
    )


def json_bodies() -> Figure:
    v1, v2 = V1Json("/v1/models/mlp:predict"), V2Json("mlp")
    first = {
        "mosec": Served("mosec", MOSEC, V1Json("/inference"), form="json"),
        "litserve": Served("litserve", LITSERVE, V1Json("/predict")),
        "torchserve": Served("torchserve", TORCHSERVE, V1Json("/predictions/mlp"), form="json"),
        "bentoml": Served("bentoml", BENTOML, V1Json("/predict", bare=True)),
        "ray": Served("ray", RAY, V1Json("/predict"), form="json"),
    }
    second = {"triton": Served("triton", TRITON, v2), "mlserver": Served("mlserver", MLSERVER, v2)}
    return Figure(
        "json",
        "MLP, one row per request as v1 JSON and as v2 JSON, 64 HTTP/1.1 connections",
        "requests/s",
        [
            Served("torpor v1", TORPOR, v1),
            Served("torpor v2", TORPOR, v2),
            Served("kserve v1", KSERVE, v1),
            Served("kserve v2", KSERVE, v2),
            *first.values(),
            *second.values(),
        ],
        [
            Claim(4, "kserve v1", "torpor v1"),
            *(Claim(1, rival, "torpor v1") for rival in first),
            Claim(4, "kserve v2", "torpor v2"),
            *(Claim(1, rival, "torpor v2") for rival in second),
        ],
    )


def grpc() -> Figure:
    wire = ModelInfer("mlp")
    return Figure(
        "grpc",
        "MLP, ModelInfer with raw contents, 64 HTTP/2 connections of one call each",
        "requests/s",
        [
            ServedGrpc("torpor", TORPOR, wire),
            ServedGrpc("triton", TRITON, wire, port_offset=1),
            ServedGrpc("kserve", KSERVE, wire, port_offset=1),
            ServedGrpc("echo grpc.aio", ECHO, Echo(wire), form="grpc"),
            ServedCallers("torpor, grpcio clients", TORPOR, wire),
            ServedCallers("triton, grpcio clients", TRITON, wire, port_offset=1),
        ],
        [Claim(1.15, "triton"), Claim(5, "kserve"), Claim(2, "echo grpc.aio")],
    )


def minilm() -> Figure:
    wire = V2Binary("minilm")
    listed = V1Json("/predict")
    peers = [
        Tuned("triton", TRITON, wire, "minilm"),
        Tuned("mosec", MOSEC, Raw("/inference"), "minilm", form="raw"),
        Tuned("litserve", LITSERVE, listed, "minilm"),
        Tuned("torchserve", TORCHSERVE, Raw("/predictions/minilm"), "minilm", form="raw"),
        Tuned("ray", RAY, Raw("/predict"), "minilm", form="raw"),
        Tuned("kserve", KSERVE, wire, "minilm", bounds=(1,)),
    ]
    return Figure(
        "minilm",
        "sentence embeddings, one sentence per request, 64 HTTP/1.1 connections, against raw torch offline",
        "sentences/s",
        [
            Served("torpor", TORPOR, wire, "minilm"),
            Offline("raw torch"),
            *peers,
            Served("torpor, batch 1", TORPOR, wire, "minilm", batch_rows=1),
        ],
        [Claim(0.8, "raw torch"), *(Claim(1.5, peer.label) for peer in peers)],
        {
            "mlserver": "its adaptive batching joins only inputs of equal shape",
            "bentoml": "its batchable arrays are joined along one axis and can't be ragged",
        },
    )


def torchserve() -> Figure:
    packages, options = ("torchserve", "torch"), ("raw", "json")
    ours = {form: ArchivedTorpor("torpor", form=form) for form in options}
    theirs = {form: ArchivedTorchServe("torchserve", packages, warm_s=20.0, form=form) for form in options}
    names = {"raw": "MLP, raw", "json": "MLP, JSON"}
    sentences = "MiniLM, tokenising"
    text = wire("sentences", "raw")
    return Figure(
        "torchserve",
        "the same archive in both, batches on: MLP by raw bodies and by JSON, texts that the handler tokenises; 64 connections",
        "requests/s",
        [
            line
            for form, name in names.items()
            for line in (
                Served(f"torpor, {name}", ours[form], wire("mlp", form), form=form),
                Served(f"torchserve, {name}", theirs[form], wire("mlp", form), form=form),
            )
        ]
        + [
            Served(f"torpor, {sentences}", ours["raw"], text, "sentences"),
            Tuned(f"torchserve, {sentences}", theirs["raw"], text, "sentences"),
        ],
        [
            Claim(1.5, "torchserve, MLP, raw", "torpor, MLP, raw"),
            Claim(3, "torchserve, MLP, JSON", "torpor, MLP, JSON"),
            Claim(1.5, f"torchserve, {sentences}", f"torpor, {sentences}"),
        ],
    )


def torchserve_overlap() -> Figure:
    lines = {"overlapping": True, "one after the other": False}
    return Figure(
        "torchserve-overlap",
        "an archive whose handler parses JSON for a device that takes 4 ms a batch of 16; 64 connections",
        "requests/s",
        [
            Served(
                label, ArchivedTorpor("torpor", form="device", flags=(("overlapBatches", value),)), wire("mlp", "device"),
                form="device", batch_rows=16,
            )
            for label, value in lines.items()
        ],
        [Claim(1.2, "one after the other", "overlapping")],
    )  # fmt: skip


def torchserve_lengths() -> Figure:
    lines = {"by length": True, "as they come": False}
    return Figure(
        "torchserve-lengths",
        "an archive of MiniLM that tokenises texts of all lengths in its handler; 64 connections",
        "sentences/s",
        [
            Served(
                label,
                ArchivedTorpor("torpor", flags=(("bucketByLength", value),)),
                wire("sentences", "raw"),
                "sentences",
            )
            for label, value in lines.items()
        ],
        [Claim(1.1, "as they come", "by length")],
    )


ARCHIVED = [("mlp", "MLP"), ("sentences", "MiniLM")]


def torchserve_start() -> Figure:
    torpor, peer = ArchivedTorpor("torpor"), ArchivedTorchServe("torchserve")
    return Figure(
        "torchserve-start",
        "process start to the first correct answer with the same archive, beside a bare script and TorchServe",
        "s",
        [
            line
            for model, name in ARCHIVED
            for line in (
                ArchiveStart(f"torpor, {name}", torpor, model),
                ArchiveStart(f"script, {name}", None, model),
                ArchiveStart(f"torchserve, {name}", peer, model),
            )
        ],
        [
            claim
            for _, name in ARCHIVED
            for claim in (
                Claim(1.15, f"script, {name}", f"torpor, {name}", at_most=True),
                Claim(1, f"torchserve, {name}", f"torpor, {name}", at_most=True),
            )
        ],
    )


def torchserve_memory() -> Figure:
    torpor, peer = ArchivedTorpor("torpor"), ArchivedTorchServe("torchserve")
    return Figure(
        "torchserve-memory",
        "memory of all processes after the first answer, the same archive in both, one worker",
        "MiB",
        [
            line
            for model, name in ARCHIVED
            for line in (
                ArchiveMemory(f"torpor, {name}", torpor, model),
                ArchiveMemory(f"torchserve, {name}", peer, model),
            )
        ],
        [Claim(0.7, f"torchserve, {name}", f"torpor, {name}", at_most=True) for _, name in ARCHIVED],
    )


def policy() -> Figure:
    few, many = "10 queued, batches of 8", "10 000 queued, batches of 8"
    usual = "64 queued, batches of 32"
    return Figure(
        "policy",
        "batching policy alone: offer, expire, take, complete; deadlines, 20 lengths, 5 % cancelled",
        "items/s",
        [PolicyCost(usual, 64, 32), PolicyCost(few, 10, 8), PolicyCost(many, 10_000, 8)],
        [Claim(1e6 / 6, "", usual), Claim(1 / 1.3, few, many)],
        prints_cost=True,
    )


def plan() -> Figure:
    hour, day, apart = "an hour by requests, s", "a day by ticks, s", "apart on a shared hour, %"
    return Figure(
        "plan",
        "the planner's simulations: an hour of 100 requests a second one by one, a day by ticks, how far they are apart",
        "",
        [HourByRequest(hour), DayByTick(day), Difference(apart)],
        [Claim(30, "", hour, at_most=True), Claim(10, "", day, at_most=True), Claim(5, "", apart, at_most=True)],
    )


def start() -> Figure:
    lines = [("mlp", "MLP"), ("minilm", "MiniLM"), ("automodel", "AutoModel")]
    return Figure(
        "start",
        "process start to the first correct answer, beside the same class in a bare script",
        "s",
        [
            start
            for model, name in lines
            for start in (Start(f"torpor, {name}", model), Start(f"script, {name}", model, is_bare=True))
        ],
        [Claim(1.15, f"script, {name}", f"torpor, {name}", at_most=True) for _, name in lines],
    )


def first_requests() -> Figure:
    lines = [("mlp", "MLP"), ("minilm", "MiniLM"), ("automodel", "AutoModel")]
    return Figure(
        "first-requests",
        "p99 of the first 100 answers by p99 of a warm 100, pooled over 20 starts",
        "x",
        [FirstRequests(f"torpor, {name}", model) for model, name in lines],
        [Claim(2, "", f"torpor, {name}", at_most=True) for _, name in lines],
    )


def memory() -> Figure:
    lines = [("mlp", "MLP"), ("minilm", "MiniLM"), ("automodel", "AutoModel")]
    return Figure(
        "memory",
        "resident memory after the first answer, beyond that of the same class in a bare script",
        "MiB",
        [Memory(f"torpor, {name}", model) for model, name in lines],
        [Claim(60, "", f"torpor, {name}", at_most=True) for _, name in lines],
    )


def busy() -> Figure:
    return Figure(
        "busy",
        "p99.9 of a readiness probe while predict is pure Python for 5 s at a time",
        "ms",
        [BusyProbe("torpor")],
        [Claim(50, "", at_most=True)],
    )


def open_loop() -> Figure:
    peers = [
        Poisson("triton", TRITON, V2Binary("minilm"), "minilm", batch_rows=16),
        Poisson("mosec", MOSEC, Raw("/inference"), "minilm", form="raw", batch_rows=16),
    ]
    return Figure(
        "open-loop",
        "sentences as Poisson has them, each at 70 % of its saturation: p99 from when they were due, in units of T1 + T8",
        "x",
        [Poisson("torpor", TORPOR, V2Binary("minilm"), "minilm"), *peers],
        [Claim(2, "", at_most=True)],
    )


def simulated() -> Figure:
    return Figure(
        "simulated",
        "sentences from 64 callers in a loop, in units of what the simulator says with the times just learned",
        "x",
        [Simulated("torpor", TORPOR, V2Binary("minilm"), "minilm")],
        [Claim(0.9, "")],
    )


def sharing() -> Figure:
    lines = [Beside("MLP beside sentences", TORPOR, "mlp"), Beside("sentences beside MLP", TORPOR, "minilm")]
    return Figure(
        "sharing",
        "two models in one server, both under load, in units of what each does alone: half each is fair",
        "x",
        lines,
        [Claim(0.5, "", line.label) for line in lines],
    )


def chain() -> Figure:
    lines = [
        (ChainLatency("same process", "process"), 1.2),
        (ChainLatency("same pod", "pod"), 1.3),
        (ChainLatency("remote", "remote"), 1.5),
    ]
    return Figure(
        "chain",
        "latency of transformer and predictor beyond the predictor's alone, one caller, in units of one way to a thread "
        "and back (same process), of a raw-socket echo of the same bytes (same pod, remote)",
        "x",
        [line for line, _ in lines],
        [Claim(factor, "", line.label, at_most=True) for line, factor in lines],
    )


def chain_throughput() -> Figure:
    v1, v2 = V1Json("/v1/models/minilm:predict"), V2Json("minilm")
    alone = Torpor("torpor", options=("--model-name", "minilm"))
    return Figure(
        "chain-throughput",
        "texts to vectors, one text per request, transformer and predictor as two servers, 64 HTTP/1.1 connections",
        "texts/s",
        [
            Chained("torpor v1", TORPOR, v1),
            Chained("torpor v2", TORPOR, v2),
            Chained("kserve v1", KSERVE, v1, protocol="v1"),
            Chained("kserve v2", KSERVE, v2, protocol="grpc-v2"),
            Served("torpor v2, same process", alone, v2, "sentences"),
        ],
        [Claim(5, "kserve v1", "torpor v1"), Claim(5, "kserve v2", "torpor v2")],
    )


def events() -> Figure:
    v1 = V1Json("/v1/models/mlp:predict")
    wires: list[Wire] = [V2Binary("mlp"), V2Json("mlp"), v1]
    plain = [Served(f"plain, {wire.form}", TORPOR, wire) for wire in wires]
    evented = [Served(f"events, {wire.form}", TORPOR, InEvent(wire)) for wire in wires]
    return Figure(
        "events",
        "MLP, one row per request, as events in binary mode beside plain requests, 64 HTTP/1.1 connections",
        "requests/s",
        [
            *(line for pair in zip(plain, evented, strict=True) for line in pair),
            Served("kserve, events, v1 JSON", KSERVE, InEvent(v1, v1.path)),
        ],
        [Claim(0.8, alone.label, line.label) for alone, line in zip(plain, evented, strict=True)],
    )


def up() -> Figure:
    lines = [Added("HTTP/1.1, v2 binary"), Added("HTTP/2, gRPC", is_grpc=True)]
    return Figure(
        "up",
        "`torpor up`, awake: p50 of the MLP's row through the activator beyond the same process asked directly, one caller",
        "ms",
        lines,
        [Claim(0.3, "", line.label, at_most=True) for line in lines],
    )


def edge_update() -> Figure:
    return Figure(
        "edge-update",
        "an update of MiniLM's last layer to an edge node: bytes of the thin bundle less 100 kB, by the changed tensors' bytes",
        "bytes/byte",
        [Moved("torpor")],
        [Claim(1.2, "", at_most=True)],
    )


def edge_install() -> Figure:
    return Figure(
        "edge-install",
        "verify and install a bundle of 200 MB on an edge node, on the disk, beside sha256sum and cp, which wait for no disk",
        "s",
        [Installation("torpor"), Installation("sha256sum and cp", is_torpor=False)],
        [Claim(2, "sha256sum and cp", at_most=True)],
    )


def gvisor() -> Figure:
    runtimes = ("runc", "runsc")
    return Figure(
        "gvisor",
        "MLP and MiniLM in a container by gVisor's runsc and by runc, one row per request, 64 connections from outside",
        "requests/s",
        [
            *(Contained(f"{runtime}, {model}", runtime, model) for model in ("mlp", "minilm") for runtime in runtimes),
            *(Contained(f"{runtime}, minilm, profiled", runtime, "minilm", is_profiled=True) for runtime in runtimes),
            Contained("runsc, mlp, profiled", "runsc", "mlp", is_profiled=True),
        ],
        [
            Claim(0.85, "runc, minilm", "runsc, minilm, profiled"),
            Claim(0.85, "runc, minilm, profiled", "runsc, minilm, profiled"),
            Claim(0.85, "runc, minilm", "runsc, minilm", is_hope=True),
            Claim(0.85, "runc, mlp", "runsc, mlp", is_hope=True),
            Claim(0.85, "runc, mlp", "runsc, mlp, profiled", is_hope=True),
        ],
    )


def edge_link() -> Figure:
    return Figure(
        "edge-link",
        "10 000 events to an edge node without its link, three times kill -9 of all of it; then the link returns: answers "
        "that the site does not have, or that differ from a repeat's",
        "events",
        [Linked("torpor")],
        [Claim(0, "", at_most=True)],
        adds_up=True,
    )


def features() -> Figure:
    return Figure(
        "features",
        "a user's features from Redis, 16 callers, 9 of 10 users there, a loader of 120 ms for the others: median",
        "ms",
        [LookedUp("torpor"), LookedUp("loader alone", has_redis=False)],
        [Claim(15, "", at_most=True)],
    )


def tokenise() -> Figure:
    library = [Tokenised(f"library, {name}", name) for name in ("encode_batch", "encode_batch_fast")]
    return Figure(
        "tokenise",
        "1 000 mixed sentences a batch by the class Text, beside the library's own calls",
        "sentences/s",
        [Tokenised("torpor", "torpor"), *library],
        [Claim(1 / 1.3, line.label) for line in library],
        prints_cost=True,
    )


def large() -> Figure:
    wire = Large(LARGE_BYTES)
    lines = [
        [
            Served(f"torpor, {version}", TORPOR, wire, "echo", connections=4, version=version),
            Served(f"echo h2corn, {version}", ECHO, Echo(wire), "echo", "h2corn", connections=4, version=version),
        ]
        for version in ("HTTP/1.1", "HTTP/2")
    ]
    lines[0].append(Served("echo uvicorn, HTTP/1.1", ECHO, Echo(wire), "echo", "uvicorn", connections=4))
    return Figure(
        "large",
        "tensors of 5 MB there and back, 4 connections, beside bare echoes",
        "requests/s",
        [line for version in lines for line in version],
        [
            Claim(0.5, "echo h2corn, HTTP/1.1", "torpor, HTTP/1.1"),
            Claim(0.5, "echo uvicorn, HTTP/1.1", "torpor, HTTP/1.1"),
            Claim(0.5, "echo h2corn, HTTP/2", "torpor, HTTP/2"),
        ],
    )


def losses() -> Figure:
    return Figure(
        "losses",
        "clients that never retry, 60 % of capacity, at the pod and through Envoy: lost, wrong, or refused too late",
        "requests",
        [Losses(happening) for happening in HAPPENINGS],
        [Claim(0, "", happening.label, at_most=True) for happening in HAPPENINGS],
        adds_up=True,
    )


def jetstream() -> Figure:
    return Figure(
        "jetstream",
        "the MLP's row as an event through the local broker, persisted twice and its answer kept; then kill -9 of both servers",
        "answers/s",
        [JetStream("default sync", "default"), JetStream("sync always", "always")],
        [],
    )


FIGURES = {"v2-binary": v2_binary, "json": json_bodies, "grpc": grpc, "minilm": minilm, "policy": policy, "plan": plan,
           "start": start, "first-requests": first_requests, "memory": memory, "busy": busy, "large": large,
           "open-loop": open_loop, "simulated": simulated, "sharing": sharing, "chain": chain,
           "chain-throughput": chain_throughput, "losses": losses, "tokenise": tokenise, "features": features,
           "jetstream": jetstream, "events": events, "up": up, "edge-update": edge_update,
           "edge-install": edge_install, "edge-link": edge_link, "gvisor": gvisor, "torchserve": torchserve,
           "torchserve-start": torchserve_start, "torchserve-memory": torchserve_memory,
           "torchserve-overlap": torchserve_overlap, "torchserve-lengths": torchserve_lengths}  # fmt: skip
