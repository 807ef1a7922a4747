#include "contents.h"

#include <array>
#include <cmath>
#include <cstring>
#include <deque>
#include <stdexcept>
#include <utility>

namespace mlff_student {

namespace {

constexpr std::size_t MAX_FILE_BYTES = std::size_t{1} << 30, MAX_CODE_BYTES = std::size_t{1} << 24,
                      MAX_PICKLE_BYTES = std::size_t{1} << 20, MAX_OBJECTS = 100000;
// These bound the memory of a small file whose parts refer many times to the same objects.
constexpr std::size_t MAX_ATTRIBUTES = 20000, MAX_DIMENSIONS = 8, MAX_NAME = 100;

[[noreturn]] void refuse(const std::string &reason) {
  throw std::runtime_error(printable(reason.substr(0, 200)));
}

// Whether a text is UTF-8 without control characters. Names of models become parts of messages.
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

// --- Zip file -----------------------------------------------------------------------------------

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

// --- Pickle -------------------------------------------------------------------------------------

// A value in a pickle. Values refer to others by pointers into the memory of PickleReader.
struct Value {
  enum class Kind { NONE, NUMBER, TEXT, NAME, LIST, DICT, STORAGE, TENSOR, OBJECT, MARK };

  Kind kind = Kind::NONE;
  double number = 0.0;
  std::string_view text;
  std::vector<Value *> items; // of a list or tuple; keys and values of a dict; state of an object
  StoredTensor tensor{};
};

// Runs the few operations that torch writes. Python's pickle would import what a file names.
class PickleReader {
public:
  explicit PickleReader(const Members &members) : members_(members) {
    const auto entry = members.find("data.pkl");
    if (entry == members.end() || entry->second.size() > MAX_PICKLE_BYTES)
      refuse("it contains no data.pkl, or a very large one");
    text_ = entry->second;
  }

  Value *read() {
    for (;;) {
      const unsigned char code = byte();
      switch (code) {
      case 0x80:
        byte();
        break; // the version of the protocol
      case '.':
        if (stack_.size() != 1) damaged();
        return stack_.back();
      case 'N':
      case 0x88:
      case 0x89:
        push(code == 'N' ? Value::Kind::NONE : Value::Kind::NUMBER)->number = code == 0x88;
        break;
      case 'K':
        push(Value::Kind::NUMBER)->number = number(1);
        break;
      case 'M':
        push(Value::Kind::NUMBER)->number = number(2);
        break;
      case 'J':
        push(Value::Kind::NUMBER)->number = static_cast<int32_t>(number(4));
        break;
      case 'G': { // big-endian
        uint64_t bits = 0;
        for (int k = 0; k < 8; k++) bits = bits << 8 | byte();
        std::memcpy(&push(Value::Kind::NUMBER)->number, &bits, sizeof(bits));
        break;
      }
      case 0x8a: { // a long integer; larger ones than 8 bytes do not occur
        const int bytes = byte();
        if (bytes > 8) damaged();
        uint64_t bits = number(bytes);
        if (bytes > 0 && bytes < 8 && bits >> (8 * bytes - 1)) bits |= ~uint64_t{0} << (8 * bytes);
        push(Value::Kind::NUMBER)->number = static_cast<double>(static_cast<int64_t>(bits));
        break;
      }
      case 'X':
      case 0x8c: {
        const std::string_view text = bytes(number(code == 'X' ? 4 : 1));
        if (!is_text(text)) damaged();
        push(Value::Kind::TEXT)->text = text;
        break;
      }
      case 'c': {
        const std::string_view module = line(), name = line();
        texts_.push_back(std::string(module) + "." + std::string(name));
        push(Value::Kind::NAME)->text = texts_.back();
        break;
      }
      case ')':
      case ']':
        push(Value::Kind::LIST);
        break;
      case '}':
        push(Value::Kind::DICT);
        break;
      case '(':
        push(Value::Kind::MARK);
        break;
      case 't': {
        std::vector<Value *> items = above_mark();
        push(Value::Kind::LIST)->items = std::move(items);
        break;
      }
      case 0x85:
      case 0x86:
      case 0x87: {
        std::vector<Value *> items(code - 0x84);
        for (auto item = items.rbegin(); item != items.rend(); ++item) *item = pop();
        push(Value::Kind::LIST)->items = std::move(items);
        break;
      }
      case 'q':
        memo_[number(1)] = top();
        break;
      case 'r':
        memo_[number(4)] = top();
        break;
      case 'h':
        recall(number(1));
        break;
      case 'j':
        recall(number(4));
        break;
      case 'a': {
        Value *item = pop();
        require(top(), Value::Kind::LIST).items.push_back(item);
        break;
      }
      case 'e':
      case 'u': {
        const std::vector<Value *> items = above_mark();
        auto &to = require(top(), code == 'e' ? Value::Kind::LIST : Value::Kind::DICT).items;
        to.insert(to.end(), items.begin(), items.end());
        break;
      }
      case 's': {
        Value *value = pop(), *key = pop();
        auto &to = require(top(), Value::Kind::DICT).items;
        to.insert(to.end(), {key, value});
        break;
      }
      case 'Q':
        store(require(pop(), Value::Kind::LIST));
        break;
      case 'R':
      case 0x81: {
        const Value &arguments = require(pop(), Value::Kind::LIST);
        call(require(pop(), Value::Kind::NAME).text, arguments);
        break;
      }
      case 'b': {
        Value *state = pop();
        if (top()->kind == Value::Kind::OBJECT) top()->items = {state};
        break;
      }
      default:
        refuse("data.pkl contains the operation " + std::to_string(code));
      }
      if (values_.size() > MAX_OBJECTS || stack_.size() > MAX_OBJECTS) damaged();
    }
  }

private:
  const Members &members_;
  std::string_view text_;
  std::size_t position_ = 0;
  std::deque<Value> values_;
  std::deque<std::string> texts_;
  std::vector<Value *> stack_;
  std::map<uint64_t, Value *> memo_;

  [[noreturn]] static void damaged() { refuse("data.pkl is damaged"); }

  static Value &require(Value *value, Value::Kind kind) {
    if (value->kind != kind) damaged();
    return *value;
  }

  unsigned char byte() { return static_cast<unsigned char>(number(1)); }
  uint64_t number(int count) {
    const uint64_t value = number_at(text_, position_, count);
    position_ += count;
    return value;
  }
  std::string_view bytes(uint64_t count) {
    const std::string_view taken = part(text_, position_, count);
    position_ += count;
    return taken;
  }
  std::string_view line() {
    const std::size_t end = text_.find('\n', position_);
    if (end == std::string_view::npos) damaged();
    const std::string_view taken = bytes(end - position_);
    position_++;
    return taken;
  }

  Value *push(Value::Kind kind) {
    values_.push_back({kind, 0.0, {}, {}, {}});
    stack_.push_back(&values_.back());
    return stack_.back();
  }
  Value *top() {
    if (stack_.empty()) damaged();
    return stack_.back();
  }
  Value *pop() {
    Value *value = top();
    stack_.pop_back();
    return value;
  }
  void recall(uint64_t key) {
    const auto entry = memo_.find(key);
    if (entry == memo_.end()) damaged();
    stack_.push_back(entry->second);
  }
  std::vector<Value *> above_mark() {
    auto mark = stack_.rbegin();
    while (mark != stack_.rend() && (*mark)->kind != Value::Kind::MARK) ++mark;
    if (mark == stack_.rend()) damaged();
    const std::vector<Value *> taken(mark.base(), stack_.end());
    stack_.erase(std::prev(mark.base()), stack_.end());
    return taken;
  }

  // Returns a whole number that is not negative.
  static uint64_t count(Value *value) {
    const double number = require(value, Value::Kind::NUMBER).number;
    if (!(number >= 0.0 && number <= 1e15) || number != std::floor(number)) damaged();
    return static_cast<uint64_t>(number);
  }

  // A reference to numbers: ("storage", type, name, device, count).
  void store(const Value &reference) {
    if (reference.items.size() != 5) damaged();
    const std::string_view type = require(reference.items[1], Value::Kind::NAME).text;
    const char kind = type == "torch.FloatStorage"    ? 'f'
                      : type == "torch.DoubleStorage" ? 'd'
                      : type == "torch.LongStorage"   ? 'l'
                                                      : '\0';
    if (!kind)
      refuse("data.pkl contains numbers of the type " + std::string(type.substr(0, MAX_NAME)));
    const std::string_view text = require(reference.items[2], Value::Kind::TEXT).text;
    if (text.size() > MAX_NAME) damaged();
    const std::string name = "data/" + std::string(text);
    const auto member = members_.find(name);
    if (member == members_.end() ||
        member->second.size() != count(reference.items[4]) * (kind == 'f' ? 4 : 8))
      refuse("the member " + name + " has another size than data.pkl says");
    push(Value::Kind::STORAGE)->tensor = {kind, {}, member->second};
  }

  void call(std::string_view function, const Value &arguments) {
    const auto &items = arguments.items;
    if (function.substr(0, 10) == "__torch__.") {
      push(Value::Kind::OBJECT)->text = function;
    } else if (function == "collections.OrderedDict") {
      push(Value::Kind::DICT);
    } else if (function == "torch.jit._pickle.restore_type_tag" && !items.empty()) {
      stack_.push_back(items[0]);
    } else if (function == "torch._utils._rebuild_tensor_v2" && items.size() >= 4) {
      StoredTensor tensor = require(items[0], Value::Kind::STORAGE).tensor;
      const auto &shape = require(items[2], Value::Kind::LIST).items;
      const auto &strides = require(items[3], Value::Kind::LIST).items;
      const uint64_t width = tensor.type == 'f' ? 4 : 8, all = tensor.bytes.size() / width;
      uint64_t size = 1;
      if (shape.size() != strides.size() || shape.size() > MAX_DIMENSIONS) damaged();
      for (std::size_t k = shape.size(); k-- > 0;) {
        const uint64_t length = count(shape[k]);
        if (length > 1 && count(strides[k]) != size) refuse("a tensor is not stored row by row");
        if (length > all || size * length > all) refuse("a tensor is larger than its numbers");
        size *= length;
        tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(length));
      }
      tensor.bytes = part(tensor.bytes, count(items[1]) * width, size * width);
      push(Value::Kind::TENSOR)->tensor = tensor;
    } else {
      refuse("data.pkl contains " + std::string(function.substr(0, MAX_NAME)));
    }
  }
};

} // namespace

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

StoredModule read_module(const Members &members) {
  const auto order = members.find("byteorder");
  if (order != members.end() && order->second != "little")
    refuse("its numbers have another order of bytes");
  PickleReader reader(members);
  StoredModule module;
  std::size_t numbers = 0, tensors = 0, attributes = 0; // bytes, bytes, count
  for (const auto &[name, bytes] : members) numbers += bytes.size();
  const auto count = [&attributes] {
    if (++attributes > MAX_ATTRIBUTES) refuse("data.pkl contains too many attributes");
  };
  std::vector<std::pair<std::string, const Value *>> waiting{{"", reader.read()}};
  while (!waiting.empty()) {
    const auto [name, value] = std::move(waiting.back());
    waiting.pop_back();
    switch (value->kind) {
    case Value::Kind::TENSOR:
      tensors += value->tensor.bytes.size();
      if (tensors > numbers) refuse("its tensors claim to have more numbers than the file");
      module.tensors[name] = value->tensor;
      break;
    case Value::Kind::NUMBER:
      module.numbers[name] = value->number;
      break;
    case Value::Kind::TEXT:
      module.texts[name] = {value->text};
      break;
    case Value::Kind::LIST:
      for (const Value *item : value->items) {
        if (item->kind != Value::Kind::TEXT) continue;
        count();
        module.texts[name].push_back(item->text);
      }
      break;
    case Value::Kind::OBJECT: {
      if (value->items.empty() || value->items[0]->kind != Value::Kind::DICT) break;
      const auto &items = value->items[0]->items;
      for (std::size_t k = 0; k + 1 < items.size(); k += 2) {
        count();
        if (items[k]->kind != Value::Kind::TEXT) refuse("data.pkl is damaged");
        if (name.size() + items[k]->text.size() > MAX_NAME)
          refuse("data.pkl contains an attribute with a long name");
        waiting.emplace_back((name.empty() ? "" : name + ".") + std::string(items[k]->text),
                             items[k + 1]);
      }
      break;
    }
    default:
      break;
    }
  }
  return module;
}

} // namespace mlff_student
