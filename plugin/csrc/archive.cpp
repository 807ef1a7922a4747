#include "archive.h"

#include "contents.h"
#include "elements.h"
#include "json.h"
#include "sha256.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <new>
#include <stdexcept>

namespace mlff_student {

namespace {

constexpr double FORMAT_VERSION = 2;
constexpr const char *METADATA_FILE = "extra/metadata.json";
constexpr std::size_t MAX_REFERENCE_ATOMS = 100, MAX_METADATA_BYTES = std::size_t{1} << 22;
constexpr double MAX_REFERENCE_COORDINATE = 1000.0, MAX_PARAMETERS = 1e15; // angstrom, count

// Returns the SHA-256 hash of all weights and buffers, in the order of their names.
std::string weights_hash(const StoredModule &module) {
  Sha256 hash;
  for (const auto &[key, tensor] : module.tensors) {
    hash.update(key.data(), key.size());
    hash.update(tensor.bytes.data(), tensor.bytes.size());
  }
  return hash.digest();
}

std::string brief(double number) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.15g", number);
  return text;
}

template <typename T> std::vector<double> numbers_of(std::string_view bytes) {
  std::vector<double> values(bytes.size() / sizeof(T));
  for (std::size_t k = 0; k < values.size(); k++) {
    T value; // numbers in a file have any alignment
    std::memcpy(&value, bytes.data() + k * sizeof(T), sizeof(T));
    values[k] = static_cast<double>(value);
  }
  return values;
}

Array to_array(const std::string &name, const StoredTensor &tensor) {
  Array array{tensor.shape, tensor.type == 'f'   ? numbers_of<float>(tensor.bytes)
                            : tensor.type == 'd' ? numbers_of<double>(tensor.bytes)
                                                 : numbers_of<int64_t>(tensor.bytes)};
  for (const double value : array.values)
    if (!std::isfinite(value)) throw std::runtime_error("a number of " + name + " is not finite");
  return array;
}

std::string text_of(const StoredModule &module, const std::string &name) {
  return std::string(module.texts.at(name).at(0));
}

ReferenceNumbers read_reference(const Json &stored) {
  const std::vector<double> numbers = stored.at("atomic_numbers").numbers();
  for (const double number : numbers)
    if (!(number >= 1.0 && number <= HEAVIEST))
      throw std::runtime_error("an atomic number of its self-check is " + brief(number));
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
      throw std::runtime_error("a coordinate of its self-check is " + brief(x));
  return reference;
}

} // namespace

Archive::Archive(const std::string &file, std::string_view content) {
  Members members;
  StoredModule module;
  try {
    members = read_members(content);
    module = read_module(members);
  } catch (const std::runtime_error &failure) {
    throw std::runtime_error("'" + file + "' is not an mlff-student archive, or it is damaged (" +
                             failure.what() +
                             "). Write it again with 'python export.py --model NAME', or copy it "
                             "again");
  }
  const std::string not_an_archive =
      "'" + file +
      "' is a TorchScript file, but not an mlff-student archive. Write one with 'python export.py "
      "--model NAME'";
  if (!module.numbers.count("format_version")) throw std::runtime_error(not_an_archive);
  const double version = module.numbers["format_version"];
  if (version != FORMAT_VERSION)
    throw std::runtime_error("'" + file + "' has archive format " + brief(version) +
                             ", this build reads format " + brief(FORMAT_VERSION) +
                             ". Export the model again with the installed mlff-student, or "
                             "install the version that wrote it");
  try {
    name = text_of(module, "name");
    teacher = text_of(module, "teacher");
    dtype = text_of(module, "dtype_name");
    const double count = module.numbers.at("parameter_count");
    if (!(count >= 0.0 && count <= MAX_PARAMETERS)) throw std::out_of_range("");
    parameters = static_cast<int64_t>(count);
    cutoff = module.numbers.at("cutoff");
    elements = {module.texts.at("elements").begin(), module.texts.at("elements").end()};
  } catch (const std::exception &) {
    throw std::runtime_error(not_an_archive + " (an attribute of the format is missing)");
  }
  std::string stored_hash;
  try {
    const auto entry = members.find(METADATA_FILE);
    if (entry != members.end()) metadata = entry->second;
    if (metadata.size() > MAX_METADATA_BYTES) throw std::runtime_error("they are very long");
    if (metadata.find('\0') != std::string::npos)
      throw std::runtime_error("they contain a byte of value 0");
    const Json facts(metadata);
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
        weights[key.substr(student.size())] = to_array(key, tensor);
    // The n-th radial function has the frequency n pi / cutoff.
    const double first = weights.at("basis.frequencies").values.at(0);
    if (!(std::abs(first * cutoff / M_PI - 1.0) < 1e-5))
      throw std::runtime_error("its radial functions do not belong to its cutoff");
  } catch (const std::bad_alloc &) {
    throw; // the file is not to blame
  } catch (const std::exception &error) {
    throw std::runtime_error("model " + name + " is damaged (" + error.what() +
                             "); export it again");
  }
}

} // namespace mlff_student
