"""Proves that ptxas_gate.py lets good kernels pass and no other."""

import sys
import unittest

from ptxas_gate import problems, read_list, read_log

LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4GoodILi2EE' for 'sm_90a'
ptxas info    : Function properties for _Z4GoodILi2EE
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 1536 bytes smem
ptxas info    : Compiling entry function '_Z7SpillerILi4EE' for 'sm_90a'
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 128 registers
ptxas info    : Function properties for _Z8Function
    400 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""


class PtxasGateTest(unittest.TestCase):
    def found(self, hot):
        return list(problems(read_list(hot), read_log(LOG)))

    def test_reads_every_kernel(self):
        self.assertEqual(list(read_log(LOG)), ["_Z4GoodILi2EE", "_Z7SpillerILi4EE"])

    def test_lets_a_kernel_without_spills_pass(self):
        self.assertEqual(self.found("# comment\nGoodILi2E 168  # of 168\n"), [])

    def test_names_spills(self):
        (problem,) = self.found("Spiller 255")
        self.assertIn("16 bytes of stack, 12 of spill stores, 8 of spill loads", problem)

    def test_names_too_many_registers(self):
        (problem,) = self.found("Good 167")
        self.assertIn("168 registers, limit 167", problem)

    def test_wants_every_kernel_of_the_list(self):
        (problem,) = self.found("Missing 255")
        self.assertIn("no kernel", problem)


if __name__ == "__main__":
    sys.exit(not unittest.main(exit=False).result.wasSuccessful())
