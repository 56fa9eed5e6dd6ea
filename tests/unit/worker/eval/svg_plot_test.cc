#include "worker/eval/svg_plot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/unit/worker/eval/well_formed.h"

namespace pkv {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

int CountOf(const std::string& text, const std::string& part) {
  int count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

TEST(WellFormedTest, FindsWhatIsWrong) {
  EXPECT_EQ(WellFormed::Check("<a b=\"1\"><c/>x &amp; y</a>\n"), "");
  for (const char* wrong : {"<a>", "<a></b>", "</a>", "<a b=1/>", "<a b=\"1\" b=\"2\"/>",
                            "<a>&x;</a>", "<a/><b/>", "<a>\t</a>", "<a b=\"<\"/>", "<a>></a>"}) {
    EXPECT_NE(WellFormed::Check(wrong), "") << wrong;
  }
}

TEST(SvgPlotTest, IsWellFormedWhateverItsNamesHold) {
  const std::string odd = "a<b & \"c\" 'd' \x01>";
  for (const bool joins : {true, false}) {
    const Plot plot{.title = odd,
                    .x = {.title = odd, .ticks = {odd, "two"}},
                    .y = {.title = odd, .is_log = true},
                    .series = {{odd, {{0, 1e-3}, {1, 2}}, {1e-4, 5}}},
                    .joins_points = joins};
    EXPECT_EQ(WellFormed::Check(DrawSvg(plot)), "");
  }
}

TEST(SvgPlotTest, LeavesOutWhatCannotBeDrawn) {
  const double infinity = std::numeric_limits<double>::infinity();
  const Plot plot{.title = "t",
                  .x = {.title = "x"},
                  .y = {.title = "y", .is_log = true},
                  .series = {{"s", {{1, 1}, {2, 0}, {3, -1}, {4, infinity}, {NAN, 2}, {6, 10}}}}};
  const std::string svg = DrawSvg(plot);
  EXPECT_EQ(CountOf(svg, "<circle"), 2);
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, Not(HasSubstr("inf")));
}

TEST(SvgPlotTest, DrawsAPlotWithoutPoints) {
  for (const bool is_log : {false, true}) {
    const Plot plot{.title = "t", .x = {.title = "x"}, .y = {.title = "y", .is_log = is_log}};
    EXPECT_EQ(WellFormed::Check(DrawSvg(plot)), "");
    EXPECT_THAT(DrawSvg(plot), Not(HasSubstr("nan")));
  }
}

TEST(SvgPlotTest, NamesEachSeriesAndAxis) {
  const Plot plot{.title = "KL by layer",
                  .x = {.title = "layer", .ticks = {"0", "1"}},
                  .y = {.title = "KL, nats"},
                  .series = {{"pkv2", {{0, 1}, {1, 2}}}, {"default", {{0, 2}, {1, 1}}}}};
  const std::string svg = DrawSvg(plot);
  for (const char* text : {">pkv2<", ">default<", ">layer<", ">KL, nats<", ">KL by layer<"}) {
    EXPECT_THAT(svg, HasSubstr(text));
  }
  EXPECT_EQ(CountOf(svg, "<polyline"), 2);
}

TEST(SvgPlotTest, KeepsTheColoursOfSeriesBesideOneWithoutPoints) {
  const Plot plot{.title = "t",
                  .x = {.title = "x"},
                  .y = {.title = "y"},
                  .series = {{"absent", {}}, {"present", {{0, 1}, {1, 2}}}}};
  Plot both = plot;
  both.series[0].points = {{0, 2}, {1, 1}};
  const std::string svg = DrawSvg(plot), second = DrawSvg(both);
  EXPECT_THAT(svg, Not(HasSubstr("absent")));
  const std::string fill = "fill=\"#d55e00\"";
  EXPECT_EQ(CountOf(svg, fill), 2);
  EXPECT_EQ(CountOf(second, fill), 2);
}

TEST(SvgPlotTest, LabelsPointsThatAreNotJoined) {
  const Plot plot{.title = "t",
                  .x = {.title = "x"},
                  .y = {.title = "y"},
                  .series = {{"one", {{1, 1}}}, {"two", {{1, 1}}}},
                  .joins_points = false};
  const std::string svg = DrawSvg(plot);
  EXPECT_EQ(CountOf(svg, ">one<"), 1);
  EXPECT_EQ(CountOf(svg, ">two<"), 1);
  EXPECT_EQ(CountOf(svg, "<polyline"), 0);
}

TEST(RoundTicksTest, AreRoundNumbersWithinTheRange) {
  EXPECT_THAT(RoundTicks(0, 10, false), ElementsAre(0, 2, 4, 6, 8, 10));
  EXPECT_THAT(RoundTicks(-1.5, 1.5, false), ElementsAre(-1.5, -1, -0.5, 0, 0.5, 1, 1.5));
  EXPECT_THAT(RoundTicks(0.5, 60, true), ElementsAre(0.5, 1, 2, 5, 10, 20, 50));
  EXPECT_THAT(RoundTicks(1, 1e8, true), testing::SizeIs(9)) << "powers of ten alone";
}

}  // namespace
}  // namespace pkv
