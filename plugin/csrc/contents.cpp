#include "contents.h"

#include "json.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>
#include <utility>

namespace mlff_student {

namespace {

constexpr std::size_t MAX_FILE_BYTES = std::size_t{1} << 30, MAX_CODE_BYTES = std::size_t{1} << 24,
                      MAX_HEADER_BYTES = std::size_t{1} << 20, MAX_ARRAYS = 2000,
                      MAX_DIMENSIONS = 8, MAX_NAME = 100;

[[noreturn]] void refuse(const std::string &reason) {
  throw std::runtime_error(printable(reason.substr(0, 200)));
}

// Returns the little-endian number of `bytes` bytes at a position.
uint64_t number_at(std::string_view text, std::size_t position, int bytes) {
  if (position > text.size() || text.size() - position < static_cast<std::size_t>(bytes))
    refuse("it ends too early");
  uint64_t value = 0;
  for (int k = bytes - 1; k >= 0; k--)
    value = value << 8 | static_cast<unsigned char>(text[position + k]);
  return value;
}

std::string_view part(std::string_view text, uint64_t begin, uint64_t size) {
  if (begin > text.size() || text.size() - begin < size) refuse("it ends too early");
  return text.substr(begin, size);
}

// Returns a whole number that is not negative.
uint64_t count(const Json &value) {
  const double number = value.number();
  if (!(number >= 0.0 && number <= 1e15) || number != std::floor(number))
    refuse("a number in the header of its weights is not a count");
  return static_cast<uint64_t>(number);
}

} // namespace

bool is_text(std::string_view text) {
  int following = 0;
  for (const char letter : text) {
    const auto byte = static_cast<unsigned char>(letter);
    const bool continues = (byte & 0xc0) == 0x80;
    if (continues != (following > 0) || byte < ' ' || byte == 0x7f || byte >= 0xf8) return false;
    if (continues)
      following--;
    else
      following = byte >= 0xf0 ? 3 : byte >= 0xe0 ? 2 : byte >= 0xc0 ? 1 : 0;
  }
  return following == 0;
}

std::string printable(std::string text) {
  for (char &letter : text)
    if (letter < ' ' || letter > '~') letter = '?';
  return text;
}

uint32_t crc32(std::string_view text) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> entries{};
    for (uint32_t k = 0; k < 256; k++) {
      uint32_t value = k;
      for (int bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ value >> 1 : value >> 1;
      entries[k] = value;
    }
    return entries;
  }();
  uint32_t crc = 0xffffffff;
  for (const char letter : text)
    crc = table[(crc ^ static_cast<unsigned char>(letter)) & 255] ^ crc >> 8;
  return ~crc;
}

std::vector<Entry> read_directory(std::string_view file) {
  if (file.size() > MAX_FILE_BYTES) refuse("it is larger than 1 GiB");
  constexpr std::size_t END_SIZE = 22, LOCATOR_SIZE = 20;
  constexpr uint32_t END = 0x06054b50, END64 = 0x06064b50, LOCATOR = 0x07064b50, ENTRY = 0x02014b50,
                     LOCAL = 0x04034b50;
  constexpr uint32_t ABSENT = 0xffffffff;
  if (file.size() < END_SIZE || number_at(file, 0, 4) != LOCAL) refuse("it is no zip file");
  const std::size_t end = file.size() - END_SIZE;
  if (number_at(file, end, 4) != END || number_at(file, end + 20, 2) != 0)
    refuse("its end is missing");
  uint64_t count = number_at(file, end + 10, 2), size = number_at(file, end + 12, 4),
           begin = number_at(file, end + 16, 4), directory_end = end;
  if (end >= LOCATOR_SIZE && number_at(file, end - LOCATOR_SIZE, 4) == LOCATOR) {
    const uint64_t end64 = number_at(file, end - LOCATOR_SIZE + 8, 8);
    if (number_at(file, end64, 4) != END64) refuse("its directory is damaged");
    count = number_at(file, end64 + 32, 8);
    size = number_at(file, end64 + 40, 8);
    begin = number_at(file, end64 + 48, 8);
    directory_end = end64;
  }
  if (begin > directory_end || directory_end - begin != size) refuse("its directory is damaged");

  std::vector<Entry> entries;
  std::string_view folder; // that all members are in
  uint64_t at = begin, total = 0;
  while (at < directory_end) {
    if (number_at(file, at, 4) != ENTRY) refuse("its directory is damaged");
    const uint64_t name_size = number_at(file, at + 28, 2),
                   extra_size = number_at(file, at + 30, 2);
    const uint64_t comment_size = number_at(file, at + 32, 2);
    const std::string_view name = part(file, at + 46, name_size);
    const uint64_t method = number_at(file, at + 10, 2), checksum = number_at(file, at + 16, 4);
    uint64_t compressed = number_at(file, at + 20, 4), size_in_memory = number_at(file, at + 24, 4),
             header = number_at(file, at + 42, 4);
    const std::string_view extra = part(file, at + 46 + name_size, extra_size);
    for (std::size_t field = 0; field + 4 <= extra.size();) {
      const uint64_t tag = number_at(extra, field, 2), length = number_at(extra, field + 2, 2);
      std::size_t value = field + 4;
      if (tag == 1)
        for (uint64_t *large : {&size_in_memory, &compressed, &header})
          if (*large == ABSENT) {
            *large = number_at(extra, value, 8);
            value += 8;
          }
      field += 4 + length;
    }
    const uint64_t local_name = number_at(file, header + 26, 2),
                   local_extra = number_at(file, header + 28, 2);
    if (number_at(file, header, 4) != LOCAL || part(file, header + 30, local_name) != name)
      refuse("its directory is damaged");
    const std::string_view bytes =
        part(file.substr(0, begin), header + 30 + local_name + local_extra, compressed);
    if ((number_at(file, at + 8, 2) & 1) || (method != 0 && method != 8) ||
        (method == 0 && compressed != size_in_memory))
      refuse("the member '" + std::string(name) + "' is encrypted or damaged");
    total += size_in_memory;
    if (size_in_memory > file.size() + MAX_CODE_BYTES || total > file.size() + MAX_CODE_BYTES)
      refuse("its members claim to have more bytes than the file");
    if (entries.empty()) folder = name.substr(0, name.find('/') + 1);
    if (folder.empty() || name.substr(0, folder.size()) != folder)
      refuse("its members are in different folders");
    entries.push_back({name.substr(folder.size()), bytes, size_in_memory,
                       static_cast<uint32_t>(checksum), method != 0});
    at += 46 + name_size + extra_size + comment_size;
  }
  if (at != directory_end || entries.size() != count) refuse("its directory is damaged");
  return entries;
}

Members read_members(std::string_view file) {
  Members members;
  for (const Entry &entry : read_directory(file)) {
    if (entry.compressed) continue; // code, which torch compresses
    if (crc32(entry.bytes) != entry.checksum)
      refuse("the checksum of '" + std::string(entry.name) + "' is wrong");
    if (!members.emplace(entry.name, entry.bytes).second)
      refuse("two members have the name '" + std::string(entry.name) + "'");
  }
  return members;
}

std::map<std::string, StoredArray> read_safetensors(std::string_view text) {
  const uint64_t header_size = number_at(text, 0, 8);
  if (header_size > MAX_HEADER_BYTES) refuse("the header of its weights is very long");
  const std::string header_text(part(text, 8, header_size));
  const std::string_view numbers = text.substr(8 + header_size);
  const Json header(header_text);
  if (header.keys().size() > MAX_ARRAYS) refuse("it has too many arrays of weights");
  std::map<std::string, StoredArray> arrays;
  std::vector<std::pair<uint64_t, uint64_t>> ranges;
  for (std::size_t k = 0; k < header.keys().size(); k++) {
    const std::string &name = header.keys()[k];
    const Json &entry = header.values()[k];
    if (name.size() > MAX_NAME || !is_text(name) || name.find('\\') != std::string::npos)
      refuse("an array of weights has a name that no array has");
    if (entry.keys().size() != 3) refuse("'" + name + "' is no array");
    const std::string &type = entry.at("dtype").string();
    const char kind = type == "F32" ? 'f' : type == "F64" ? 'd' : type == "I64" ? 'l' : '\0';
    if (!kind) refuse("'" + name + "' has numbers of the type " + type.substr(0, MAX_NAME));
    const std::vector<Json> &offsets = entry.at("data_offsets").values(),
                            &shape = entry.at("shape").values();
    if (offsets.size() != 2 || shape.size() > MAX_DIMENSIONS)
      refuse("the shape or place of '" + name + "' is damaged");
    const uint64_t begin = count(offsets[0]), end = count(offsets[1]);
    if (begin > end || end > numbers.size()) refuse("'" + name + "' ends behind the weights");
    StoredArray array{kind, {}, part(numbers, begin, end - begin)};
    const uint64_t all = array.bytes.size() / (kind == 'f' ? 4 : 8);
    uint64_t size = 1;
    for (const Json &length : shape) {
      array.shape.push_back(static_cast<int64_t>(count(length)));
      if (count(length) > all) refuse("the shape of '" + name + "' is larger than its numbers");
      size *= count(length);
      if (size > all) refuse("the shape of '" + name + "' is larger than its numbers");
    }
    if (size * (kind == 'f' ? 4 : 8) != array.bytes.size())
      refuse("the shape of '" + name + "' is not that of its numbers");
    ranges.emplace_back(begin, end);
    arrays.emplace(name, std::move(array));
  }
  std::sort(ranges.begin(), ranges.end());
  uint64_t covered = 0;
  for (const auto &[begin, end] : ranges) {
    if (begin != covered) refuse("its weights overlap or leave gaps");
    covered = end;
  }
  if (covered != numbers.size()) refuse("its weights leave gaps");
  return arrays;
}

} // namespace mlff_student
