#include "archive.h"

#include "json.h"
#include "sha256.h"
#include "tensors.h"

#include <torch/cuda.h>
#include <torch/script.h>

#include <algorithm>
#include <dlfcn.h>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string_view>

namespace mlff_student {

namespace {

constexpr int64_t FORMAT_VERSION = 2;
constexpr const char *METADATA_FILE = "metadata.json";

// Returns the line of a torch message that names the cause, without the traceback around it.
std::string cause(const std::exception &failure) {
  const std::string text = failure.what();
  const std::string_view mark = "Error: ";
  auto begin = text.rfind(mark);
  begin = begin == std::string::npos ? text.find_first_not_of("\n ") : begin + mark.size();
  if (begin == std::string::npos) return "no reason given";
  return text.substr(begin, text.find('\n', begin) - begin);
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
std::string weights_hash(const torch::jit::Module &module) {
  std::map<std::string, torch::Tensor> sorted;
  for (const auto &item : module.named_parameters()) sorted[item.name] = item.value;
  for (const auto &item : module.named_buffers()) sorted[item.name] = item.value;
  Sha256 hash;
  for (const auto &[key, tensor] : sorted) {
    const auto values = on_cpu(tensor, tensor.scalar_type());
    hash.update(key.data(), key.size());
    hash.update(values.const_data_ptr(), values.nbytes());
  }
  return hash.digest();
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
  return reference;
}

} // namespace

struct Archive::Script {
  mutable torch::jit::Module module;
  torch::Device device;
};

Archive::Archive(const std::string &file, const std::string &content, const std::string &device)
    : script_(new Script{{}, device_of(device)}) {
  torch::jit::Module &module = script_->module;
  std::string metadata;
  try {
    std::istringstream stream(content);
    torch::jit::ExtraFilesMap extra{{METADATA_FILE, ""}};
    module = torch::jit::load(stream, script_->device, extra);
    metadata = extra.at(METADATA_FILE);
  } catch (const std::exception &failure) {
    throw std::runtime_error(
        "'" + file + "' is not a TorchScript archive, or it is damaged (" + cause(failure) +
        "). Write it again with 'python export.py --model NAME', or copy it again");
  }
  const std::string not_an_archive =
      "'" + file +
      "' is a TorchScript file, but not an mlff-student archive. Write one with 'python export.py "
      "--model NAME'";
  if (!module.hasattr("format_version") || !module.attr("format_version").isInt() ||
      !module.find_method("from_edges"))
    throw std::runtime_error(not_an_archive);
  const int64_t version = module.attr("format_version").toInt();
  if (version != FORMAT_VERSION)
    throw std::runtime_error("'" + file + "' has archive format " + std::to_string(version) +
                             ", this build reads format " + std::to_string(FORMAT_VERSION) +
                             ". Export the model again with the installed mlff-student, or "
                             "install the version that wrote it");
  try {
    name = module.attr("name").toStringRef();
    teacher = module.attr("teacher").toStringRef();
    dtype = module.attr("dtype_name").toStringRef();
    parameters = module.attr("parameter_count").toInt();
    cutoff = module.attr("cutoff").toDouble();
    for (const auto &element : module.attr("elements").toListRef())
      elements.push_back(element.toStringRef());
  } catch (const std::exception &) {
    throw std::runtime_error(not_an_archive + " (an attribute of the format is missing)");
  }
  std::string stored_hash;
  try {
    const Json facts(metadata);
    stored_hash = facts.at("weights_sha256").string();
    reference = read_reference(facts.at("self_check"));
  } catch (const std::exception &error) {
    throw std::runtime_error("the metadata of model " + name + " are damaged (" + error.what() +
                             "); export it again");
  }
  const std::string hash = weights_hash(module);
  if (hash != stored_hash)
    throw std::runtime_error("model " + name + ": the weights have the hash " + hash.substr(0, 12) +
                             ", the metadata say " + stored_hash.substr(0, 12) +
                             "; the file was altered: copy it again, or export it again");
  // Without this line torch would record a graph for the weights' gradient at every step.
  for (auto weight : module.parameters()) weight.set_requires_grad(false);
  module.eval();
}

Archive::~Archive() = default;

Arrays Archive::weights() const {
  Arrays arrays;
  const auto student = script_->module.attr("student").toModule();
  for (const auto &item : student.named_parameters()) arrays[item.name] = to_array(item.value);
  for (const auto &item : student.named_buffers()) arrays[item.name] = to_array(item.value);
  return arrays;
}

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
        script_->module
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
