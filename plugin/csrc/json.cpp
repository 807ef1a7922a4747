#include "json.h"

#include <algorithm>
#include <locale>
#include <sstream>
#include <stdexcept>

namespace mlff_student {

struct Json::Reader {
  static constexpr int MAX_DEPTH = 100;            // arrays and objects inside each other
  static constexpr std::size_t MAX_VALUES = 50000; // each of which takes 100 times its text

  const std::string &text;
  std::size_t position = 0, values = 0;

  [[noreturn]] void refuse(const std::string &expected) const {
    throw std::runtime_error("not JSON: expected " + expected + " at byte " +
                             std::to_string(position) + " of " + std::to_string(text.size()));
  }

  // Returns the next character that is not white space; 0 at the end of the text.
  char peek() {
    position = std::min(text.find_first_not_of(" \t\n\r", position), text.size());
    return position < text.size() ? text[position] : '\0';
  }

  // Passes over the next character if it is `expected`; returns whether it was.
  bool pass(char expected) {
    if (peek() != expected || position == text.size()) return false;
    position++;
    return true;
  }

  // Reads the longest word made of these characters.
  std::string word(const char *characters) {
    const std::size_t begin = position;
    position = std::min(text.find_first_not_of(characters, begin), text.size());
    return text.substr(begin, position - begin);
  }

  std::string string() {
    if (!pass('"')) refuse("a string");
    const std::size_t begin = position;
    while (position < text.size() && text[position] != '"')
      position += text[position] == '\\' ? 2 : 1;
    if (position >= text.size()) refuse("the end of a string");
    return text.substr(begin, position++ - begin);
  }

  Json value(int depth) {
    if (++values > MAX_VALUES) refuse("at most " + std::to_string(MAX_VALUES) + " values");
    if (depth > MAX_DEPTH) refuse("at most " + std::to_string(MAX_DEPTH) + " levels");
    Json result;
    const char next = peek();
    if (next == '"') {
      result.kind_ = Kind::STRING;
      result.string_ = string();
    } else if (next == '[' || next == '{') {
      const bool object = next == '{';
      const char end = object ? '}' : ']';
      result.kind_ = object ? Kind::OBJECT : Kind::ARRAY;
      position++;
      if (pass(end)) return result;
      do {
        if (object) {
          result.keys_.push_back(string());
          if (!pass(':')) refuse("':'");
        }
        result.values_.push_back(value(depth + 1));
      } while (pass(','));
      if (!pass(end)) refuse(std::string("',' or '") + end + "'");
      std::vector<std::string> sorted = result.keys_;
      std::sort(sorted.begin(), sorted.end());
      const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
      if (twice != sorted.end()) refuse("one member '" + *twice + "' in the object");
    } else if (next == '-' || (next >= '0' && next <= '9')) {
      result.kind_ = Kind::NUMBER;
      std::istringstream number(word("+-.0123456789Ee"));
      number.imbue(std::locale::classic());
      if (!(number >> result.number_) || !number.eof()) refuse("the end of a number");
    } else {
      result.string_ = word("aeflnrstu");
      if (result.string_ != "true" && result.string_ != "false" && result.string_ != "null")
        refuse("a value");
    }
    return result;
  }
};

Json::Json(const std::string &text) {
  Reader reader{text};
  *this = reader.value(0);
  reader.peek();
  if (reader.position != text.size()) reader.refuse("the end");
}

void Json::require(Kind kind, const char *expected) const {
  if (kind_ != kind) throw std::runtime_error(std::string("a value is not ") + expected);
}

const Json &Json::at(const std::string &key) const {
  require(Kind::OBJECT, "an object");
  const auto entry = std::find(keys_.begin(), keys_.end(), key);
  if (entry == keys_.end()) throw std::runtime_error("'" + key + "' is missing");
  return values_[entry - keys_.begin()];
}

const std::vector<std::string> &Json::keys() const {
  require(Kind::OBJECT, "an object");
  return keys_;
}

const std::vector<Json> &Json::values() const {
  if (kind_ != Kind::OBJECT) require(Kind::ARRAY, "an array");
  return values_;
}

bool Json::is_null() const { return kind_ == Kind::LITERAL && string_ == "null"; }

double Json::number() const {
  require(Kind::NUMBER, "a number");
  return number_;
}

const std::string &Json::string() const {
  require(Kind::STRING, "a string");
  return string_;
}

std::vector<double> Json::numbers() const {
  if (kind_ != Kind::ARRAY) return {number()};
  std::vector<double> flat;
  for (const Json &value : values_) {
    const std::vector<double> inner = value.numbers();
    flat.insert(flat.end(), inner.begin(), inner.end());
  }
  return flat;
}

} // namespace mlff_student
