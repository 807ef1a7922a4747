// Tests the layers as an engine with domains calls them: two domains that exchange features of
// ghosts between the layers must give the energies and forces of one evaluation. Exit status 1:
// they differ.
#include "random_weights.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <set>

namespace {

constexpr double CUTOFF = 4.0, EDGE = 9.0; // angstrom

struct System {
  std::vector<double> positions; // (N, 3)
  std::vector<int64_t> numbers;  // (N,)
};

struct Answer {
  std::vector<double> energies, forces;
};

// Ends the program if a call failed.
void check(int status) {
  if (status == MLFF_STUDENT_OK) return;
  std::printf("%s\n", mlff_student_error());
  std::exit(2);
}

Answer whole(const mlff_student_model *model, const System &system) {
  const int64_t atoms = system.numbers.size();
  Answer answer{std::vector<double>(atoms), std::vector<double>(3 * atoms)};
  const double cell[9] = {EDGE, 0, 0, 0, EDGE, 0, 0, 0, EDGE};
  const mlff_student_system input = {atoms, system.positions.data(), system.numbers.data(), cell,
                                     nullptr};
  const mlff_student_results results = {answer.energies.data(), answer.forces.data(), nullptr,
                                        nullptr};
  auto *work = mlff_student_new_workspace();
  check(mlff_student_evaluate(model, work, 1, &input, &results));
  mlff_student_free_workspace(work);
  return answer;
}

struct Domain {
  std::vector<int64_t> atom;     // (nodes,) atom of each node, local atoms first
  std::vector<double> positions; // (nodes, 3)
  int64_t locals = 0;
  std::vector<int64_t> first{0}; // edges, sorted by receiver
  std::vector<int32_t> senders;
  mlff_student_workspace *work = mlff_student_new_workspace();
};

void begin(const mlff_student_model *model, const System &system, Domain &domain) {
  const int64_t nodes = domain.atom.size();
  std::vector<double> vectors;
  for (int64_t i = 0; i < domain.locals; i++) {
    for (int64_t j = 0; j < nodes; j++) {
      double r[3], square = 0.0;
      for (int a = 0; a < 3; a++) {
        r[a] = domain.positions[3 * j + a] - domain.positions[3 * i + a];
        square += r[a] * r[a];
      }
      if (i == j || square >= CUTOFF * CUTOFF) continue;
      domain.senders.push_back(static_cast<int32_t>(j));
      vectors.insert(vectors.end(), r, r + 3);
    }
    domain.first.push_back(domain.senders.size());
  }
  std::vector<int64_t> numbers;
  for (const int64_t atom : domain.atom) numbers.push_back(system.numbers[atom]);
  check(mlff_student_begin(model, domain.work, 1, nodes, domain.locals, numbers.data(),
                           domain.first.data(), domain.senders.data(), vectors.data()));
}

Answer in_domains(const mlff_student_model *model, const System &system, double border) {
  const mlff_student_facts facts = mlff_student_describe(model);
  const int64_t atoms = system.numbers.size(), f = facts.channels;
  std::vector<Domain> domains(2);
  std::vector<std::pair<int, int64_t>> owner(atoms); // domain and row
  for (int64_t i = 0; i < atoms; i++) {
    const int side = system.positions[3 * i] < border ? 0 : 1;
    Domain &domain = domains[side];
    owner[i] = {side, domain.locals++};
    domain.atom.push_back(i);
    for (int a = 0; a < 3; a++) domain.positions.push_back(system.positions[3 * i + a]);
  }
  for (Domain &domain : domains) {
    const std::set<int64_t> own(domain.atom.begin(), domain.atom.end());
    for (int x = -1; x <= 1; x++)
      for (int y = -1; y <= 1; y++)
        for (int z = -1; z <= 1; z++)
          for (int64_t i = 0; i < atoms; i++) {
            if (x == 0 && y == 0 && z == 0 && own.count(i)) continue;
            domain.atom.push_back(i);
            const double shift[3] = {x * EDGE, y * EDGE, z * EDGE};
            for (int a = 0; a < 3; a++)
              domain.positions.push_back(system.positions[3 * i + a] + shift[a]);
          }
    begin(model, system, domain);
  }

  for (int64_t layer = 0; layer < facts.layers; layer++) {
    if (layer > 0)
      for (Domain &domain : domains)
        for (std::size_t i = domain.locals; i < domain.atom.size(); i++) {
          const auto [side, row] = owner[domain.atom[i]];
          const auto from = mlff_student_features_of(domains[side].work, layer);
          const auto to = mlff_student_features_of(domain.work, layer);
          std::copy_n(from.q + row * f, f, to.q + i * f);
          std::copy_n(from.mu + 3 * row * f, 3 * f, to.mu + 3 * i * f);
        }
    for (Domain &domain : domains) check(mlff_student_forward(model, domain.work, layer));
  }
  for (Domain &domain : domains) check(mlff_student_readout(model, domain.work));
  for (int64_t layer = facts.layers; layer-- > 0;) {
    for (Domain &domain : domains) check(mlff_student_adjoint(model, domain.work, layer));
    if (layer == 0) break;
    for (Domain &domain : domains)
      for (std::size_t i = domain.locals; i < domain.atom.size(); i++) {
        const auto [side, row] = owner[domain.atom[i]];
        const auto from = mlff_student_features_of(domain.work, layer);
        const auto to = mlff_student_features_of(domains[side].work, layer);
        for (int64_t c = 0; c < f; c++) to.g_q[row * f + c] += from.g_q[i * f + c];
        for (int64_t c = 0; c < 3 * f; c++) to.g_mu[3 * row * f + c] += from.g_mu[3 * i * f + c];
      }
  }

  Answer answer{std::vector<double>(atoms), std::vector<double>(3 * atoms)};
  for (Domain &domain : domains) {
    std::vector<double> energies(domain.locals), gradient(3 * domain.senders.size());
    check(mlff_student_finish(model, domain.work, energies.data(), gradient.data()));
    for (int64_t i = 0; i < domain.locals; i++) {
      answer.energies[domain.atom[i]] = energies[i];
      for (int64_t e = domain.first[i]; e < domain.first[i + 1]; e++)
        for (int a = 0; a < 3; a++) {
          answer.forces[3 * domain.atom[i] + a] += gradient[3 * e + a];
          answer.forces[3 * domain.atom[domain.senders[e]] + a] -= gradient[3 * e + a];
        }
    }
    mlff_student_free_workspace(domain.work);
  }
  return answer;
}

double largest_difference(const std::vector<double> &a, const std::vector<double> &b) {
  double largest = 0.0;
  for (std::size_t k = 0; k < a.size(); k++)
    largest = std::isfinite(a[k]) ? std::max(largest, std::abs(a[k] - b[k])) : INFINITY;
  return largest;
}

bool agree(const System &system, std::mt19937 &random) {
  bool good = true;
  for (const int64_t channels : {16, 32, 64, 80, 128}) {
    auto *model = model_of(random_weights(channels, 3, 8, random), CUTOFF);
    check(model ? MLFF_STUDENT_OK : MLFF_STUDENT_INTERNAL);
    const Answer expected = whole(model, system);
    for (const double border : {0.5 * EDGE, 0.0}) { // with the second, a domain has no atoms
      const Answer parallel = in_domains(model, system, border);
      double scale = 1.0;
      for (const double force : expected.forces) scale = std::max(scale, std::abs(force));
      const double energy = largest_difference(parallel.energies, expected.energies);
      const double force = largest_difference(parallel.forces, expected.forces);
      std::printf("%s, %d channels, border at %.1f: energies differ by %.1e eV, forces by %.1e of "
                  "%.1f eV/angstrom\n",
                  mlff_student_instruction_set(), static_cast<int>(channels), border, energy, force,
                  scale);
      // The sums are in float32 and in another order.
      good = good && energy < 2e-6 * scale && force < 2e-6 * scale;
    }
    mlff_student_close(model);
  }
  return good;
}

} // namespace

int main() {
  std::mt19937 random(5);
  std::uniform_real_distribution<double> uniform(0.0, EDGE);
  System system;
  for (int64_t i = 0; i < 70; i++) {
    for (int a = 0; a < 3; a++) system.positions.push_back(uniform(random));
    system.numbers.push_back(1 + i % 3);
  }
  bool good = true;
  for (const char *name : {"generic", "avx2", "avx512"}) {
    if (mlff_student_use_instruction_set(name)) {
      std::printf("%s\n", mlff_student_error());
      continue;
    }
    good = agree(system, random) && good;
  }
  return good ? 0 : 1;
}
