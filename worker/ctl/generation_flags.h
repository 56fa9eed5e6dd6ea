#ifndef PKV_WORKER_CTL_GENERATION_FLAGS_H_
#define PKV_WORKER_CTL_GENERATION_FLAGS_H_

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/ctl/worker_client.h"
#include "worker/serve/model_host.h"

namespace CLI {
class App;
}

namespace pkv {

// Options that `generate` and `compare` share.
struct GenerationFlags {
  std::string prompt, prompt_file;
  std::vector<int32_t> token_ids;
  uint32_t max_tokens = 128;
  float temperature = 0, top_p = 1;
  uint64_t seed = 0;
};

void AddGenerationFlags(CLI::App& command, GenerationFlags& flags);
// InvalidArgument unless exactly one of prompt, prompt_file, token_ids is given; NotFound for the
// file.
absl::StatusOr<v1::Prompt> ReadPrompt(const GenerationFlags& flags);
v1::DecodeRequest MakeDecodeRequest(const GenerationFlags& flags);

nlohmann::ordered_json ToJson(const Generation& generation);

// The same continuation computed in this process, with an uncompressed fp16 cache and no service.
absl::StatusOr<Generation> GenerateLocally(ModelHost& host, const v1::Prompt& prompt,
                                           const GenerationFlags& flags,
                                           const std::function<void(const std::string&)>& on_text);

}  // namespace pkv

#endif  // PKV_WORKER_CTL_GENERATION_FLAGS_H_
