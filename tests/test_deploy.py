"""The manifests and the unit in deploy/: valid, and in step with specgen-server."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml
from support import require_program

from specgen_client import read_request_file
from specgen_client.cli import main as specgen
from specgen_core import read_request
from specgen_server.process.cli import main as specgen_server

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
KUSTOMIZATIONS = sorted(path.parent for path in DEPLOY.rglob("kustomization.yaml"))
# the oldest that has all that is used in both, and the newest that the validator knows
VERSIONS = ("1.29", kubernetes_validate.latest_version())


def _documents(folder: Path) -> dict[str, Any]:
    return {
        path.name: yaml.safe_load(path.read_text())
        for path in sorted(folder.glob("*.yaml"))
        if path.name != "kustomization.yaml"
    }


BASE = _documents(DEPLOY / "kubernetes/base")
SIDECAR = _documents(DEPLOY / "kubernetes/sidecar")
MANIFESTS = [pytest.param(m, id=m["kind"]) for m in (*BASE.values(), *SIDECAR.values())]
POD = BASE["deployment.yaml"]["spec"]["template"]
SIDECAR_POD = SIDECAR["pod.yaml"]


def _servers() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield name, pod spec and container of each place where specgen-server runs."""
    yield "deployment", POD["spec"], POD["spec"]["containers"][0]
    yield "sidecar", SIDECAR_POD["spec"], SIDECAR_POD["spec"]["initContainers"][0]


SERVERS = [pytest.param(pod, container, id=name) for name, pod, container in _servers()]


def _parsed(command: click.Command, arguments: list[str]) -> dict[str, Any]:
    """Return what a command makes of its arguments; a flag that it has not is an error."""
    return command.make_context(command.name, list(arguments)).params


def _health(probe: dict[str, Any]) -> dict[str, Any]:
    program, subcommand, *arguments = probe["exec"]["command"]
    assert (program, subcommand) == ("specgen", "health")
    return _parsed(specgen.commands["health"], arguments)  # type: ignore[attr-defined]


# --- Kubernetes -----------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", MANIFESTS)
def test_manifests_fit_the_schemas(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda path: path.name)
def test_a_kustomization_lists_what_is_there(folder: Path) -> None:
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    generated = [
        name
        for generator in kustomization.get("configMapGenerator", ())
        for name in generator["files"]
    ]
    listed = [*kustomization["resources"], *generated, "kustomization.yaml"]
    assert sorted(listed) == sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda path: path.name)
def test_kustomize_builds(folder: Path) -> None:
    kustomize = require_program("kustomize")
    built = subprocess.run([kustomize, "build", folder], stdout=subprocess.PIPE, check=True)
    for manifest in yaml.safe_load_all(built.stdout):
        kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_selectors_find_the_pods(manifest: dict[str, Any]) -> None:
    spec = manifest.get("spec", {})
    if manifest["kind"] == "Service":
        selectors = [spec["selector"]]
    elif manifest["kind"] == "NetworkPolicy":
        selectors = [spec["podSelector"]["matchLabels"]]
    elif "selector" in spec:
        selectors = [spec["selector"]["matchLabels"]]
    else:
        return
    for selector in selectors:
        assert selector
        assert selector.items() <= POD["metadata"]["labels"].items()


def test_the_pods_spread() -> None:
    for constraint in POD["spec"]["topologySpreadConstraints"]:
        labels = constraint["labelSelector"]["matchLabels"]
        assert labels.items() <= POD["metadata"]["labels"].items()


def test_the_service_is_headless() -> None:
    assert BASE["service.yaml"]["spec"]["clusterIP"] == "None"


def test_the_autoscaler_has_the_replicas() -> None:
    target = BASE["horizontal-pod-autoscaler.yaml"]["spec"]["scaleTargetRef"]
    deployment = BASE["deployment.yaml"]
    assert target == {
        "apiVersion": deployment["apiVersion"],
        "kind": deployment["kind"],
        "name": deployment["metadata"]["name"],
    }
    assert "replicas" not in deployment["spec"]


def test_the_ports_are_those_that_the_server_listens_on() -> None:
    container = POD["spec"]["containers"][0]
    values = _parsed(specgen_server, container["args"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    listening = [address.rpartition(":")[2] for address in values["listen"]]
    assert listening == [str(ports["grpc"])]
    assert values["metrics"].rpartition(":")[2] == str(ports["metrics"])
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[kind]["grpc"]["port"] == ports["grpc"]
    annotations = POD["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(ports["metrics"])
    (service_port,) = BASE["service.yaml"]["spec"]["ports"]
    assert service_port["port"] == ports["grpc"]
    named = {service_port["targetPort"]} | {
        port["port"]
        for rule in BASE["network-policy.yaml"]["spec"]["ingress"]
        for port in rule["ports"]
    }
    assert named == ports.keys()


@pytest.mark.parametrize(("pod", "container"), SERVERS)
def test_a_pod_may_drain(pod: dict[str, Any], container: dict[str, Any]) -> None:
    values = _parsed(specgen_server, container["args"])
    # a second beyond is what the server takes for itself
    assert pod["terminationGracePeriodSeconds"] > values["drain_delay"] + values["grace"] + 1


def test_readiness_is_lost_before_calls_are_refused() -> None:
    container = POD["spec"]["containers"][0]
    probe = container["readinessProbe"]
    unready_after = probe["periodSeconds"] * probe["failureThreshold"]
    assert _parsed(specgen_server, container["args"])["drain_delay"] >= unready_after


@pytest.mark.parametrize(("pod", "container"), SERVERS)
def test_pods_are_restricted(pod: dict[str, Any], container: dict[str, Any]) -> None:
    """Hold them to the "restricted" Pod Security Standard, and a little more."""
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for one in (*pod.get("initContainers", ()), *pod["containers"]):
        context = one["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert one["resources"]["limits"]["memory"]
        assert one["resources"]["requests"].keys() == {"cpu", "memory"}
    user = (pod["securityContext"] | container["securityContext"])["runAsUser"]
    assert f"USER {user}:" in (ROOT / "Dockerfile").read_text()


def test_the_sidecar_is_asked_on_its_socket() -> None:
    server = SIDECAR_POD["spec"]["initContainers"][0]
    (address,) = _parsed(specgen_server, server["args"])["listen"]
    for kind in ("startupProbe", "livenessProbe"):
        asked = _health(server[kind])
        assert asked["server"] == address
        assert asked["timeout"] < server[kind]["timeoutSeconds"]
    (builder,) = SIDECAR_POD["spec"]["containers"]
    assert f"--server={address}" in builder["command"]
    folder = str(Path(address.removeprefix("unix://")).parent)
    for container in (server, builder):
        mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
        assert mounts[folder] == "specgen-socket"


def test_the_sidecars_request_is_valid() -> None:
    read_request(read_request_file(str(DEPLOY / "kubernetes/sidecar/request.json")))


# --- systemd --------------------------------------------------------------------------


class _Unit(configparser.RawConfigParser):
    optionxform = staticmethod(str)  # type: ignore[assignment]


@pytest.fixture
def unit() -> configparser.SectionProxy:
    parser = _Unit(strict=False, delimiters=("=",), comment_prefixes=("#",))
    parser.read(DEPLOY / "systemd/specgen-server.service")
    return parser["Service"]


def _exec_start(unit: configparser.SectionProxy) -> dict[str, Any]:
    program, *arguments = shlex.split(unit["ExecStart"])
    assert Path(program).name == "specgen-server"
    return _parsed(specgen_server, arguments)


def test_the_units_flags_are_the_servers(unit: configparser.SectionProxy) -> None:
    values = _exec_start(unit)
    (address,) = values["listen"]
    folder = Path(address.removeprefix("unix://")).parent
    assert folder == Path("/run") / unit["RuntimeDirectory"]


def test_the_unit_lets_the_server_drain(unit: configparser.SectionProxy) -> None:
    values = _exec_start(unit)
    seconds = float(unit["TimeoutStopSec"].removesuffix("s"))
    assert seconds > values["drain_delay"] + values["grace"] + 1
    # with control-group, workers get the signal from systemd and from their supervisor
    assert unit["KillMode"] == "mixed"


def test_the_units_variables_are_the_servers(unit: configparser.SectionProxy) -> None:
    file = DEPLOY / "systemd" / Path(unit["EnvironmentFile"]).name
    known = {f"SPECGEN_{param.name.upper()}" for param in specgen_server.params if param.name}
    named = re.findall(r"^(?:# )?(SPECGEN_\w+)=", file.read_text(), re.MULTILINE)
    assert named
    assert set(named) <= known


def test_the_units_user_is_made(unit: configparser.SectionProxy) -> None:
    assert unit["User"] == unit["Group"] == "specgen"
    assert "\nu specgen - " in (DEPLOY / "systemd/specgen.sysusers").read_text()


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    analyze = require_program("systemd-analyze")
    program = tmp_path / "specgen-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / "specgen-server.service"
    text = (DEPLOY / "systemd/specgen-server.service").read_text()
    copy.write_text(text.replace("/opt/specgen/bin/specgen-server", str(program)))
    verified = subprocess.run(
        [analyze, "verify", "--man=no", copy], capture_output=True, text=True, timeout=60
    )
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


def test_systemd_rates_the_unit_well() -> None:
    analyze = require_program("systemd-analyze")
    rated = subprocess.run(
        [
            analyze,
            "security",
            "--offline=true",
            "--no-pager",
            "--threshold=15",  # of 100, where less is safer
            DEPLOY / "systemd/specgen-server.service",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert rated.returncode == 0, rated.stdout[-300:]
