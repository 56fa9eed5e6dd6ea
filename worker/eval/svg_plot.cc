#include "worker/eval/svg_plot.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace pkv {
namespace {

constexpr double kWidth = 640, kHeight = 400;
constexpr double kLeft = 74, kRight = 20, kTop = 38, kBottom = 56;
constexpr double kLegendWidth = 190;  // beside the frame of joined points
// Okabe and Ito's colours, which colour-blind readers can tell apart; then their darker kin.
constexpr const char* kColours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00",
                                    "#56b4e9", "#000000", "#8c510a", "#5e4fa2", "#66a61e"};
constexpr const char* kDashes[] = {"", "6 3", "2 3"};

const char* Colour(size_t series) { return kColours[series % std::size(kColours)]; }
// After one round of colours lines change their dash.
const char* Dash(size_t series) {
  return kDashes[series / std::size(kColours) % std::size(kDashes)];
}

bool IsDrawable(const Plot& plot, const std::pair<double, double>& point) {
  return std::isfinite(point.first) && std::isfinite(point.second) &&
         (!plot.x.is_log || point.first > 0) && (!plot.y.is_log || point.second > 0);
}

// Values of one axis to pixels.
class Scale {
 public:
  Scale(const PlotAxis& axis, double low, double high, double begin, double end)
      : is_log_(axis.is_log), begin_(begin), end_(end) {
    if (!axis.ticks.empty()) {
      low = 0;
      high = std::max<double>(1, static_cast<double>(axis.ticks.size()) - 1);
    } else if (!(low <= high)) {  // no point at all
      low = is_log_ ? 1 : 0;
      high = is_log_ ? 10 : 1;
    } else if (is_log_) {
      low /= 1.25;
      high *= 1.25;
    } else {
      if (axis.from_zero) low = std::min(low, 0.0);
      const double margin = high > low ? 0.06 * (high - low) : std::max(std::abs(high), 1.0) * 0.5;
      if (!(axis.from_zero && low == 0)) low -= margin;
      high += margin;
    }
    low_ = low;
    high_ = high;
  }

  double low() const { return low_; }
  double high() const { return high_; }
  double At(double value) const {
    const double share =
        is_log_ ? std::log(value / low_) / std::log(high_ / low_) : (value - low_) / (high_ - low_);
    return begin_ + share * (end_ - begin_);
  }

 private:
  bool is_log_;
  double begin_, end_, low_ = 0, high_ = 1;
};

class Drawing {
 public:
  explicit Drawing(const Plot& plot)
      : plot_(plot),
        right_(kWidth - kRight - (plot.joins_points ? kLegendWidth : 0)),
        x_(MakeScale(/*of_x=*/true, kLeft, right_)),
        y_(MakeScale(/*of_x=*/false, kHeight - kBottom, kTop)) {}

  std::string Draw() {
    absl::StrAppendFormat(&svg_,
                          "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %g %g\" "
                          "width=\"%g\" height=\"%g\" role=\"img\" font-family=\"sans-serif\" "
                          "font-size=\"12\">\n",
                          kWidth, kHeight, kWidth, kHeight);
    absl::StrAppend(&svg_, "<title>", EscapeXml(plot_.title), "</title>\n");
    Text((kLeft + right_) / 2, 20, "middle", plot_.title, "font-weight=\"bold\" font-size=\"14\"");
    DrawAxis(plot_.x, x_, /*is_x=*/true);
    DrawAxis(plot_.y, y_, /*is_x=*/false);
    for (size_t i = 0; i < plot_.series.size(); ++i) DrawSeries(i);
    absl::StrAppend(&svg_, "</svg>\n");
    return std::move(svg_);
  }

 private:
  Scale MakeScale(bool of_x, double begin, double end) const {
    double low = std::numeric_limits<double>::infinity(), high = -low;
    for (const PlotSeries& series : plot_.series) {
      for (size_t i = 0; i < series.points.size(); ++i) {
        const std::pair<double, double>& point = series.points[i];
        if (!IsDrawable(plot_, point)) continue;
        const double value = of_x ? point.first : point.second;
        low = std::min(low, value);
        high = std::max(high, value);
      }
    }
    return Scale(of_x ? plot_.x : plot_.y, low, high, begin, end);
  }

  void Text(double x, double y, const char* anchor, absl::string_view text,
            absl::string_view attributes = "") {
    absl::StrAppendFormat(&svg_, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" %s>%s</text>\n", x,
                          y, anchor, attributes, EscapeXml(text));
  }
  void Line(double x1, double y1, double x2, double y2, absl::string_view attributes) {
    absl::StrAppendFormat(&svg_, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" %s/>\n", x1,
                          y1, x2, y2, attributes);
  }

  void DrawTick(const Scale& scale, bool is_x, double value, const std::string& label) {
    constexpr char kGrid[] = "stroke=\"#ddd\"";
    const double at = scale.At(value);
    if (is_x) {
      Line(at, kTop, at, kHeight - kBottom, kGrid);
      Text(at, kHeight - kBottom + 16, "middle", label);
    } else {
      Line(kLeft, at, right_, at, kGrid);
      Text(kLeft - 6, at + 4, "end", label);
    }
  }

  void DrawAxis(const PlotAxis& axis, const Scale& scale, bool is_x) {
    for (size_t i = 0; i < axis.ticks.size(); ++i) {
      DrawTick(scale, is_x, static_cast<double>(i), axis.ticks[i]);
    }
    if (axis.ticks.empty()) {
      for (const double value : RoundTicks(scale.low(), scale.high(), axis.is_log)) {
        DrawTick(scale, is_x, value, absl::StrFormat("%.6g", value));
      }
    }
    constexpr char kAxis[] = "stroke=\"#333\"";
    if (is_x) {
      Line(kLeft, kHeight - kBottom, right_, kHeight - kBottom, kAxis);
      Text((kLeft + right_) / 2, kHeight - 14, "middle", axis.title);
    } else {
      Line(kLeft, kTop, kLeft, kHeight - kBottom, kAxis);
      const double middle = (kTop + kHeight - kBottom) / 2;
      Text(16, middle, "middle", axis.title,
           absl::StrFormat("transform=\"rotate(-90 16 %.1f)\"", middle));
    }
  }

  // A series without points keeps its colour and stays out of the legend.
  void DrawSeries(size_t index) {
    const PlotSeries& series = plot_.series[index];
    const std::string stroke =
        absl::StrFormat("stroke=\"%s\" stroke-dasharray=\"%s\"", Colour(index), Dash(index));
    std::string path;
    for (size_t i = 0; i < series.points.size(); ++i) {
      if (!IsDrawable(plot_, series.points[i])) continue;
      const double x = x_.At(series.points[i].first), y = y_.At(series.points[i].second);
      absl::StrAppendFormat(&path, "%.1f,%.1f ", x, y);
      if (i < series.y_errors.size()) DrawErrorBar(series, i, x, stroke);
      absl::StrAppendFormat(&svg_, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"%s\"/>\n", x,
                            y, Colour(index));
      if (!plot_.joins_points) DrawLabel(series.name, x, y);
    }
    if (!plot_.joins_points || path.empty()) return;
    absl::StrAppendFormat(
        &svg_, "<polyline points=\"%s\" fill=\"none\" stroke-width=\"1.8\" %s/>\n", path, stroke);
    const double row = kTop + 8 + 15 * legend_rows_++;
    Line(right_ + 12, row, right_ + 34, row, absl::StrCat("stroke-width=\"2.5\" ", stroke));
    // What is too long to stand here stands in the tables.
    constexpr size_t kCharacters = 27;
    const std::string name = series.name.size() <= kCharacters
                                 ? series.name
                                 : absl::StrCat(series.name.substr(0, kCharacters - 2), "..");
    Text(right_ + 40, row + 4, "start", name, "font-size=\"11\"");
  }

  void DrawErrorBar(const PlotSeries& series, size_t i, double x, const std::string& stroke) {
    const auto clamp = [&](double value) { return std::clamp(value, y_.low(), y_.high()); };
    const double value = series.points[i].second, error = series.y_errors[i];
    Line(x, y_.At(clamp(value - error)), x, y_.At(clamp(value + error)), stroke);
  }

  // Beside the point, moved down as long as it would cover another label.
  void DrawLabel(const std::string& name, double x, double y) {
    constexpr double kCharacter = 6.2, kLine = 13;
    const double width = kCharacter * static_cast<double>(name.size());
    const bool fits_right = x + 8 + width < kWidth;
    const double left = fits_right ? x + 8 : x - 8 - width;
    double top = y + 4;
    const auto covers = [&](const std::pair<double, std::pair<double, double>>& other) {
      return std::abs(other.first - top) < kLine && left < other.second.second &&
             left + width > other.second.first;
    };
    for (int tries = 0; tries < 40 && std::any_of(labels_.begin(), labels_.end(), covers);
         ++tries) {
      top += 2;
    }
    labels_.push_back({top, {left, left + width}});
    Text(fits_right ? x + 8 : x - 8, top, fits_right ? "start" : "end", name, "font-size=\"11\"");
  }

  const Plot& plot_;
  const double right_;
  const Scale x_, y_;
  std::string svg_;
  int legend_rows_ = 0;
  std::vector<std::pair<double, std::pair<double, double>>> labels_;  // y, left and right
};

}  // namespace

std::string EscapeXml(absl::string_view text) {
  std::string clean(text);
  // Control characters are no XML at all.
  std::replace_if(
      clean.begin(), clean.end(), [](char c) { return c >= 0 && c < ' ' && c != '\n'; }, ' ');
  return absl::StrReplaceAll(
      clean, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}, {"'", "&#39;"}});
}

std::vector<double> RoundTicks(double low, double high, bool is_log, int wanted) {
  std::vector<double> ticks;
  if (is_log) {
    const int first = static_cast<int>(std::floor(std::log10(low)));
    const int last = static_cast<int>(std::ceil(std::log10(high)));
    const bool is_wide = last - first > wanted;
    for (int power = first; power <= last; ++power) {
      for (const double digit : {1.0, 2.0, 5.0}) {
        const double value = digit * std::pow(10.0, power);
        if (value < low || value > high || (is_wide && digit != 1)) continue;
        ticks.push_back(value);
      }
    }
    return ticks;
  }
  const double raw = (high - low) / wanted;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  double step = 10 * power;
  for (const double digit : {1.0, 2.0, 5.0}) {
    if (digit * power >= raw) {
      step = digit * power;
      break;
    }
  }
  // The sum turns -0 into 0.
  for (double i = std::ceil(low / step); i * step <= high; ++i) ticks.push_back(i * step + 0.0);
  return ticks;
}

std::string DrawSvg(const Plot& plot) { return Drawing(plot).Draw(); }

}  // namespace pkv
