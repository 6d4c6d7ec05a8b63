"""The Helm chart, the manifests made of it, and docs/operations.md: rendered, checked against Kubernetes' schemas, and against the programs."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib

import kubernetes_validate
import pytest
import yaml
from conftest import BIN, ROOT, free_ports

CHART = ROOT / "deploy/helm/flightcache"
OPERATIONS = ROOT / "docs/operations.md"
VENV_BIN = os.path.dirname(sys.executable)
KUBERNETES = "1.35"
EVERYTHING = {
    "nodes": 5,
    "image": {"repository": "registry.example/flightcache", "tag": "2", "pullSecrets": ["registry"]},
    "sources": [{"url": "s3://lake/", "freshness": "immutable", "options": {"endpoint_url": "http://minio:9000", "allow_http": "true"}}, {"url": "file:///data/"}],
    "tables": {"trips": "s3://lake/trips/", "with space": "s3://lake/x.parquet"},
    "settings": {"capacity": "1TiB", "reserve": "2GiB", "drain": "90s", "replicas": 2, "protected_share": 0.5, "store_requests": 128},
    "credentialsSecret": "lake",
    "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/lake"}},
    "volume": {"storageClass": "gp3"},
    "nodeSelector": {"pool": "cache"},
    "tolerations": [{"key": "cache", "operator": "Exists"}],
    "autoscaling": {"enabled": True},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
}


def helm(values, *args):
    return subprocess.run([f"{VENV_BIN}/helm", "template", "flightcache", CHART, "--kube-version", KUBERNETES, "--values", "-", *args],
                          input=yaml.safe_dump(values), capture_output=True, text=True)


def render(values):
    """The chart's manifests, by kind and name."""
    rendered = helm(values)
    assert rendered.returncode == 0, rendered.stderr
    return {(doc["kind"], doc["metadata"]["name"]): doc for doc in yaml.safe_load_all(rendered.stdout)}


def node(manifests):
    """What a node's pod is, and its container."""
    pod = manifests["StatefulSet", "flightcache"]["spec"]["template"]["spec"]
    return pod, pod["containers"][0]


def printed_config(toml, tmp_path, **env):
    """The settings as the server understands them; it refuses keys that it does not have."""
    file = tmp_path / "flightcache.toml"
    file.write_text(toml)
    done = subprocess.run([BIN / "flightcache-server", "--config", file, "--print-config"], capture_output=True, text=True, env={**os.environ, **env})
    assert done.returncode == 0, f"{done.stderr}\n{toml}"
    return tomllib.loads(done.stdout)


def test_plain_manifests_are_the_chart_with_its_defaults(tmp_path):
    subprocess.run([ROOT / "ci/manifests", tmp_path], check=True, env={**os.environ, "FLIGHTCACHE_VENV": os.path.dirname(VENV_BIN)})
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_text() for path in (ROOT / "deploy/kubernetes").iterdir()}, "run ci/manifests"
    assert {doc["kind"] for doc in yaml.safe_load_all(made["flightcache.yaml"])} == {"StatefulSet", "Service", "ConfigMap", "ServiceAccount", "PodDisruptionBudget"}
    assert yaml.safe_load(made["autoscaler.yaml"])["kind"] == "HorizontalPodAutoscaler"


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_manifests_fit_kubernetes_schemas(values):
    manifests = render(values)
    for (kind, _), manifest in manifests.items():
        # Not Kubernetes' own, so there is no schema; what it must name is looked at below.
        if kind != "ServiceMonitor":
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    broken = render(values)["StatefulSet", "flightcache"]
    broken["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_manifests_fit_each_other(values):
    manifests = render(values)
    stateful_set = manifests["StatefulSet", "flightcache"]["spec"]
    pod, container = node(manifests)
    labels = stateful_set["template"]["metadata"]["labels"]
    ports = {port["name"]: (port["containerPort"], port.get("protocol", "TCP")) for port in container["ports"]}
    assert ports == {"flight": (50051, "TCP"), "admin": (50052, "TCP"), "gossip": (50053, "UDP")}
    for name, of in [("flightcache", {"flight"}), ("flightcache-nodes", set(ports))]:
        service = manifests["Service", name]["spec"]
        assert service["selector"].items() <= labels.items()
        assert {port["targetPort"]: (port["port"], port.get("protocol", "TCP")) for port in service["ports"]} == {port: ports[port] for port in of}
    nodes = manifests["Service", "flightcache-nodes"]
    assert nodes["spec"]["clusterIP"] == "None" and nodes["spec"]["publishNotReadyAddresses"] and stateful_set["serviceName"] == "flightcache-nodes"
    selectors = [stateful_set["selector"], manifests["PodDisruptionBudget", "flightcache"]["spec"]["selector"]]
    selectors += [spread["labelSelector"] for spread in pod["topologySpreadConstraints"]]
    assert len(selectors) == 4 and all(selector["matchLabels"].items() <= labels.items() for selector in selectors)
    routes = (ROOT / "server/src/admin/mod.rs").read_text()
    for probe, path in [("startupProbe", "/healthz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")]:
        assert container[probe]["httpGet"] == {"path": path, "port": "admin"} and f'.route("{path}"' in routes
    volumes = {volume["name"] for volume in pod["volumes"]} | {claim["metadata"]["name"] for claim in stateful_set["volumeClaimTemplates"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert pod["securityContext"]["runAsNonRoot"] and container["securityContext"]["readOnlyRootFilesystem"] and not pod["enableServiceLinks"]
    scaled = ("HorizontalPodAutoscaler", "flightcache") in manifests
    assert ("replicas" in stateful_set) != scaled
    if scaled:
        scaler = manifests["HorizontalPodAutoscaler", "flightcache"]["spec"]
        metric = scaler["metrics"][0]["object"]
        assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "flightcache"}
        assert (metric["describedObject"]["kind"], metric["describedObject"]["name"]) in manifests
        assert metric["target"] == {"type": "AverageValue", "averageValue": "1"}
        # Prometheus scrapes what the metric is told of, and so labels it with that service.
        monitor = manifests["ServiceMonitor", "flightcache"]["spec"]
        matching = [name for (kind, name), doc in manifests.items() if kind == "Service" and monitor["selector"]["matchLabels"].items() <= doc["metadata"]["labels"].items()]
        assert matching == ["flightcache-nodes"] and monitor["endpoints"][0]["port"] == "admin"
        assert container["envFrom"] == [{"secretRef": {"name": "lake"}}]


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_the_server_takes_the_config_map(values, tmp_path):
    manifests = render(values)
    pod, container = node(manifests)
    env = {variable["name"]: variable.get("value", "10.0.0.7") for variable in container["env"]}
    env = {name: re.sub(r"\$\((\w+)\)", lambda found: env[found[1]], value) for name, value in env.items()}
    config = printed_config(manifests["ConfigMap", "flightcache"]["data"]["flightcache.toml"], tmp_path, **env)
    assert (config["cluster"], config["seed"], config["gossip"]) == ("flightcache", ["flightcache-nodes:50053"], "10.0.0.7:50053")
    assert config["advertise"].startswith("grpc+tcp://") and config["advertise"].endswith("svc:50051")
    data, settings = config["data_directory"], values.get("settings", {})
    assert data in [mount["mountPath"] for mount in container["volumeMounts"]]
    assert config["source"] == values.get("sources", [{"url": "s3://lake/"}]) and config.get("tables", {}) == values.get("tables", {})
    assert config["replicas"] == settings.get("replicas", 1)
    drain = int(re.fullmatch(r"(?:(\d+)m ?)?(?:(\d+)s)?", config["drain"])[2] or 0) + 60 * int((re.match(r"(\d+)m", config["drain"]) or [0, 0])[1])
    assert drain == int(settings.get("drain", "30s")[:-1])
    assert pod["terminationGracePeriodSeconds"] >= drain + container["lifecycle"]["preStop"]["sleep"]["seconds"] + 30


@pytest.mark.parametrize(("settings", "mib"), [
    ({}, 4096 + 1024 + 128 + 512 + 1024),
    ({"capacity": "512MiB"}, 512 + 256 + 128 + 512 + 1024),
    ({"capacity": "64GiB", "reserve": "1GiB", "sql_memory": "2GiB"}, (64 + 1 + 2 + 1) * 1024 + 128),
])
def test_memory_is_what_the_settings_allow(settings, mib):
    _, container = node(render({"settings": settings}))
    assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"] == f"{mib}Mi"


def test_other_settings_restart_the_nodes():
    checksum = lambda values: render(values)["StatefulSet", "flightcache"]["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
    assert checksum({}) == checksum({"nodes": 7}) != checksum({"settings": {"freshness": "always"}})


@pytest.mark.parametrize(("values", "named"), [
    ({"capacity": "4GiB"}, "capacity"),
    ({"settings": {"capacity": "4 GB"}}, "capacity"),
    ({"settings": {"drain": "1m"}}, "drain"),
    ({"settings": {"listen": "0.0.0.0:1"}}, "listen"),
    ({"sources": []}, "sources"),
    ({"sources": [{"url": "s3://lake/", "options": {"secret_access_key": "hush"}}]}, "secret_access_key"),
    ({"env": {"AWS_SECRET_ACCESS_KEY": "hush"}}, "AWS_SECRET_ACCESS_KEY"),
    ({"env": {"FLIGHTCACHE_CAPACITY": "8GiB"}}, "FLIGHTCACHE_CAPACITY"),
    ({"nodes": 0}, "nodes"),
    ({"autoscaling": {"enabled": "yes"}}, "enabled"),
])
def test_wrong_values_are_refused(values, named):
    refused = helm(values)
    assert refused.returncode != 0 and "values don't meet the specifications" in refused.stderr and named in refused.stderr, refused.stderr


def test_every_value_is_described_and_checked():
    text = (CHART / "values.yaml").read_text()
    # A comment stands above each, or first in a group.
    described = re.findall(r"^ *#.*\n *(\w+):|^(\w+):\n(?= +#)", text, re.M)
    assert [value or group for value, group in described] == re.findall(r"^ *(\w+):", text, re.M)
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]
    values = yaml.safe_load(text)
    assert set(values) == set(schema) - {"global"}
    for group in ("image", "serviceAccount", "resources", "volume", "spread", "autoscaling", "serviceMonitor"):
        assert set(values[group]) == set(schema[group]["properties"]), group


# docs/operations.md

def operations(language):
    return re.findall(rf"```{language}\n(.*?)```", OPERATIONS.read_text(), re.S)


def test_the_page_names_commands_and_flags_that_there_are():
    lines = [line for block in operations("sh") for line in block.replace("\\\n", " ").splitlines()]
    ours = [shlex.split(line) for line in lines if line.startswith("flightcache")]
    # Those that stand in sentences.
    prose = re.findall(r"`(--[a-z-]+)", OPERATIONS.read_text())
    ours += [["flightcache", "drain"], ["flightcache-server", *(flag for flag in prose if flag not in ("--set", "--seed"))]]
    assert len(ours) >= 8 and {"--replicas", "--weight", "--advertise"} <= set(ours[-1])
    for program, *words in ours:
        subcommand = [word for word in words[:1] if not word.startswith("--")]
        flags = {word for word in words if word.startswith("--")}
        missing = flags - set(re.findall(r"--[a-z-]+", help_of(program, *subcommand)))
        assert not missing, (program, subcommand, missing)


def help_of(program, *subcommand):
    done = subprocess.run([BIN / program, *subcommand, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_three_nodes_on_one_host(s3, tmp_path):
    """As the page has it, on other ports."""
    base = free_ports(30)
    moved = lambda text: re.sub(r"\b500([5-7]\d)\b", lambda found: str(base + int(found[1]) - 51), text)
    servers = []
    try:
        for command in [block for block in operations("sh") if block.startswith("flightcache-server --cluster")]:
            env = {**os.environ, **s3.env, "PATH": f"{BIN}:{os.environ['PATH']}"}
            servers.append(subprocess.Popen(["bash", "-c", f"exec {moved(command)}"], env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True))
        assert len(servers) == 3 and all("ready" in server.stdout.readline() for server in servers)
        nodes = [BIN / "flightcache", "--server", moved("grpc://127.0.0.1:50051"), "nodes"]
        deadline = time.monotonic() + 60
        while (shown := subprocess.run(nodes, capture_output=True, text=True)).stdout.count("active") != 3:
            assert time.monotonic() < deadline, shown
            time.sleep(0.1)
    finally:
        for server in servers:
            server.kill()
            server.wait()


def test_the_page_and_the_autoscaler_name_metrics_that_there_are():
    there = set(re.findall(r'"(flightcache_\w+)"', "".join(path.read_text() for path in (ROOT / "server/src/admin").glob("*.rs"))))
    text = OPERATIONS.read_text() + (ROOT / "deploy/kubernetes/autoscaler.yaml").read_text()
    named = {name.removesuffix("_bucket") for name in re.findall(r"\bflightcache_[a-z_]+", text)}
    assert "flightcache_recommended_nodes" in named and len(named) > 15
    assert named - there == set()


def test_the_adapters_rule_serves_what_the_autoscaler_asks_for():
    [rule] = yaml.safe_load(operations("yaml")[0])["rules"]
    metric = yaml.safe_load((ROOT / "deploy/kubernetes/autoscaler.yaml").read_text())["spec"]["metrics"][0]["object"]
    assert rule["seriesQuery"].startswith(metric["metric"]["name"] + "{") and rule["metricsQuery"].startswith("max(<<.Series>>{<<.LabelMatchers>>})")
    assert rule["resources"]["overrides"][metric["describedObject"]["kind"].lower()] == {"resource": "service"}


def test_links_lead_somewhere():
    for page in (OPERATIONS, ROOT / "deploy/ec2/README.md"):
        for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / link).exists(), link
