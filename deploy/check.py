"""Checks deploy/helm and deploy/kubernetes. Run by scripts/kubernetes, which installs what it needs.

Of each set of values: Helm lints and renders it, every object passes the strict schemas of Kubernetes' own API, the
configuration in it is one that the binary takes, and what no schema knows holds: names that must meet, and that a pod has
as long to drain as its configuration says. deploy/kubernetes is the chart rendered with values of its own.
"""

import copy
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import kubernetes_validate
import yaml

DEPLOY = pathlib.Path(__file__).resolve().parent
CHART = DEPLOY / "helm/tidings"
PLAIN = DEPLOY / "kubernetes"
NAMESPACE = "tidings"
# The oldest that the chart takes, one between, the newest whose schemas are here.
VERSIONS = ["1.27", "1.31", "1.37"]
# What a drain takes besides its four times (docs/operations.md).
FLUSH = 6
HASH = "0" * 64
KEY = {"name": "orders", "sha256": HASH, "scopes": ["push", "publish", "ticket"]}
BASE = {"apiKeys": [KEY], "backplane": {"existingSecret": "tidings-backplane"}}

# Each is laid over BASE.
GOOD = {
    "plain": {},
    "its own secret": {"backplane": {"existingSecret": "", "url": "rediss://:a@redis:6379", "secret": "b" * 64}},
    "everything on": {
        "metrics": True,
        "autoscaling": {"enabled": True},
        "ingress": {"enabled": True},
        "public": {"trustedProxies": ["10.42.0.0/16", "fd00::/8"], "proxyProtocol": True},
        "listenAddress": "[::]",
        "podAnnotations": {"a": "b"},
        "priorityClassName": "high",
        "image": {"tag": "1.2.3", "pullSecrets": ["registry"]},
        "nodeSelector": {"pool": "edge"},
        "tolerations": [{"key": "edge", "operator": "Exists"}],
        "networkPolicy": {"public": [{"namespaceSelector": {}}], "metrics": [{"namespaceSelector": {}}]},
        "extraConfig": '[[namespaces]]\nname = "orders"\nmax_messages = 10\n',
    },
    "everything off": {
        "topologyKeys": [],
        "networkPolicy": {"enabled": False},
        "ingress": {"enabled": True, "tlsSecret": "", "annotations": {}},
        "apiKeys": [{**KEY, "addresses": ["user:*"], "pushesPerSecond": 5}],
    },
    "one node in memory": {"replicas": 1, "backplane": {"kind": "memory", "existingSecret": ""}},
    "TLS at both doors": {
        "public": {"tlsSecret": "public-tls"},
        "service": {"tlsSecret": "service-tls", "clientAuth": "required", "clients": [{"name": "spiffe://prod/orders", "scopes": ["push"], "addresses": ["user:*"]}]},
    },
    "a long drain": {"drain": {"deregisterDelay": 20, "wait": 60, "spread": 600, "grace": 30, "margin": 0}},
}
# What is refused, and a word of the reason.
BAD = {
    "no secret": ({"backplane": {"existingSecret": ""}}, "set backplane.existingSecret"),
    "a misspelt key": ({"replica": 3}, "replica"),
    "no node": ({"replicas": 0}, "/replicas"),
    "three nodes that know nothing of each other": ({"backplane": {"kind": "memory"}}, "/replicas"),
    "a key and not its hash": ({"apiKeys": [{**KEY, "sha256": "tk_secret"}]}, "sha256"),
    "no origin": ({"public": {"allowedOrigins": []}}, "allowedOrigins"),
    "a URL of no WebSocket": ({"public": {"url": "https://a.b"}}, "/public/url"),
}


def main():
    if sys.argv[1:] == ["--write"]:
        write(PLAIN)
    elif sys.argv[1:]:
        sys.exit("usage: scripts/kubernetes [--write]")
    schemas_refuse_what_is_wrong()
    for name, values in GOOD.items():
        check(f"the chart, {name}", objects(render(values)))
        helm(["lint", "--strict", "--quiet"], values)
    for name, (values, reason) in BAD.items():
        refused(name, values, reason)
    plain_is_the_chart()
    for file in sorted(PLAIN.glob("*.yaml")):
        objects(file.read_text(encoding="utf-8"))
    check("deploy/kubernetes", [o for f in sorted(PLAIN.glob("*.yaml")) for o in objects(f.read_text(encoding="utf-8"))])


def fail(what):
    sys.exit(f"FAILED: {what}")


def expect(what, holds):
    if not holds:
        fail(what)


# --- Helm ---


def laid_over(under, over):
    result = copy.deepcopy(under)
    for key, value in over.items():
        deep = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = laid_over(result[key], value) if deep else value
    return result


def helm(command, values, fails=False):
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump(laid_over(BASE, values), file)
        file.flush()
        words = ["helm", *command, str(CHART), "--namespace", NAMESPACE, "--kube-version", VERSIONS[-1], "-f", file.name]
        ran = subprocess.run(words, capture_output=True, text=True, check=False)
    if (ran.returncode != 0) != fails:
        fail(f"{' '.join(words)} with {values}: {ran.stdout}{ran.stderr}")
    return ran.stderr if fails else ran.stdout


def render(values):
    return helm(["template", "tidings"], values)


def refused(name, values, reason):
    said = helm(["template", "tidings"], values, fails=True)
    expect(f"{name} is refused for another reason: {said}", reason in said)
    print(f"ok refused: {name}")


def objects(text):
    return [document for document in yaml.safe_load_all(text) if document]


# --- What holds of all objects of an installation ---


def schemas_refuse_what_is_wrong():
    wrong = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "dta": {}}
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(wrong, version, strict=True)
        except kubernetes_validate.ValidationError:
            continue
        fail(f"the schemas of {version} take a ConfigMap with a misspelt key")


def check(what, found):
    for document in found:
        for version in VERSIONS:
            name = f"{what}: {document['kind']} {document['metadata']['name']} for {version}"
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                fail(f"{name}: {error.message} at {'.'.join(str(step) for step in error.path)}")
    by_kind = {}
    for document in found:
        by_kind.setdefault(document["kind"], []).append(document)
    [deployment] = by_kind["Deployment"]
    pod = deployment["spec"]["template"]
    [container] = pod["spec"]["containers"]
    check_names(what, by_kind, deployment, pod, container)
    check_safety(what, pod, container)
    check_drain(what, by_kind, pod, container)
    print(f"ok {what}: {len(found)} objects, Kubernetes {', '.join(VERSIONS)}")


def check_names(what, by_kind, deployment, pod, container):
    labels, ports = pod["metadata"]["labels"], {port["name"] for port in container["ports"]}
    selectors = [deployment["spec"]["selector"]["matchLabels"]]
    selectors += [service["spec"]["selector"] for service in by_kind["Service"]]
    selectors += [budget["spec"]["selector"]["matchLabels"] for budget in by_kind["PodDisruptionBudget"]]
    selectors += [policy["spec"]["podSelector"]["matchLabels"] for policy in by_kind.get("NetworkPolicy", [])]
    selectors += [s["labelSelector"]["matchLabels"] for s in pod["spec"].get("topologySpreadConstraints", [])]
    for selector in selectors:
        expect(f"{what}: {selector} selects the pods", selector.items() <= labels.items())
    for service in by_kind["Service"]:
        for port in service["spec"]["ports"]:
            expect(f"{what}: {port} is a port of the container", port["targetPort"] in ports)
    for policy in by_kind.get("NetworkPolicy", []):
        let_in = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
        expect(f"{what}: the policy lets {let_in} in, and the pod has {ports}", let_in == ports)
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"]:
        expect(f"{what}: {probe} asks the probe door", container[probe]["httpGet"]["port"] == "probe")
    for scaler in by_kind.get("HorizontalPodAutoscaler", []):
        expect(f"{what}: it scales the deployment", scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"])
        expect(f"{what}: replicas are left to it", "replicas" not in deployment["spec"])
    backends = {s["metadata"]["name"]: {p["name"] for p in s["spec"]["ports"]} for s in by_kind["Service"]}
    for ingress in by_kind.get("Ingress", []):
        for path in ingress["spec"]["rules"][0]["http"]["paths"]:
            backend = path["backend"]["service"]
            expect(f"{what}: {backend} is there", backend["port"]["name"] in backends[backend["name"]])
    made = {secret["metadata"]["name"]: set(secret["stringData"]) for secret in by_kind.get("Secret", [])}
    for variable in container["env"]:
        wanted = variable.get("valueFrom", {}).get("secretKeyRef")
        if wanted and made:
            expect(f"{what}: {wanted} is made", wanted["key"] in made.get(wanted["name"], ()))
    [config] = by_kind["ConfigMap"]
    expect(f"{what}: the configuration is mounted", pod["spec"]["volumes"][0]["configMap"]["name"] == config["metadata"]["name"])
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    expect(f"{what}: every volume is mounted", mounted == {volume["name"] for volume in pod["spec"]["volumes"]})
    for file in re.findall(r'_file = "(.*)"', config["data"]["tidings.toml"]):
        places = [mount["mountPath"] for mount in container["volumeMounts"]]
        expect(f"{what}: {file} is mounted", str(pathlib.PurePosixPath(file).parent) in places)
    account = by_kind["ServiceAccount"][0]["metadata"]["name"]
    expect(f"{what}: the account is there", pod["spec"]["serviceAccountName"] == account)


def check_safety(what, pod, container):
    of_pod, of_container = pod["spec"]["securityContext"], container["securityContext"]
    expect(f"{what}: not root", of_pod["runAsNonRoot"] and of_pod["runAsUser"] > 0)
    expect(f"{what}: seccomp", of_pod["seccompProfile"]["type"] == "RuntimeDefault")
    expect(f"{what}: nothing is written", of_container["readOnlyRootFilesystem"])
    expect(f"{what}: no privileges", of_container["capabilities"]["drop"] == ["ALL"] and not of_container["allowPrivilegeEscalation"])
    expect(f"{what}: no token of the cluster", pod["spec"]["automountServiceAccountToken"] is False)


def check_drain(what, by_kind, pod, container):
    """The binary reads the configuration as the pod would, and what it then takes to drain fits."""
    text = by_kind["ConfigMap"][0]["data"]["tidings.toml"]
    secrets = {"url": "redis://127.0.0.1:6379", "secret": "s" * 64}
    env = {"PATH": os.environ["PATH"]}
    for variable in container["env"]:
        of_secret = variable.get("valueFrom", {}).get("secretKeyRef")
        env[variable["name"]] = secrets[of_secret["key"]] if of_secret else "tidings-0"
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "tidings.toml"
        file.write_text(text, encoding="utf-8")
        shown = ""
        for command in ["check", "show"]:
            words = [os.environ["TIDINGS"], "config", command, "--config", str(file)]
            ran = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
            expect(f"{what}: tidings config {command}: {ran.stderr}\n{text}", ran.returncode == 0)
            shown = ran.stdout
    drain = shown.split("[drain]\n")[1].split("\n[")[0]
    times = {key: seconds(value) for key, value in re.findall(r'^(\w+) = "(.*)"$', drain, re.MULTILINE)}
    takes = times["deregister_delay"] + times["wait"] + times["spread"] + times["grace"] + FLUSH
    grace = pod["spec"]["terminationGracePeriodSeconds"]
    expect(f"{what}: a drain takes {takes} s, and the pod has {grace} s", grace >= takes)
    expect(f"{what}: the node is told that it has {grace} s", times["termination_grace"] == grace)


def seconds(text):
    units = {"s": 1, "m": 60, "h": 3600, "day": 86400, "days": 86400}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([a-z]+)", text))


# --- deploy/kubernetes ---


def plain():
    """The files of deploy/kubernetes, by name."""
    files = {}
    for document in re.split(r"^---$", render({}), flags=re.MULTILINE):
        source = re.search(r"^# Source: tidings/templates/(.*)$", document, re.MULTILINE)
        if source is None:
            continue
        text = document.replace(source[0], "").strip()
        text = "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
        before = files.get(source[1])
        files[source[1]] = text if before is None else f"{before}---\n{text}"
    return files


def write(folder):
    for name, text in plain().items():
        (folder / name).write_text(text, encoding="utf-8")


def plain_is_the_chart():
    wanted = plain()
    seen = {file.name: file.read_text(encoding="utf-8") for file in PLAIN.glob("*.yaml")}
    for name in sorted({*wanted, *seen}):
        same = wanted.get(name) == seen.get(name)
        expect(f"deploy/kubernetes/{name} is not what the chart makes; run scripts/kubernetes --write", same)


main()
