#include "archive.h"

#include "contents.h"
#include "json.h"
#include "known_code.h"
#include "sha256.h"
#include "tensors.h"

#include <torch/cuda.h>
#include <torch/script.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <dlfcn.h>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string_view>

namespace mlff_student {

namespace {

constexpr int64_t FORMAT_VERSION = 2;
constexpr const char *METADATA_FILE = "extra/metadata.json";
constexpr std::size_t MAX_REFERENCE_ATOMS = 100;
constexpr double MAX_REFERENCE_COORDINATE = 1000.0; // angstrom

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

// Returns the SHA-256 hash of all weights and buffers, in the order of their names.
std::string weights_hash(const StoredModule &module) {
  Sha256 hash;
  for (const auto &[key, tensor] : module.tensors) {
    hash.update(key.data(), key.size());
    hash.update(tensor.bytes.data(), tensor.bytes.size());
  }
  return hash.digest();
}

template <typename T> std::vector<double> numbers_of(std::string_view bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return {values.begin(), values.end()};
}

Array to_array(const std::string &name, const StoredTensor &tensor) {
  Array array{tensor.shape, tensor.type == 'f'   ? numbers_of<float>(tensor.bytes)
                            : tensor.type == 'd' ? numbers_of<double>(tensor.bytes)
                                                 : numbers_of<int64_t>(tensor.bytes)};
  for (const double value : array.values)
    if (!std::isfinite(value)) throw std::runtime_error("a number of " + name + " is not finite");
  return array;
}

const std::string &text_of(const StoredModule &module, const std::string &name) {
  return module.texts.at(name).at(0);
}

ReferenceNumbers read_reference(const Json &stored) {
  const std::vector<double> numbers = stored.at("atomic_numbers").numbers();
  ReferenceNumbers reference{{numbers.begin(), numbers.end()},
                             stored.at("positions").numbers(),
                             stored.at("energy").number(),
                             stored.at("forces").numbers()};
  if (numbers.empty() || reference.positions.size() != 3 * numbers.size() ||
      reference.forces.size() != 3 * numbers.size())
    throw std::runtime_error("its self-check has " + std::to_string(numbers.size()) +
                             " atoms, but " + std::to_string(reference.positions.size()) +
                             " coordinates and " + std::to_string(reference.forces.size()) +
                             " components of forces");
  if (numbers.size() > MAX_REFERENCE_ATOMS)
    throw std::runtime_error("its self-check has " + std::to_string(numbers.size()) + " atoms");
  for (const double x : reference.positions)
    if (!(std::abs(x) < MAX_REFERENCE_COORDINATE))
      throw std::runtime_error("a coordinate of its self-check is " + std::to_string(x));
  return reference;
}

} // namespace

struct Archive::Script {
  std::string content;
  torch::Device device;
  Arrays weights;
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

Archive::Archive(const std::string &file, const std::string &content, const std::string &device)
    : script_(new Script{content, device_of(device), {}, std::nullopt}) {
  Members members;
  StoredModule module;
  try {
    members = read_members(content);
    if (!members.count("constants.pkl")) throw std::runtime_error("it contains no code");
    module = read_module(members);
  } catch (const std::exception &failure) {
    throw std::runtime_error(
        "'" + file + "' is not a TorchScript archive, or it is damaged (" + cause(failure) +
        "). Write it again with 'python export.py --model NAME', or copy it again");
  }
  const std::string not_an_archive =
      "'" + file +
      "' is a TorchScript file, but not an mlff-student archive. Write one with 'python export.py "
      "--model NAME'";
  if (!module.numbers.count("format_version")) throw std::runtime_error(not_an_archive);
  const auto version = static_cast<int64_t>(module.numbers["format_version"]);
  if (version != FORMAT_VERSION)
    throw std::runtime_error("'" + file + "' has archive format " + std::to_string(version) +
                             ", this build reads format " + std::to_string(FORMAT_VERSION) +
                             ". Export the model again with the installed mlff-student, or "
                             "install the version that wrote it");
  for (const std::string &definition : definition_hashes(members))
    if (!KNOWN_CODE.count(definition))
      throw std::runtime_error(
          "'" + file +
          "' contains code that this version of mlff-student does not write; nothing of it was "
          "run. If another version wrote it, write it again with the installed one: "
          "'mlff-student export --checkpoint FILE -o NEW.pt'");
  try {
    name = text_of(module, "name");
    teacher = text_of(module, "teacher");
    dtype = text_of(module, "dtype_name");
    parameters = static_cast<int64_t>(module.numbers.at("parameter_count"));
    cutoff = module.numbers.at("cutoff");
    elements = module.texts.at("elements");
  } catch (const std::exception &) {
    throw std::runtime_error(not_an_archive + " (an attribute of the format is missing)");
  }
  std::string stored_hash;
  try {
    const auto entry = members.find(METADATA_FILE);
    const Json facts(entry == members.end() ? "" : entry->second);
    stored_hash = facts.at("weights_sha256").string();
    reference = read_reference(facts.at("self_check"));
    if (facts.at("cutoff").number() != cutoff || facts.at("parameters").number() != parameters ||
        facts.at("dtype").string() != dtype)
      throw std::runtime_error("they contradict the module");
  } catch (const std::exception &error) {
    throw std::runtime_error("the metadata of model " + name + " are damaged (" + error.what() +
                             "); export it again");
  }
  const std::string hash = weights_hash(module);
  if (hash != stored_hash)
    throw std::runtime_error("model " + name + ": the weights have the hash " + hash.substr(0, 12) +
                             ", the metadata say " + stored_hash.substr(0, 12) +
                             "; the file was altered: copy it again, or export it again");
  try {
    const std::string student = "student.";
    for (const auto &[key, tensor] : module.tensors)
      if (key.compare(0, student.size(), student) == 0)
        script_->weights[key.substr(student.size())] = to_array(key, tensor);
    // The n-th radial function has the frequency n pi / cutoff.
    const double first = script_->weights.at("basis.frequencies").values.at(0);
    if (!(std::abs(first * cutoff / M_PI - 1.0) < 1e-5))
      throw std::runtime_error("its radial functions do not belong to its cutoff");
  } catch (const std::exception &error) {
    throw std::runtime_error("model " + name + " is damaged (" + error.what() +
                             "); export it again");
  }
}

Archive::~Archive() = default;

const Arrays &Archive::weights() const { return script_->weights; }

// The call has no inference or no-grad guard around it, because an archive may use autograd inside
// and TorchScript cannot switch it on again.
void Archive::from_edges(const double *edge_vectors, const int64_t *edge_index, int64_t edges,
                         const int64_t *atomic_numbers, int64_t atoms, double *energies,
                         double *gradient) const {
  const auto tensor = [this](const auto *data, at::IntArrayRef shape, at::ScalarType type) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    return torch::from_blob(const_cast<T *>(data), shape, type).to(script_->device);
  };
  try {
    const auto result =
        script_->load()
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
