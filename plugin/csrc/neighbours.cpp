#include "neighbours.h"

#include <vesin.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>

namespace mlff_student {

namespace {

constexpr double FARTHEST = 1e5;    // angstrom from the origin
constexpr double MAX_IMAGES = 1e4;  // of the cell within the cutoff
constexpr double VESIN_CELLS = 1e5; // vesin makes its grid coarser if it has more cells
constexpr double MOST_CELLS = 1e8;  // that vesin may look through
using Row = std::array<double, 3>;

Row cross(const Row &a, const Row &b) {
  return {a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]};
}

double dot(const Row &a, const Row &b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

Row unit(const Row &a) {
  const double length = std::sqrt(dot(a, a));
  return {a[0] / length, a[1] / length, a[2] / length};
}

// Replaces the rows of open directions by unit vectors orthogonal to the periodic rows.
Cell complete(Cell cell) {
  const int periodic = cell.periodic[0] + cell.periodic[1] + cell.periodic[2];
  auto &rows = cell.rows;
  if (periodic == 0) rows = {{{1.0, 0.0, 0.0}, {0.0, 1.0, 0.0}, {0.0, 0.0, 1.0}}};
  for (int a = 0; a < 3; a++) {
    const int b = (a + 1) % 3, c = (a + 2) % 3;
    if (periodic == 2 && !cell.periodic[a]) rows[a] = unit(cross(rows[b], rows[c]));
    if (periodic == 1 && cell.periodic[a]) {
      int farthest = 0; // the Cartesian axis farthest from the periodic one
      for (int k = 1; k < 3; k++)
        if (std::abs(rows[a][k]) < std::abs(rows[a][farthest])) farthest = k;
      Row axis{};
      axis[farthest] = 1.0;
      rows[b] = unit(cross(rows[a], axis));
      rows[c] = unit(cross(rows[a], rows[b]));
    }
  }
  return cell;
}

// Columns: fractional coordinates are f = x . columns.
std::array<Row, 3> inverse(const std::array<Row, 3> &rows) {
  const double volume = dot(rows[0], cross(rows[1], rows[2]));
  std::array<Row, 3> columns{};
  for (int a = 0; a < 3; a++) {
    columns[a] = cross(rows[(a + 1) % 3], rows[(a + 2) % 3]);
    for (double &component : columns[a]) component /= volume;
  }
  return columns;
}

// Pairs as vesin returns them.
struct Pairs {
  std::vector<std::array<std::size_t, 2>> atoms;
  std::vector<std::array<int32_t, 3>> shifts;
};

// Finds the pairs of a structure that is long in one direction: the atoms are sorted along it, and
// each looks at those within the cutoff in this direction. `heights` are the lengths of the cell,
// or of the structure in open directions, between opposite faces, angstrom.
Pairs sweep(const double *positions, int64_t atoms, const Cell &whole, double cutoff,
            const Row &heights) {
  const int axis = std::max_element(heights.begin(), heights.end()) - heights.begin();
  const int b = (axis + 1) % 3, c = (axis + 2) % 3;
  const std::array<Row, 3> columns = inverse(whole.rows);
  Row step;         // largest difference of the fractional coordinates of neighbours
  int32_t reach[3]; // images to look through in each direction
  for (int a = 0; a < 3; a++) {
    step[a] = cutoff * std::sqrt(dot(columns[a], columns[a])) * (1.0 + 1e-9);
    reach[a] = whole.periodic[a] ? static_cast<int32_t>(step[a]) + 1 : 0;
  }
  std::vector<Row> wrapped(atoms);
  std::vector<std::array<int32_t, 3>> moved(atoms);
  std::vector<std::pair<double, std::size_t>> order(atoms); // along the axis
  for (int64_t i = 0; i < atoms; i++) {
    const double *x = positions + 3 * i;
    std::copy_n(x, 3, wrapped[i].begin());
    for (int a = 0; a < 3; a++)
      moved[i][a] = whole.periodic[a]
                        ? static_cast<int32_t>(std::floor(dot(columns[a], {x[0], x[1], x[2]})))
                        : 0;
    for (int a = 0; a < 3; a++)
      for (int k = 0; k < 3; k++) wrapped[i][k] -= moved[i][a] * whole.rows[a][k];
    order[i] = {dot(columns[axis], wrapped[i]), i};
  }
  std::sort(order.begin(), order.end());
  Pairs pairs;
  for (const auto &[fraction, i] : order)
    for (int32_t along = -reach[axis]; along <= reach[axis]; along++) {
      const double lowest = fraction - along - step[axis];
      auto next =
          std::lower_bound(order.begin(), order.end(), std::make_pair(lowest, std::size_t{0}));
      for (; next != order.end() && next->first <= lowest + 2.0 * step[axis]; next++) {
        const std::size_t j = next->second;
        std::array<int32_t, 3> image{};
        image[axis] = along;
        for (image[b] = -reach[b]; image[b] <= reach[b]; image[b]++)
          for (image[c] = -reach[c]; image[c] <= reach[c]; image[c]++) {
            if (i == j && image == std::array<int32_t, 3>{}) continue;
            double squared = 0.0;
            for (int k = 0; k < 3; k++) {
              double r = wrapped[j][k] - wrapped[i][k];
              for (int a = 0; a < 3; a++) r += image[a] * whole.rows[a][k];
              squared += r * r;
            }
            if (!(squared < cutoff * cutoff)) continue;
            pairs.atoms.push_back({i, j});
            pairs.shifts.push_back({});
            for (int a = 0; a < 3; a++)
              pairs.shifts.back()[a] = image[a] + moved[i][a] - moved[j][a];
          }
      }
    }
  return pairs;
}

} // namespace

void NeighbourList::FreeList::operator()(VesinNeighborList *list) const {
  vesin_free(list);
  delete list;
}

bool NeighbourList::outdated(const double *positions, int64_t atoms, const Cell &cell,
                             double cutoff) const {
  if (cutoff != cutoff_ || static_cast<int64_t>(reference_.size()) != 3 * atoms ||
      cell.periodic != cell_.periodic || cell.rows != cell_.rows)
    return true;
  const double most = 0.25 * skin_ * skin_;
  for (int64_t i = 0; i < atoms; i++) {
    double moved = 0.0;
    for (int a = 0; a < 3; a++) {
      const double d = positions[3 * i + a] - reference_[3 * i + a];
      moved += d * d;
    }
    if (!(moved < most)) return true;
  }
  return false;
}

void NeighbourList::search(const double *positions, int64_t atoms, const Cell &cell, double cutoff,
                           double skin) {
  cutoff_ = -1.0; // if the search fails, the list is outdated
  for (int64_t k = 0; k < 3 * atoms; k++)
    if (std::abs(positions[k]) > FARTHEST)
      throw std::invalid_argument(
          "mlff_student: atom " + std::to_string(k / 3) + " is more than " +
          std::to_string(static_cast<int64_t>(FARTHEST)) +
          " angstrom from the origin; check whether the structure broke apart");
  const Cell whole = complete(cell);
  const double volume = dot(whole.rows[0], cross(whole.rows[1], whole.rows[2]));
  if (!(std::abs(volume) > 1e-3))
    throw std::invalid_argument("mlff_student: the periodic cell has the volume " +
                                std::to_string(std::abs(volume)) +
                                " angstrom^3; its vectors must be linearly independent");

  const std::array<Row, 3> columns = inverse(whole.rows);
  Row heights, bins;
  double images = 1.0, grid = 1.0;
  for (int a = 0; a < 3; a++) {
    if (cell.periodic[a]) {
      heights[a] = 1.0 / std::sqrt(dot(columns[a], columns[a]));
      images *= 2.0 * cutoff / heights[a] + 1.0;
    } else { // as vesin measures it
      double least = positions[a], most = positions[a];
      for (int64_t i = 0; i < atoms; i++) {
        least = std::min(least, positions[3 * i + a]);
        most = std::max(most, positions[3 * i + a]);
      }
      heights[a] = 1.01 * (most - least);
    }
    bins[a] = std::max(1.0, heights[a] / (cutoff + skin));
    grid *= bins[a];
  }
  if (!(images < MAX_IMAGES))
    throw std::invalid_argument("mlff_student: the periodic cell is so thin or skewed that " +
                                std::to_string(static_cast<int64_t>(std::min(images, 1e18))) +
                                " images of it are within the cutoff, expected less than " +
                                std::to_string(static_cast<int64_t>(MAX_IMAGES)) +
                                "; give a larger or less skewed cell");

  // vesin divides by zero if it leaves no cell of a coarser grid in a thin direction. It looks
  // through all images of all cells of its grid, empty ones too. In partly periodic structures it
  // looks through very many if the grid is large, or if a periodic vector has a part along the
  // Cartesian axis of an open direction.
  const double thinnest = *std::min_element(bins.begin(), bins.end());
  bool partly = false, oblique = false;
  for (int a = 0; a < 3; a++)
    for (int b = 0; b < 3; b++) {
      partly |= cell.periodic[a] && !cell.periodic[b];
      oblique |= cell.periodic[a] && !cell.periodic[b] && whole.rows[a][b] != 0.0;
    }
  Pairs swept;
  std::size_t length = 0;
  const std::size_t (*pairs)[2] = nullptr;
  const int32_t (*shifts)[3] = nullptr;
  std::unique_ptr<VesinNeighborList, FreeList> list;
  if (oblique || std::min(grid, VESIN_CELLS) * images > MOST_CELLS ||
      (grid > VESIN_CELLS && (partly || thinnest * std::cbrt(VESIN_CELLS / grid) < 2.0))) {
    swept = sweep(positions, atoms, whole, cutoff + skin, heights);
    length = swept.atoms.size();
    pairs = reinterpret_cast<const std::size_t (*)[2]>(swept.atoms.data());
    shifts = reinterpret_cast<const int32_t (*)[3]>(swept.shifts.data());
  } else {
    // The memory of the last search is used again; if this search fails, it is freed.
    list.reset(list_ ? list_.release() : new VesinNeighborList());
    VesinOptions options{};
    options.cutoff = cutoff + skin;
    options.full = true;
    options.sorted = false; // sorted below
    options.algorithm = VesinCellList;
    options.skin = 0.0;
    options.n_threads = 1;
    options.return_shifts = true;
    double box[3][3];
    for (int a = 0; a < 3; a++) std::copy(whole.rows[a].begin(), whole.rows[a].end(), box[a]);
    const char *message = nullptr;
    if (vesin_neighbors(reinterpret_cast<const double (*)[3]>(positions), atoms, box,
                        cell.periodic.data(), {VesinCPU, 0}, options, list.get(), &message))
      throw std::runtime_error(std::string("mlff_student: the neighbour search failed: ") +
                               (message ? message : "no reason given"));
    length = list->length;
    pairs = list->pairs;
    shifts = list->shifts;
  }

  first_.assign(atoms + 1, 0);
  pairs_.resize(length);
  shifts_.clear();
  // There are few different shifts. A pair stores the index of its shift, which is smaller.
  std::vector<std::array<int32_t, 3>> known;
  const auto shift_of = [shifts](std::size_t k) {
    const int32_t *shift = shifts[k];
    return std::array<int32_t, 3>{shift[0], shift[1], shift[2]};
  };
  for (std::size_t k = 0; k < length; k++) {
    const auto shift = shift_of(k);
    const auto at = std::lower_bound(known.begin(), known.end(), shift);
    if (at == known.end() || *at != shift) known.insert(at, shift);
  }
  for (const auto &shift : known) {
    Row row{};
    for (int a = 0; a < 3; a++)
      for (int b = 0; b < 3; b++) row[b] += shift[a] * whole.rows[a][b];
    shifts_.push_back(row);
  }
  for (std::size_t k = 0; k < length; k++) first_[pairs[k][0] + 1]++;
  for (int64_t i = 0; i < atoms; i++) first_[i + 1] += first_[i];
  std::vector<int64_t> next(first_.begin(), first_.end() - 1);
  for (std::size_t k = 0; k < length; k++) {
    const auto at = std::lower_bound(known.begin(), known.end(), shift_of(k));
    pairs_[next[pairs[k][0]]++] = {static_cast<int32_t>(pairs[k][1]),
                                   static_cast<int32_t>(at - known.begin())};
  }
  // The order depends on the structure alone, not on the time of the search, so that sums round the
  // same way.
  for (int64_t i = 0; i < atoms; i++)
    std::sort(pairs_.begin() + first_[i], pairs_.begin() + first_[i + 1],
              [](const Pair &a, const Pair &b) {
                return a.sender != b.sender ? a.sender < b.sender : a.shift < b.shift;
              });
  reference_.assign(positions, positions + 3 * atoms);
  cell_ = cell;
  cutoff_ = cutoff;
  skin_ = skin;
  list_ = std::move(list);
  list_bytes_ = list_ ? length * (sizeof(*list_->pairs) + sizeof(*list_->shifts)) : 0;
}

void NeighbourList::build_edges(const double *positions, int64_t atoms, const Cell &cell,
                                double cutoff, Graph &graph, double skin) {
  if (outdated(positions, atoms, cell, cutoff)) search(positions, atoms, cell, cutoff, skin);
  graph.resize(atoms, atoms, pairs_.size());
  int64_t edge = 0;
  for (int64_t i = 0; i < atoms; i++) {
    graph.first[i] = edge;
    const double *x_i = positions + 3 * i;
    for (int64_t k = first_[i]; k < first_[i + 1]; k++) {
      const Pair pair = pairs_[k];
      const double *x_j = positions + 3 * pair.sender;
      const Row &shift = shifts_[pair.shift];
      double *r = &graph.vectors[3 * edge];
      for (int a = 0; a < 3; a++) r[a] = x_j[a] - x_i[a] + shift[a];
      if (r[0] * r[0] + r[1] * r[1] + r[2] * r[2] >= cutoff * cutoff) continue;
      graph.sender[edge++] = pair.sender;
    }
  }
  graph.first[atoms] = edge;
  graph.edges = edge;
}

} // namespace mlff_student
