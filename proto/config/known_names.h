#ifndef PKV_PROTO_CONFIG_KNOWN_NAMES_H_
#define PKV_PROTO_CONFIG_KNOWN_NAMES_H_

// Names that were misspelt: what was probably meant, and variables that nobody reads.

#include <map>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace pkv {

// The name of `known` that is fewest edits away (a character inserted, removed or replaced, two
// neighbours swapped), the first of equals; empty when all differ in more than a third of `name`,
// and in more than one edit.
std::string NearestName(absl::string_view name, const std::vector<std::string>& known);

// ": did you mean 'NEAREST'?", or nothing.
std::string DidYouMean(absl::string_view name, const std::vector<std::string>& known);

// Of an option in the environment: "drain-timeout" is PKV_DRAIN_TIMEOUT.
std::string VariableOf(absl::string_view option);

// Variables by name, those that begin with PKV_ and are not empty: an empty one is as good as none,
// since manifests cannot take a variable away that a base sets.
using Environment = std::map<std::string, std::string>;

// `variables` is a null-terminated list as `environ` is.
Environment ReadEnvironment(const char* const* variables);

// One message for each variable that is not among `known`, with a suggestion where one is near.
// Not told: what Kubernetes sets for Services whose names begin with pkv ("pkv-x": PKV_X_PORT,
// PKV_X_SERVICE_HOST, PKV_X_PORT_7440_TCP_ADDR, ...), and what builds and tests use
// (PKV_SOURCE_DIR, PKV_BINARY_DIR, PKV_TEST_*).
std::vector<std::string> UnknownVariables(const Environment& environment,
                                          const std::vector<std::string>& known);

// Whether a Service of a namespace may set a variable of this name in every pod: an option named so
// would be set by the wrong hand ("metrics-port": PKV_METRICS_PORT=tcp://10.0.0.1:9440).
bool IsServiceVariable(absl::string_view variable);

}  // namespace pkv

#endif  // PKV_PROTO_CONFIG_KNOWN_NAMES_H_
