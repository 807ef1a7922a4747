#include "archive.h"

#include "contents.h"
#include "elements.h"
#include "json.h"
#include "sha256.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <stdexcept>

namespace mlff_student {

namespace {

constexpr const char *FORMAT = "mlff-student-archive";
constexpr double FORMAT_VERSION = 3;
constexpr const char *METADATA_FILE = "extra/metadata.json";
constexpr const char *WEIGHTS_FILE = "extra/weights.safetensors";
constexpr std::size_t MAX_TEXT = 200; // of a name of a model
constexpr std::size_t MAX_REFERENCE_ATOMS = 100, MAX_METADATA_BYTES = std::size_t{1} << 22;
constexpr double MAX_REFERENCE_COORDINATE = 1000.0, MAX_PARAMETERS = 1e15; // angstrom, count

// Returns the SHA-256 hash of all weights and buffers, in the order of their names.
std::string weights_hash(const std::map<std::string, StoredArray> &arrays) {
  Sha256 hash;
  for (const auto &[key, array] : arrays) {
    hash.update(key.data(), key.size());
    hash.update(array.bytes.data(), array.bytes.size());
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

Array to_array(const std::string &name, const StoredArray &stored) {
  Array array{stored.shape, stored.type == 'f'   ? numbers_of<float>(stored.bytes)
                            : stored.type == 'd' ? numbers_of<double>(stored.bytes)
                                                 : numbers_of<int64_t>(stored.bytes)};
  for (const double value : array.values)
    if (!std::isfinite(value)) throw std::runtime_error("a number of " + name + " is not finite");
  return array;
}

std::string text_of(const Json &value) {
  if (value.string().size() > MAX_TEXT || !is_text(value.string()))
    throw std::runtime_error("a text is very long or not printable");
  return value.string();
}

bool ends_with(const std::string &text, const std::string &end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
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
  bool has_script = false;
  try {
    members = read_members(content);
    for (const Entry &entry : read_directory(content))
      has_script |= entry.name.substr(0, 5) == "code/";
    const auto entry = members.find(METADATA_FILE);
    if (entry == members.end()) throw std::runtime_error("it contains no metadata");
    metadata = entry->second;
    if (metadata.size() > MAX_METADATA_BYTES)
      throw std::runtime_error("its metadata are very long");
    if (metadata.find('\0') != std::string::npos)
      throw std::runtime_error("its metadata contain a byte of value 0");
    if (Json(metadata).at("format").string() != FORMAT)
      throw std::runtime_error("it has another format");
  } catch (const std::runtime_error &failure) {
    throw std::runtime_error("'" + file + "' is not an mlff-student archive, or it is damaged (" +
                             printable(failure.what()) +
                             "). Write it again with 'mlff-student export --model NAME', or copy "
                             "it again");
  }
  const Json facts(metadata);
  double version = 0.0;
  std::string stored_hash;
  try {
    version = facts.at("format_version").number();
    if (version == FORMAT_VERSION) {
      name = text_of(facts.at("name"));
      teacher = text_of(facts.at("teacher"));
      dtype = text_of(facts.at("dtype"));
      const double count = facts.at("parameters").number();
      if (!(count >= 0.0 && count <= MAX_PARAMETERS))
        throw std::runtime_error("it claims " + brief(count) + " parameters");
      parameters = static_cast<int64_t>(count);
      cutoff = facts.at("cutoff").number();
      for (const Json &element : facts.at("elements").values())
        elements.push_back(text_of(element));
      stored_hash = text_of(facts.at("weights_sha256"));
      const Json &check = facts.at("self_check");
      if (!check.is_null())
        reference = read_reference(check);
      else if (has_script)
        throw std::runtime_error("the self-check is missing");
    }
  } catch (const std::runtime_error &error) {
    throw std::runtime_error("the metadata of '" + file + "' are damaged (" +
                             printable(error.what()) + "); export the model again");
  }
  if (version != FORMAT_VERSION)
    throw std::runtime_error(
        "'" + file + "' has archive format " + brief(version) + ", this build reads format " +
        brief(FORMAT_VERSION) +
        (version == 2 ? "; write it again: mlff-student export --checkpoint " + file + " -o NEW.pt"
                      : ". Export the model again with the installed mlff-student, or install the "
                        "version that wrote it"));
  try {
    const auto entry = members.find(WEIGHTS_FILE);
    if (entry == members.end()) throw std::runtime_error("it contains no weights");
    const auto arrays = read_safetensors(entry->second);
    const std::string hash = weights_hash(arrays), student = "student.";
    if (hash != stored_hash)
      throw std::runtime_error("the weights have the hash " + hash.substr(0, 12) +
                               ", the metadata say " + stored_hash.substr(0, 12) +
                               "; the file was altered");
    int64_t trained = 0;
    for (const auto &[key, array] : arrays) {
      if (key.compare(0, student.size(), student) != 0)
        throw std::runtime_error("the array '" + key + "' is none of a student");
      const Array &values = weights[key.substr(student.size())] = to_array(key, array);
      if (ends_with(key, ".weight") || ends_with(key, ".bias"))
        trained += static_cast<int64_t>(values.values.size());
    }
    if (trained != parameters)
      throw std::runtime_error("it has " + std::to_string(trained) +
                               " parameters, the metadata say " + std::to_string(parameters));
    // The n-th radial function has the frequency n pi / cutoff.
    const auto frequencies = weights.find("basis.frequencies");
    if (frequencies == weights.end() || frequencies->second.values.empty() ||
        !(std::abs(frequencies->second.values[0] * cutoff / M_PI - 1.0) < 1e-5))
      throw std::runtime_error("its radial functions do not belong to its cutoff");
  } catch (const std::runtime_error &error) {
    throw std::runtime_error("model " + name + " is damaged (" + error.what() +
                             "); copy it again, or export it again");
  }
}

} // namespace mlff_student
