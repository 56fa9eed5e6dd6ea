"""Proves that each rule of style_test.py fires on a bad sample and is silent on a good one.

Every case takes the same small tree, in which nothing is wrong, and changes one file.
"""

import os
import tempfile
import unittest
from pathlib import Path

import style_test
from cpp_text import classes, functions, split_code, words


def header(path, body="int Count();\n"):
    name = path.split("/include/")[-1] if "/include/" in path else "pkv/" + path
    guard = "".join(c if c.isalnum() else "_" for c in name.upper()) + "_"
    return f"#ifndef {guard}\n#define {guard}\n\n{body}\n#endif  // {guard}\n"


PUBLIC = "proto/block/include/pkv/block/label.h"
GOOD = {
    ".clang-format": "BasedOnStyle: Google\nColumnLimit: 100\n",
    "README.md": "A project.\n",
    "proto/README.md": "The contract.\n",
    "proto/CMakeLists.txt": "pkv_library(pkv_base SOURCES base/ring.cc PUBLIC_HEADERS\n"
    "  block/include/pkv/block/label.h)\n",
    "proto/base/ring.h": header("proto/base/ring.h"),
    "proto/base/ring.cc": '#include "proto/base/ring.h"\n\n#include <vector>\n\nint Count() {\n'
    "  // A new helper, in prose; sealed once (see above);\n"
    '  return sizeof("std::mutex, new; friend class ATest");\n}\n',
    PUBLIC: header(
        PUBLIC,
        "#include <string>\n\n// A label.\n// Thread-safe.\nclass Label {\n public:\n"
        "  std::string text() const;\n};\n\nclass Later;\n",
    ),
    "tests/README.md": "Checks.\n",
    "tests/CMakeLists.txt": "pkv_test(unit/proto/base/ring_test.cc)\n",
    "tests/unit/proto/base/ring_test.cc": '#include "proto/base/ring.h"\n\n'
    "#include <gtest/gtest.h>\n\nTEST(RingTest, CountsNothing) {\n"
    "  EXPECT_NEAR(Count(), 1.0, ErrorBound(4, 1));\n  EXPECT_LT(Count(), 4);\n}\n",
}
RING_H, RING, TEST = "proto/base/ring.h", "proto/base/ring.cc", "tests/unit/proto/base/ring_test.cc"


def ring(*lines, body="  return 0;"):
    """ring.cc with more lines in front of Count()."""
    text = '#include "proto/base/ring.h"\n\n' + "".join(line + "\n" for line in lines)
    return text + "\nint Count() {\n" + body + "\n}\n"


def ring_test(line):
    return GOOD[TEST].replace("  EXPECT_LT", f"  {line}\n  EXPECT_LT")


def sized(lines):
    return "".join(f"int Value{i}();\n" for i in range(lines))


def long_function(lines):
    return ring(body="\n".join(["  Step();"] * (lines - 3) + ["  return 0;"]))


def listed(source):
    """proto/CMakeLists.txt with one more source."""
    return GOOD["proto/CMakeLists.txt"].replace("base/ring.cc", f"base/ring.cc {source}")


def listing(folder, source):
    """A top-level folder with one source and nothing else."""
    return {f"{folder}/CMakeLists.txt": f"SOURCES {source}\n", f"{folder}/README.md": "\n"}


def tested(source):
    return GOOD["tests/CMakeLists.txt"] + f"pkv_test({source})\n"


# (rule, {path: text}): each must give a violation of that rule, and of no other. The samples are
# not formatted, so that rule is run for its own case only.
BAD = [
    ("top-level", {"scripts/run.sh": "true\n"}),
    ("readme", {"proto/README.md": None}),
    ("file-names", {"proto/Ring.proto": "\n"}),
    ("file-names", {"proto/codec.cpp": "\n"}),
    ("file-names", {"proto/ring_util.proto": "\n"}),
    ("file-names", {"proto/common/ring.proto": "\n"}),
    ("layers", {RING: ring('#include "proto/block/digest.h"')}),
    ("layers", {RING: ring("#include <grpcpp/grpcpp.h>")}),
    ("layers", {RING: ring("#include <cuda_runtime.h>")}),
    ("layers", {RING: ring('#include "google/protobuf/message.h"')}),
    ("layers", {PUBLIC: GOOD[PUBLIC].replace("<string>", "<grpcpp/grpcpp.h>")}),
    ("layers", {PUBLIC: GOOD[PUBLIC].replace("<string>", "<spdlog/spdlog.h>")}),
    ("layers", {PUBLIC: GOOD[PUBLIC].replace("<string>", '"proto/base/ring.h"')}),
    ("include-spelling", {RING: ring('#include "../base/ring.h"')}),
    ("include-spelling", {RING: ring('#include "ring.h"')}),
    ("include-guards", {RING_H: GOOD[RING_H].replace("PKV_", "")}),
    ("include-guards", {RING_H: GOOD[RING_H].replace("#endif  // PKV", "#endif  // KV")}),
    ("file-length", {RING_H: header(RING_H, sized(297))}),
    ("file-length", {RING: ring(sized(596))}),
    ("file-length", {TEST: GOOD[TEST] + "\n" + sized(800)}),
    ("line-length", {"proto/block.proto": "// " + "x" * 98 + "\n"}),
    ("function-length", {RING: long_function(71)}),
    ("identifiers", {RING: ring("int FastCount();")}),
    ("identifiers", {RING: ring("int block_manager = 0;")}),
    ("identifiers", {RING: ring("struct RingHelper {};")}),
    ("open-points", {RING: ring("// TO" + "DO: later")}),
    ("open-points", {RING: ring("// FIX" + "ME(#12): later")}),
    ("dead-code", {RING: ring("// int old = Count();")}),
    ("dead-code", {RING: ring("// ring.Push(3);")}),
    ("dead-code", {RING: ring("// return 4;")}),
    ("test-seams", {RING: ring("class Ring {", "  friend class RingTest;", "};")}),
    ("test-seams", {RING: ring("void ResetForTesting();")}),
    ("test-seams", {RING: ring("#include <gtest/gtest.h>")}),
    ("skipped-tests", {TEST: ring_test("Run(DISABLED" + "_CountsNothing);")}),
    ("skipped-tests", {TEST: ring_test("GTEST_" + "SKIP();")}),
    ("tolerances", {TEST: ring_test("EXPECT_NEAR(Count(), F(1, 2), 1e-3);")}),
    ("tolerances", {TEST: ring_test("ASSERT_NEAR(Count(), 1, 2 * 0.5f);")}),
    ("tolerances", {TEST: ring_test("EXPECT_LT(std::abs(Count() - 1), 0.1);")}),
    ("tolerances", {TEST: ring_test("EXPECT_THAT(Count(), FloatNear(1, 0.1));")}),
    ("tolerances", {TEST: ring_test("const double kTolerance = 1e-4;")}),
    ("sleeps", {TEST: ring_test("absl::SleepFor(absl::Seconds(1));")}),
    ("environment", {RING: ring('const char* path = getenv("PATH");')}),
    ("locks", {RING: ring("std::mutex mu;")}),
    ("locks", {RING: ring("absl::Mutex mu;")}),
    ("string-views", {RING: ring("std::string_view name;")}),
    ("mirror", {"proto/base/heap.cc": "\n", "proto/CMakeLists.txt": listed("base/heap.cc")}),
    ("mirror", {"worker/ctl/put.cc": "\n", **listing("worker", "ctl/put.cc")}),
    (
        "orphan-tests",
        {
            "tests/unit/proto/heap_test.cc": "\n",
            "tests/CMakeLists.txt": tested("unit/proto/heap_test.cc"),
        },
    ),
    ("built", {"tests/CMakeLists.txt": "pkv_test(unit/proto/base/string_test.cc)\n"}),
    ("built", {"tests/CMakeLists.txt": "foreach(x ring)\n  pkv_test(${x}_test.cc)\n"}),
    ("built", {"proto/base/heap.h": header("proto/base/heap.h")}),
    ("built", {"proto/CMakeLists.txt": "pkv_library(pkv_base SOURCES base/ring.cc)\n"}),
    ("machine-paths", {"README.md": "See /wo" + "rk/main/README.md\n"}),
    ("class-comments", {PUBLIC: GOOD[PUBLIC].replace("// Thread-safe.\n", "")}),
    ("formatted", {RING: ring("int  x=1;")}),
]

# Near misses: allowed, though they look like the above.
ALLOWED = [
    {RING: ring("// TO" + "DO(#12): later")},
    {RING: ring("int* value = new int(3);", "int renewed = 0;")},
    {RING: ring("auto ok = absl::SimpleAtoi(text, &value);")},
    {RING: ring("// Example: ring.Push(3);", "//   ring.Push(3);")},
    {RING: ring("// An old one (see Count); it is sealed;")},
    {RING: long_function(70)},
    {RING_H: header(RING_H, sized(295))},
    {RING: ring("#include <sys/mman.h>")},
    {TEST: ring_test("EXPECT_NEAR(Count(), 1, 2 * bound);")},
    {TEST: ring_test("EXPECT_LE(num_errors, 3);")},
    {TEST: ring_test("EXPECT_LT(elapsed, 1.5);")},
    {
        "tests/parity/ring_gpu_test.cc": "void Run() { GTEST_" + "SKIP(); }\n",
        "tests/CMakeLists.txt": tested("parity/ring_gpu_test.cc"),
    },
    {
        "tests/unit/proto/base/ring_model_test.cc": "\n",
        "tests/CMakeLists.txt": tested("unit/proto/base/ring_model_test.cc"),
    },
    {
        "worker/ctl/put.cc": "\n",
        **listing("worker", "ctl/put.cc"),
        "tests/integration/e2e/put_test.cc": "\n",
        "tests/CMakeLists.txt": tested("integration/e2e/put_test.cc"),
    },
    {"tests/CMakeLists.txt": "foreach(x ring)\n  pkv_test(unit/proto/base/${x}_test.cc)\n"},
    {"proto/base/ring_cpu.cc": "\n", "proto/CMakeLists.txt": listed("base/ring_cpu.cc")},
    {"proto/main.cc": "int main() { return 0; }\n", "proto/CMakeLists.txt": listed("main.cc")},
]


UNFORMATTED = set(style_test.RULES) - {"formatted"}


def violations(changes, rules=None):
    with tempfile.TemporaryDirectory() as root:
        for path, text in {**GOOD, **changes}.items():
            if text is not None:
                os.makedirs(os.path.dirname(os.path.join(root, path)), exist_ok=True)
                Path(root, path).write_text(text, encoding="utf-8")
        return style_test.check(root, rules)


class StyleTest(unittest.TestCase):
    def test_accepts_a_good_tree(self):
        self.assertEqual(violations({}), [])

    def test_each_bad_sample_breaks_its_rule_only(self):
        for name, changes in BAD:
            with self.subTest(rule=name, changes=list(changes)):
                found = violations(changes, None if name == "formatted" else UNFORMATTED)
                self.assertEqual({violation[0] for violation in found}, {name}, found)

    def test_every_rule_has_a_bad_sample(self):
        self.assertEqual(set(style_test.RULES) - {name for name, _ in BAD}, set())

    def test_near_misses_are_allowed(self):
        for changes in ALLOWED:
            with self.subTest(changes=changes):
                self.assertEqual(violations(changes, UNFORMATTED), [])


class CppTextTest(unittest.TestCase):
    def test_tells_code_from_comments_and_strings(self):
        text = "int a = 1'000; // b\nauto s = R\"(x // \" y)\"; /* c */ char q = '\"'; int d;"
        code, comments = split_code(text)
        self.assertEqual(len(code), len(text))
        self.assertIn("1'000;", code)
        self.assertIn("int d;", code)
        self.assertNotIn("x", code)
        self.assertEqual(comments.split(), ["//", "b", "/*", "c", "*/"])

    def test_finds_functions_but_not_containers_or_initializers(self):
        code = (
            "namespace a {\nstruct S { int x{3}; int F() { return 1; } };\n"
            "S::S(int v) : a_{v}, b_(v) { Run([] { Stop(); }); }\n"
            "enum class E { kA };\nint table[] = {1, 2};\n}\n#define M() {\n"
            "TEST(A, B) { if (x) { y(); } }\n"
        )
        bodies = [code[begin : end + 1] for begin, end in functions(code)]
        self.assertEqual(
            bodies,
            ["{ return 1; }", "{ Run([] { Stop(); }); }", "{ if (x) { y(); } }"],
        )

    def test_finds_classes_of_a_namespace(self):
        code = "namespace a {\nclass A : public B { class C {}; };\nclass D;\nenum class E {};\n}"
        self.assertEqual([name for name, _ in classes(code)], ["A"])

    def test_splits_identifiers_into_words(self):
        self.assertEqual(words("kMaxURLBytes_v2"), ["k", "max", "url", "bytes", "v", "2"])


if __name__ == "__main__":
    unittest.main()
