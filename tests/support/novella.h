#ifndef PKV_TESTS_SUPPORT_NOVELLA_H_
#define PKV_TESTS_SUPPORT_NOVELLA_H_

// The trained model that comes with the project, and text for it.

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "proto/base/log.h"
#include "worker/engine/tokenizer.h"

namespace pkv {

// Root of the sources: tests run on a machine with them, if not always in the folder of the build.
inline std::string SourceDirectory() {
  const char* directory = std::getenv("PKV_SOURCE_DIR");
  return directory != nullptr ? directory : ".";
}

inline std::string NovellaDirectory() { return SourceDirectory() + "/deploy/models/novella-14m"; }

// The first `count` tokens of the project's license, BOS included.
inline std::vector<int32_t> NovellaPrompt(int count) {
  std::ifstream file(SourceDirectory() + "/LICENSE");
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const auto tokenizer = Tokenizer::Load(NovellaDirectory());
  PKV_CHECK(tokenizer.ok(), tokenizer.status().ToString());
  auto tokens = (*tokenizer)->Encode(text, /*add_bos=*/true);
  PKV_CHECK(tokens.ok() && static_cast<int>(tokens->size()) >= count, text.size());
  tokens->resize(count);
  return *std::move(tokens);
}

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_NOVELLA_H_
