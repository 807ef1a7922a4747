// Opens damaged archives from memory, and makes models of damaged weights. No file may end the
// process, take longer than a second of processor time, or more memory than mlff_student.h says.
// Arguments: the numbers of the first file and of the files, and valid archives. Exit status 1: a
// file took too much; it is in damaged.pt.
#include "random_weights.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <iterator>
#include <malloc.h>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace {
std::atomic<int64_t> in_use{0}, peak{0}; // bytes
}

#ifndef NO_COUNTING
namespace {
void *counted(void *memory) {
  if (!memory) return memory;
  const int64_t now = in_use += malloc_usable_size(memory);
  if (now > peak) peak = now;
  return memory;
}
} // namespace

// glibc lets a program replace its allocator. These are the other names of glibc's functions.
extern "C" {
void *__libc_malloc(std::size_t);
void *__libc_calloc(std::size_t, std::size_t);
void *__libc_realloc(void *, std::size_t);
void *__libc_memalign(std::size_t, std::size_t);
void __libc_free(void *);

void *malloc(std::size_t bytes) { return counted(__libc_malloc(bytes)); }
void *calloc(std::size_t count, std::size_t bytes) { return counted(__libc_calloc(count, bytes)); }
void *realloc(void *memory, std::size_t bytes) {
  if (memory) in_use -= malloc_usable_size(memory);
  return counted(__libc_realloc(memory, bytes));
}
void *memalign(std::size_t alignment, std::size_t bytes) {
  return counted(__libc_memalign(alignment, bytes));
}
void *aligned_alloc(std::size_t alignment, std::size_t bytes) { return memalign(alignment, bytes); }
int posix_memalign(void **memory, std::size_t alignment, std::size_t bytes) {
  *memory = memalign(alignment, bytes);
  return *memory ? 0 : ENOMEM;
}
void free(void *memory) {
  if (memory) in_use -= malloc_usable_size(memory);
  __libc_free(memory);
}
}
#endif

namespace {

using Random = std::mt19937_64;
using Members = std::vector<std::pair<std::string, std::string>>;

std::size_t below(std::size_t count, Random &random) { return count ? random() % count : 0; }

void put(std::string &to, uint64_t value, int bytes) {
  for (int k = 0; k < bytes; k++) to += static_cast<char>(value >> (8 * k));
}

uint64_t get(const std::string &from, std::size_t at, int bytes) {
  uint64_t value = 0;
  for (int k = bytes; k-- > 0;) value = value << 8 | static_cast<unsigned char>(from[at + k]);
  return value;
}

// Returns the members of a valid zip file, whose directory follows its last member.
Members members_of(const std::string &file) {
  Members members;
  for (std::size_t at = get(file, file.size() - 6, 4); get(file, at, 4) == 0x02014b50;) {
    const std::size_t name = get(file, at + 28, 2), size = get(file, at + 24, 4);
    const std::size_t header = get(file, at + 42, 4);
    const std::size_t data = header + 30 + get(file, header + 26, 2) + get(file, header + 28, 2);
    members.emplace_back(file.substr(at + 46, name), file.substr(data, size));
    at += 46 + name + get(file, at + 30, 2) + get(file, at + 32, 2);
  }
  return members;
}

uint32_t crc32(const std::string &text) {
  static const std::vector<uint32_t> table = [] {
    std::vector<uint32_t> entries;
    for (uint32_t k = 0; k < 256; k++) {
      uint32_t value = k;
      for (int bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ value >> 1 : value >> 1;
      entries.push_back(value);
    }
    return entries;
  }();
  uint32_t crc = 0xffffffff;
  for (const char letter : text)
    crc = table[(crc ^ static_cast<unsigned char>(letter)) & 255] ^ crc >> 8;
  return ~crc;
}

std::string zip_of(const Members &members) {
  std::string file, directory;
  for (const auto &[name, data] : members) {
    std::string entry;
    put(entry, 20, 2), put(entry, 0, 8); // version, flags, method, time, date
    put(entry, crc32(data), 4), put(entry, data.size(), 4), put(entry, data.size(), 4);
    put(entry, name.size(), 2), put(entry, 0, 2);
    put(directory, 0x02014b50, 4), put(directory, 20, 2);
    directory += entry;
    put(directory, 0, 8), put(directory, 0, 2), put(directory, file.size(), 4);
    directory += name;
    put(file, 0x04034b50, 4);
    file += entry + name + data;
  }
  const std::size_t begin = file.size();
  file += directory;
  put(file, 0x06054b50, 4), put(file, 0, 4);
  put(file, members.size(), 2), put(file, members.size(), 2);
  put(file, directory.size(), 4), put(file, begin, 4), put(file, 0, 2);
  return file;
}

void damage(std::string &text, Random &random) {
  const std::size_t last = text.empty() ? 0 : text.size() - 1;
  const std::size_t near = below(std::min<std::size_t>(last, 400) + 1, random);
  const std::size_t places[] = {near, last - near, below(last + 1, random)};
  const std::size_t at = places[below(3, random)];
  static const uint64_t NUMBERS[] = {0, 1, 0xff, 0x7fffffff, 0xffffffff, 100000000, ~uint64_t{0}};
  static const char *const WORDS[] = {"0",        "-1",   "1e308", "nan",    "9999999999999",
                                      "[[[[[[[[", "null", "{",     "\"",     "]",
                                      "a",        "-",    "",      "1e-320", "00"};
  static const std::size_t LENGTHS[] = {1, 4, 20, 500, 5000};
  const std::size_t length = LENGTHS[below(5, random)];
  switch (below(9, random)) {
  case 0:
    if (!text.empty()) text[at] = static_cast<char>(random());
    break;
  case 1:
    if (!text.empty()) text[at] = static_cast<char>(text[at] ^ 1 << below(8, random));
    break;
  case 2:
    text.resize(at);
    break;
  case 3:
    text.insert(at, text.substr(at, length)); // twice
    break;
  case 4:
    text.erase(at, length);
    break;
  case 5: {
    const int bytes = 1 << below(4, random);
    std::string number;
    put(number, NUMBERS[below(7, random)], bytes);
    text.replace(at, bytes, number);
    break;
  }
  case 6: { // a character of JSON
    static const std::string CODES = "{}[],:-+.\"\\0123456789eEtfn \n";
    text.insert(at, 1, CODES[below(CODES.size(), random)]);
    break;
  }
  case 7: { // a number in a text
    const std::size_t digit = text.find_first_of("0123456789", at);
    if (digit == std::string::npos) break;
    const std::size_t end = text.find_first_not_of("0123456789.eE+-", digit);
    text.replace(digit, end == std::string::npos ? end : end - digit, WORDS[below(15, random)]);
    break;
  }
  case 8: { // a part of the text at another place
    const std::size_t from = below(last + 1, random);
    text.insert(at, text.substr(from, length));
    break;
  }
  }
}

// Most damage is inside a member that is then stored with its right checksum: other damage is
// noticed early.
std::string damaged(const std::vector<std::string> &files, Random &random) {
  std::string file = files[below(files.size(), random)];
  const std::size_t kind = below(20, random), times = below(3, random) ? 1 : 3;
  if (kind > 2) {
    Members members = members_of(file);
    auto &member = members[below(members.size(), random)];
    if (kind == 3) damage(member.first, random);
    if (kind == 4) members.push_back(member);
    if (kind == 5) damage(member.second, random);
    for (auto &[name, data] : members) {
      if (kind > 5 && kind < 14 && name.find("weights.safetensors") != std::string::npos) {
        const std::size_t end = 8 + get(data, 0, 8); // of the header
        std::string header = data.substr(8, end - 8), size = data.substr(0, 8);
        for (std::size_t k = 0; k < times; k++) damage(header, random);
        if (below(4, random)) size.clear(), put(size, header.size(), 8);
        data = size + header + data.substr(end);
      }
      for (std::size_t k = 0; k < times; k++)
        if (kind >= 14 && name.find("metadata.json") != std::string::npos) damage(data, random);
    }
    file = zip_of(members);
  }
  if (kind < 3 || below(20, random) == 0) damage(file, random);
  return file;
}

// Makes and runs a model of weights of which one array has another shape, name or number.
void make_damaged_model(Random &random) {
  static std::mt19937 normal(1);
  static const Arrays valid = random_weights(16, 2, 4, normal);
  Arrays weights = valid;
  const auto chosen = std::next(weights.begin(), below(weights.size(), random));
  Array &array = chosen->second;
  static const int64_t LENGTHS[] = {0, 1, 2, 15, 17, 32, -1, 1 << 30};
  static const double NUMBERS[] = {0.0, -1e300, 1e300, 1e-300, 1e38, 0.5, 2.0, -2.0};
  const std::size_t kind = below(4, random);
  if (kind == 0) array.shape[below(array.shape.size(), random)] = LENGTHS[below(8, random)];
  if (kind == 1) array.shape.push_back(LENGTHS[below(3, random)]);
  if (kind == 3) array.values[below(array.values.size(), random)] = NUMBERS[below(8, random)];
  int64_t count = 1;
  for (const int64_t length : array.shape) count *= length;
  if (kind < 2 && count >= 0 && count < 100000) array.values.resize(count);
  if (kind == 2) weights.erase(chosen);
  auto *model = count < 100000
                    ? model_of(weights, below(9, random) ? 4.0 : NUMBERS[below(8, random)],
                               below(3, random) * 7)
                    : nullptr;
  auto *work = mlff_student_new_workspace();
  const double positions[9] = {0, 0, 0, 1, 0, 0, 0, 1.1, 0}, cell[9] = {5, 0, 0, 0, 5, 0, 0, 0, 5};
  const int64_t numbers[3] = {1, 2, 3};
  double energies[3], forces[9], virials[27];
  const mlff_student_system system = {3, positions, numbers, cell, nullptr};
  const mlff_student_results results = {energies, forces, nullptr, virials};
  if (model) mlff_student_evaluate(model, work, 1, &system, &results);
  mlff_student_free_workspace(work);
  mlff_student_close(model);
}

} // namespace

int main(int count, char **arguments) {
  if (count < 4) return 2;
  const uint64_t first = std::strtoull(arguments[1], nullptr, 10),
                 number = std::strtoull(arguments[2], nullptr, 10);
  std::vector<std::string> files;
  for (int k = 3; k < count; k++) {
    std::ifstream stream(arguments[k], std::ios::binary);
    files.emplace_back(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
    auto *model = mlff_student_open_memory("valid", files.back().data(), files.back().size());
    if (!model) {
      std::printf("%s: %s\n", arguments[k], mlff_student_error());
      return 2;
    }
    mlff_student_close(model);
  }
  uint64_t opened = 0;
  double most = 0.0, longest = 0.0;
  for (uint64_t k = first; k < first + number; k++) {
    Random random(k);
    const std::string file = damaged(files, random);
    if (k % 10 == 0) make_damaged_model(random);
    const int64_t before = in_use;
    peak = before;
    const std::clock_t start = std::clock();
    auto *model = mlff_student_open_memory("damaged", file.data(), file.size());
    const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    const int64_t grown = peak - before;
    opened += model != nullptr;
    mlff_student_close(model);
    const int64_t allowed =
        MLFF_STUDENT_OPEN_FACTOR * static_cast<int64_t>(file.size()) + (64 << 20);
    most = std::max(most, static_cast<double>(grown));
    longest = std::max(longest, seconds);
    if (grown > allowed || seconds > 1.0 || in_use > before + 4096) {
      std::ofstream("damaged.pt", std::ios::binary) << file;
      std::printf("file %lu of %lu bytes: %ld bytes of memory, %ld not freed, %.2f s; %s\n", k,
                  file.size(), grown, in_use - before, seconds, mlff_student_error());
      return 1;
    }
  }
  std::printf("%lu files: %lu opened, %lu refused; at most %.1f MiB and %.3f s\n", number, opened,
              number - opened, most / (1 << 20), longest);
  return 0;
}
