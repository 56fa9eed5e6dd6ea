"""The parts of kernels.py that need neither GPU nor PyTorch."""

import unittest

import kernels
import roofline


def timed(us):
    return {"us": {"median": us, "min": us, "max": us, "count": 1}}


def measured(case, preset, us, context=32768):
    shape = {"batch": 8, "context_tokens": context, "mixed": False}
    shape |= {"num_qo_heads": 32, "num_kv_heads": 8, "head_dim": 128}
    return {"case": case, "shape": shape, "preset": preset, "data": "random", "us": {"median": us}}


class BestPeersTest(unittest.TestCase):
    def test_takes_the_quickest_of_all_passes(self):
        before = {"8x32k": {"cudnn folded": timed(250), "flash folded": timed(260)}}
        after = {"8x32k": {"flash folded": timed(240), "cudnn folded": {"refused": "why"}}}
        expected = {"8x32k": {"name": "flash folded", "us": 240}}
        self.assertEqual(kernels.best_peers(before, after), expected)

    def test_has_no_peer_where_all_refused(self):
        self.assertEqual(kernels.best_peers({"8x32k": {"cudnn folded": {"refused": "why"}}}), {})


class RatioTest(unittest.TestCase):
    peers = {"8x32k": {"name": "cudnn folded", "us": 240.0}}

    def row(self, preset, us):
        return kernels.ratio_rows({"attention": [measured("8x32k", preset, us)]}, self.peers)[0]

    def test_is_the_peers_time_over_ours(self):
        row = self.row("pkv2", 40.0)
        self.assertEqual(row["ratio"], 6.0)
        self.assertEqual(row["target"], 5.5)
        # 8 x 32k tokens, 8 heads of 128, K and V fp16; 4 query heads read each.
        self.assertAlmostEqual(row["peer_bytes_per_s"], 8 * 32768 * 4096 / 240e-6, delta=1)
        self.assertEqual(row["peer_operations_per_byte"], 4)

    def test_leaves_out_what_has_no_peer(self):
        ours = {"attention": [measured("1x4k", "pkv2", 10.0)]}
        self.assertEqual(kernels.ratio_rows(ours, self.peers), [])

    def test_table_says_whether_a_target_was_met(self):
        self.assertIn("3.4 met", kernels.ratio_table([self.row("pkv4", 240 / 3.4)]))
        self.assertIn("3.4 MISSED", kernels.ratio_table([self.row("pkv4", 71.0)]))
        self.assertNotIn("met", kernels.ratio_table([self.row("fp16", 240.0)]))

    def test_drift_compares_the_passes(self):
        before = {"8x32k": {"cudnn folded": timed(200)}}
        after = {"8x32k": {"cudnn folded": timed(210)}}
        self.assertIn("+5.0%", kernels.drift_table(before, after))


class BitsTest(unittest.TestCase):
    def test_are_read_off_the_name(self):
        names = ["fp16", "kivi2", "kivi4-g64", "pkv4", "default", "default4"]
        bits = ["16", "2", "4", "4", "2", "4"]
        self.assertEqual([roofline.bits_of(name) for name in names], bits)


class ArgumentsTest(unittest.TestCase):
    def test_pass_what_follows_the_dashes_on(self):
        parsed = kernels.parse_arguments(["--bundle", "b", "--", "--extra", "--data", "random"])
        self.assertEqual(parsed.rest, ["--extra", "--data", "random"])
        self.assertEqual(str(parsed.bench), "b/tools/pkv-bench")


if __name__ == "__main__":
    unittest.main()
