"""Evaluates NetworkPolicies the way a network plug-in does: what may reach what.

A pod has labels, and so has its namespace. Policies are those of one namespace, `home`; pods of
other namespaces have none.
"""

from policy import matches, of_kind, pod_labels, ports, workloads

HOME = "kubernetes.io/metadata.name"
PEERS = {"ingress": "from", "egress": "to"}  # where the entries of a direction name them


class Pod:
    def __init__(self, space, labels, space_labels=None, named_ports=None):
        self.space = {HOME: space, **(space_labels or {})}
        self.labels = labels
        self.named_ports = named_ports or {}


def pods(objects):
    """{component: Pod} of the rendered workloads."""
    return {
        workload["metadata"]["name"]: Pod(
            workload["metadata"]["namespace"], pod_labels(workload), {}, ports(workload)
        )
        for workload in workloads(objects)
    }


def is_peer(peer, pod, home):
    if "namespaceSelector" in peer:
        if not matches(peer["namespaceSelector"], pod.space):
            return False
    elif pod.space[HOME] != home:
        return False
    return matches(peer.get("podSelector", {}), pod.labels)


def applying_specs(policies, direction, subject, home):
    """Of the policies that judge one direction of a pod; without any, everything is allowed."""
    return [
        one["spec"] for one in policies
        if subject.space[HOME] == home and direction.capitalize() in one["spec"]["policyTypes"]
        and matches(one["spec"]["podSelector"], subject.labels)
    ]


def port_range(entry, target):
    """(first, last) of what an entry of `ports` opens at a pod; None: every port."""
    if "port" not in entry:
        return None
    first = target.named_ports.get(entry["port"], entry["port"])
    return first, entry.get("endPort", first)


def _is_open(entry, target, port, protocol):
    opened = port_range(entry, target) or (port, port)
    # A name that the pod does not have stays a name, and opens nothing.
    return entry.get("protocol", "TCP") == protocol and (
        port in opened or isinstance(opened[0], int) and opened[0] <= port <= opened[1])


def _allows(policies, direction, subject, other, target, port, protocol, home):
    """Whether policies let `subject` talk to, or be called by, `other`; `target` has the port."""
    peers = PEERS[direction]
    applying = applying_specs(policies, direction, subject, home)
    if not applying:
        return True
    for spec in applying:
        for entry in spec.get(direction, []):
            is_port = "ports" not in entry or any(
                _is_open(one, target, port, protocol) for one in entry["ports"])
            is_allowed = peers not in entry or any(
                is_peer(one, other, home) for one in entry[peers])
            if is_port and is_allowed:
                return True
    return False


def may_connect(objects, source, target, port, protocol="TCP"):
    policies = of_kind(objects, "NetworkPolicy")
    home = of_kind(objects, "Namespace")[0]["metadata"]["name"]
    return _allows(policies, "egress", source, target, target, port, protocol, home) and _allows(
        policies, "ingress", target, source, target, port, protocol, home
    )
