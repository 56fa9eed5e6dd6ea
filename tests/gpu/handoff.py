"""Real pkvd, prefill and decode workers on two GPUs: blocks from pkvd's GPU to a decode worker's.

handoff.py timing --tools DIR --out DIR [--shape NAME] [--context N] [--prompts N]
    equal tokens over gRPC, shm and NCCL, and the time each takes until the first token, with the
    first step beside the transfer and (NAME-whole) after it
handoff.py kills --tools DIR --out DIR [--shape NAME] [--context N] [--rounds N] [--seed N] ...
    pkvd or the decode worker killed, or pkvd stopped, in the middle of a transfer: each time an
    error or a fallback within BOUND_S, the right tokens, no pair and no pin left

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


class Fleet:
    def __init__(self, options, preset, capacity):
        self.tools, self.out = options.tools, options.out
        self.options, self.preset, self.capacity = options, preset, capacity
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
            self.preset, "--cache", cache, "--listen", "127.0.0.1:0", "--metrics-listen",
            "127.0.0.1:0", *more])

    def start_decode(self, name, transport, *more):
        self.start_worker(name, "decode", 1, "--transport", transport, "--max-batch", "4",
                          "--pages", str(2 * self.options.context // 128), *more)

    def start(self, transports, *more):
        self.start_pkvd()
        self.servers["pkvd"].wait_ready()
        self.start_worker("prefill", "prefill", 0, "--transport", "grpc")
        for name, transport in transports.items():
            streaming = "false" if name.endswith("-whole") else "true"
            self.start_decode(name, transport, "--layer-streaming", streaming, *more)
        for server in self.servers.values():
            server.wait_ready()

    def stop(self):
        for server in self.servers.values():
            server.process.send_signal(signal.SIGCONT)
            server.process.kill()
        for server in self.servers.values():
            server.process.wait(timeout=60)

    def generate(self, decode, tokens, max_tokens=16):
        """A started pkvctl, whose output, longer than a pipe, goes to a file; see finish()."""
        output = open(os.path.join(self.out, "pkvctl.json"), "w+")
        chunks = [",".join(map(str, tokens[i:i + 8192])) for i in range(0, len(tokens), 8192)]
        process = subprocess.Popen(
            [os.path.join(self.tools, "pkvctl"), "--output", "json", "--no-progress", "generate",
             "--prefill", f"127.0.0.1:{self.servers['prefill'].port}", "--decode",
             f"127.0.0.1:{self.servers[decode].port}", "--preset", self.preset, "--max-tokens",
             str(max_tokens), "--token-ids", *chunks],
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


def warm_up(fleet, decode, rng):
    """Until the pair stands: a get has come over it."""
    pkvd = fleet.servers["pkvd"]
    series = 'pkv_payload_bytes_total{direction="out",transport="nccl"}'
    before = pkvd.metric(series)

    def over_nccl():
        must(finish(fleet.generate(decode, random_prompt(rng, SHORT_PROMPT), 1)))
        return pkvd.metric(series) > before

    wait_until("a get over NCCL", 20, over_nccl)


def timing(options):
    fleet = Fleet(options, options.preset, options.capacity)
    rng = random.Random(options.seed)
    transports = {"grpc": "grpc", "shm": "shm", "nccl": "auto", "grpc-whole": "grpc",
                  "shm-whole": "shm", "nccl-whole": "auto"}
    rows = {name: [] for name in transports}
    try:
        # None computes prompts here; six models and their pages are enough for one GPU.
        fleet.start(transports, "--max-prompt-tokens", "128")
        warm_up(fleet, "nccl", rng)
        warm_up(fleet, "nccl-whole", rng)
        for name in transports:  # kernels, connections, buffers
            must(finish(fleet.generate(name, random_prompt(rng, options.context // 2), 4)))
        for _ in range(options.prompts):
            prompt = random_prompt(rng, options.context)
            tokens = {}
            for name in transports:
                generation = must(finish(fleet.generate(name, prompt)))
                tokens[name] = generation["token_ids"]
                if generation["decode"]["recomputed_tokens"] != 0:
                    raise Failed(f"{name} computed: {generation['decode']['recompute_reason']}")
                rows[name].append(generation["decode"])
            if len({tuple(of) for of in tokens.values()}) != 1:
                raise Failed(f"tokens differ: {tokens}")
        sent = fleet.servers["pkvd"].metric(
            'pkv_payload_bytes_total{direction="out",transport="nccl"}')
        if sent < sum(row["fetched_bytes"] for row in rows["nccl"] + rows["nccl-whole"]):
            raise Failed(f"only {sent} bytes went over NCCL")
    finally:
        fleet.stop()
    report = {}
    for name, of in rows.items():
        def median(key):
            return statistics.median(row[key] for row in of)
        seconds = median("fetch_seconds") - median("queue_seconds")
        report[name] = {
            "bytes": median("fetched_bytes"), "first_layer_ms": 1e3 * median("first_layer_seconds"),
            "last_layer_ms": 1e3 * median("fetch_seconds"),
            "first_token_ms": 1e3 * median("first_token_seconds"),
            "gb_per_s": 1e-9 * median("fetched_bytes") / seconds}
        print(f"timing: {name:10}", " ".join(f"{k} {v:.4g}" for k, v in report[name].items()))
    json.dump({"report": report, "rows": rows}, open(os.path.join(options.out, "timing.json"), "w"))
    print(f"timing: passed, {options.prompts} prompts of {options.context} tokens, equal tokens")


def await_transfer(fleet, generation):
    """Until the decode worker fetches."""
    decode = fleet.servers["nccl"]

    def fetching():
        if generation.poll() is not None:
            raise Failed(f"pkvctl ended early: {finish(generation)}")
        return decode.metric('pkv_decode_sequences{role="decode",state="fetching"}') > 0

    wait_until("the decode worker's fetch", 60, fetching)


def one_kill(fleet, rng, who, prompt, expected, options):
    """Seconds until the fallback or the error; None when the transfer was over before."""
    generation = fleet.generate("nccl", prompt)
    await_transfer(fleet, generation)
    time.sleep(rng.random() * options.window_ms * 1e-3)
    victim = fleet.servers["nccl" if who == "decode" else "pkvd"]
    began = time.time()
    victim.process.send_signal(signal.SIGSTOP if who == "stop" else signal.SIGKILL)
    if who == "decode":
        victim.process.wait(timeout=60)
        got, _ = finish(generation)
        seconds = time.time() - began
        pkvd = fleet.servers["pkvd"]
        wait_until("the end of the pair", BOUND_S, lambda: pkvd.metric("pkv_nccl_pairs") == 0)
        wait_until("the end of the pins", BOUND_S,
                   lambda: pkvd.metric('pkv_tier_pinned_bytes{tier="dram"}') == 0)
        # Without one: it had all its tokens before.
        caught = got is None
    else:
        end = began + BOUND_S
        log = fleet.servers["nccl"]
        at = None
        while at is None and time.time() < end and generation.poll() is None:
            at = log.log_time("nccl: going on over gRPC", began)
            time.sleep(0.001)
        if who == "stop":
            victim.process.send_signal(signal.SIGCONT)
        got = must(finish(generation))
        at = at or log.log_time("nccl: going on over gRPC", began)
        caught = at is not None
        seconds = at - began if caught else 0
    if got is not None and got["token_ids"] != expected:
        raise Failed(f"{who}: tokens {got['token_ids']}, expected {expected}")
    if seconds > BOUND_S:
        raise Failed(f"{who}: {seconds:.2f} s until an error or a fallback")
    return seconds if caught else None


def kills(options):
    fleet = Fleet(options, "fp16", options.capacity)
    rng = random.Random(options.seed)
    taken = {"decode": [], "pkvd": [], "stop": []}
    missed = rounds = 0
    try:
        fleet.start({"grpc": "grpc", "nccl": "auto"})
        # More than a worker's pages hold: each is fetched again whenever its turn comes.
        prompts = [random_prompt(rng, options.context) for _ in range(4)]
        expected = [must(finish(fleet.generate("grpc", prompt)))["token_ids"] for prompt in prompts]
        began = time.monotonic()
        for rounds in range(1, options.rounds + 1):
            warm_up(fleet, "nccl", rng)
            # A killed worker takes longest to start again.
            who = rng.choices(["decode", "pkvd", "stop"], [options.decode_share, 2, 2])[0]
            which = rounds % len(prompts)
            seconds = one_kill(fleet, rng, who, prompts[which], expected[which], options)
            if seconds is None:
                missed += 1
            else:
                taken[who].append(seconds)
            if who == "decode":
                fleet.start_decode("nccl", "auto")
                fleet.servers["nccl"].wait_ready()
            elif who == "pkvd":
                port = fleet.servers["pkvd"].port
                fleet.servers["pkvd"].process.wait(timeout=60)
                fleet.start_pkvd(f"127.0.0.1:{port}")
                fleet.servers["pkvd"].wait_ready()
            if options.seconds and time.monotonic() - began > options.seconds:
                break
        warm_up(fleet, "nccl", rng)
        for server in fleet.servers.values():
            server.end()
            if server.process.returncode != 0:
                raise Failed(f"{server.name} ended with {server.process.returncode}")
    finally:
        fleet.stop()
    for who, of in taken.items():
        if of:
            print(f"kills: {who}: {len(of)} in a transfer, at most {max(of):.2f} s, median "
                  f"{statistics.median(of):.2f} s until an error or a fallback")
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
    parser.add_argument("--prompts", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=0, help="no more rounds then; 0: all")
    parser.add_argument("--window-ms", type=float, default=30)
    parser.add_argument("--decode-share", type=float, default=1)
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
