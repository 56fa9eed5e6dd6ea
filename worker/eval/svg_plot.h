#ifndef PKV_WORKER_EVAL_SVG_PLOT_H_
#define PKV_WORKER_EVAL_SVG_PLOT_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace pkv {

struct PlotAxis {
  std::string title;  // with its unit
  bool is_log = false;
  bool from_zero = false;            // linear axes: begins at 0
  std::vector<std::string> ticks{};  // instead of numbers, at 0, 1, 2, ...
};

// Points in drawing order; joined by a line, or each with the series' name beside it.
struct PlotSeries {
  std::string name;
  std::vector<std::pair<double, double>> points{};
  // Half the length of an error bar at each point, along y; empty: none.
  std::vector<double> y_errors{};
};

struct Plot {
  std::string title;
  PlotAxis x, y;
  std::vector<PlotSeries> series{};
  bool joins_points = true;  // else: labelled points
};

// `text` with &, <, >, " and ' replaced, for XML text and attributes.
std::string EscapeXml(absl::string_view text);

// Ticks at round numbers within [low, high], about `wanted` of them; for a logarithmic axis 1, 2
// and 5 times powers of ten. REQUIRES: low < high, both positive when `is_log`.
std::vector<double> RoundTicks(double low, double high, bool is_log, int wanted = 6);

// The plot as one <svg> element, 640 by 400, with axes, grid, titles and, for joined points, a
// legend. Points that are not finite, or not positive on a logarithmic axis, are left out.
std::string DrawSvg(const Plot& plot);

}  // namespace pkv

#endif  // PKV_WORKER_EVAL_SVG_PLOT_H_
