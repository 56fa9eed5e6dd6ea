"""NetworkPolicies as packet filter rules: what a network plug-in makes of them on its node.

Connections are judged by their first packet, on both sides: what the caller's policies let out must
also be let in by those of the callee. What is refused is told so (ICMP, administratively
prohibited), where plug-ins drop it: a test need not wait.
"""

from network_flows import PEERS, applying_specs, is_peer, port_range
from policy import of_kind


def _allowed(entry, direction, subject, others, home):
    """(address, protocol, (first, last)) that one entry of a policy opens; None: every port."""
    peers = PEERS[direction]
    for other, address in others:
        if peers in entry and not any(is_peer(one, other, home) for one in entry[peers]):
            continue
        target = subject if direction == "ingress" else other
        for port in entry.get("ports", [{}]):
            yield address, port.get("protocol", "TCP"), port_range(port, target)


def _chain(policies, direction, subject, others, home):
    """The rules of one pod, or None where every connection is allowed."""
    side = "saddr" if direction == "ingress" else "daddr"
    applying = applying_specs(policies, direction, subject, home)
    if not applying:
        return None
    lines = []
    for spec in applying:
        for entry in spec.get(direction, []):
            for address, protocol, opened in _allowed(entry, direction, subject, others, home):
                ports = "-".join(map(str, sorted(set(opened)))) if opened else ""
                wanted = f"{protocol.lower()} dport {ports} " if opened else ""
                lines.append(f"ip {side} {address} {wanted}return")
    return lines + ["reject with icmpx admin-prohibited"]


def packet_rules(objects, placed):
    """What `nft -f` takes, in place of all rules there are. placed: [(Pod, address)]."""
    policies = of_kind(objects, "NetworkPolicy")
    home = of_kind(objects, "Namespace")[0]["metadata"]["name"]
    chains, jumps = [], []
    for index, (subject, address) in enumerate(placed):
        for direction, side in (("egress", "saddr"), ("ingress", "daddr")):
            lines = _chain(policies, direction, subject, placed, home)
            if lines is not None:
                chains.append(f"chain {direction}{index} {{\n" + "\n".join(lines) + "\n}")
                jumps.append(f"ip {side} {address} jump {direction}{index}")
    # The caller's side first.
    jumps.sort(key=lambda line: "daddr" in line)
    return "\n".join([
        "flush ruleset", "table inet policies {", *chains,
        "chain forward {", "type filter hook forward priority 0",
        "ct state established,related accept", *jumps, "}", "}", ""])
