#include "proto/metrics/build_info.h"

#include <utility>

namespace pkv {

const char* BuildVersion() { return PKV_VERSION; }

void RegisterBuildInfo(MetricRegistry& registry, std::map<std::string, std::string> more) {
  more["version"] = PKV_VERSION;
  more["revision"] = PKV_REVISION;
#if defined(__clang__)
  more["compiler"] = std::string("clang ") + __clang_version__;
#else
  more["compiler"] = std::string("gcc ") + __VERSION__;
#endif
  registry.AddGauge("pkv_build_info", "What this binary was built from; always 1", more)->Set(1);
}

}  // namespace pkv
