#include "script.h"

#include "contents.h"
#include "known_code.h"
#include "sha256.h"
#include "tensors.h"

#include <caffe2/serialize/inline_container.h>
#include <torch/cuda.h>
#include <torch/script.h>

#include <algorithm>
#include <cctype>
#include <dlfcn.h>
#include <map>
#include <optional>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string_view>

namespace mlff_student {

namespace {

// Returns the line of a torch message that names the cause, without the traceback around it.
std::string cause(const std::exception &failure) {
  const std::string text = failure.what();
  const std::string_view mark = "Error: ";
  auto begin = text.rfind(mark);
  begin = begin == std::string::npos ? text.find_first_not_of("\n ") : begin + mark.size();
  if (begin == std::string::npos) return "no reason given";
  return printable(text.substr(begin, text.find('\n', begin) - begin));
}

torch::Device device_of(const std::string &name) {
  if (name == "cpu") return torch::kCPU;
  // Loaded here and not linked, so that the same binary works with a torch without CUDA.
  dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL);
  if (!torch::cuda::is_available())
    throw std::runtime_error("torch finds no CUDA device; use device cpu, or install the driver "
                             "and a torch built for CUDA");
  return torch::kCUDA;
}

// --- Code ---------------------------------------------------------------------------------------

bool in_word(char letter) {
  return std::isalnum(static_cast<unsigned char>(letter)) || letter == '_';
}
bool is_digit(char letter) { return letter >= '0' && letter <= '9'; }

// Whether a line of a class is "  NAME : Final[TYPE] = LITERAL". Other values could be calls.
bool is_final(std::string_view line) {
  std::size_t at = 0;
  const auto pass = [&](std::string_view expected) {
    const bool found = line.substr(at, expected.size()) == expected;
    if (found) at += expected.size();
    return found;
  };
  if (!pass("  ")) return false;
  const std::size_t name = at;
  while (at < line.size() && in_word(line[at])) at++;
  if (at == name || !pass(" : Final[")) return false;
  if (!pass("int") && !pass("float") && !pass("bool") && !pass("NoneType")) return false;
  if (!pass("] = ")) return false;
  if ((pass("True") || pass("False") || pass("None")) && at == line.size()) return true;
  pass("-");
  const std::size_t digits = at;
  while (at < line.size() && (is_digit(line[at]) || line[at] == '.')) at++;
  if (at == digits) return false;
  if (pass("e")) {
    if (!pass("-")) pass("+");
    const std::size_t exponent = at;
    while (at < line.size() && is_digit(line[at])) at++;
    if (at == exponent) return false;
  }
  return at == line.size();
}

// Removes the numbers that torch gives to classes of the same name.
std::string without_mangling(const std::string &text) {
  static const std::string MARK = "___torch_mangle_";
  std::string result;
  for (std::size_t at = 0; at < text.size();) {
    std::size_t end = at + 1 + MARK.size();
    if ((text[at] == '.' || text[at] == '/') && text.compare(at + 1, MARK.size(), MARK) == 0 &&
        end < text.size() && is_digit(text[end])) {
      while (end < text.size() && is_digit(text[end])) end++;
      at = end;
    } else {
      result += text[at++];
    }
  }
  return result;
}

// Replaces the numbers at the end of local variables by the order in which these occur.
std::string renumbered(const std::string &text) {
  std::map<std::string, std::size_t> numbers;
  std::string result;
  for (std::size_t at = 0; at < text.size();) {
    if (!in_word(text[at])) {
      result += text[at++];
      continue;
    }
    std::size_t end = at;
    while (end < text.size() && in_word(text[end])) end++;
    const std::string word = text.substr(at, end - at);
    std::size_t stem = word.size();
    while (stem > 0 && is_digit(word[stem - 1])) stem--;
    if (stem > 0 && stem < word.size() && !is_digit(word[0]) && (at == 0 || text[at - 1] != '.')) {
      const auto number = numbers.emplace(word, numbers.size()).first->second;
      result += word.substr(0, stem) + "#" + std::to_string(number);
    } else {
      result += word;
    }
    at = end;
  }
  return result;
}

// Returns the code of an archive, as torch reads it. Throws std::runtime_error if torch may read
// another member than Archive did.
std::map<std::string, std::string> read_code(const std::string &content) {
  std::istringstream stream(content);
  caffe2::serialize::PyTorchStreamReader reader(&stream);
  std::map<std::string, std::string> files;
  std::set<std::string> lower_case; // torch does not distinguish cases when it looks for a member
  bool constants = false;
  for (const Entry &entry : read_directory(content)) {
    const std::string name(entry.name);
    std::string lower = name, data(entry.size, '\0');
    std::transform(lower.begin(), lower.end(), lower.begin(),
                   [](unsigned char letter) { return std::tolower(letter); });
    if (!lower_case.insert(lower).second)
      throw std::runtime_error("two members have the name '" + printable(name) + "'");
    if (reader.getRecord(name, data.data(), data.size()) != data.size() ||
        crc32(data) != entry.checksum)
      throw std::runtime_error("the checksum of '" + printable(name) + "' is wrong");
    constants |= name == "constants.pkl";
    if (name.compare(0, 5, "code/") == 0) files[name] = std::move(data);
  }
  if (!constants) throw std::runtime_error("it contains no code");
  return files;
}

// Returns the SHA-256 of each class and function of the code, in the form of `definitions` in
// contents.py.
std::set<std::string> definition_hashes(const std::map<std::string, std::string> &files) {
  std::set<std::string> hashes;
  for (const auto &[name, text] : files) {
    const std::string_view debug = ".debug_pkl";
    if (name.size() >= debug.size() && name.substr(name.size() - debug.size()) == debug) continue;
    std::string block;
    const auto finish = [&, &file = name] {
      if (block.empty()) return;
      const std::string definition = without_mangling(file + "\n" + renumbered(block));
      Sha256 hash;
      hash.update(definition.data(), definition.size());
      hashes.insert(hash.digest());
      block.clear();
    };
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t end = std::min(text.find('\n', at), text.size() - 1) + 1;
      const std::string line = text.substr(at, end - at);
      at = end;
      if (line.compare(0, 6, "class ") == 0 || line.compare(0, 4, "def ") == 0) finish();
      if (line.back() == '\n' && is_final(std::string_view(line).substr(0, line.size() - 1)))
        continue;
      block += line;
    }
    finish();
  }
  return hashes;
}

} // namespace

struct Script::State {
  std::string content;
  torch::Device device;
  std::optional<torch::jit::Module> module;

  torch::jit::Module &load() {
    if (!module) {
      std::istringstream stream(content);
      module = torch::jit::load(stream, device);
      // Without this line torch would record a graph for the weights' gradient at every step.
      for (auto weight : module->parameters()) weight.set_requires_grad(false);
      module->eval();
    }
    return *module;
  }
};

Script::Script(const std::string &file, const std::string &content, const std::string &device)
    : state_(new State{content, device_of(device), std::nullopt}) {
  std::set<std::string> definitions;
  try {
    definitions = definition_hashes(read_code(content));
  } catch (const std::exception &failure) {
    throw std::runtime_error(
        "'" + file + "' is not a TorchScript archive, or it is damaged (" + cause(failure) +
        "). Write it again with 'python export.py --model NAME', or copy it again");
  }
  for (const std::string &definition : definitions)
    if (!KNOWN_CODE.count(definition))
      throw std::runtime_error(
          "'" + file +
          "' contains code that this version of mlff-student does not write; nothing of it was "
          "run. If another version wrote it, write it again with the installed one: "
          "'mlff-student export --checkpoint FILE -o NEW.pt'");
}

Script::~Script() = default;

// The call has no inference or no-grad guard around it, because an archive may use autograd inside
// and TorchScript cannot switch it on again.
void Script::from_edges(const double *edge_vectors, const int64_t *edge_index, int64_t edges,
                        const int64_t *atomic_numbers, int64_t atoms, double *energies,
                        double *gradient) const {
  const auto tensor = [this](const auto *data, at::IntArrayRef shape, at::ScalarType type) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    return torch::from_blob(const_cast<T *>(data), shape, type).to(state_->device);
  };
  try {
    const auto result =
        state_->load()
            .get_method("from_edges")({tensor(edge_vectors, {edges, 3}, torch::kDouble),
                                       tensor(edge_index, {2, edges}, torch::kLong),
                                       tensor(atomic_numbers, {atoms}, torch::kLong), atoms})
            .toTuple();
    const auto copy = [&result](size_t k, at::IntArrayRef shape, double *to) {
      const auto values = result->elements().at(k).toTensor();
      TORCH_CHECK(values.sizes() == shape, "from_edges returned a tensor of shape ", values.sizes(),
                  ", expected ", shape);
      std::copy_n(on_cpu(values, torch::kDouble).const_data_ptr<double>(), values.numel(), to);
    };
    copy(0, {atoms}, energies);
    copy(1, {edges, 3}, gradient);
  } catch (const std::exception &failure) {
    throw std::runtime_error(cause(failure));
  }
}

} // namespace mlff_student
