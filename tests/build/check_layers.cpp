// Tests the layers as an engine with domains calls them: two domains that exchange features of
// ghosts between the layers must give the energies and forces of one evaluation. Exit status 1:
// they differ.
#include "dispatch.h"
#include "evaluate.h"
#include "random_weights.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <set>
#include <stdexcept>

using namespace mlff_student;

namespace {

constexpr double CUTOFF = 4.0, EDGE = 9.0; // angstrom

struct System {
  std::vector<double> positions; // (N, 3)
  std::vector<int32_t> species;  // (N,)
};

struct Answer {
  std::vector<double> energies, forces;
};

Answer whole(const Model &model, const System &system) {
  const int64_t atoms = system.species.size();
  Workspace work;
  NeighbourList list;
  const Cell cell{{{{EDGE, 0, 0}, {0, EDGE, 0}, {0, 0, EDGE}}}, {true, true, true}};
  std::copy(system.species.begin(), system.species.end(), work.species.reserve(atoms));
  list.build_edges(system.positions.data(), atoms, cell, model.cutoff, work.graph);
  work.graph.complete(model, work.threads);
  Answer answer{std::vector<double>(atoms), std::vector<double>(3 * atoms)};
  std::vector<double> gradient(3 * work.graph.edges);
  double virial[9];
  evaluate_graph(model, work, atoms, answer.energies.data(), gradient.data());
  gather_forces(work, gradient.data(), answer.forces.data(), virial);
  return answer;
}

struct Domain {
  std::vector<int64_t> atom;     // (nodes,) atom of each node, local atoms first
  std::vector<double> positions; // (nodes, 3)
  int64_t locals = 0;
  Workspace work;
};

void fill_graph(const Model &model, const System &system, Domain &domain) {
  const int64_t nodes = domain.atom.size();
  std::vector<int32_t> sender;
  std::vector<double> vectors;
  std::vector<int64_t> first{0};
  for (int64_t i = 0; i < domain.locals; i++) {
    for (int64_t j = 0; j < nodes; j++) {
      double r[3], square = 0.0;
      for (int a = 0; a < 3; a++) {
        r[a] = domain.positions[3 * j + a] - domain.positions[3 * i + a];
        square += r[a] * r[a];
      }
      if (i == j || square >= model.cutoff * model.cutoff) continue;
      sender.push_back(static_cast<int32_t>(j));
      vectors.insert(vectors.end(), r, r + 3);
    }
    first.push_back(sender.size());
  }
  Graph &graph = domain.work.graph;
  graph.resize(nodes, domain.locals, sender.size());
  std::copy(first.begin(), first.end(), graph.first.data());
  std::copy(sender.begin(), sender.end(), graph.sender.data());
  std::copy(vectors.begin(), vectors.end(), graph.vectors.data());
  domain.work.species.reserve(nodes);
  for (int64_t i = 0; i < nodes; i++) domain.work.species[i] = system.species[domain.atom[i]];
  graph.complete(model, domain.work.threads);
}

Answer in_domains(const Model &model, const System &system, double border) {
  const int64_t atoms = system.species.size(), f = model.channels;
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
    fill_graph(model, system, domain);
  }

  for (Domain &domain : domains) embed(model, domain.work);
  for (std::size_t depth = 0; depth < model.layers.size(); depth++) {
    if (depth > 0)
      for (Domain &domain : domains)
        for (std::size_t i = domain.locals; i < domain.atom.size(); i++) {
          const auto [side, row] = owner[domain.atom[i]];
          const LayerState &from = domains[side].work.layers[depth];
          LayerState &to = domain.work.layers[depth];
          std::copy_n(&from.q[row * f], f, &to.q[i * f]);
          std::copy_n(&from.mu[3 * row * f], 3 * f, &to.mu[3 * i * f]);
        }
    for (Domain &domain : domains) forward_layer(model, domain.work, depth);
  }
  for (Domain &domain : domains) readout(model, domain.work, domain.locals);
  for (std::size_t depth = model.layers.size(); depth-- > 0;) {
    for (Domain &domain : domains) adjoint_layer(model, domain.work, depth);
    if (depth == 0) break;
    for (Domain &domain : domains)
      for (std::size_t i = domain.locals; i < domain.atom.size(); i++) {
        const auto [side, row] = owner[domain.atom[i]];
        Workspace &to = domains[side].work;
        for (int64_t c = 0; c < f; c++) to.g_q[row * f + c] += domain.work.g_q[i * f + c];
        for (int64_t c = 0; c < 3 * f; c++)
          to.g_mu[3 * row * f + c] += domain.work.g_mu[3 * i * f + c];
      }
  }

  Answer answer{std::vector<double>(atoms), std::vector<double>(3 * atoms)};
  for (Domain &domain : domains) {
    const Graph &graph = domain.work.graph;
    std::vector<double> energies(domain.locals), gradient(3 * graph.edges);
    std::vector<double> forces(3 * graph.nodes);
    double virial[9];
    assemble(model, domain.work, domain.locals, energies.data(), gradient.data());
    gather_forces(domain.work, gradient.data(), forces.data(), virial);
    for (int64_t i = 0; i < domain.locals; i++) answer.energies[domain.atom[i]] = energies[i];
    for (int64_t i = 0; i < graph.nodes; i++)
      for (int a = 0; a < 3; a++) answer.forces[3 * domain.atom[i] + a] += forces[3 * i + a];
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
    const Model model(random_weights(channels, 3, 8, random), CUTOFF);
    const Answer expected = whole(model, system);
    for (const double border : {0.5 * EDGE, 0.0}) { // with the second, a domain has no atoms
      const Answer parallel = in_domains(model, system, border);
      double scale = 1.0;
      for (const double force : expected.forces) scale = std::max(scale, std::abs(force));
      const double energy = largest_difference(parallel.energies, expected.energies);
      const double force = largest_difference(parallel.forces, expected.forces);
      std::printf("%s, %d channels, border at %.1f: energies differ by %.1e eV, forces by %.1e of "
                  "%.1f eV/angstrom\n",
                  instruction_set().c_str(), static_cast<int>(channels), border, energy, force,
                  scale);
      // The sums are in float32 and in another order.
      good = good && energy < 2e-6 * scale && force < 2e-6 * scale;
    }
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
    system.species.push_back(static_cast<int32_t>(i % 3));
  }
  bool good = true;
  for (const char *name : {"generic", "avx2", "avx512"}) {
    try {
      use_instruction_set(name);
    } catch (const std::invalid_argument &refusal) {
      std::printf("%s\n", refusal.what());
      continue;
    }
    good = agree(system, random) && good;
  }
  return good ? 0 : 1;
}
