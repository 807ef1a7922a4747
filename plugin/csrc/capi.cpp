// The functions of mlff_student.h. They check all input, and turn exceptions into statuses.
#include "archive.h"
#include "checks.h"
#include "dispatch.h"
#include "handle.h"
#include "self_check.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <stdexcept>

using namespace mlff_student;

namespace {

constexpr std::size_t MAX_DIMENSIONS = 8;

thread_local char reason[1000]; // not a string, which could run out of memory
thread_local int last_status = MLFF_STUDENT_OK;

} // namespace

int mlff_student::fail(int status, const char *text) {
  constexpr const char *PREFIX = "mlff_student: ";
  if (std::strncmp(text, PREFIX, std::strlen(PREFIX)) == 0) text += std::strlen(PREFIX);
  std::snprintf(reason, sizeof(reason), "%s", text);
  return last_status = status;
}

namespace {

mlff_student_model *open_archive(const char *name, std::string_view content) {
  Archive archive(name, content);
  if (archive.dtype != "float32")
    refuse("model " + archive.name + " is in " + archive.dtype +
           ", and the kernels compute in float32; export it again with '--dtype float32'");
  std::unique_ptr<mlff_student_model> result;
  try {
    result = std::make_unique<mlff_student_model>(archive.weights, archive.cutoff, 0);
    archive.weights.clear();
    if (!archive.reference.atomic_numbers.empty())
      check_reference_numbers(archive.reference, archive.cutoff,
                              [&result](const double *vectors, const int64_t *index, int64_t edges,
                                        const int64_t *atomic_numbers, int64_t atoms,
                                        double *energies, double *gradient) {
                                Workspace work;
                                EdgeMemory memory;
                                check_vectors(vectors, edges);
                                set_species(result->model, atomic_numbers, atoms, work);
                                evaluate_edges(result->model, work, memory, atoms,
                                               {edges, index, vectors}, atoms, energies, gradient);
                              });
  } catch (const std::invalid_argument &error) {
    throw std::runtime_error("model " + archive.name + " is damaged (" + error.what() +
                             "); export it again");
  } catch (const std::runtime_error &error) {
    throw std::runtime_error("model " + archive.name + ": " + error.what());
  }
  result->name = archive.name;
  result->teacher = archive.teacher;
  result->metadata = archive.metadata;
  result->parameters = archive.parameters;
  return result.release();
}

std::string read_file(const std::string &file) {
  std::error_code error;
  const auto kind = std::filesystem::status(file, error).type();
  if (kind == std::filesystem::file_type::not_found) refuse("there is no file '" + file + "'");
  if (kind != std::filesystem::file_type::regular) refuse("'" + file + "' is no regular file");
  const auto size = std::filesystem::file_size(file, error);
  if (!error && size > MLFF_STUDENT_LARGEST_ARCHIVE)
    refuse("'" + file + "' has " + std::to_string(size) + " bytes, expected at most " +
           std::to_string(MLFF_STUDENT_LARGEST_ARCHIVE));
  std::string content(error ? 0 : size, '\0');
  std::ifstream stream(file, std::ios::binary);
  if (error || !stream.read(content.data(), static_cast<std::streamsize>(content.size())))
    refuse("'" + file + "' cannot be read" + (error ? ": " + error.message() : ""));
  return content;
}

Array read_array(const mlff_student_array &array, const std::string &name) {
  if (array.dimensions > MAX_DIMENSIONS)
    refuse("array '" + name + "' has " + std::to_string(array.dimensions) +
           " dimensions, expected at most " + std::to_string(MAX_DIMENSIONS));
  if (array.dimensions > 0) check_pointer(array.shape, "shape");
  int64_t count = 1;
  for (std::size_t k = 0; k < array.dimensions; k++) {
    check_count(array.shape[k], "a length of an array");
    count *= array.shape[k];
    check_count(count, "the size of an array");
  }
  if (count > 0) check_pointer(array.values, "values");
  for (int64_t k = 0; k < count; k++)
    if (!std::isfinite(array.values[k]))
      refuse("number " + std::to_string(k) + " of array '" + name + "' is not finite");
  return {{array.shape, array.shape + array.dimensions}, {array.values, array.values + count}};
}

void check_layer(int64_t layer, int64_t layers) {
  if (layer < 0 || layer >= layers)
    refuse("layer is " + std::to_string(layer) + ", expected 0 to " + std::to_string(layers - 1));
}

// Kinds of steps of the layer-wise evaluation, and their names in messages.
enum Phase { FORWARD, READOUT, ADJOINT, FINISH };
constexpr const char *PHASES[] = {"mlff_student_forward", "mlff_student_readout",
                                  "mlff_student_adjoint", "mlff_student_finish"};

std::string with_layer(Phase phase, int64_t layer) {
  const bool has_layer = phase == FORWARD || phase == ADJOINT;
  return PHASES[phase] + (has_layer ? " of layer " + std::to_string(layer) : "");
}

// Runs a step, which must be the next one. If it fails, the evaluation must begin again.
template <typename Function>
int run_step(const mlff_student_model *model, mlff_student_workspace *work, Phase phase,
             int64_t layer, const Function &function) {
  return guarded([&] {
    check_pointer(model, "model");
    check_pointer(work, "work");
    const int64_t layers = model->model.layers.size(), steps = work->steps;
    if (steps < 0)
      refuse(std::string(PHASES[phase]) + " was called without mlff_student_begin before it");
    if (model != work->model)
      refuse(std::string(PHASES[phase]) + " was called with another model than mlff_student_begin");
    check_layer(layer, layers);
    const int64_t step = phase == FORWARD   ? layer
                         : phase == READOUT ? layers
                         : phase == ADJOINT ? 2 * layers - layer
                                            : 2 * layers + 1;
    if (step != steps)
      refuse(with_layer(phase, layer) + " was called, expected " +
             (steps < layers        ? with_layer(FORWARD, steps)
              : steps == layers     ? with_layer(READOUT, 0)
              : steps <= 2 * layers ? with_layer(ADJOINT, 2 * layers - steps)
                                    : with_layer(FINISH, 0)));
    work->steps = -1;
    function(model->model, work->work);
    if (phase != FINISH) work->steps = steps + 1;
  });
}

} // namespace

mlff_student_model::mlff_student_model(const Arrays &arrays, double cutoff, int64_t knots)
    : model(arrays, cutoff, knots) {
  for (std::size_t z = 0; z < model.species_of.size(); z++)
    if (model.species_of[z] >= 0) atomic_numbers.push_back(static_cast<int64_t>(z));
}

int mlff_student_abi(void) { return MLFF_STUDENT_ABI; }

const char *mlff_student_error(void) { return reason; }

int mlff_student_error_status(void) { return last_status; }

const char *mlff_student_instruction_set(void) { return instruction_set(); }

int mlff_student_use_instruction_set(const char *name) {
  return guarded([&] {
    check_pointer(name, "name");
    use_instruction_set(name);
  });
}

mlff_student_model *mlff_student_open(const char *file) {
  mlff_student_model *model = nullptr;
  guarded(
      [&] {
        check_pointer(file, "file");
        model = open_archive(file, read_file(file));
      },
      MLFF_STUDENT_BAD_ARCHIVE);
  return model;
}

mlff_student_model *mlff_student_open_memory(const char *name, const void *bytes, size_t size) {
  mlff_student_model *model = nullptr;
  guarded(
      [&] {
        check_pointer(name, "name");
        check_pointer(bytes, "bytes");
        model = open_archive(name, {static_cast<const char *>(bytes), size});
      },
      MLFF_STUDENT_BAD_ARCHIVE);
  return model;
}

mlff_student_model *mlff_student_from_arrays(const mlff_student_array *arrays, size_t count,
                                             double cutoff, int64_t knots) {
  mlff_student_model *model = nullptr;
  guarded([&] {
    check_pointer(arrays, "arrays");
    if (knots < 0) refuse("knots is " + std::to_string(knots) + ", expected 0 or more");
    Arrays weights;
    for (size_t k = 0; k < count; k++) {
      check_pointer(arrays[k].name, "the name of an array");
      const std::string name = arrays[k].name;
      if (!weights.emplace(name, read_array(arrays[k], name)).second)
        refuse("two arrays have the name '" + name + "'");
    }
    model = std::make_unique<mlff_student_model>(weights, cutoff, knots).release();
  });
  return model;
}

void mlff_student_close(mlff_student_model *model) {
  const std::unique_ptr<mlff_student_model> owner(model);
}

mlff_student_facts mlff_student_describe(const mlff_student_model *model) {
  if (!model) {
    fail(MLFF_STUDENT_BAD_INPUT, "model is NULL");
    return {"", "", "", 0.0, 0, 0, 0, 0, nullptr, 0};
  }
  const Model &facts = model->model;
  return {model->name.c_str(),
          model->teacher.c_str(),
          model->metadata.c_str(),
          facts.cutoff,
          model->parameters,
          facts.channels,
          static_cast<int64_t>(facts.layers.size()),
          facts.knots,
          model->atomic_numbers.data(),
          model->atomic_numbers.size()};
}

mlff_student_workspace *mlff_student_new_workspace(void) {
  mlff_student_workspace *work = nullptr;
  guarded([&] { work = std::make_unique<mlff_student_workspace>().release(); });
  return work;
}

void mlff_student_free_workspace(mlff_student_workspace *work) {
  const std::unique_ptr<mlff_student_workspace> owner(work);
}

size_t mlff_student_workspace_bytes(const mlff_student_workspace *work) {
  if (!work) return 0;
  return work->work.bytes() + (work->neighbours ? work->neighbours->bytes() : 0) +
         work->edges.next.bytes() + work->edges.position.bytes() + work->edges.gradient.bytes() +
         work->energies.bytes() + work->gradient.bytes();
}

int mlff_student_evaluate_edges(const mlff_student_model *model, mlff_student_workspace *work,
                                int threads, int64_t atoms, const int64_t *atomic_numbers,
                                int64_t edges, const int64_t *index, const double *vectors,
                                int64_t local, double *energies, double *gradient) {
  return guarded([&] {
    check_pointer(model, "model");
    check_pointer(work, "work");
    check_threads(threads);
    check_count(atoms, "atoms");
    check_count(edges, "edges");
    check_count(local, "local", atoms);
    if (local > 0) check_pointer(energies, "energies");
    if (edges > 0) check_pointer(index, "index");
    if (edges > 0) check_pointer(vectors, "vectors");
    if (edges > 0) check_pointer(gradient, "gradient");
    for (int64_t k = 0; k < 2 * edges; k++)
      if (index[k] < 0 || index[k] >= atoms)
        refuse("edge " + std::to_string(k % edges) + " names atom " + std::to_string(index[k]) +
               " of " + std::to_string(atoms));
    check_vectors(vectors, edges);
    work->steps = -1;
    set_species(model->model, atomic_numbers, atoms, work->work);
    work->work.threads = threads;
    evaluate_edges(model->model, work->work, work->edges, atoms, {edges, index, vectors}, local,
                   energies, gradient);
    check_energies(energies, local);
  });
}

int mlff_student_begin(const mlff_student_model *model, mlff_student_workspace *work, int threads,
                       int64_t nodes, int64_t receivers, const int64_t *atomic_numbers,
                       const int64_t *first, const int32_t *senders, const double *vectors) {
  return guarded([&] {
    check_pointer(model, "model");
    check_pointer(work, "work");
    check_pointer(first, "first");
    check_threads(threads);
    check_count(nodes, "nodes");
    check_count(receivers, "receivers", nodes);
    if (first[0] != 0) refuse("first[0] is " + std::to_string(first[0]) + ", expected 0");
    for (int64_t i = 0; i < receivers; i++)
      if (first[i + 1] < first[i])
        refuse("first[" + std::to_string(i + 1) + "] is " + std::to_string(first[i + 1]) +
               ", smaller than the number before it, " + std::to_string(first[i]));
    const int64_t edges = first[receivers];
    check_count(edges, "the number of edges");
    if (edges > 0) check_pointer(senders, "senders");
    if (edges > 0) check_pointer(vectors, "vectors");
    work->steps = -1;
    set_species(model->model, atomic_numbers, nodes, work->work);
    work->work.threads = threads;
    Graph &graph = work->work.graph;
    graph.resize(nodes, receivers, edges);
    std::copy_n(first, receivers + 1, graph.first.data());
    graph.complete(model->model, threads, senders, vectors);
    embed(model->model, work->work);
    work->model = model;
    work->steps = 0;
  });
}

int mlff_student_forward(const mlff_student_model *model, mlff_student_workspace *work,
                         int64_t layer) {
  return run_step(model, work, FORWARD, layer, [layer](const Model &student, Workspace &memory) {
    forward_layer(student, memory, layer);
  });
}

int mlff_student_readout(const mlff_student_model *model, mlff_student_workspace *work) {
  return run_step(model, work, READOUT, 0, [](const Model &student, Workspace &memory) {
    readout(student, memory, memory.graph.receivers);
  });
}

int mlff_student_adjoint(const mlff_student_model *model, mlff_student_workspace *work,
                         int64_t layer) {
  return run_step(model, work, ADJOINT, layer, [layer](const Model &student, Workspace &memory) {
    adjoint_layer(student, memory, layer);
  });
}

int mlff_student_finish(const mlff_student_model *model, mlff_student_workspace *work,
                        double *energies, double *gradient) {
  return run_step(model, work, FINISH, 0, [=](const Model &student, Workspace &memory) {
    const Graph &graph = memory.graph;
    if (graph.receivers > 0) check_pointer(energies, "energies");
    if (graph.edges > 0) check_pointer(gradient, "gradient");
    assemble(student, memory, graph.receivers, energies, gradient);
    check_energies(energies, graph.receivers);
  });
}

mlff_student_features mlff_student_features_of(mlff_student_workspace *work, int64_t layer) {
  mlff_student_features features{};
  guarded([&] {
    check_pointer(work, "work");
    if (work->steps < 0)
      refuse("mlff_student_features_of was called without mlff_student_begin before it");
    check_layer(layer, work->model->model.layers.size());
    Workspace &memory = work->work;
    features.q = memory.layers[layer].q.data();
    features.mu = layer == 0 ? nullptr : memory.layers[layer].mu.data();
    features.g_q = memory.g_q.data();
    features.g_mu = memory.g_mu.data();
  });
  return features;
}
