// Reads JSON (RFC 8259), for the metadata of an archive. It avoids linking a JSON library.
#pragma once

#include <string>
#include <vector>

namespace mlff_student {

// A JSON value and everything inside it. Every function throws std::runtime_error with the reason
// if the text is not JSON, a member is missing, or a value is of another kind.
class Json {
public:
  explicit Json(const std::string &text);

  const Json &at(const std::string &key) const; // a member of an object
  const std::vector<std::string> &keys() const; // of an object; no two are the same
  const std::vector<Json> &values() const;      // of an array, or of an object in the order of keys
  bool is_null() const;
  double number() const;
  const std::string &string() const;   // escape sequences are not translated
  std::vector<double> numbers() const; // of an array and the arrays inside it, row by row

private:
  enum class Kind { LITERAL, NUMBER, STRING, ARRAY, OBJECT };
  struct Reader;

  Json() = default;
  void require(Kind kind, const char *expected) const;

  Kind kind_ = Kind::LITERAL;
  double number_ = 0.0;
  std::string string_;            // or literal
  std::vector<std::string> keys_; // of an object
  std::vector<Json> values_;      // of an array or an object
};

} // namespace mlff_student
