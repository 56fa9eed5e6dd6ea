#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "pkv/block/object_header.h"
#include "proto/base/float16.h"
#include "proto/block/fragment_order.h"
#include "proto/block/payload_layout.h"

// Goal: the tables and examples of proto/BLOCK_FORMAT.md are true. Method: read them from the
// document and compute each entry.

namespace pkv {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;
using Row = std::vector<std::string>;

std::string ReadFile(const std::string& path) {
  std::ifstream file(std::string(std::getenv("PKV_SOURCE_DIR")) + "/" + path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// The document from behind `marker` on. Empty, and with it every test, when the marker is missing.
std::string DocumentAfter(const std::string& marker) {
  const std::string document = ReadFile("proto/BLOCK_FORMAT.md");
  const size_t at = document.find(marker);
  return at == std::string::npos ? "" : document.substr(at + marker.size());
}

// The cells of the first table of `text`, without its two heading lines.
std::vector<Row> FirstTable(const std::string& text) {
  std::vector<Row> rows;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.empty() || line[0] != '|') {
      if (!rows.empty()) break;
      continue;
    }
    Row row;
    for (absl::string_view cell : absl::StrSplit(line.substr(1, line.size() - 2), '|')) {
      row.emplace_back(absl::StripAsciiWhitespace(cell));
    }
    rows.push_back(row);
  }
  if (rows.size() < 2) return {};
  rows.erase(rows.begin(), rows.begin() + 2);
  return rows;
}

int64_t Integer(const std::string& text) {
  int64_t value = -1;
  EXPECT_TRUE(absl::SimpleAtoi(text, &value)) << text;
  return value;
}

float Float(const std::string& text) {
  float value = NAN;
  EXPECT_TRUE(absl::SimpleAtof(text, &value)) << text;
  return value;
}

TEST(BlockFormatDocumentTest, HeaderTableIsTheHeader) {
#define PKV_FIELD(name)                                                                       \
  Row {                                                                                       \
    std::to_string(offsetof(ObjectHeader, name)), std::to_string(sizeof(ObjectHeader::name)), \
        #name                                                                                 \
  }
  const std::vector<Row> expected = {PKV_FIELD(magic),          PKV_FIELD(version_major),
                                     PKV_FIELD(version_minor),  PKV_FIELD(header_bytes),
                                     PKV_FIELD(kind),           PKV_FIELD(bits_k),
                                     PKV_FIELD(bits_v),         PKV_FIELD(flags),
                                     PKV_FIELD(k_group_tokens), PKV_FIELD(v_group_channels),
                                     PKV_FIELD(num_layers),     PKV_FIELD(num_kv_heads),
                                     PKV_FIELD(head_dim),       PKV_FIELD(num_tokens),
                                     PKV_FIELD(num_sinks),      PKV_FIELD(num_patterns_k),
                                     PKV_FIELD(num_patterns_v), PKV_FIELD(k_fine_tokens),
                                     PKV_FIELD(first_token),    PKV_FIELD(frame_bytes),
                                     PKV_FIELD(object_bytes),   PKV_FIELD(variant_name),
                                     PKV_FIELD(params_digest),  PKV_FIELD(reserved1),
                                     PKV_FIELD(profile),        PKV_FIELD(id),
                                     PKV_FIELD(parent),         PKV_FIELD(table),
                                     PKV_FIELD(reserved2),      PKV_FIELD(header_crc32c)};
#undef PKV_FIELD
  std::vector<Row> rows = FirstTable(DocumentAfter("## Header\n"));
  for (Row& row : rows) row.resize(3);
  EXPECT_EQ(rows, expected);
}

TEST(BlockFormatDocumentTest, FlagsAreTheConstants) {
  const std::string text = absl::StrFormat(
      "| flags | %d has patterns, %d appends a K pattern, %d appends a V pattern, %d rotated; no "
      "other bit |\n",
      kFlagHasPatterns, kFlagAppendsK, kFlagAppendsV, kFlagRotated);
  EXPECT_THAT(DocumentAfter("## Header\n"), HasSubstr(text));
}

TEST(BlockFormatDocumentTest, LimitsAreTheConstants) {
  const auto limit = [](const char* name, int64_t smallest, int64_t largest) {
    return Row{name, std::to_string(smallest), std::to_string(largest)};
  };
  EXPECT_THAT(FirstTable(DocumentAfter("### Limits\n")),
              ElementsAre(limit("num_layers", 1, kMaxLayers), limit("num_kv_heads", 1, kMaxKvHeads),
                          limit("num_tokens of a window", 1, kMaxWindowTokens),
                          limit("num_sinks", 0, kMaxSinks), limit("k_fine_tokens", 0, kFineTokens),
                          limit("patterns in a bank", 0, kMaxPatterns),
                          limit("first_token", 0, int64_t{kMaxFirstToken})));
}

TEST(BlockFormatDocumentTest, TitleAndHistoryNameTheVersion) {
  const std::string version = absl::StrFormat("%d.%d", kFormatMajor, kFormatMinor);
  EXPECT_THAT(ReadFile("proto/BLOCK_FORMAT.md"),
              testing::StartsWith("# Block format, version " + version + "\n"));
  const std::vector<Row> history = FirstTable(DocumentAfter("## Version history\n"));
  ASSERT_FALSE(history.empty());
  EXPECT_EQ(history.back()[0], version);
}

// Name, offset and size of each section of a head that is there.
std::vector<Row> SectionRows(const PayloadLayout& layout) {
  const struct {
    const char* name;
    int64_t begin, end;
  } sections[] = {{"K codes", layout.k_codes, layout.k_fine_codes},
                  {"K fine codes", layout.k_fine_codes, layout.v_codes},
                  {"V codes", layout.v_codes, layout.k_scales},
                  {"K scales", layout.k_scales, layout.k_zeros},
                  {"K zero points", layout.k_zeros, layout.v_scales},
                  {"V scales", layout.v_scales, layout.v_zeros},
                  {"V zero points", layout.v_zeros, layout.k_ids},
                  {"K pattern ids", layout.k_ids, layout.v_ids},
                  {"V pattern ids", layout.v_ids, layout.head_bytes}};
  std::vector<Row> rows;
  for (const auto& [name, begin, end] : sections) {
    if (begin == end) continue;
    rows.push_back({name, std::to_string(begin), std::to_string(end - begin)});
  }
  return rows;
}

TEST(BlockFormatDocumentTest, SectionsStandWhereTheLayoutSays) {
  const std::string marker =
      "<!-- check: sections, bits 2/2, head_dim 128, groups 128/128, patterns";
  for (const auto& [suffix, encoding, size] :
       {std::tuple(" -->", Encoding{2, 2, 128, 128, true}, "has 9,472 bytes, 74 a token"),
        {", fine tokens 16 -->", Encoding{2, 2, 128, 128, true, kFineTokens, false},
         "has 9,984 bytes, 78 a token"}}) {
    const PayloadLayout layout = PayloadLayout::OfBlock({1, 1, 128}, encoding);
    const std::string text = DocumentAfter(marker + suffix);
    EXPECT_EQ(FirstTable(text), SectionRows(layout)) << suffix;
    EXPECT_THAT(text.substr(0, text.find('|')), HasSubstr(size));
    const std::string thousands = std::to_string(layout.head_bytes / 1000) + ",";
    EXPECT_THAT(size, HasSubstr(thousands + std::to_string(layout.head_bytes % 1000) + " bytes, " +
                                std::to_string(layout.head_bytes / kBlockTokens) + " a token"));
  }
}

TEST(BlockFormatDocumentTest, SectionsOfAHeadAreInTheOrderOfTheLayout) {
  const PayloadLayout layout =
      PayloadLayout::OfBlock({1, 1, 128}, {2, 2, 128, 128, true, kFineTokens, false});
  const std::vector<Row> rows =
      FirstTable(DocumentAfter("Quantized block (d = head_dim, slots T = 128, of which F ="));
  const std::vector<Row> expected = SectionRows(layout);
  ASSERT_THAT(rows, SizeIs(expected.size()));
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(rows[i][0], std::to_string(i + 1));
    EXPECT_EQ(rows[i][1], expected[i][0]);
  }
}

TEST(BlockFormatDocumentTest, CodesStandWhereThePositionsSay) {
  const std::vector<Row> rows = FirstTable(DocumentAfter("<!-- check: positions -->"));
  ASSERT_THAT(rows, SizeIs(testing::Ge(10u)));
  for (const Row& row : rows) {
    ASSERT_THAT(row, SizeIs(6));
    const CodePosition position =
        LocateCode(static_cast<int>(Integer(row[2])), static_cast<int>(Integer(row[3])),
                   static_cast<int>(Integer(row[1])), static_cast<int>(Integer(row[0])));
    EXPECT_EQ(position.word_index, Integer(row[4]));
    EXPECT_EQ(position.shift, Integer(row[5]));
  }
}

TEST(BlockFormatDocumentTest, FineCodesStandWhereThePositionsSay) {
  const std::vector<Row> rows =
      FirstTable(DocumentAfter("<!-- check: positions of fine codes -->"));
  ASSERT_THAT(rows, SizeIs(testing::Ge(5u)));
  for (const Row& row : rows) {
    ASSERT_THAT(row, SizeIs(5));
    const int64_t fine_row = Integer(row[1]) - (kBlockTokens - kFineTokens);
    const CodePosition position =
        LocateCode(static_cast<int>(fine_row), static_cast<int>(Integer(row[2])),
                   static_cast<int>(Integer(row[0])), kFineBits);
    EXPECT_EQ(position.word_index, Integer(row[3]));
    EXPECT_EQ(position.shift, Integer(row[4]));
  }
}

// The document's equations, operation by operation. volatile keeps each result a binary32 number:
// nothing is fused.
TEST(BlockFormatDocumentTest, RoundingExampleFollowsTheEquations) {
  const std::string text = DocumentAfter("<!-- check: rounding, bits 2 -->");
  const std::vector<Row> rows = FirstTable(text);
  ASSERT_THAT(rows, SizeIs(testing::Ge(5u)));
  const float lo = Float(rows.front()[0]), hi = Float(rows.back()[0]);
  volatile float range = hi - lo;
  volatile float s32 = range / 3.0f;
  const Float16Bits scale_bits = FloatToFloat16(s32), zero_bits = FloatToFloat16(lo);
  EXPECT_THAT(text, HasSubstr(absl::StrFormat("with bits 0x%04x", scale_bits)));
  EXPECT_THAT(text, HasSubstr(absl::StrFormat("zero is -1 (0x%04x)", zero_bits)));
  const float scale = Float16ToFloat(scale_bits), zero = Float16ToFloat(zero_bits);
  for (const Row& row : rows) {
    volatile float shifted = Float(row[0]) - zero;
    volatile float quotient = shifted / scale;
    const float code = std::nearbyint(std::fmin(std::fmax(quotient, 0.0f), 3.0f));
    EXPECT_EQ(code, Float(row[1])) << row[0];
    volatile float product = scale * code;
    volatile float value = product + zero;
    EXPECT_EQ(value, Float(row[2])) << row[0];
  }
}

TEST(BlockFormatDocumentTest, FineRoundingExampleFollowsTheEquations) {
  // The group of the example before it, whose scale is checked there.
  const float scale = Float16ToFloat(0x3911), zero = -1;
  const std::string text = DocumentAfter("<!-- check: rounding, fine codes -->");
  const std::vector<Row> rows = FirstTable(text);
  ASSERT_THAT(rows, SizeIs(testing::Ge(5u)));
  volatile float low = zero - scale;
  volatile float step = scale / 3.0f;
  EXPECT_THAT(text, HasSubstr(absl::StrFormat("low is %.12g,", low)));
  EXPECT_THAT(text, HasSubstr(absl::StrFormat("with bits 0x%08x\n(%.9g)",
                                              std::bit_cast<uint32_t>(float{step}), step)));
  for (const Row& row : rows) {
    volatile float shifted = Float(row[0]) - low;
    volatile float quotient = shifted / step;
    const float code = std::nearbyint(std::fmin(std::fmax(quotient, 0.0f), 15.0f));
    EXPECT_EQ(code, Float(row[1])) << row[0];
    volatile float product = step * code;
    volatile float value = product + low;
    EXPECT_EQ(value, Float(row[2])) << row[0];
  }
}

TEST(BlockFormatDocumentTest, IdentityExampleIsInTheGoldenVectors) {
  const nlohmann::json vectors = nlohmann::json::parse(ReadFile("tests/golden/v1/identity.json"));
  const std::string text = DocumentAfter("<!-- check: identity -->");
  EXPECT_THAT(text, HasSubstr(vectors["profiles"][0]["digest"].get<std::string>()));
  EXPECT_THAT(text, HasSubstr(vectors["prefixes"][0]["id"].get<std::string>()));
  EXPECT_THAT(text, HasSubstr(vectors["tails"][0]["id"].get<std::string>()));
}

TEST(BlockFormatDocumentTest, WorkedExampleIsTheGoldenFile) {
  const std::string bytes = ReadFile("tests/golden/v2/table-k1-d64.bin");
  ASSERT_FALSE(bytes.empty());
  std::istringstream lines(DocumentAfter("<!-- check: example table-k1-d64.bin -->\n```\n"));
  std::string line;
  for (size_t offset = 0; offset < bytes.size(); offset += 16) {
    std::string expected = absl::StrFormat("%08x:", offset);
    for (size_t i = offset; i < offset + 16; ++i) {
      absl::StrAppendFormat(&expected, " %02x", static_cast<unsigned char>(bytes[i]));
    }
    std::getline(lines, line);
    EXPECT_EQ(line.substr(0, line.find(" |")), expected);
  }
  std::getline(lines, line);
  EXPECT_EQ(line, "```");
}

}  // namespace
}  // namespace pkv
