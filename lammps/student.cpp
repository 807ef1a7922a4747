// SPDX-License-Identifier: GPL-2.0-or-later

#include "student.h"

#include "archive.h"
#include "dispatch.h"
#include "self_check.h"

#include <ATen/Parallel.h>

#include <string>

namespace mlff_student {

Student::Student(const char *file, const char *content, std::size_t size, const char *device)
    : archive(std::make_unique<Archive>(file, std::string(content, size), device)) {
  name = archive->name.c_str();
  teacher = archive->teacher.c_str();
  dtype = archive->dtype.c_str();
  parameters = archive->parameters;
  cutoff = archive->cutoff;
  for (const auto &element : archive->elements) elements.push_back(element.c_str());
}

Student::~Student() = default;

const Model *Student::read_weights() {
  model = std::make_unique<Model>(archive->weights(), cutoff);
  return model.get();
}

void Student::check_reference_numbers(Workspace &work) const {
  mlff_student::check_reference_numbers(*archive, model.get(), work);
}

void Student::from_edges(const double *edge_vectors, const int64_t *edge_index, int64_t edges,
                         const int64_t *atomic_numbers, int64_t atoms, double *energies,
                         double *gradient) const {
  archive->from_edges(edge_vectors, edge_index, edges, atomic_numbers, atoms, energies, gradient);
}

int64_t number_of_element(const char *symbol) { return atomic_number(symbol); }

const char *instruction_set_name() {
  static thread_local std::string name;
  return (name = instruction_set()).c_str();
}

void set_threads(int threads) { at::set_num_threads(threads); }

} // namespace mlff_student
