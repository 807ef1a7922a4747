// Tests that calls in a wrong order, or with models that do not belong together, are refused with
// the right message. Exit status 1: a call was not refused, or with another message.
#include "random_weights.h"

#include <cstdio>
#include <cstring>

namespace {

int wrong = 0;

void expect(bool refused, const char *message) {
  if (refused && std::strstr(mlff_student_error(), message)) return;
  std::printf("expected '%s', got '%s'\n", message, refused ? mlff_student_error() : "no error");
  wrong = 1;
}

void expect_good(int status) {
  if (status == MLFF_STUDENT_OK) return;
  std::printf("%s\n", mlff_student_error());
  wrong = 1;
}

} // namespace

int main() {
  std::mt19937 random(1);
  const Arrays weights = random_weights(16, 2, 4, random);
  auto *model = model_of(weights, 4.0), *other = model_of(weights, 4.0),
       *far = model_of(weights, 5.0);
  auto *fine = model_of(weights, 4.0, 500);
  auto *work = mlff_student_new_workspace();
  const int64_t numbers[2] = {1, 2}, first[3] = {0, 1, 2};
  const int32_t senders[2] = {1, 0};
  const double vectors[6] = {1.1, 0, 0, -1.1, 0, 0};
  double energies[4], gradient[6], forces[12];
  const auto begin = [&](const int64_t *row, const int32_t *sender, int64_t receivers) {
    return mlff_student_begin(model, work, 1, 2, receivers, numbers, row, sender, vectors);
  };

  expect(mlff_student_forward(model, work, 0), "without mlff_student_begin");
  expect(mlff_student_features_of(work, 0).q == nullptr, "without mlff_student_begin");
  expect(begin(nullptr, senders, 2), "first is NULL");
  expect(begin(first, senders, 3), "receivers is 3, expected 0 to 2");
  const int64_t late[3] = {1, 1, 2}, falling[3] = {0, 2, 1};
  expect(begin(late, senders, 2), "first[0] is 1, expected 0");
  expect(begin(falling, senders, 2), "first[2] is 1, smaller than the number before it, 2");
  const int32_t outside[2] = {1, 2};
  expect(begin(first, outside, 2), "edge 1 names node 2 of 2");

  expect_good(begin(first, senders, 2));
  expect(mlff_student_features_of(work, 2).q == nullptr, "layer is 2, expected 0 to 1");
  expect(mlff_student_forward(model, work, 1),
         "forward of layer 1 was called, expected mlff_student_forward of layer 0");
  expect(mlff_student_forward(model, work, -1), "layer is -1, expected 0 to 1");
  expect(mlff_student_forward(other, work, 0), "another model");
  expect_good(mlff_student_forward(model, work, 0));
  expect(mlff_student_readout(model, work), "expected mlff_student_forward of layer 1");
  expect_good(mlff_student_forward(model, work, 1));
  expect(mlff_student_adjoint(model, work, 1), "expected mlff_student_readout");
  expect_good(mlff_student_readout(model, work));
  expect(mlff_student_adjoint(model, work, 0), "expected mlff_student_adjoint of layer 1");
  expect_good(mlff_student_adjoint(model, work, 1));
  expect_good(mlff_student_adjoint(model, work, 0));
  expect(mlff_student_readout(model, work), "expected mlff_student_finish");
  expect_good(mlff_student_finish(model, work, energies, gradient));
  expect(mlff_student_finish(model, work, energies, gradient), "without mlff_student_begin");

  const double positions[6] = {0, 0, 0, 1.1, 0, 0};
  const mlff_student_system system = {2, positions, numbers, nullptr, nullptr};
  const mlff_student_results results[2] = {{energies, forces, nullptr, nullptr},
                                           {energies + 2, forces + 6, nullptr, nullptr}};
  const mlff_student_model *members[2] = {model, far};
  const auto committee = [&] {
    return mlff_student_evaluate_committee(members, 2, work, 1, &system, results);
  };
  expect(committee(), "model 1 of the committee has the cutoff 5 angstrom, model 0 has 4");
  members[1] = fine; // tables of other knots, of which a distance has other weights
  expect_good(committee());
  for (int i = 0; i < 2; i++)
    if (energies[i] == energies[i + 2] || std::abs(energies[i] - energies[i + 2]) > 1e-4) {
      std::printf("energies %.9f and %.9f\n", energies[i], energies[i + 2]);
      wrong = 1;
    }
  const int everywhere[3] = {1, 1, 1};
  const mlff_student_system open = {2, positions, numbers, nullptr, everywhere};
  expect(mlff_student_evaluate(model, work, 1, &open, results), "its cell is NULL");

  Arrays broken = weights;
  broken.erase("limits");
  expect(!model_of(broken, 4.0), "no tensor 'limits'");
  broken = weights;
  broken["embedding.weight"].values[3] = NAN;
  expect(!model_of(broken, 4.0), "number 3 of array 'embedding.weight' is not finite");
  expect(!model_of(weights, -4.0), "cutoff must be positive, got -4");
  expect(!model_of(weights, 4.0, 1), "2 to 100000 knots, got 1");
  expect(!mlff_student_open(nullptr), "file is NULL");
  mlff_student_close(nullptr);
  for (auto *used : {model, other, far, fine}) mlff_student_close(used);
  mlff_student_free_workspace(work);
  return wrong;
}
