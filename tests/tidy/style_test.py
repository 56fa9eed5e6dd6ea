"""The conventions that a script can check (.github/CONTRIBUTING.md): prints each violation.

Usage: style_test.py [--root DIR] [--rule NAME]...   exits 1 when something is wrong.
style_test_selftest.py proves for each rule that it can fail.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from cpp_text import call_arguments, classes, functions, line_of, split_code, words

CODE_FOLDERS = ["proto", "kernels", "kvstore", "client", "worker"]
TOP_FOLDERS = CODE_FOLDERS + ["deploy", "tests"]
TOP_FILES = """.ci .github .clang-format .clang-tidy .dockerignore .editorconfig .gitattributes
    .gitignore .pre-commit-config.yaml CMakeLists.txt CMakePresets.json LICENSE README.md""".split()
CPP = (".h", ".cuh", ".cc", ".cu")
FOREIGN_CPP = (".hpp", ".hh", ".cpp", ".cxx", ".c", ".inl")
TEXT = CPP + (".py", ".sh", ".proto", ".cmake", ".txt", ".md", ".json", ".yaml", ".yml", ".in", "")

# What is not ours, by the shape of its include path.
GRPC = r"grpc(pp)?/|.*\.grpc\.pb\.h$"
PROTOBUF = r"google/protobuf/|.*\.pb\.h$"
CUDA = r"cuda|cublas|cuda_runtime|nccl|cooperative_groups"
STANDARD = r"[a-z_0-9]+"
OURS = r"(?:proto|kernels|kvstore|client|worker|tests|deploy|pkv)/"

# The arrows: the first row whose path fits decides. A row gives the path, what it may include of
# this project (its own folder is listed too), and the libraries that it may not include.
NETWORK = [GRPC, PROTOBUF]
LAYERS = [
    (r".*/include/pkv/", r"pkv/(block|kernels|client)/|pkv/version\.h$", [r"(?!absl/)"]),
    (r"proto/base/", r"proto/base/", NETWORK + [CUDA]),
    (r"proto/block/", r"proto/(base|block)/|pkv/block/", NETWORK + [CUDA]),
    (r"proto/config/", r"proto/(base|config)/", NETWORK + [CUDA]),
    (r"proto/metrics/", r"proto/(base|config|metrics)/", NETWORK + [CUDA]),
    (r"proto/serving/", r"proto/(base|serving)/", [PROTOBUF, CUDA]),
    # Checks on a GPU what frames hold.
    (r"proto/transport/nccl/", r"proto/(base|block|transport)/|pkv/(block|v1)/", []),
    (r"proto/transport/", r"proto/(base|transport)/|pkv/(block|v1)/", []),
    (r"kernels/", r"kernels/|proto/(base|block)/|pkv/(block|kernels)/", NETWORK),
    # Nothing of proto/block/: the service never interprets a payload.
    (r"kvstore/disk/", r"kvstore/disk/|proto/base/|pkv/block/", NETWORK + [CUDA]),
    (r"kvstore/store/", r"kvstore/(disk|store)/|proto/base/|pkv/block/", NETWORK + [CUDA]),
    (r"kvstore/",
     r"kvstore/|proto/(base|config|metrics|serving|transport)/|pkv/(block|v1)/", [CUDA]),
    (r"client/(tools|examples)/", r"client/(tools|examples)/|proto/base/|pkv/", [CUDA]),
    (r"client/", r"client/|proto/(base|transport)/|pkv/(block|client|v1)/", [CUDA]),
    # kernels/device/ owns streams and device memory: all code on a GPU stands on it.
    (r"worker/engine/", r"worker/engine/|kernels/device/|proto/(base|block)/|pkv/(block|kernels)/",
     NETWORK),
    (r"worker/",
     r"worker/|kernels/device/|proto/(base|block|config|metrics|serving|transport)/|pkv/", []),
]

MAX_LINES = {".h": 300, ".cuh": 300, ".cc": 600, ".cu": 600}
MAX_TEST_LINES = 800
MAX_FUNCTION_LINES = 70
MAX_COLUMNS = 100

BANNED_WORDS = {
    "fast", "new", "simple", "helper", "helpers", "manager", "util", "utils", "common",
}  # fmt: skip
# Names that other libraries chose.
FOREIGN_NAMES = re.compile(
    r"\b(?:std|absl|grpc|google|CLI|testing|spdlog|dnnl|nlohmann|prometheus|sentencepiece)::[\w:]+"
    r"|\bNewStub\b|\bHandleNewConnection\b|\bEVP_\w+"
)

SOURCE_FILE = re.compile(r"\.(cc|cu)$")

# Sources without a unit test of their own, and the folder of the tests that drive them.
TESTED_ELSEWHERE = {
    # The commands of pkvctl: flags, calls and printing. What they call has unit tests.
    "worker/ctl/": "tests/integration/e2e/",
    # The parts of the CUDA engine: through its interface, on the trained model.
    "worker/batch/cuda_": "tests/unit/worker/batch/cuda_batch_engine_test",
    "worker/batch/window_shift_": "tests/unit/worker/batch/cuda_pools_test",
    "worker/engine/cuda/": "tests/unit/worker/batch/cuda_batch_engine_test",
    "worker/prefill/layer_staging": "tests/unit/worker/prefill/cuda_prefill_executor_test",
    # Of the workers' own tests, as the only executor without a GPU.
    "worker/prefill/cpu_prefill_executor": "tests/unit/worker/prefill/prefill_worker_test",
    # Instances of a kernel's template.
    "kernels/attention/decode_kernels_": "tests/parity/decode_attention_",
    # Half of what query_statistics.h has.
    "kernels/codec/query_importance_": "tests/parity/query_statistics_",
}


class File:
    """A file of the tree; text, code and comments are read once, when asked for."""

    def __init__(self, root, path):
        self.path = path
        self.suffix = os.path.splitext(path)[1]
        self.is_cpp = self.suffix in CPP
        self.is_test = path.startswith("tests/")
        self._root = root
        self._text = self._split = self._includes = None

    @property
    def text(self):
        if self._text is None:
            data = Path(self._root, self.path).read_bytes()
            self._text = "" if b"\0" in data else data.decode("utf-8", "replace")
        return self._text

    @property
    def code(self):
        self._split = self._split or split_code(self.text)
        return self._split[0]

    @property
    def comments(self):
        self._split = self._split or split_code(self.text)
        return self._split[1]

    @property
    def includes(self):
        """[(line, '<' or '"', path)]"""
        if self._includes is None:
            found = re.finditer(r'^\s*#\s*include\s*([<"])([^>"]+)', self.text, re.MULTILINE)
            self._includes = [(line_of(self.text, m.start(2)), m[1], m[2]) for m in found]
        return self._includes


class Tree:
    def __init__(self, root):
        self.root = Path(root)
        self.paths = self._list()
        self.files = [File(root, path) for path in self.paths]
        self.cpp = [file for file in self.files if file.is_cpp]
        self.path_set = set(self.paths)

    def _list(self):
        """Tracked files and new ones that git does not ignore; without git, what is not hidden."""
        command = ["git", "-C", str(self.root), "ls-files", "-z", "-co", "--exclude-standard"]
        git = None
        if (self.root / ".git").exists():
            git = subprocess.run(command, capture_output=True, text=True, check=False)
        if git and git.returncode == 0:
            found = git.stdout.split("\0")
        else:
            found = []
            for folder, names, files in os.walk(self.root):
                names[:] = [n for n in names if n[0] != "." or n in (".ci", ".github")]
                names[:] = [n for n in names if n != "__pycache__"]
                found += [os.path.relpath(os.path.join(folder, n), self.root) for n in files]
        return sorted(p for p in set(found) if p and (self.root / p).is_file())

    def named(self, name):
        return [file for file in self.files if os.path.basename(file.path) == name]


RULES = {}


def rule(check):
    """Registers a generator of (path, line or 0, message) under its own name."""
    RULES[check.__name__.replace("_", "-")] = check
    return check


@rule
def top_level(tree):
    for name in sorted({path.split("/")[0] for path in tree.paths}):
        if name not in TOP_FOLDERS + TOP_FILES:
            yield name, 0, "not one of the agreed names at the top level"


@rule
def readme(tree):
    present = {path.split("/")[0] for path in tree.paths}
    for folder in TOP_FOLDERS:
        if folder in present and f"{folder}/README.md" not in tree.path_set:
            yield f"{folder}/README.md", 0, "every folder of the top level has a README.md"


@rule
def file_names(tree):
    for file in tree.files:
        base = os.path.basename(file.path)
        if file.suffix in FOREIGN_CPP:
            yield file.path, 0, "C++ files end in .h .cc .cu .cuh"
        if file.suffix in CPP + FOREIGN_CPP + (".py", ".sh", ".proto"):
            if not re.fullmatch(r"[a-z0-9_]+\.[a-z]+", base):
                yield file.path, 0, "file names are snake_case"
        for word in set(re.findall(r"[a-z]+", file.path.lower())) & BANNED_WORDS:
            yield file.path, 0, f"'{word}' says nothing: name the file for what it holds"


@rule
def layers(tree):
    for file in tree.cpp:
        row = next((row for row in LAYERS if re.match(row[0], file.path)), None)
        if row is None:
            continue
        _, ours, forbidden = row
        for line, kind, path in file.includes:
            if kind == "<" and re.fullmatch(STANDARD, path):
                continue
            if re.match(OURS, path) and not re.match(ours, path):
                yield file.path, line, f"'{path}' is not below or beside this folder"
            elif not re.match(OURS, path) or path.endswith(".pb.h"):
                if any(re.match(pattern, path) for pattern in forbidden):
                    yield file.path, line, f"this layer may not include '{path}'"


@rule
def include_spelling(tree):
    for file in tree.cpp:
        for line, kind, path in file.includes:
            if "../" in path:
                yield file.path, line, f"'{path}': spell it from the repository root"
            elif kind == '"' and "/" not in path:
                yield file.path, line, f"'{path}': spell it from the repository root"
            elif "/include/pkv/" in path:
                yield file.path, line, f"'{path}': a public header is included as \"pkv/...\""


@rule
def include_guards(tree):
    for file in tree.cpp:
        if file.suffix not in (".h", ".cuh"):
            continue
        public = file.path.split("/include/", 1)
        name = public[1] if len(public) == 2 else "pkv/" + file.path
        guard = re.sub(r"[^A-Z0-9]", "_", name.upper()) + "_"
        lines = file.text.strip().split("\n")
        if lines[:2] != [f"#ifndef {guard}", f"#define {guard}"]:
            yield file.path, 1, f"begins with #ifndef {guard} and #define {guard}"
        if lines[-1] != f"#endif  // {guard}":
            yield file.path, len(lines), f"ends with #endif  // {guard}"


@rule
def file_length(tree):
    for file in tree.files:
        limit = MAX_LINES.get(file.suffix)
        if file.is_test and (limit or file.suffix in (".py", ".sh")):
            limit = MAX_TEST_LINES
        lines = file.text.count("\n") if limit else 0
        if limit and lines > limit:
            yield file.path, 0, f"{lines} lines, limit {limit}: split it by concept"


@rule
def line_length(tree):
    for file in tree.files:
        if file.suffix not in CPP + (".py", ".sh", ".proto"):
            continue
        for number, line in enumerate(file.text.split("\n"), 1):
            if len(line) > MAX_COLUMNS and "http" not in line:
                yield file.path, number, f"{len(line)} columns, limit {MAX_COLUMNS}"


@rule
def function_length(tree):
    for file in tree.cpp:
        for begin, end in functions(file.code):
            first, last = line_of(file.code, begin), line_of(file.code, end)
            if last - first + 1 > MAX_FUNCTION_LINES:
                lines = last - first + 1
                yield file.path, first, f"function of {lines} lines, limit {MAX_FUNCTION_LINES}"


@rule
def identifiers(tree):
    for file in tree.cpp:
        code = FOREIGN_NAMES.sub(lambda m: " " * len(m.group()), file.code)
        code = re.sub(r"^\s*#\s*include.*", "", code, flags=re.MULTILINE)
        for match in re.finditer(r"\b[A-Za-z_]\w*", code):
            if match.group() == "new":  # the keyword
                continue
            for word in set(words(match.group())) & BANNED_WORDS:
                line = line_of(code, match.start())
                yield file.path, line, f"'{match.group()}': '{word}' says nothing in a name"


@rule
def open_points(tree):
    todo, fixme = "TO" + "DO", "FIX" + "ME"
    for file in tree.files:
        if file.suffix not in TEXT:
            continue
        for match in re.finditer(rf"\b({fixme}|{todo})\b(\(#\d+\))?", file.text):
            if match[1] == fixme or not match[2]:
                line = line_of(file.text, match.start())
                yield file.path, line, f"write {todo}(#issue), or settle it"


@rule
def dead_code(tree):
    """A comment that reads as a statement. An example of use is indented three spaces and stays."""
    call_or_assignment = r"[\w:<>,*& ]*\b[\w.:>\[\]-]+(?:\(.*\)| [-+*/|&]?= .+);"
    statement = re.compile(
        rf"\s*// ?(?! |.*Example:)(?:return\b.*;|#\s*include\b.*|{call_or_assignment})\s*"
    )
    for file in tree.cpp:
        for number, line in enumerate(file.comments.split("\n"), 1):
            if statement.fullmatch(line):
                yield file.path, number, "commented-out code: git remembers"


@rule
def test_seams(tree):
    """Production code knows nothing of its tests."""
    for file in tree.cpp:
        for match in re.finditer(r"\bfriend\s+class\s+\w*Test\w*|\bFRIEND_TEST\b", file.code):
            line = line_of(file.code, match.start())
            yield file.path, line, "no friend declarations for tests"
        for match in re.finditer(r"\b\w*ForTest(?:s|ing)?\b", file.code):
            yield file.path, line_of(file.code, match.start()), f"no '{match.group()}' methods"
        if not file.is_test:
            for line, _, path in file.includes:
                if re.match(r"gtest/|gmock/|tests/", path):
                    yield file.path, line, f"test header '{path}' outside tests/"


@rule
def skipped_tests(tree):
    disabled, skip = "DISABLED" + "_", "GTEST_" + "SKIP"
    for file in tree.cpp:
        for match in re.finditer(rf"\b{disabled}\w*|\b{skip}\b", file.code):
            line = line_of(file.code, match.start())
            if match.group() != skip:
                yield file.path, line, f"{match.group()}: mend the test or remove it"
            elif not re.search(r"gpu|cuda|nccl|parity", file.path):
                yield file.path, line, "only a test that needs a GPU may skip itself"


NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?[fFlL]?"
NEAR = re.compile(r"\b(?:(?:EXPECT|ASSERT)_(NEAR|LT|LE)|(?:Nan\w*)?(?:Float|Double)Near)\s*\(")
NAMED_TOLERANCE = re.compile(
    rf"\b(?:auto|double|float)\s+\w*(?i:tolerance|epsilon)\w*\s*[={{]\s*{NUMBER}\s*[;}}]"
)


def _is_literal_tolerance(comparison, arguments):
    number = re.fullmatch(rf"{NUMBER}(?:\s*[-+*/]\s*{NUMBER})*", arguments[-1])
    if comparison in ("LT", "LE"):
        compares_errors = re.search(r"abs\(|error|diff|distance", arguments[0])
        return number and compares_errors and re.search(r"[.eE]", arguments[-1])
    return number


@rule
def tolerances(tree):
    """Allowed errors are derived in tests/support/error_bound.h."""
    message = "a literal tolerance: derive it (tests/support/error_bound.h)"
    for file in tree.cpp:
        if not file.is_test or file.path == "tests/support/error_bound.h":
            continue
        for match in NEAR.finditer(file.code):
            if _is_literal_tolerance(match[1], call_arguments(file.code, match.end() - 1)):
                yield file.path, line_of(file.code, match.start()), message
        for match in NAMED_TOLERANCE.finditer(file.code):
            yield file.path, line_of(file.code, match.start()), message


@rule
def sleeps(tree):
    for file in tree.cpp:
        sleeping = r"\b(?:SleepFor|sleep_for|sleep_until|usleep|nanosleep)\b"
        for match in re.finditer(sleeping, file.code):
            if file.path.endswith(("_test.cc", "_test.cu")):
                line = line_of(file.code, match.start())
                yield file.path, line, "no test sleeps: wait for a fact (tests/support)"


@rule
def environment(tree):
    for file in tree.cpp:
        for match in re.finditer(r"\b(?:secure_)?getenv\b", file.code):
            # What the terminal can do is not our behaviour.
            asks_terminal = file.text.startswith('("TERM")', match.end())
            if not file.is_test and not asks_terminal:
                line = line_of(file.code, match.start())
                yield file.path, line, "no behaviour by environment variable: use an options struct"


@rule
def locks(tree):
    """ThreadSanitizer cannot see through Debian's uninstrumented Abseil."""
    banned = r"\bstd::(?:recursive_|shared_|timed_)*mutex\b|\bstd::condition_variable|\babsl::Mutex"
    for file in tree.cpp:
        for match in re.finditer(banned, file.code):
            if file.path != "proto/base/sync.h":
                line = line_of(file.code, match.start())
                yield file.path, line, f"{match.group()}: use pkv::Mutex (proto/base/sync.h)"


@rule
def string_views(tree):
    """They are two types on Debian 12 and do not convert."""
    for file in tree.cpp:
        for match in re.finditer(r"\bstd::string_view\b", file.code):
            yield file.path, line_of(file.code, match.start()), "spell absl::string_view"


@rule
def mirror(tree):
    tests = {path for path in tree.paths if re.match(r"tests/(unit|parity)/", path)}
    parity = [os.path.basename(p) for p in tests if p.startswith("tests/parity/")]
    for file in tree.cpp:
        if file.suffix not in (".cc", ".cu") or file.path.split("/")[0] not in CODE_FOLDERS:
            continue
        if re.search(r"\bint\s+main\s*\(", file.code):  # a process: tests/integration
            continue
        elsewhere = tuple(TESTED_ELSEWHERE[p] for p in TESTED_ELSEWHERE if file.path.startswith(p))
        if any(path.startswith(elsewhere) for path in tree.paths):
            continue
        stem = SOURCE_FILE.sub("", file.path)
        shared = re.sub(r"_(cpu|cuda|kernels)$", "", stem)
        wanted = [f"tests/unit/{s}_test{x}" for s in {stem, shared} for x in (".cc", ".cu")]
        if tests.isdisjoint(wanted):
            name = os.path.basename(shared)
            if shared == stem or not any(name in p for p in parity):
                yield file.path, 0, f"has no tests/unit/{shared}_test.cc"


@rule
def orphan_tests(tree):
    """A unit test stands where its subject stands; ring_model_test.cc is a second one of ring."""
    headers = {re.sub(r"/include/pkv/\w+/", "/", p) for p in tree.path_set if "/include/pkv/" in p}
    subjects = tree.path_set | headers
    for path in tree.paths:
        match = re.fullmatch(r"tests/unit/(.+)_test\.(?:cc|cu)", path)
        if match:
            folder, name = os.path.split(match[1])
            parts = name.split("_")
            stems = [f"{folder}/" + "_".join(parts[: n + 1]) for n in range(len(parts))]
            ends = (".h", ".cuh", ".cc", ".cu", "_cpu.cc", "_cuda.cu")
            if subjects.isdisjoint(stem + end for stem in stems for end in ends):
                yield path, 0, f"tests nothing: there is no {match[1]}.cc or .h"


def _names(cmake_list, path):
    """Whether it has `path` as a word, or the word that makes store/${name}_test.cc the path."""
    wanted = [path]
    for begin, end in re.findall(r"([\w./-]*)\$\{\w+\}([\w./-]*)", cmake_list):
        if path.startswith(begin) and path.endswith(end):
            wanted.append(path[len(begin) : len(path) - len(end)])
    return any(w and re.search(rf"(?<![\w/.-]){re.escape(w)}(?![\w.])", cmake_list) for w in wanted)


@rule
def built(tree):
    """No file is missing from the build, no header is included by nobody."""
    lists = {os.path.dirname(f.path): f.text for f in tree.named("CMakeLists.txt")}
    included = {path for file in tree.cpp for _, _, path in file.includes}
    for file in tree.cpp:
        if file.suffix in (".h", ".cuh"):
            spelled = file.path.split("/include/")[-1]
            if spelled not in included and "/include/" not in file.path:
                yield file.path, 0, "no file includes it"
            if "/include/" not in file.path:
                continue
        folder = os.path.dirname(file.path)
        while True:
            name = os.path.relpath(file.path, folder or ".")
            if _names(lists.get(folder, ""), name):
                break
            if not folder:
                yield file.path, 0, "not named in a CMakeLists.txt of its folder or above"
                break
            folder = os.path.dirname(folder)


@rule
def machine_paths(tree):
    banned = re.compile(r"(?<![\w.}])/(?:work|farm|home/\w+|tmp/research)/")
    for file in tree.files:
        if file.suffix in TEXT:
            for match in banned.finditer(file.text):
                line = line_of(file.text, match.start())
                yield file.path, line, f"'{match.group()}': a path of one machine"


@rule
def class_comments(tree):
    """The comment of a public class ends by saying from which threads it may be used."""
    for file in tree.cpp:
        if "/include/pkv/" not in file.path:
            continue
        lines = file.text.split("\n")
        for name, offset in classes(file.code):
            first = line_of(file.code, offset)
            comment = []
            for line in reversed(lines[: first - 1]):
                if not line.startswith("//"):
                    break
                comment.insert(0, line[2:])
            said = re.search(r"Thread-(?:safe|compatible|hostile)", "\n".join(comment[-3:]))
            if not said:
                yield file.path, first, f"comment of {name} does not end with Thread-safe, ..."


@rule
def formatted(tree):
    tool = shutil.which("clang-format-14")
    if tool is None:
        yield ".clang-format", 0, "clang-format-14 is not installed (deploy/install_deps.sh test)"
        return
    paths = [file.path for file in tree.cpp]
    for path in _unformatted(tool, tree.root, paths):
        yield path, 0, f"not formatted: clang-format-14 -i {path}"


def _unformatted(tool, root, paths):
    if not paths:
        return []
    command = [tool, "--dry-run", "-Werror", "--ferror-limit=1", *paths]
    check = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if check.returncode == 0:
        return []
    return sorted(set(re.findall(r"^(.+?):\d+:\d+: error:", check.stderr, re.MULTILINE)))


def check(root, only=None):
    """[(rule, path, line, message)] of everything that is wrong under `root`."""
    tree = Tree(root)
    return [
        (name, *violation)
        for name, run in RULES.items()
        if not only or name in only
        for violation in run(tree)
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--root", default=Path(__file__).resolve().parents[2])
    parser.add_argument("--rule", action="append", choices=sorted(RULES), help="only this rule")
    arguments = parser.parse_args()
    violations = check(arguments.root, arguments.rule)
    for name, path, line, message in violations:
        print(f"{path}:{line}: [{name}] {message}" if line else f"{path}: [{name}] {message}")
    print(f"{len(violations)} violations of {len(arguments.rule or RULES)} rules")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
