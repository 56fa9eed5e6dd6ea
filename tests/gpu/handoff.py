"""Real pkvd, prefill and decode workers on two GPUs: blocks from one GPU to the other.

handoff.py timing --tools DIR --out DIR [--shape NAME] [--context N] [--prompts N] [--ways WAY...]
    equal tokens over gRPC, shm, NCCL from pkvd (nccl) and from the prefill worker's GPU (direct),
    and the time each takes until the first token, with the first step beside the transfer and
    (WAY-whole) after it
handoff.py kills --tools DIR --out DIR [--holder pkvd|prefill] [--shape NAME] [--context N] ...
    who holds what is sent, or the decode worker, killed, or the holder stopped, in the middle of a
    transfer: each time an error or a fallback within BOUND_S, the right tokens, no pair and no pin
    left

pkvd and prefill share GPU 0, decode workers GPU 1. Exits 1 when something does not hold; prints
"skipped: ..." and exits 0 without two GPUs. Whoever runs it keeps NVLink multicast off where it
must be (NCCL_NVLS_ENABLE=0).
"""

import argparse
import datetime
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request

BOUND_S = 2.0
START_S = 120
SHORT_PROMPT = 300


class Failed(Exception):
    pass


def wait_until(what, seconds, condition):
    """The first true value of `condition`."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Failed(f"{what} took over {seconds} s")
        time.sleep(0.001)


class Server:
    """One process; its log, its ports."""

    def __init__(self, fleet, name, gpu, arguments):
        self.name = name
        self.log = os.path.join(fleet.out, name + ".log")
        self.port_file = os.path.join(fleet.out, name + ".port")
        if os.path.exists(self.port_file):
            os.remove(self.port_file)
        environment = dict(os.environ, CUDA_VISIBLE_DEVICES=str(gpu))
        self.process = subprocess.Popen(
            [os.path.join(fleet.tools, arguments[0]), *arguments[1:], "--port-file",
             self.port_file], stdout=open(self.log, "a"), stderr=subprocess.STDOUT,
            env=environment)

    def wait_ready(self):
        def ports():
            if self.process.poll() is not None:
                raise Failed(f"{self.name} ended with {self.process.returncode}: "
                             + "".join(open(self.log).readlines()[-5:]))
            if not os.path.exists(self.port_file):
                return None
            words = open(self.port_file).read().split()
            return words if len(words) == 2 else None

        self.port, self.metrics_port = wait_until(f"start of {self.name}", START_S, ports)
        return self

    def metric(self, series):
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=5) as page:
            for line in page.read().decode().splitlines():
                if line.startswith(series + " "):
                    return float(line.rsplit(" ", 1)[1])
        return 0.0

    def log_time(self, text, since):
        """When a line with `text` was logged, at `since` (time.time()) or later."""
        for line in open(self.log).readlines()[::-1]:
            if text not in line:
                continue
            stamp = datetime.datetime.strptime(line.split()[0], "%Y-%m-%dT%H:%M:%S.%fZ")
            at = stamp.replace(tzinfo=datetime.timezone.utc).timestamp()
            return at if at >= since - 0.01 else None
        return None

    def end(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(timeout=60)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Fleet:
    def __init__(self, options, preset, capacity):
        self.tools, self.out = options.tools, options.out
        self.options, self.preset, self.capacity = options, preset, capacity
        self.pages = 2 * options.context // 128
        self.servers = {}

    def start_pkvd(self, listen="127.0.0.1:0"):
        socket = os.path.join(self.out, "shm.sock")
        self.servers["pkvd"] = Server(self, "pkvd", 0, [
            "pkvd", "--listen", listen, "--metrics-listen", "127.0.0.1:0", "--capacity",
            self.capacity, "--nccl-device", "0", "--shm-socket", socket])

    def start_worker(self, name, role, gpu, *more):
        cache = f"127.0.0.1:{self.servers['pkvd'].port}"
        self.servers[name] = Server(self, name, gpu, [
            f"pkv-{role}", "serve", "--device", "cuda", "--shape", self.options.shape, "--preset",
            self.preset, "--cache", cache, "--metrics-listen", "127.0.0.1:0",
            *([] if "--listen" in more else ["--listen", "127.0.0.1:0"]), *more])

    def start_prefill(self):
        # Named in tickets, so chosen before.
        self.start_worker("prefill", "prefill", 0, "--transport", "grpc", "--listen",
                          f"127.0.0.1:{self.prefill_port}", "--direct-memory",
                          self.options.direct_memory, "--max-prompt-tokens",
                          str(max(self.options.context, 1024)))

    def start_decode(self, way, *more):
        """`way` names the server: grpc, shm, nccl or direct; WAY-whole: without streaming; WAY-0,
        WAY-1: the same"""
        kind, _, suffix = way.partition("-")
        arguments = ["--transport", kind if kind in ("grpc", "shm") else "auto",
                     "--layer-streaming=" + ("false" if suffix == "whole" else "true"),
                     "--max-batch", "4", "--pages", str(self.pages), "--log-level", "debug"]
        if kind == "direct":
            arguments += ["--direct-from", f"localhost:{self.prefill_port}"]
        self.start_worker(way, "decode", 1, *arguments, *more)

    def start(self, ways, *more):
        self.prefill_port = free_port()
        self.start_pkvd()
        self.servers["pkvd"].wait_ready()
        self.start_prefill()
        for way in ways:
            self.start_decode(way, *more)
        for server in self.servers.values():
            server.wait_ready()

    def num_pairs(self):
        """Of the holder; and what it holds for none of them is an error."""
        if self.options.holder == "prefill":
            return self.servers["prefill"].metric('pkv_direct_pairs{role="prefill"}')
        pkvd = self.servers["pkvd"]
        if pkvd.metric('pkv_tier_pinned_bytes{tier="dram"}') > 0:
            return float("inf")
        return pkvd.metric("pkv_nccl_pairs")

    def stop(self):
        for server in self.servers.values():
            server.process.send_signal(signal.SIGCONT)
            server.process.kill()
        for server in self.servers.values():
            server.process.wait(timeout=60)

    def generate(self, decode, tokens, max_tokens=16, *more):
        """A started pkvctl, whose output, longer than a pipe, goes to a file; see finish()."""
        output = open(os.path.join(self.out, "pkvctl.json"), "w+")
        chunks = [",".join(map(str, tokens[i:i + 8192])) for i in range(0, len(tokens), 8192)]
        process = subprocess.Popen(
            [os.path.join(self.tools, "pkvctl"), "--output", "json", "--no-progress", "generate",
             "--prefill", f"127.0.0.1:{self.servers['prefill'].port}", "--decode",
             f"127.0.0.1:{self.servers[decode].port}", "--preset", self.preset, "--max-tokens",
             str(max_tokens), *more, "--token-ids", *chunks],
            stdout=output, stderr=subprocess.PIPE, text=True)
        process.output = output
        return process


def finish(process, seconds=60):
    """What pkvctl printed, or None and its error."""
    _, error = process.communicate(timeout=seconds)
    with process.output as output:
        output.seek(0)
        return (json.load(output) if process.returncode == 0 else None), error.strip()


def must(result):
    generation, error = result
    if generation is None:
        raise Failed(f"pkvctl: {error}")
    return generation


def random_prompt(rng, length):
    return [rng.randrange(1, 1000) for _ in range(length)]


def received(server, transport):
    return server.metric(
        f'pkv_client_payload_bytes_total{{direction="in",role="decode",transport="{transport}"}}')


def warm_up(fleet, decode, rng):
    """Until the pair stands: a get has come over it."""
    transport = decode.partition("-")[0]
    before = received(fleet.servers[decode], transport)

    def over_nccl():
        must(finish(fleet.generate(decode, random_prompt(rng, SHORT_PROMPT), 1)))
        return received(fleet.servers[decode], transport) > before

    wait_until(f"a get over {transport}", 20, over_nccl)


def transfers(server, at_least_bytes):
    """What the worker logged of its NCCL transfers, the large ones."""
    found = []
    for line in open(server.log):
        if '"nccl: received"' in line or "nccl: received" in line:
            fields = dict(re.findall(r"(\w+)=([\w.e+-]+)", line))
            if float(fields["bytes"]) >= at_least_bytes:
                found.append({key: float(value) for key, value in fields.items()
                              if key == "bytes" or key.endswith("_ms")})
    return found


def timing(options):
    fleet = Fleet(options, options.preset, options.capacity)
    rng = random.Random(options.seed)
    rows = {way: [] for way in options.ways}
    paired = [way for way in options.ways if way.startswith(("nccl", "direct"))]
    try:
        # None computes prompts here; six models and their pages are enough for one GPU.
        fleet.start(options.ways, "--max-prompt-tokens", "128")
        for way in paired:
            warm_up(fleet, way, rng)
        for name in options.ways:  # kernels, connections, buffers
            must(finish(fleet.generate(name, random_prompt(rng, options.context // 2), 4)))
        for _ in range(options.prompts):
            prompt = random_prompt(rng, options.context)
            tokens = {}
            for name in options.ways:
                generation = must(finish(fleet.generate(name, prompt)))
                tokens[name] = generation["token_ids"]
                if generation["decode"]["recomputed_tokens"] != 0:
                    raise Failed(f"{name} computed: {generation['decode']['recompute_reason']}")
                rows[name].append(generation["decode"])
            if len({tuple(of) for of in tokens.values()}) != 1:
                raise Failed(f"tokens differ: {tokens}")
        for way in paired:
            got = received(fleet.servers[way], way.partition("-")[0])
            if got < sum(row["fetched_bytes"] for row in rows[way]):
                raise Failed(f"{way}: only {got} bytes came so")
    finally:
        fleet.stop()
    report = {}
    for way in paired:
        of = transfers(fleet.servers[way], max(row["fetched_bytes"] for row in rows[way]))
        medians = {key: statistics.median(row[key] for row in of) for key in of[0]}
        moving_ms = medians["first_layer_ms"] + medians["other_layers_ms"]
        medians["transfer_gb_per_s"] = 1e-6 * medians["bytes"] / moving_ms
        print(f"timing: {way:12} parts", " ".join(f"{k} {v:.4g}" for k, v in medians.items()))
        rows[way + " parts"] = of
    for name in options.ways:
        of = rows[name]

        def median(key):
            return statistics.median(row[key] for row in of)
        seconds = median("fetch_seconds") - median("queue_seconds")
        report[name] = {
            "bytes": median("fetched_bytes"), "first_layer_ms": 1e3 * median("first_layer_seconds"),
            "last_layer_ms": 1e3 * median("fetch_seconds"),
            "first_token_ms": 1e3 * median("first_token_seconds"),
            "gb_per_s": 1e-9 * median("fetched_bytes") / seconds}
        print(f"timing: {name:12}", " ".join(f"{k} {v:.4g}" for k, v in report[name].items()))
    json.dump({"report": report, "rows": rows}, open(os.path.join(options.out, "timing.json"), "w"))
    print(f"timing: passed, {options.prompts} prompts of {options.context} tokens, equal tokens")


def await_transfer(fleet, way, generation):
    """Until the decode worker fetches."""
    decode = fleet.servers[way]

    def fetching():
        if generation.poll() is not None:
            raise Failed(f"pkvctl ended early: {finish(generation)}")
        return decode.metric('pkv_decode_sequences{role="decode",state="fetching"}') > 0

    wait_until("the decode worker's fetch", 60, fetching)


def fallback_time(server, since):
    """When the decode worker went on without the pair, of a transfer that had begun or was asked
    for."""
    for text in ("going on over gRPC", "asking the cache instead"):
        at = server.log_time(text, since)
        if at is not None:
            return at
    return None


def one_kill(fleet, rng, way, who, prompt, expected):
    """Seconds until the fallback or the error; None when the transfer was over before."""
    options = fleet.options
    generation = fleet.generate(way, prompt)
    await_transfer(fleet, way, generation)
    time.sleep(rng.random() * options.window_ms * 1e-3)
    victim = fleet.servers[way if who == "decode" else options.holder]
    began = time.time()
    victim.process.send_signal(signal.SIGSTOP if who == "stop" else signal.SIGKILL)
    if who == "decode":
        victim.process.wait(timeout=60)
        got, _ = finish(generation)
        seconds = time.time() - began
        # Without one: it had all its tokens before.
        caught = got is None
    else:
        end = began + BOUND_S
        at = None
        while at is None and time.time() < end and generation.poll() is None:
            at = fallback_time(fleet.servers[way], began)
            time.sleep(0.001)
        if who == "stop":
            victim.process.send_signal(signal.SIGCONT)
        got = must(finish(generation))
        at = at or fallback_time(fleet.servers[way], began)
        caught = at is not None
        seconds = at - began if caught else 0
    if got is not None and got["token_ids"] != expected:
        raise Failed(f"{who}: tokens {got['token_ids']}, expected {expected}")
    # A pkvd that was killed has nothing any more.
    if got is not None and options.holder == "prefill" and got["decode"]["recomputed_tokens"] != 0:
        raise Failed(f"{who}: computed: {got['decode']['recompute_reason']}")
    if seconds > BOUND_S:
        raise Failed(f"{who}: {seconds:.2f} s until an error or a fallback")
    return seconds if caught else None


def end_gently(server):
    server.end()
    if server.process.returncode != 0:
        raise Failed(f"{server.name} ended with {server.process.returncode}")


def start_again(fleet, way, who, prompts):
    """The victim, with what it held; and the decode worker, which would wait ever longer before it
    made a pair again."""
    options = fleet.options
    if who != "decode":
        end_gently(fleet.servers[way])
    wait_until("the end of pairs and pins", BOUND_S,
               lambda: who == "holder" or fleet.num_pairs() <= len(fleet.paired) - 1)
    fleet.start_decode(way)
    if who != "holder":
        return
    fleet.servers[options.holder].process.wait(timeout=60)
    if options.holder == "pkvd":
        fleet.start_pkvd(f"127.0.0.1:{fleet.servers['pkvd'].port}")
        fleet.servers["pkvd"].wait_ready()
        return
    fleet.start_prefill()
    fleet.servers["prefill"].wait_ready()
    for prompt in prompts:  # back onto its GPU
        must(finish(fleet.generate("grpc", prompt, 1, "--ignore-cache")))


def kills(options):
    fleet = Fleet(options, "fp16", options.capacity)
    rng = random.Random(options.seed)
    kind = "direct" if options.holder == "prefill" else "nccl"
    # In turn, so that one is there while another starts again.
    fleet.paired = [f"{kind}-{i}" for i in range(3)]
    # Less than two prompts: each is fetched again whenever its turn comes.
    fleet.pages = options.context // 128 + 32
    taken = {"decode": [], "holder": [], "stop": []}
    missed = rounds = 0
    try:
        fleet.start(["grpc", *fleet.paired])
        prompts = [random_prompt(rng, options.context) for _ in range(2)]
        expected = [must(finish(fleet.generate("grpc", prompt)))["token_ids"] for prompt in prompts]
        began = time.monotonic()
        for rounds in range(1, options.rounds + 1):
            way = fleet.paired[rounds % len(fleet.paired)]
            fleet.servers[way].wait_ready()
            warm_up(fleet, way, rng)
            who = rng.choices(["decode", "holder", "stop"],
                              [options.decode_share, options.holder_share, 2])[0]
            which = rounds % len(prompts)
            seconds = one_kill(fleet, rng, way, who, prompts[which], expected[which])
            if seconds is None:
                missed += 1
            else:
                taken[who].append(seconds)
            print(f"kills: round {rounds}: {who}:", "over before" if seconds is None
                  else f"{seconds:.2f} s", flush=True)
            start_again(fleet, way, who, prompts)
            if options.seconds and time.monotonic() - began > options.seconds:
                break
        for way in fleet.paired:
            fleet.servers[way].wait_ready()
        warm_up(fleet, fleet.paired[0], rng)
        for way in fleet.paired:
            end_gently(fleet.servers[way])
        wait_until("the end of the last pair", BOUND_S, lambda: fleet.num_pairs() == 0)
        for name in ["grpc", "prefill", "pkvd"]:
            end_gently(fleet.servers[name])
    finally:
        fleet.stop()
        for who, of in taken.items():
            if of:
                print(f"kills: {options.holder}: {who}: {len(of)} in a transfer, at most "
                      f"{max(of):.2f} s, median {statistics.median(of):.2f} s until an error or a "
                      "fallback")
    print(f"kills: passed, {rounds} rounds, {missed} after the transfer was over")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["timing", "kills"])
    parser.add_argument("--tools", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--shape", default="llama-3.1-8b")
    parser.add_argument("--preset", default="default", help="of timing; kills has fp16")
    parser.add_argument("--context", type=int, default=32500)
    parser.add_argument("--capacity", default="12GiB")
    parser.add_argument("--direct-memory", default="6GiB")
    parser.add_argument("--ways", nargs="+", default=["grpc", "shm", "nccl", "direct", "nccl-whole",
                                                      "direct-whole"])
    parser.add_argument("--holder", choices=["pkvd", "prefill"], default="pkvd")
    parser.add_argument("--prompts", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=0, help="no more rounds then; 0: all")
    parser.add_argument("--window-ms", type=float, default=30)
    parser.add_argument("--decode-share", type=float, default=1)
    parser.add_argument("--holder-share", type=float, default=2)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    os.makedirs(options.out, exist_ok=True)
    gpus = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    if len(re.findall("^GPU ", gpus.stdout, re.M)) < 2:
        print("skipped: needs two GPUs")
        return 0
    try:
        (timing if options.what == "timing" else kills)(options)
    except Failed as failure:
        print(f"{options.what}: FAILED: {failure}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
