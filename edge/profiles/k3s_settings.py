"""K3s's own settings for a node, as text: where each file goes stands in its first line.

K3s makes containerd's config.toml anew at each start from `config-v3.toml.tmpl` (containerd 2; the template without `v3` in
its name is read by containerd 1 alone, and there the same table has no effect). Of the runtimes K3s finds by itself runsc is
none: https://docs.k3s.io/advanced#configuring-containerd.
"""

from collections.abc import Iterator

from torpor.knative.quantities import memory

from .profile import GIB, Profile
from .sizing import EVICTION_BYTES, MIB, SYSTEM_BYTES

_RUNTIME = "plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.'runsc'"
RUNSC_CONFIG = "/etc/containerd/runsc.toml"


def k3s_settings(profile: Profile) -> Iterator[tuple[str, str]]:
    """Names and contents."""
    yield "config.yaml", _config(profile)
    if profile.mirror or profile.link == "none":
        yield "registries.yaml", _registries(profile)
    if profile.is_sandboxed:
        yield "config-v3.toml.tmpl", containerd_template()
        yield "runsc.toml", _runsc(profile)


def _config(profile: Profile) -> str:
    disabled = [("metrics-server", "nothing here scales by it")]
    if profile.has_knative:
        disabled.insert(0, ("traefik", "Kourier, Knative's ingress, takes ports 80 and 443"))
    else:
        disabled.insert(0, ("traefik", "one Service needs no ingress"))
    off = "".join(f"  - {name} # {why}\n" for name, why in disabled)
    lost = "\ndisable-default-registry-endpoint: true # what no mirror has fails at once, not by time-out" * (
        profile.link == "none"
    )
    gvisor = "  - torpor.dev/runsc=true # what RuntimeClass gvisor selects\n" if profile.is_sandboxed else ""
    share = _percent(profile, 2)
    return f"""\
# /etc/rancher/k3s/config.yaml, read at K3s's start
write-kubeconfig-mode: "0600"
node-label: # counted when the node registers; later it is `kubectl label node`
  - torpor.dev/profile={profile.name}
{gvisor}disable:
{off.rstrip()}{lost}
kubelet-arg:
  - system-reserved=memory=256Mi # sshd, journald, page cache; with the next line it is what sizes of pods leave free
  - kube-reserved=cpu=250m,memory={memory(SYSTEM_BYTES - 256 * MIB)} # K3s's server and containerd are one process tree
  - eviction-hard=memory.available<{memory(EVICTION_BYTES)},nodefs.available<{share}%,imagefs.available<{share}%
  - image-gc-high-threshold={100 - 2 * share} # of the disk's {memory(profile.disk_bytes)}
  - image-gc-low-threshold={100 - 3 * share}
  - container-log-max-size=5Mi # two files a container
  - container-log-max-files=2
"""


def _percent(profile: Profile, gibibytes: int) -> int:
    """So many GiB as a share of the disk; a tenth at most."""
    return max(1, min(10, round(100 * gibibytes * GIB / profile.disk_bytes)))


def _registries(profile: Profile) -> str:
    if not profile.mirror:
        return """\
# /etc/rancher/k3s/registries.yaml, read at K3s's start. No link: images come as files of the bundle, into agent/images.
mirrors:
  "*": {} # listed, so that disable-default-registry-endpoint covers every registry
"""
    return f"""\
# /etc/rancher/k3s/registries.yaml, read at K3s's start
mirrors:
  "*": # asked before a registry itself{", and instead of it: config.yaml" * (profile.link == "none")}
    endpoint: ["{profile.mirror}"]
"""


def containerd_template() -> str:
    return f"""\
{{{{/* /var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.tmpl; K3s makes config.toml of it at its start */}}}}
{{{{ template "base" . }}}}

# containerd finds the shim as containerd-shim-runsc-v1, on the path of K3s's unit
[{_RUNTIME}]
  runtime_type = "io.containerd.runsc.v1"
  pod_annotations = ["dev.gvisor.*"]

[{_RUNTIME}.options]
  TypeUrl = "io.containerd.runsc.v1.options"
  ConfigPath = "{RUNSC_CONFIG}"
"""


def _runsc(profile: Profile) -> str:
    cuda = '\n  nvproxy = "true" # CUDA; takes only drivers of `runsc nvproxy list-supported-drivers`'
    return f"""\
# {RUNSC_CONFIG}, read by the shim at each pod's start
[runsc_config]
  platform = "systrap" # runs on every kernel from 4.14.77 on, in virtual machines too{cuda * (profile.accelerator == "cuda")}
"""
