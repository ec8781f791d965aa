"""deploy/kubernetes without a cluster: each overlay built by kustomize, held against Kubernetes' schemas and our code.

The kinds of KEDA and of Prometheus' operator have no schema that a package holds: their shapes stand here
(`CUSTOM_KINDS`), as far as the manifests use them.
"""

import base64
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import kubernetes_validate  # type: ignore[import-untyped]  # no stubs
import pytest
import yaml
from billing.reports import CSV_UNREAD_MAX
from billing.settings import BillingSettings
from consent.imports import HELD_AT_ONCE
from consent.settings import Settings as ConsentSettings
from dispatcher.settings import Settings as DispatcherSettings
from fastapi.routing import APIRoute
from message_log.audience_api import BODY_LIMITS, UPLOADS_AT_ONCE
from message_log.settings import MessageLogSettings
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sendwhy.connections import START_SECONDS
from sendwhy.metrics import METRICS
from sendwhy.service import COMMANDS
from sendwhy.settings import PREFIX, KafkaSettings
from sendwhy.stage import consumer_group
from sendwhy.topics import MAX_WEBHOOK_BYTES, TOPICS
from webhook_ingest.door import META_PATH, SHOPIFY_PATH
from webhook_ingest.settings import Settings as WebhookIngestSettings

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("single-node", "production")
VERSION = "1.37"
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
GENERATE = runpy.run_path(str(ROOT / "docs" / "generate.py"))
APPS: Mapping[str, Any] = GENERATE["apps"]()
SETTINGS: Mapping[str, type[KafkaSettings]] = {
    "sendwhy": KafkaSettings,
    "consent": ConsentSettings,
    "billing": BillingSettings,
    "dispatcher": DispatcherSettings,
    "webhook_ingest": WebhookIngestSettings,
    "message_log": MessageLogSettings,
}
NAME = "app.kubernetes.io/name"
COMPONENT = "app.kubernetes.io/component"
PORT = 8080
KAFKA, POSTGRESQL, HTTPS, DNS = 9092, 5432, 443, 53
# Made by cert-manager or by hand.
SECRETS_OF_OTHERS = {"sendwhy-tls"}
Object = dict[str, Any]


def kustomize(folder: Path) -> str:
    command = Path(sys.executable).parent / "kubectl"
    found = str(command) if command.exists() else shutil.which("kubectl")
    if found is None:
        message = "kubectl is not installed, of which a package exists for Linux only"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    done = subprocess.run([found, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass(frozen=True)
class Manifests:
    """What an overlay makes."""

    overlay: str
    objects: tuple[Object, ...]

    def of(self, kind: str) -> dict[str, Object]:
        return {each["metadata"]["name"]: each for each in self.objects if each["kind"] == kind}

    @cached_property
    def pods(self) -> dict[str, Object]:
        """The template of each Deployment and Job, by its name."""
        return {name: each["spec"]["template"] for name, each in (self.of("Deployment") | self.of("Job")).items()}

    def container(self, name: str) -> Object:
        (container,) = self.pods[name]["spec"]["containers"]
        found: Object = container
        return found

    def variables(self, name: str) -> dict[str, str]:
        """The environment of a pod's container, as Kubernetes makes it."""
        container = self.container(name)
        found: dict[str, str] = {}
        for source in container["envFrom"]:
            found |= self.of("ConfigMap")[source["configMapRef"]["name"]]["data"]
        for each in container["env"]:
            field = each["valueFrom"]["fieldRef"]["fieldPath"]
            assert field == "metadata.name"
            found[each["name"]] = f"{name}-7d4b9c-x2k4q"
        return found

    def files(self, name: str) -> dict[str, tuple[str, str]]:
        """(Secret, key) by path, for the secrets that a pod's container sees."""
        volumes = {each["name"]: each for each in self.pods[name]["spec"].get("volumes", [])}
        found = {}
        for mount in self.container(name)["volumeMounts"]:
            secret = volumes[mount["name"]].get("secret")
            if secret is None:
                assert "emptyDir" in volumes[mount["name"]] or volumes[mount["name"]]["configMap"]["optional"]
                continue
            data = self.of("Secret")[secret["secretName"]]["data"]
            for item in secret.get("items", [{"key": key, "path": key} for key in data]):
                assert item["key"] in data, f"{name}: no {item['key']} in Secret {secret['secretName']}"
                found[f"{mount['mountPath']}/{item['path']}"] = (secret["secretName"], item["key"])
        return found


@cache
def build(overlay: str) -> Manifests:
    return Manifests(overlay, tuple(yaml.safe_load_all(kustomize(KUBERNETES / "overlays" / overlay))))


@pytest.fixture(scope="module", params=OVERLAYS)
def built(request: pytest.FixtureRequest) -> Manifests:
    return build(request.param)


@pytest.fixture(scope="module")
def production() -> Manifests:
    return build("production")


def matches(selector: Object, labels: Mapping[str, str]) -> bool:
    wanted = selector.get("matchLabels", {})
    operators = {
        "In": lambda key, values: labels.get(key) in values,
        "NotIn": lambda key, values: labels.get(key) not in values,
    }
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        operators[each["operator"]](each["key"], each["values"]) for each in selector.get("matchExpressions", [])
    )


# --- the shape of every object ---


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Reference(Shape):
    name: str


class KafkaTrigger(Shape):
    """https://keda.sh, scaler "Apache Kafka", 2.16 to 2.18."""

    class Values(Shape):
        bootstrapServersFromEnv: str
        consumerGroup: str
        topic: str
        lagThreshold: str = Field(pattern=r"^[1-9]\d*$")
        offsetResetPolicy: Literal["earliest"]
        limitToPartitionsWithLag: Literal["true"]
        excludePersistentLag: Literal["true"]
        sasl: Literal["plaintext", "scram_sha256", "scram_sha512", "none"]
        tls: Literal["enable", "disable"]

    type: Literal["kafka"]
    authenticationRef: Reference
    metadata: Values


class CpuTrigger(Shape):
    class Values(Shape):
        value: str = Field(pattern=r"^[1-9]\d?$")

    type: Literal["cpu"]
    metricType: Literal["Utilization"]
    metadata: Values


class ScaledObject(Shape):
    class Advanced(Shape):
        class Autoscaler(Shape):
            behavior: Object

        horizontalPodAutoscalerConfig: Autoscaler

    scaleTargetRef: Reference
    minReplicaCount: int = Field(ge=1)
    maxReplicaCount: int
    pollingInterval: int = Field(ge=5)
    advanced: Advanced
    triggers: list[KafkaTrigger | CpuTrigger] = Field(min_length=1)


class TriggerAuthentication(Shape):
    class FromEnv(Shape):
        parameter: Literal["username"]
        name: str
        containerName: str

    class FromSecret(Shape):
        parameter: Literal["password"]
        name: str
        key: str

    env: list[FromEnv]
    secretTargetRef: list[FromSecret]


class ServiceMonitor(Shape):
    class Selector(Shape):
        matchLabels: dict[str, str]

    class Endpoint(Shape):
        port: str
        path: str
        interval: str = Field(pattern=r"^\d+s$")
        honorLabels: bool = False

    jobLabel: str
    selector: Selector
    endpoints: list[Endpoint] = Field(min_length=1)


class PrometheusRule(Shape):
    groups: list[Object]


CUSTOM_KINDS: Mapping[tuple[str, str], type[Shape]] = {
    ("keda.sh/v1alpha1", "ScaledObject"): ScaledObject,
    ("keda.sh/v1alpha1", "TriggerAuthentication"): TriggerAuthentication,
    ("monitoring.coreos.com/v1", "ServiceMonitor"): ServiceMonitor,
    ("monitoring.coreos.com/v1", "PrometheusRule"): PrometheusRule,
}


def test_every_object_follows_its_schema(built: Manifests) -> None:
    for each in built.objects:
        shape = CUSTOM_KINDS.get((each["apiVersion"], each["kind"]))
        if shape is None:
            kubernetes_validate.validate(each, VERSION, strict=True)
        else:
            assert set(each) == {"apiVersion", "kind", "metadata", "spec"}
            shape.model_validate(each["spec"])


def test_how_the_autoscaler_moves_follows_its_schema(production: Manifests) -> None:
    for name, each in production.of("ScaledObject").items():
        target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
        behavior = each["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        spec = {"scaleTargetRef": target, "maxReplicas": each["spec"]["maxReplicaCount"], "behavior": behavior}
        autoscaler = {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": name}}
        kubernetes_validate.validate(autoscaler | {"spec": spec}, VERSION, strict=True)


def test_everything_is_in_the_namespace_and_labelled(built: Manifests) -> None:
    (namespace,) = built.of("Namespace")
    for each in built.objects:
        assert each["kind"] == "Namespace" or each["metadata"]["namespace"] == namespace
        assert each["metadata"]["labels"]["app.kubernetes.io/part-of"] == "sendwhy"


# --- commands, settings and secrets ---


def test_every_command_exists_and_its_image_holds_it(built: Manifests) -> None:
    assert 'ENTRYPOINT ["python", "-m"]' in DOCKERFILE
    # All services have the same `main`; common's own command can't be imported without running it.
    known = {"service": COMMANDS, "sendwhy": ("topics",)}
    assert 'usage: python -m sendwhy topics"' in (ROOT / "libs" / "common" / "sendwhy" / "__main__.py").read_text()
    for name in built.pods:
        package, command = built.container(name)["args"]
        kind = built.pods[name]["metadata"]["labels"][COMPONENT]
        assert command == {"service": "serve", "prepare": "topics" if name == "topics" else "migrate"}[kind]
        assert command in known["sendwhy" if package == "sendwhy" else "service"]
        member = name.removeprefix("migrate-") if name != "topics" else "consent"
        assert package == ("sendwhy" if name == "topics" else member.replace("-", "_"))
        image, _, tag = built.container(name)["image"].rpartition(":")
        assert image.rpartition("/")[2] == f"sendwhy-{member}"
        assert (ROOT / "services" / member / "pyproject.toml").exists()
        assert re.fullmatch(r"\d+\.\d+\.\d+", tag), "a version, never latest"


@pytest.fixture
def settings_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Loads a pod's environment, with the secrets of deploy/dev-secrets but those given."""

    def load(built: Manifests, name: str, **secrets: str) -> KafkaSettings:
        for variable in [variable for variable in os.environ if variable.startswith(PREFIX)]:
            monkeypatch.delenv(variable)
        kind = SETTINGS[built.container(name)["args"][0]]
        files = built.files(name)
        for variable, value in built.variables(name).items():
            setting = variable.removeprefix(PREFIX).removesuffix("_FILE").lower()
            assert setting in kind.model_fields, f"{name} knows no {variable}"
            if variable.endswith("_FILE"):
                assert value in files, f"{name} sees no file {value}"
                file = tmp_path / files[value][1]
                file.write_text(secrets.get(file.name) or development_secret(file.name))
                value = str(file)
            monkeypatch.setenv(variable, value)
        return kind()

    return load


def development_secret(key: str) -> str:
    file = ROOT / "deploy" / "dev-secrets" / key
    return "development-only" if key.startswith("kafka_sasl_password_") else file.read_text()


def test_environment_is_what_the_service_reads(built: Manifests, settings_of: Any) -> None:
    for name in built.pods:
        settings = settings_of(built, name)
        assert settings.replica.startswith(name), "each replica has a name of its own"


def test_a_service_sees_the_secrets_that_it_reads_and_no_others(built: Manifests) -> None:
    read: set[tuple[str, str]] = set()
    for name in built.pods:
        asked = {value for variable, value in built.variables(name).items() if variable.endswith("_FILE")}
        files = built.files(name)
        assert asked == set(files), name
        read |= set(files.values())
    assert read == {(name, key) for name, each in built.of("Secret").items() for key in each["data"]}


def test_a_placeholder_that_was_left_is_refused_by_name(built: Manifests, settings_of: Any) -> None:
    for each in built.of("Secret").values():
        assert {base64.b64decode(value).decode() for value in each["data"].values()} == {"REPLACE"}
    for name in built.of("Deployment"):
        for secret, key in built.files(name).values():
            if secret.startswith("secrets"):
                with pytest.raises(ValidationError) as refused:
                    settings_of(built, name, **{key: "REPLACE"})
                assert key.startswith(str(refused.value.errors()[0]["loc"][0])), f"{name}: {key}"


def test_all_that_a_pod_refers_to_exists(built: Manifests) -> None:
    for name, pod in built.pods.items():
        assert pod["spec"]["serviceAccountName"] in built.of("ServiceAccount")
        volumes = [each["name"] for each in pod["spec"]["volumes"]]
        mounts = [each["name"] for each in built.container(name)["volumeMounts"]]
        assert sorted(volumes) == sorted(mounts), name
        assert len(set(volumes)) == len(volumes)
    for ingress in built.of("Ingress").values():
        assert {each["secretName"] for each in ingress["spec"]["tls"]} <= SECRETS_OF_OTHERS


def test_migrations_run_with_the_settings_of_their_service(built: Manifests) -> None:
    for name in built.of("Deployment"):
        job = f"migrate-{name}"
        assert built.container(job)["envFrom"] == built.container(name)["envFrom"]
        assert built.container(job)["image"] == built.container(name)["image"]
        assert built.files(job) == built.files(name)


def test_addresses_are_services_and_the_public_one_is_the_ingress(built: Manifests) -> None:
    variables = built.variables("message-log")
    ports = {name: each["spec"]["ports"][0]["port"] for name, each in built.of("Service").items()}
    for name in callees():
        address = urlsplit(variables[f"{PREFIX}{name.replace('-', '_').upper()}_URL"])
        assert (address.scheme, address.hostname, address.port) == ("http", name, ports[name])
    host = urlsplit(variables[f"{PREFIX}PUBLIC_URL"]).hostname
    for ingress in built.of("Ingress").values():
        assert [each["host"] for each in ingress["spec"]["rules"]] == [host]
        assert [each["hosts"] for each in ingress["spec"]["tls"]] == [[host]]


# --- how pods run ---


def test_pods_are_restricted(built: Manifests) -> None:
    (namespace,) = built.of("Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    user = re.findall(r"USER (\d+):(\d+)", DOCKERFILE)
    for name, pod in built.pods.items():
        spec, container = pod["spec"], built.container(name)
        assert spec["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": int(user[0][0]),
            "runAsGroup": int(user[0][1]),
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert any(each["mountPath"] == "/tmp" for each in container["volumeMounts"])
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}
        assert set(container["resources"]["limits"]) == {"memory"}
    assert all(each["automountServiceAccountToken"] is False for each in built.of("ServiceAccount").values())


# What may lie in the folder for temporary files at once, of services that write some.
TEMPORARY_BYTES = {
    "consent": HELD_AT_ONCE * ConsentSettings.model_fields["import_bytes_max"].default,
    # A statement as CSV has no bound of its own.
    "billing": CSV_UNREAD_MAX * 1024**3,
    "message-log": UPLOADS_AT_ONCE * max(BODY_LIMITS.values()),
}


def test_temporary_files_lie_on_a_disk_that_may_be_written_and_has_room(built: Manifests) -> None:
    """Elsewhere Python would take /tmp, and a pod that fills what that may hold is evicted."""
    (folder,) = re.findall(r"TMPDIR=(\S+)", DOCKERFILE)
    packages = {name: ROOT / "services" / name / name.replace("-", "_") for name in APPS}
    writing = {name for name in APPS if any("tempfile." in each.read_text() for each in packages[name].glob("*.py"))}
    assert writing == set(TEMPORARY_BYTES)
    for name, most in TEMPORARY_BYTES.items():
        (mount,) = [each for each in built.container(name)["volumeMounts"] if each["mountPath"] == folder]
        (volume,) = [each for each in built.pods[name]["spec"]["volumes"] if each["name"] == mount["name"]]
        assert int(volume["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 1024**3 >= most


def routes(name: str) -> set[str]:
    return {str(getattr(route, "path", "")) for route in APPS[name].routes}


def test_probes_and_ports_are_those_of_the_code(built: Manifests) -> None:
    for setting in ("SENDWHY_HTTP_HOST=0.0.0.0", f"SENDWHY_HTTP_PORT={PORT}"):
        assert setting in DOCKERFILE
    assert set(built.of("Deployment")) == set(APPS)
    for name in built.of("Deployment"):
        container = built.container(name)
        assert container["ports"] == [{"name": "http", "containerPort": PORT}]
        paths = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
        assert paths["startup"] == paths["liveness"] == {"path": "/livez", "port": "http"}
        # The door needs Kafka alone; the others have what the database holds (ADR 35).
        ready = f"/readyz?exclude={'database' if name == 'webhook-ingest' else 'kafka'}"
        assert paths["readiness"] == {"path": ready, "port": "http"}
        assert {"/livez", "/readyz", "/metrics"} <= routes(name)
        startup = container["startupProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] >= 2 * START_SECONDS, (
            "it says itself what is missing"
        )


def test_a_pod_gets_as_long_to_end_as_in_compose(built: Manifests) -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    grace = int(compose["x-process"]["stop_grace_period"].removesuffix("s"))
    for name in built.of("Deployment"):
        sleep = built.container(name)["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert built.pods[name]["spec"]["terminationGracePeriodSeconds"] >= sleep + grace


def test_selectors_match_the_pods_of_their_service_and_no_others(built: Manifests) -> None:
    labels = {name: pod["metadata"]["labels"] for name, pod in built.pods.items()}

    def pods_of(selector: Object) -> list[str]:
        return [name for name in labels if matches(selector, labels[name])]

    services = {name: each for name, each in built.of("Service").items() if "selector" in each["spec"]}
    assert set(services) == set(built.of("PodDisruptionBudget")) == set(built.of("Deployment"))
    for name, deployment in built.of("Deployment").items():
        assert pods_of(deployment["spec"]["selector"]) == [name]
        assert pods_of({"matchLabels": services[name]["spec"]["selector"]}) == [name]
        budget = built.of("PodDisruptionBudget")[name]["spec"]
        assert pods_of(budget["selector"]) == [name]
        assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")
        for spread in built.pods[name]["spec"]["topologySpreadConstraints"]:
            assert matches(spread["labelSelector"], labels[name])
            assert NAME in spread["matchLabelKeys"], "the pods of one service are spread, not all pods together"
        assert services[name]["spec"]["ports"] == [{"name": "http", "port": PORT, "targetPort": "http"}]


def test_replicas(built: Manifests) -> None:
    least = {name: each["spec"].get("replicas") for name, each in built.of("Deployment").items()}
    for name, scaled in built.of("ScaledObject").items():
        assert least[name] is None, f"{name}: every `apply` would undo what the autoscaler has set"
        least[name] = scaled["spec"]["minReplicaCount"]
    assert set(least.values()) == {1 if built.overlay == "single-node" else 2}


# --- autoscaling ---


def test_services_scale_on_the_lag_of_every_topic_that_all_replicas_share(production: Manifests) -> None:
    scaled = production.of("ScaledObject")
    assert set(scaled) == set(APPS) - {"dispatcher"}, "the dispatcher's backlog stands in PostgreSQL"
    for name, each in scaled.items():
        spec = ScaledObject.model_validate(each["spec"])
        assert spec.scaleTargetRef.name == name
        consumed = {stage.topic for stage in APPS[name].state.runtime.stages}
        shared = {str(topic) for topic in consumed if TOPICS[topic].partitions >= spec.maxReplicaCount}
        triggers = [trigger.metadata for trigger in spec.triggers if isinstance(trigger, KafkaTrigger)]
        assert sorted(trigger.topic for trigger in triggers) == sorted(shared), name
        for trigger in triggers:
            assert trigger.consumerGroup == consumer_group(name, trigger.topic)
        assert max(TOPICS[topic].partitions for topic in consumed) >= spec.maxReplicaCount, "more would idle"
    by_cpu = {name for name, each in scaled.items() if any(one["type"] == "cpu" for one in each["spec"]["triggers"])}
    assert by_cpu == {"webhook-ingest"}


def test_one_autoscaler_for_a_deployment(built: Manifests) -> None:
    targets = [
        each["spec"]["scaleTargetRef"]["name"]
        for each in built.objects
        if each["kind"] in ("ScaledObject", "HorizontalPodAutoscaler")
    ]
    assert len(set(targets)) == len(targets)
    assert set(targets) <= set(built.of("Deployment"))


def test_the_autoscaler_comes_to_kafka_as_the_services_do(production: Manifests) -> None:
    mechanisms = {"PLAIN": "plaintext", "SCRAM-SHA-256": "scram_sha256", "SCRAM-SHA-512": "scram_sha512"}
    for name, each in production.of("ScaledObject").items():
        variables = production.variables(name)
        for trigger in ScaledObject.model_validate(each["spec"]).triggers:
            if isinstance(trigger, KafkaTrigger):
                assert trigger.metadata.bootstrapServersFromEnv in variables
                assert trigger.metadata.sasl == mechanisms[variables["SENDWHY_KAFKA_SASL_MECHANISM"]]
                assert trigger.metadata.tls == "enable"
                assert variables["SENDWHY_KAFKA_SECURITY_PROTOCOL"] == "SASL_SSL"
                (source,) = [production.of("TriggerAuthentication")[trigger.authenticationRef.name]["spec"]]
                assert source["env"][0]["name"] in variables
                assert source["env"][0]["containerName"] == production.container(name)["name"]
                password = source["secretTargetRef"][0]
                own = production.files(name)[variables["SENDWHY_KAFKA_SASL_PASSWORD_FILE"]]
                assert (password["name"], password["key"]) == own, "the user's own password"


def test_each_service_has_a_user_of_its_own_at_kafka(production: Manifests) -> None:
    """The one that docs/kafka-acls.md gives rights, with a password that no other pod sees."""
    passwords: dict[str, str] = {}
    for name in production.pods:
        user = production.variables(name)["SENDWHY_KAFKA_SASL_USERNAME"]
        assert user == ("deploy" if name == "topics" else name.removeprefix("migrate-"))
        (_, key) = production.files(name)["/run/secrets/kafka/kafka_sasl_password"]
        assert passwords.setdefault(key, user) == user
    assert set(passwords.values()) == {user for user, *_ in GENERATE["rights"]()} - {"upstream"}


# --- who may talk to whom ---


def callees() -> set[str]:
    """The services whose addresses the message log has."""
    fields = {name.removesuffix("_url").replace("_", "-") for name in MessageLogSettings.model_fields}
    return fields & set(APPS)


def rules_for(built: Manifests, pod: str, direction: str) -> Iterator[Object]:
    """The rules of a direction that hold for a pod; that it is isolated at all is asserted."""
    labels = built.pods[pod]["metadata"]["labels"]
    policies = [
        each["spec"]
        for each in built.of("NetworkPolicy").values()
        if direction in each["spec"]["policyTypes"] and matches(each["spec"]["podSelector"], labels)
    ]
    assert policies, f"{pod}: {direction} is open"
    for policy in policies:
        yield from policy.get(direction.lower(), [])


def ends(rules: Iterable[Object], side: str) -> Iterator[tuple[Object | None, int]]:
    """(peer, port) for each that the rules allow; a peer of None is anybody."""
    for rule in rules:
        for port in rule["ports"]:
            for peer in rule.get(side, [None]):
                yield peer, port["port"]


def edges(built: Manifests) -> set[tuple[str, str, int]]:
    """Who may open a connection to whom, at which port, by all policies together. Both ends must allow it."""
    found = set()
    labels = {name: pod["metadata"]["labels"] for name, pod in built.pods.items()}
    for pod in built.pods:
        for peer, port in ends(rules_for(built, pod, "Egress"), "to"):
            if peer is None:
                found.add((pod, "anywhere", port))
            elif "podSelector" in peer:
                found |= {
                    (pod, other, port)
                    for other in built.pods
                    if matches(peer["podSelector"], labels[other])
                    and any(
                        back is not None and matches(back.get("podSelector", {"matchLabels": {"": ""}}), labels[pod])
                        for back, its in ends(rules_for(built, other, "Ingress"), "from")
                        if its == port
                    )
                }
            else:
                found.add((pod, outside(peer), port))
        for peer, port in ends(rules_for(built, pod, "Ingress"), "from"):
            assert peer is not None, f"{pod} is open to anybody"
            if "namespaceSelector" in peer:
                assert "podSelector" not in peer
                found.add((outside(peer), pod, port))
    return found


def outside(peer: Object) -> str:
    if "ipBlock" in peer:
        cidr = str(peer["ipBlock"]["cidr"])
        if cidr in ("0.0.0.0/0", "::/0"):
            assert {"10.0.0.0/8", "169.254.0.0/16"} <= set(peer["ipBlock"]["except"]) or cidr == "::/0"
            return "internet"
        return cidr
    return str(peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"])


def test_connections_are_allowed_that_the_code_makes_and_no_others(built: Manifests) -> None:
    services = set(APPS)
    jobs = set(built.of("Job"))
    ingress = {"production": "ingress-nginx", "single-node": "kube-system"}[built.overlay]
    wanted = {
        *((pod, place, DNS) for pod in services | jobs for place in ("kube-system", "169.254.20.10/32")),
        *((pod, "anywhere", KAFKA) for pod in services | {"topics"}),
        *((pod, "anywhere", POSTGRESQL) for pod in services | (jobs - {"topics"})),
        ("dispatcher", "internet", HTTPS),
        *(("message-log", service, PORT) for service in callees()),
        *((ingress, door, PORT) for door in ("webhook-ingest", "message-log")),
    }
    if built.of("ServiceMonitor"):
        wanted |= {("monitoring", service, PORT) for service in services}
    assert edges(built) == wanted


def test_only_the_dispatcher_and_the_message_log_make_http_calls() -> None:
    clients = {
        name
        for name in APPS
        if re.search(r'"(aiohttp|httpx)\b', (ROOT / "services" / name / "pyproject.toml").read_text())
    }
    assert clients == {"dispatcher", "message-log"}
    assert callees() == set(APPS) - {"message-log"}
    assert urlsplit(DispatcherSettings.model_fields["meta_graph_url"].default).scheme == "https"


def test_kafkas_ports_are_open(built: Manifests) -> None:
    for server in built.variables("consent")["SENDWHY_KAFKA_BOOTSTRAP_SERVERS"].split(","):
        assert int(server.rpartition(":")[2]) == KAFKA


def test_ingress_shows_webhooks_and_pages_and_no_metrics(built: Manifests) -> None:
    shown = {
        (path["path"], path["pathType"]): path["backend"]["service"]["name"]
        for ingress in built.of("Ingress").values()
        for rule in ingress["spec"]["rules"]
        for path in rule["http"]["paths"]
    }
    assert shown == {
        (META_PATH, "Exact"): "webhook-ingest",
        (SHOPIFY_PATH, "Prefix"): "webhook-ingest",
        ("/", "Prefix"): "message-log",
        ("/metrics", "Exact"): "nowhere",
    }
    assert "selector" not in built.of("Service")["nowhere"]["spec"]
    # ingress-nginx serves what names its class; the namespace of either controller is in the policy.
    wanted = {"production": "nginx", "single-node": "traefik"}[built.overlay]
    assert {each["spec"].get("ingressClassName") for each in built.of("Ingress").values()} == {wanted}
    webhooks = built.of("Ingress")["webhooks"]["metadata"]["annotations"]
    size = int(webhooks["nginx.ingress.kubernetes.io/proxy-body-size"].removesuffix("m")) * 1024 * 1024
    assert size > MAX_WEBHOOK_BYTES
    pages = built.of("Ingress")["pages"]["metadata"]["annotations"]
    size = int(pages["nginx.ingress.kubernetes.io/proxy-body-size"].removesuffix("m")) * 1024 * 1024
    assert size > max(BODY_LIMITS.values()), "a file of an audience check comes through"
    own = [route.path for route in APPS["message-log"].routes if isinstance(route, APIRoute)]
    assert not any(path.startswith("/webhooks") for path in own), "pages and webhooks share a host"


# --- Prometheus ---


def test_prometheus_scrapes_and_alerts_as_without_kubernetes(production: Manifests) -> None:
    folder = ROOT / "deploy" / "prometheus"
    config = yaml.safe_load((folder / "prometheus.yml").read_text())
    (rules,) = production.of("PrometheusRule").values()
    groups = [group for file in config["rule_files"] for group in yaml.safe_load((folder / file).read_text())["groups"]]
    assert rules["spec"]["groups"] == groups
    (found,) = production.of("ServiceMonitor").values()
    monitor = ServiceMonitor.model_validate(found["spec"])
    scraped = [
        each["metadata"]["labels"]
        for each in production.of("Service").values()
        if monitor.selector.matchLabels.items() <= each["metadata"]["labels"].items()
    ]
    assert {labels[monitor.jobLabel] for labels in scraped} == {each["job_name"] for each in config["scrape_configs"]}
    assert [(each.port, each.path) for each in monitor.endpoints] == [("http", "/metrics")]
    assert monitor.endpoints[0].interval == config["global"]["scrape_interval"]


def test_labels_of_ours_stand_where_the_operator_has_one_of_that_name(production: Manifests) -> None:
    """A target's own label wins over a metric's, which becomes `exported_…`, unless the scrape honours the metric's."""
    of_targets = {"job", "instance", "namespace", "service", "pod", "container", "endpoint", "node"}
    ours = {label for spec in METRICS.values() for label in spec.labels}
    assert not ours & {"job", "instance"}, "what everything is grouped by is the target's"
    assert ours & of_targets
    (monitor,) = production.of("ServiceMonitor").values()
    assert all(each.honorLabels for each in ServiceMonitor.model_validate(monitor["spec"]).endpoints)


# --- the order of a rollout ---


def test_what_is_applied_first_holds_all_that_the_jobs_need(built: Manifests) -> None:
    readme = (KUBERNETES / "README.md").read_text()
    assert f"-l '{COMPONENT}!=service'" in readme
    assert f"job -l {COMPONENT}=prepare" in readme
    first = Manifests(
        built.overlay,
        tuple(each for each in built.objects if each["metadata"]["labels"].get(COMPONENT) != "service"),
    )
    assert set(first.pods) == set(first.of("Job"))
    assert {f"migrate-{name}" for name in APPS} | {"topics"} == set(first.of("Job"))
    for job in first.of("Job"):
        assert first.pods[job]["metadata"]["labels"][COMPONENT] == "prepare"
        first.variables(job)
        first.files(job)
    kinds = {each["kind"] for each in built.objects} - {each["kind"] for each in first.objects}
    for kind in ("Namespace", "ServiceAccount", "NetworkPolicy"):
        assert first.of(kind) == built.of(kind)
    assert {"Deployment", "PodDisruptionBudget", "Ingress"} <= kinds
