#ifndef PKV_KERNELS_CODEC_PARAMS_TEXT_H_
#define PKV_KERNELS_CODEC_PARAMS_TEXT_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "pkv/kernels/codec_params.h"

namespace pkv {

// The fields of CodecParams by name, for tools: one table (codec_params_text.cc) says what
// Digest() hashes, what can be set and what is listed. The preset's name is no field.

// One field as text: integers in decimal, switches 0 or 1, choices by name ("minmax").
struct CodecParamText {
  std::string key;
  std::string value;
};

// Every field, in the order that Digest() hashes them.
std::vector<CodecParamText> ListCodecParams(const CodecParams& params);

// Sets one field from text. Ranges are Validate()'s matter, which sees the fields together.
//   NotFound         no such key; lists the keys
//   InvalidArgument  the text is no value of the field; names key, value and what is allowed.
//                    `params` is unchanged
absl::Status SetCodecParam(CodecParams& params, absl::string_view key, absl::string_view value);

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_PARAMS_TEXT_H_
