#ifndef PKV_TESTS_UNIT_WORKER_EVAL_WELL_FORMED_H_
#define PKV_TESTS_UNIT_WORKER_EVAL_WELL_FORMED_H_

// A check that XML is well-formed, as far as our pages go: elements nest and close, attributes are
// quoted and unique, entities are known, no control characters.

#include <cctype>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace pkv {

// What is wrong first, or "".
class WellFormed {
 public:
  static std::string Check(const std::string& xml) { return WellFormed(xml).Run(); }

 private:
  explicit WellFormed(const std::string& xml) : xml_(xml) {}

  std::string Run() {
    size_t roots = 0;
    while (at_ < xml_.size()) {
      if (xml_[at_] != '<') {
        if (const std::string wrong = Text(); !wrong.empty()) return wrong;
        continue;
      }
      if (absl::StartsWith(Rest(), "<!DOCTYPE html>")) {
        at_ += 15;
        continue;
      }
      if (open_.empty() && Rest()[1] != '/') ++roots;
      if (const std::string wrong = Tag(); !wrong.empty()) return wrong;
    }
    if (!open_.empty()) return absl::StrCat("<", open_.back(), "> is not closed");
    return roots == 1 ? "" : absl::StrCat(roots, " root elements");
  }

  absl::string_view Rest() const { return absl::string_view(xml_).substr(at_); }

  std::string Text() {
    const char c = xml_[at_];
    if (c == '>') return absl::StrCat("a bare > at ", at_);
    if (c >= 0 && c < ' ' && c != '\n') return absl::StrCat("a control character at ", at_);
    if (open_.empty() && !std::isspace(static_cast<unsigned char>(c))) return "text outside";
    if (c == '&') return Entity();
    ++at_;
    return "";
  }

  std::string Entity() {
    for (const char* known : {"&amp;", "&lt;", "&gt;", "&quot;", "&#39;", "&#177;", "&#7488;"}) {
      if (!absl::StartsWith(Rest(), known)) continue;
      at_ += std::string(known).size();
      return "";
    }
    return absl::StrCat("no entity at ", at_);
  }

  std::string Name() {
    std::string name;
    while (at_ < xml_.size() && (std::isalnum(static_cast<unsigned char>(xml_[at_])) ||
                                 xml_[at_] == '-' || xml_[at_] == ':')) {
      name.push_back(xml_[at_++]);
    }
    return name;
  }
  void Spaces() {
    while (at_ < xml_.size() && std::isspace(static_cast<unsigned char>(xml_[at_]))) ++at_;
  }
  bool Take(char c) {
    if (at_ >= xml_.size() || xml_[at_] != c) return false;
    ++at_;
    return true;
  }

  std::string Tag() {
    ++at_;
    const bool closes = Take('/');
    const std::string name = Name();
    if (name.empty()) return absl::StrCat("no name at ", at_);
    if (closes) {
      if (open_.empty() || open_.back() != name)
        return absl::StrCat("</", name, "> closes nothing");
      open_.pop_back();
      Spaces();
      return Take('>') ? "" : absl::StrCat("no > at ", at_);
    }
    std::set<std::string> attributes;
    while (true) {
      Spaces();
      if (Take('/')) return Take('>') ? "" : absl::StrCat("no > at ", at_);
      if (Take('>')) break;
      const std::string attribute = Name();
      if (attribute.empty() || !Take('=') || !Take('"'))
        return absl::StrCat("no attribute at ", at_);
      if (!attributes.insert(attribute).second) return absl::StrCat(attribute, " twice at ", at_);
      while (at_ < xml_.size() && xml_[at_] != '"') {
        if (xml_[at_] == '<') return absl::StrCat("< in an attribute at ", at_);
        if (xml_[at_] != '&') {
          ++at_;
        } else if (const std::string wrong = Entity(); !wrong.empty()) {
          return wrong;
        }
      }
      if (!Take('"')) return "an attribute without end";
    }
    open_.push_back(name);
    return "";
  }

  const std::string& xml_;
  size_t at_ = 0;
  std::vector<std::string> open_;
};

}  // namespace pkv

#endif  // PKV_TESTS_UNIT_WORKER_EVAL_WELL_FORMED_H_
