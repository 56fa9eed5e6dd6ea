"""board_page.py on made samples: what is drawn, well formed, and in need of nothing else."""

import math
import unittest
import xml.etree.ElementTree

import board_page
import boards
from board_lint import SOURCE
from board_page import Series, format_value, path, stack, ticks

BOARDS = boards.read_all(SOURCE)
START, END = 1_000_000, 1_000_240


def made(panel):
    """Two series a target, one of them zero all the time, with a gap."""
    for target in panel["targets"]:
        rising = [(START + i, i if i % 50 else math.nan) for i in range(0, 240, 2)]
        yield Series(f"{target['refId']} <rising>", rising)
        yield Series(f"{target['refId']} zero", [(at, 0.0) for at, _ in rising])


class RenderTest(unittest.TestCase):
    def setUp(self):
        self.page = board_page.render(BOARDS, lambda p: list(made(p)), START, END, "a & b")
        self.tree = xml.etree.ElementTree.fromstring(self.page.removeprefix("<!DOCTYPE html>\n"))

    def test_every_main_panel_has_a_card_with_a_line(self):
        cards = [e for e in self.tree.iter("div") if e.get("class") == "card"]
        titles = [title for titles in board_page.MAIN_PANELS.values() for title in titles]
        self.assertEqual([card.find("h3").text for card in cards], titles)
        for card in cards:
            strokes = [e for e in card.iter() if e.get("stroke") in board_page.COLORS]
            self.assertTrue(strokes, card.find("h3").text)
            for stroke in strokes:
                self.assertNotIn("nan", stroke.get("d"))

    def test_series_at_zero_are_counted_and_not_drawn(self):
        self.assertIn("at zero", self.page)
        self.assertNotIn("A zero", self.page)

    def test_page_needs_nothing_from_elsewhere(self):
        own = self.page.replace("http://www.w3.org/2000/svg", "")
        self.assertNotRegex(own, "https?:|src=|@import")

    def test_lines_stay_inside_their_plot(self):
        for svg in self.tree.iter("{http://www.w3.org/2000/svg}svg"):
            for line in svg.iter("{http://www.w3.org/2000/svg}path"):
                for at in line.get("d").replace("L", "M").rstrip("Z").split("M")[1:]:
                    if "H" not in at and "V" not in at:
                        x, y = map(float, at.split())
                        self.assertTrue(0 <= x <= board_page.CARD_WIDTH, at)
                        self.assertTrue(0 <= y <= board_page.PLOT_HEIGHT, at)

    def test_a_panel_that_is_renamed_is_missed(self):
        renamed = {file: dict(board, panels=board["panels"][1:2]) for file, board in BOARDS.items()}
        with self.assertRaises(KeyError):
            board_page.render(renamed, lambda p: list(made(p)), START, END, "")


class PartsTest(unittest.TestCase):
    def test_values_have_their_unit(self):
        for value, unit, shown in [
            (0, "s", "0 s"),
            (0.00025, "s", "250 µs"),
            (0.0125, "s", "12.5 ms"),
            (90, "s", "1.5 min"),
            (1536, "bytes", "1.5 KiB"),
            (2.5e6, "Bps", "2.5 MB/s"),
            (0.805, "percentunit", "80.5 %"),
            (1234, "short", "1.23 K"),
            (3, "reqps", "3 req/s"),
            (math.nan, "s", "–"),
        ]:
            self.assertEqual(format_value(value, unit), shown)

    def test_ticks_are_round_few_and_reach_the_top(self):
        for unit in ("s", "bytes", "short"):
            for high in (1e-4, 0.03, 0.9, 1, 7, 99, 1024, 5e7):
                found = ticks(high, unit)
                self.assertEqual(found[0], 0)
                self.assertGreaterEqual(found[-1] * (1 + 1e-9), high)
                self.assertLessEqual(len(found), 6, (unit, high, found))
                self.assertGreaterEqual(len(found), 3, (unit, high, found))
        self.assertEqual(ticks(0, "s"), [0, 1])
        self.assertEqual(ticks(5 * 2**20, "bytes")[1], 2**20)

    def test_path_is_broken_where_there_is_no_number(self):
        points = [(0, 1), (1, 2), (2, math.nan), (3, 4)]
        self.assertEqual(path(points, float, float), "M0.0 1.0L1.0 2.0M3.0 4.0")

    def test_stack_adds_up_and_takes_gaps_for_zero(self):
        series = [Series("a", [(0, 1), (1, math.nan)]), Series("b", [(0, 2), (1, 3)])]
        tops = [high for _, _, high in stack(series)]
        self.assertEqual(tops, [[(0, 1), (1, 0)], [(0, 3), (1, 3)]])

    def test_legend_takes_labels(self):
        self.assertEqual(board_page.legend_of({"a": "x"}, "{{a}} p50"), "x p50")
        self.assertEqual(board_page.legend_of({}, "{{a}}"), "")


if __name__ == "__main__":
    unittest.main()
