// Reads the members of an archive and its weights. It never looks at the code in an archive. The
// Python counterpart is mlff_student/archive/contents.py.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace mlff_student {

// What these functions return refers to the memory of the file. All throw std::runtime_error if the
// file is damaged.

struct Entry {
  std::string_view name;  // without the folder that all members are in
  std::string_view bytes; // as they are stored
  uint64_t size;          // of the member, in bytes
  uint32_t checksum;
  bool compressed;
};

// Reads the directory of a zip file of torch. The directory must describe the whole file without
// gaps of meaning. Checksums are not verified.
std::vector<Entry> read_directory(std::string_view file);

// Contents of each member that is not compressed, by its name.
using Members = std::map<std::string_view, std::string_view>;

// Reads the members that are not compressed, and verifies their checksums. torch compresses code
// and nothing else.
Members read_members(std::string_view file);

// Returns the checksum of a member.
uint32_t crc32(std::string_view text);

// Returns the text with a question mark in the place of each byte that is not printable ASCII.
std::string printable(std::string text);

// Whether a text is UTF-8 without control characters. Names of models become parts of messages.
bool is_text(std::string_view text);

struct StoredArray {
  char type; // 'f' float32, 'd' float64, 'l' int64
  std::vector<int64_t> shape;
  std::string_view bytes; // row by row
};

// Reads arrays in the layout of safetensors by their names. They must cover the bytes behind the
// header, each once.
std::map<std::string, StoredArray> read_safetensors(std::string_view text);

} // namespace mlff_student
