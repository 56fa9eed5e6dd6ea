"""Drives two pair_peer processes, one on each of two GPUs: the NCCL hand-off as it is used.

pair.py check  --peer PATH [--rounds N] [--seed N]   what must hold; exits 1 when something does not
pair.py timing --peer PATH [--times N] [--out FILE]  what it reaches, against bare ncclSend/ncclRecv

Without two GPUs both print "skipped: ..." and exit 0. Whoever runs them keeps NVLink multicast off
where it must be (NCCL_NVLS_ENABLE=0).
"""

import argparse
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time

GROUP_BYTES = 64 << 20
STALL_MS = 500
# Between transfers that are timed as they come in a hand-off: not one right after the other.
REST_MS = 300
RESTED_TIMES = 12
# An end that lost its peer has an error by then, from the kill or the stop on.
BOUND_S = 2.0


class Failed(Exception):
    pass


class Peer:
    """One end; `command` waits for the answer, `start` and `answer` do it in two steps."""

    def __init__(self, path, device):
        self.device = device
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control = ours
        arguments = [path, "--control", str(theirs.fileno()), "--device", str(device)]
        self.process = subprocess.Popen(arguments, pass_fds=[theirs.fileno()])
        theirs.close()
        self.ready = None

    def wait_ready(self):
        if self.ready is None:
            words = self._receive(60).split()
            self.ready = dict(word.split("=") for word in words[1:])
        return self.ready

    def start(self, text):
        self.wait_ready()
        self.control.send(text.encode())

    def answer(self, timeout):
        """(True, text) or (False, error)"""
        text = self._receive(timeout)
        kind, _, rest = text.partition(" ")
        return kind == "ok", rest

    def command(self, text, timeout=60):
        self.start(text)
        good, rest = self.answer(timeout)
        if not good:
            raise Failed(f"device {self.device}: {text.split()[0]}: {rest}")
        return rest

    def command_answer(self, text, timeout=60):
        self.start(text)
        return self.answer(timeout)

    def _receive(self, timeout):
        self.control.settimeout(timeout)
        try:
            text = self.control.recv(65536).decode()
        except TimeoutError:
            raise Failed(f"device {self.device}: no answer in {timeout} s") from None
        if not text:
            raise Failed(f"device {self.device}: the process ended")
        return text

    def end(self):
        """Asks it to exit; whether it did, in time and well."""
        try:
            self.command("exit", 10)
            return self.process.wait(10) == 0
        except (Failed, subprocess.TimeoutExpired, OSError):
            self.kill()
            return False

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.control.close()


def both(first, first_command, second, second_command, timeout=60):
    """Both at once; their answers, in order."""
    first.start(first_command)
    second.start(second_command)
    answers = [first.answer(timeout), second.answer(timeout)]
    for peer, (good, text) in zip((first, second), answers):
        if not good:
            raise Failed(f"device {peer.device}: {text}")
    return [text for _, text in answers]


def open_pair(sender, receiver, group_bytes=GROUP_BYTES):
    """The sender's rank is its device's number, as is the receiver's."""
    unique_id = sender.command("id")
    command = "open {} {} {} 20000"
    opened = both(
        sender,
        command.format(unique_id, 0, group_bytes),
        receiver,
        command.format(unique_id, 1, group_bytes),
    )
    return max(float(text) for text in opened)


def move(sender, receiver, times=1, rest_ms=0):
    """[seconds] at the receiver, and seconds until its layer 0."""
    arguments = f"{times} {STALL_MS} {rest_ms}"
    _, got = both(sender, f"send {arguments}", receiver, f"receive {arguments}")
    seconds, layer_0 = got.split("layer_0")
    return [float(word) for word in seconds.split()], float(layer_0)


def expect(condition, what):
    if not condition:
        raise Failed(what)


def check_bytes(a, b):
    open_pair(a, b)
    b.command("clear")
    move(a, b)
    expect(b.command("wrong") == "0", "pages differ from what was sent")
    a.command("clear")
    move(b, a)
    expect(a.command("wrong") == "0", "pages sent back differ")
    return "32 layers of 256 pages, both ways, read back"


def check_data_loss(a, b):
    a.command("corrupt 17 203")
    a.start(f"send 1 {STALL_MS} 0")
    good, text = b.command_answer(f"receive 1 {STALL_MS} 0")
    expect(a.answer(60)[0], "the sender failed")
    a.command("fill")
    expect(not good and text.startswith("DATA_LOSS"), f"expected DATA_LOSS, got {text}")
    expect("layer 17 span 203 " in text, f"names another span: {text}")
    move(a, b)
    both(a, "close", b, "close")
    return text


def check_absent_peer(a, b):
    unique_id = a.command("id")
    begin = time.monotonic()
    good, text = a.command_answer(f"open {unique_id} 0 {GROUP_BYTES} 1000")
    took = time.monotonic() - begin
    expect(not good and text.startswith("DEADLINE_EXCEEDED"), f"expected a deadline, got {text}")
    expect(took < BOUND_S, f"took {took:.2f} s")
    open_pair(a, b)
    move(a, b)
    return f"{took:.2f} s"


class Deaths:
    """Kills or stops an end while pages move; what is left goes on with a fresh pair."""

    def __init__(self, path, peers, seed):
        self.path = path
        self.peers = peers
        self.random = random.Random(seed)
        self.spares = {i: Peer(path, peer.device) for i, peer in enumerate(peers)}
        self.worst = {}
        self.kinds = {}
        self.open_seconds = []

    def round(self, index):
        by_signal = ("KILL", "STOP")[index % 2]
        victim_index = index // 2 % 2
        told = index // 4 % 2 == 0  # half of the survivors hear it from the control connection
        victim, survivor = self.peers[victim_index], self.peers[1 - victim_index]
        self.open_seconds.append(open_pair(*self.peers))
        move(*self.peers)  # the pair after the last death is a sound one
        if by_signal == "KILL":
            self.spares[victim_index].wait_ready()
        self.peers[0].start(f"send 0 {STALL_MS} 0")
        self.peers[1].start(f"receive 0 {STALL_MS} 0")
        time.sleep(self.random.uniform(0.0, 0.03))
        begin = time.monotonic()
        if by_signal == "KILL":
            victim.process.send_signal(signal.SIGKILL)
        else:
            victim.process.send_signal(signal.SIGSTOP)
        if by_signal == "KILL" and told:
            survivor.start("gone")
        good, text = survivor.answer(10)
        self.judge(f"survivor of SIG{by_signal}" + (", told" if told else ""), begin, good, text)
        if by_signal == "KILL":
            victim.kill()
            self.peers[victim_index] = self.spares[victim_index]
            self.spares[victim_index] = Peer(self.path, victim.device)
        else:
            begin = time.monotonic()
            victim.process.send_signal(signal.SIGCONT)
            good, text = victim.answer(10)
            self.judge("victim of SIGSTOP", begin, good, text)

    def judge(self, who, begin, good, text):
        took = time.monotonic() - begin
        expect(not good, f"{who}: no error")
        # DATA_LOSS: a sender's abort may end a receive with bytes that were never sent.
        kinds = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "DATA_LOSS")
        expect(text.startswith(kinds), f"{who}: {text}")
        self.kinds[text.split(":")[0]] = self.kinds.get(text.split(":")[0], 0) + 1
        expect(took < BOUND_S, f"{who}: {took:.2f} s until {text}")
        self.worst.setdefault(who, []).append(took)

    def summary(self):
        for who, took in sorted(self.worst.items()):
            yield f"{who}: {len(took)} times, at most {max(took):.2f} s, median " + (
                f"{statistics.median(took):.2f} s"
            )
        yield f"errors: {self.kinds}"
        median = statistics.median(self.open_seconds)
        yield f"opening: median {median:.2f} s, at most {max(self.open_seconds):.2f} s"


def check(arguments, peers):
    failed = 0

    def part(name, run):
        nonlocal failed
        begin = time.monotonic()
        try:
            said = run()
            print(f"passed {name} ({time.monotonic() - begin:.1f} s): {said}", flush=True)
        except (Failed, OSError, ValueError) as error:
            failed += 1
            print(f"FAILED {name}: {error}", flush=True)

    part("bytes", lambda: check_bytes(*peers))
    part("data loss", lambda: check_data_loss(*peers))
    part("absent peer", lambda: check_absent_peer(*peers))
    deaths = Deaths(arguments.peer, peers, arguments.seed)
    survived = 0
    for index in range(arguments.rounds):
        try:
            deaths.round(index)
            survived += 1
        except (Failed, OSError) as error:
            failed += 1
            print(f"FAILED round {index}: {error}", flush=True)
            for i, peer in enumerate(deaths.peers):
                peer.process.send_signal(signal.SIGCONT)
                peer.kill()
                deaths.peers[i] = Peer(arguments.peer, peer.device)
            if failed > 5:
                break
    print(f"deaths: {survived} of {arguments.rounds} rounds, seed {arguments.seed}")
    for line in deaths.summary() if survived else []:
        print(f"  {line}")

    def last():
        open_pair(*deaths.peers)
        deaths.peers[1].command("clear")
        move(*deaths.peers)
        expect(deaths.peers[1].command("wrong") == "0", "pages differ")
        both(deaths.peers[0], "close", deaths.peers[1], "close")
        everyone = list(deaths.peers) + list(deaths.spares.values())
        expect(all([peer.end() for peer in everyone]), "a process did not end")
        return "a fresh pair works and every process ends"

    part("afterwards", last)
    print(f"pair check: {failed} failed")
    return 1 if failed else 0


def timing(arguments, peers):
    a, b = peers
    total = int(a.wait_ready()["page_bytes"]) * 32 * 256
    results = {"bytes": total, "nccl": a.wait_ready()["nccl"]}

    def row(name, seconds):
        seconds = list(seconds)[2:]  # the first ones connect and warm up
        median = statistics.median(seconds)
        results[name] = {"gb_per_s": total / median * 1e-9, "seconds": seconds}
        print(f"{name:28} {total / median * 1e-9:8.1f} GB/s  {median * 1e3:7.3f} ms", flush=True)
        return total / median * 1e-9

    print(f"{total} bytes in pages of {a.wait_ready()['page_bytes']}, NCCL {results['nccl']}")
    for item_bytes in (8 << 10, 16 << 10, 32 << 10):
        for kernel in ("digest", "scatter"):
            rate = float(a.command(f"{kernel} {item_bytes} 20"))
            results[f"{kernel} {item_bytes}"] = rate
            print(f"{kernel}, items of {item_bytes:6}     {rate:8.1f} GB/s")
    results["copy"] = float(a.command("copy 20"))
    print(f"gather (read and written)    {results['copy']:8.1f} GB/s")
    bare = {}
    for mode, rest_ms in (("whole", 0), ("layers", 0), ("pages", 0), ("whole", REST_MS)):
        unique_id = a.command("id")
        command = "bare {} {} {} {} {}"
        times = RESTED_TIMES if rest_ms else arguments.times
        _, got = both(
            a,
            command.format(unique_id, 0, mode, times, rest_ms),
            b,
            command.format(unique_id, 1, mode, times, rest_ms),
        )
        rate = row(f"bare, {mode}" + (", rested" if rest_ms else ""), map(float, got.split()))
        if not rest_ms:
            bare[mode] = rate
    best = max(bare.values())
    for limit in arguments.limits:
        for megabytes in arguments.group_mib:
            if limit != "default":
                both(a, "limit " + limit.replace(":", " "), b, "limit " + limit.replace(":", " "))
            seconds = open_pair(a, b, megabytes << 20)
            both(a, "posts", b, "posts")
            got, layer_0 = move(a, b, arguments.times)
            posts = both(a, "posts", b, "posts")
            ours = row(f"pair, {megabytes} MiB, CTAs {limit}", got)
            print(
                f"    {100 * ours / best:.1f} % of the best bare; opened in {seconds:.2f} s, "
                f"layer 0 after {layer_0 * 1e6:.0f} us; posting, median and most: "
                f"sender {posts[0]}, receiver {posts[1]} s"
            )
            got, layer_0 = move(a, b, RESTED_TIMES, REST_MS)
            ours = row(f"pair, {megabytes} MiB, rested", got)
            posts = both(a, "posts", b, "posts")
            print(f"    layer 0 after {layer_0 * 1e6:.0f} us; posting: {posts[0]}, {posts[1]} s")
            both(a, "close", b, "close")
    if arguments.out:
        with open(arguments.out, "w", encoding="utf-8") as out:
            json.dump(results, out, indent=1)
    return 0 if all([peer.end() for peer in peers]) else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("what", choices=["check", "timing"])
    parser.add_argument("--peer", required=True, help="the binary pair_peer")
    parser.add_argument("--rounds", type=int, default=50, help="check: kills and stops")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--times", type=int, default=22, help="timing: two not counted")
    parser.add_argument("--group-mib", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument(
        "--limits", nargs="+", default=["default"],
        help="timing: CTAs of copies:digests:NCCL, 0: all"
    )
    parser.add_argument("--out", help="timing: JSON")
    arguments = parser.parse_args()
    peers = [Peer(os.path.abspath(arguments.peer), device) for device in range(2)]
    devices = min(int(peer.wait_ready()["devices"]) for peer in peers)
    if devices < 2:
        print(f"skipped: needs two GPUs, found {devices}")
        return 0
    return (check if arguments.what == "check" else timing)(arguments, peers)


if __name__ == "__main__":
    sys.exit(main())
