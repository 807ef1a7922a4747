// A full neighbour list with a skin, computed by vesin's cell list.
#pragma once

#include "layers.h"

#include <array>
#include <memory>
#include <vector>

struct VesinNeighborList;

namespace mlff_student {

struct Cell {
  std::array<std::array<double, 3>, 3> rows; // lattice vectors, angstrom
  std::array<bool, 3> periodic;
};

// Pairs within cutoff + skin are searched again when an atom has moved by half the skin or the cell
// has changed. Otherwise the pairs within the cutoff are taken from the last search.
class NeighbourList {
public:
  // Angstrom. A hydrogen atom at 300 K moves by half of it in about 20 femtoseconds. A search takes
  // 30 times as long as choosing the pairs within the cutoff.
  static constexpr double SKIN = 1.0;

  // Fills the edges of `graph`. Positions (N, 3) are in angstrom and must be finite. Throws
  // std::invalid_argument for a far atom or a cell without volume.
  void build_edges(const double *positions, int64_t atoms, const Cell &cell, double cutoff,
                   Graph &graph, double skin = SKIN);

  std::size_t bytes() const { // memory in use
    return first_.capacity() * sizeof(first_[0]) + pairs_.capacity() * sizeof(pairs_[0]) +
           shifts_.capacity() * sizeof(shifts_[0]) + reference_.capacity() * sizeof(reference_[0]) +
           list_bytes_;
  }

private:
  bool outdated(const double *positions, int64_t atoms, const Cell &cell, double cutoff) const;
  void search(const double *positions, int64_t atoms, const Cell &cell, double cutoff, double skin);

  struct FreeList {
    void operator()(VesinNeighborList *list) const;
  };
  struct Pair {
    int32_t sender;
    int32_t shift; // index into shifts_
  };
  std::vector<int64_t> first_;                // (N + 1,)
  std::vector<Pair> pairs_;                   // sorted by receiver, sender, shift
  std::vector<std::array<double, 3>> shifts_; // angstrom
  std::vector<double> reference_;             // (N, 3) positions at the last search
  std::unique_ptr<VesinNeighborList, FreeList> list_;
  std::size_t list_bytes_ = 0;
  Cell cell_{};
  double cutoff_ = -1.0, skin_ = 0.0;
};

} // namespace mlff_student
