// Reads the members of an archive, the numbers and facts of its module, and its code, without
// running anything in it. The Python counterpart is mlff_student/archive/contents.py.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace mlff_student {

// Contents of each member of an archive, by its name without the folder that all members are in.
using Members = std::map<std::string, std::string>;

// Reads a zip file of torch. Throws std::runtime_error if the file is damaged: the directory must
// describe the whole file without gaps of meaning, and every checksum is verified.
Members read_members(const std::string &content);

// Returns the text with a question mark in the place of each byte that is not printable ASCII.
std::string printable(std::string text);

struct StoredTensor {
  char type; // 'f' float32, 'd' float64, 'l' int64
  std::vector<int64_t> shape;
  std::string_view bytes; // row by row, in a member of the archive
};

// A module as it is stored: its tensors by their names in the state_dict, and its own attributes.
struct StoredModule {
  std::map<std::string, StoredTensor> tensors;
  std::map<std::string, std::vector<std::string>> texts; // a list, or one text
  std::map<std::string, double> numbers;
};

// Reads the module from the member data.pkl. The result refers to `members`. Throws
// std::runtime_error if the member is damaged, or contains what no archive contains.
StoredModule read_module(const Members &members);

// Returns the SHA-256 of each class and function of the code, in the form of `definitions` in
// contents.py.
std::set<std::string> definition_hashes(const Members &members);

} // namespace mlff_student
